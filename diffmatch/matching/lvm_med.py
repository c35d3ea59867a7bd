"""Self-supervision by second-order graph matching: two views of a batch of images are matched as graphs.

The images of a batch are the nodes of one graph a view, their nearest neighbours in embedding space are its edges, and
node i of one view belongs to node i of the other. Affinities of nodes (global and local) and of edges are matched by a
quadratic assignment in the loop, through which gradients pass by implicit maximum likelihood.

After LVM-Med (Nguyen et al. 2023, "LVM-Med: Learning large-scale self-supervised vision models for medical imaging via
second-order graph matching"). No training code was published: solver, scales and the treatment of candidates are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from diffmatch.autodiff import ImplicitMLE, gumbel
from diffmatch.errors import InputError, check_positive, check_shape
from diffmatch.matching.assignment import assign
from diffmatch.matching.assignment.result import one_hot
from diffmatch.matching.losses import hamming_loss

__all__ = ["GraphMatching", "SecondOrderMatching", "edge_affinity", "frank_wolfe", "local_affinity", "neighbour_edges"]

QuadraticSolver = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``solver(vertex (n, n), edge (e, f), edges_s (2, e), edges_t (2, f))`` gives the column of each row, (n,)."""


@dataclass(frozen=True, eq=False)
class GraphMatching:
    """A batch matched between its views.

    Attributes:
        loss: Hamming distance of the matching to the identity, for each node that counts.
        assignment: node of the second view for each node of the first, under the noise of the training (the most
            frequent one of several samples), shape (n,).
        accuracy: share of the nodes that found themselves.
        objective: affinity of nodes and edges that the matching collects.
    """

    loss: Float[Tensor, ""]
    assignment: Int[Tensor, " n"]
    accuracy: Float[Tensor, ""]
    objective: Float[Tensor, ""]


class SecondOrderMatching(nn.Module):
    """The loss of matching two views of a batch as graphs, with the message passing that refines the nodes.

    For embeddings z of both views: edges to the k nearest neighbours; nodes refined by message passing and normalised;
    vertex affinity ``alpha global + (1 - alpha) local``, the global one a cosine of nodes and the local one of feature
    maps; edge affinity a cosine of differences, weighted; a quadratic assignment of Gumbel-perturbed affinities; its
    Hamming distance to the identity as the loss; gradients by :class:`diffmatch.autodiff.ImplicitMLE`.

    The gradient vanishes once the matching is right with some margin. Alone it is a weak signal: add
    :func:`diffmatch.matching.losses.info_nce` of the same embeddings. The gradient has the size of 1 / strength, so
    that beside a contrastive loss of weight 1 a weight of about 10 is right (measured on digits).

    Args:
        dim: length d of the embeddings.
        layers: rounds of message passing.
        neighbours: k of the neighbour graph.
        alpha: weight of the global against the local vertex affinity; feature maps may be left out if it is 1.
        gamma: how many of the best pairs of locations the local affinity averages.
        candidates: nodes of the other view, by global affinity, for which the local one is computed; for the rest the
            global one stands in.
        strength: by how much the target is favoured in the second solve, in the unit of the affinities.
        samples: noise draws in each call.
        noise: size of the Gumbel noise in standard deviations of the affinities.
        edge_weight: weight of the edge affinities against those of the vertices. There are several edges a node, so
            that with 1 they decide most of the matching.
        solver: maximises vertex plus edge affinity over permutations.
    """

    def __init__(
        self,
        dim: int,
        *,
        layers: int = 1,
        neighbours: int = 5,
        alpha: float = 0.8,
        gamma: int = 20,
        candidates: int = 8,
        strength: float = 5.0,
        samples: int = 1,
        noise: float = 0.2,
        edge_weight: float = 1.0,
        solver: QuadraticSolver | None = None,
    ) -> None:
        super().__init__()
        counts = {"neighbours": neighbours, "gamma": gamma, "candidates": candidates, "samples": samples}
        for name, value in (counts | {"strength": strength}).items():
            check_positive(name, value)
        for name, value in {"noise": noise, "edge_weight": edge_weight}.items():
            check_positive(name, value, allow_zero=True)
        if not 0 <= alpha <= 1:
            raise InputError("alpha", "a number between 0 and 1", repr(alpha))
        self.neighbours, self.alpha, self.gamma, self.candidates = neighbours, alpha, gamma, candidates
        self.strength, self.samples, self.noise, self.edge_weight = strength, samples, noise, edge_weight
        self.solver = frank_wolfe if solver is None else solver
        self.layers = nn.ModuleList(_MessagePassing(dim) for _ in range(layers))

    def forward(
        self,
        embeddings_s: Float[Tensor, "n d"],
        embeddings_t: Float[Tensor, "n d"],
        features_s: Float[Tensor, "n c r s"] | None = None,
        features_t: Float[Tensor, "n c r s"] | None = None,
        *,
        locations: tuple[Float[Tensor, "n p 2"], Float[Tensor, "n p 2"]] | None = None,
        known: Bool[Tensor, " n"] | None = None,
        generator: torch.Generator | None = None,
    ) -> GraphMatching:
        """Match the two views of a batch.

        Args:
            embeddings_s: projected embeddings of the first view, shape (n, d).
            embeddings_t: of the second view, row by row of the same images.
            features_s: feature maps of the first view, shape (n, c, r, s).
            features_t: of the second view.
            locations: for each view, where in the original image each of the p = r s cells of the feature maps lies,
                shape (n, p, 2); without them the same cells are compared.
            known: nodes that count in loss and accuracy; None for all. Nodes that equal another of their view never do.
            generator: source of the noise.

        Raises:
            InputError: shapes that do not agree, or no feature maps where ``alpha`` is below 1.
        """
        check_shape("embeddings_t", embeddings_t, tuple(embeddings_s.shape))
        n = len(embeddings_s)
        counts = _single(embeddings_s) & _single(embeddings_t)
        counts = counts if known is None else counts & known
        edges_s, edges_t = (neighbour_edges(z, self.neighbours) for z in (embeddings_s, embeddings_t))
        nodes_s, nodes_t = self._refine(embeddings_s, edges_s), self._refine(embeddings_t, edges_t)
        vertex = nodes_s @ nodes_t.T
        if self.alpha < 1:
            if features_s is None or features_t is None:
                raise InputError("features_s, features_t", "feature maps of both views where alpha < 1", "None")
            local = local_affinity(
                vertex, features_s, features_t, gamma=self.gamma, candidates=self.candidates, locations=locations
            )
            vertex = self.alpha * vertex + (1 - self.alpha) * local
        edge = self.edge_weight * edge_affinity(nodes_s, nodes_t, edges_s, edges_t)

        def solve(vertex: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
            plan = one_hot(self.solver(vertex, edge, edges_s, edges_t), n, dtype=vertex.dtype)
            return plan, _edge_plan(plan, edges_s, edges_t)

        n_counts = int(counts.sum())
        truth = torch.eye(n, dtype=vertex.dtype, device=vertex.device)
        # The loss is a mean, its gradient 1 / n an entry: so the strength is in the unit of the affinities.
        estimator = ImplicitMLE(
            self.strength * max(n_counts, 1),
            samples=self.samples,
            scale=self.noise,
            noise=_relative_gumbel,
            vectorized=False,
        )
        affinities = vertex.detach().requires_grad_(), edge.detach().requires_grad_()
        solved = estimator(solve, *affinities, maximize=True, generator=generator)
        assert isinstance(solved, tuple)  # two costs, two solutions
        plan, edge_plan = solved
        loss = hamming_loss(plan[counts], truth[counts])
        if torch.is_grad_enabled():
            # The second solve is made here and not in the backward pass: how far it favours the target must not depend
            # on what the caller multiplies the loss by.
            slopes = torch.autograd.grad(loss, affinities)
            carried = ((x - x.detach()) * slope for x, slope in zip((vertex, edge), slopes, strict=True))
            loss = loss.detach() + sum((x.sum() for x in carried), start=loss.new_zeros(()))
        found = plan.detach().argmax(-1) if n else torch.zeros(0, dtype=torch.int64, device=plan.device)
        right = found == torch.arange(n, device=found.device)
        return GraphMatching(
            loss=loss,
            assignment=found,
            accuracy=right[counts].sum() / max(n_counts, 1),
            objective=((vertex * plan).sum() + (edge * edge_plan).sum()).detach(),
        )

    def _refine(self, nodes: Tensor, edges: Tensor) -> Tensor:
        for layer in self.layers:
            nodes = layer(nodes, edges)
        return normalize(nodes, dim=-1)


class _MessagePassing(nn.Module):
    """``LN(z_i + MLP(mean over neighbours j of [z_j, z_j - z_i]))``, the mean being zero without neighbours."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        tails = one_hot(edges[0], len(nodes), dtype=nodes.dtype)  # (e, n)
        count = tails.sum(0).clamp_min(1)[:, None]
        around = tails.T @ nodes[edges[1]] / count
        difference = tails.T @ (nodes[edges[1]] - nodes[edges[0]]) / count
        refined: Tensor = self.norm(nodes + self.mlp(torch.cat((around, difference), -1)))
        return refined


def neighbour_edges(embeddings: Float[Tensor, "n d"], neighbours: int) -> Int[Tensor, "2 e"]:
    """Both directions of the edges of each node to its nearest others in cosine similarity, tails and heads."""
    n = len(embeddings)
    unit = normalize(embeddings.detach(), dim=-1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(neighbours, max(n - 1, 0)), dim=-1).indices
    adjacent = torch.zeros(n, n, dtype=torch.bool, device=embeddings.device).scatter_(1, nearest, True)
    return (adjacent | adjacent.T).nonzero().T


def edge_affinity(
    nodes_s: Float[Tensor, "n d"],
    nodes_t: Float[Tensor, "n d"],
    edges_s: Int[Tensor, "2 e"],
    edges_t: Int[Tensor, "2 f"],
) -> Float[Tensor, "e f"]:
    """Cosine of the differences along edges of both views."""
    s, t = (normalize(z[e[0]] - z[e[1]], dim=-1) for z, e in ((nodes_s, edges_s), (nodes_t, edges_t)))
    return s @ t.T


def local_affinity(
    affinity: Float[Tensor, "n n"],
    features_s: Float[Tensor, "n c r s"],
    features_t: Float[Tensor, "n c r s"],
    *,
    gamma: int,
    candidates: int,
    locations: tuple[Float[Tensor, "n p 2"], Float[Tensor, "n p 2"]] | None = None,
) -> Float[Tensor, "n n"]:
    """Affinity of images by the cells of their feature maps, where the global affinity is among the best of its row.

    The mean of two terms, each averaged over its gamma best cells and over both directions: the similarity of a cell to
    the most similar one of the other map, and that to the nearest one in the image.

    Args:
        affinity: global affinity, kept elsewhere.
        features_s: feature maps of the first view.
        features_t: of the second.
        gamma: number of cells that are averaged.
        candidates: entries of each row for which the local affinity is computed.
        locations: where in the image the cells lie, for comparing an image with itself; otherwise, and between
            different images, the same cell is the nearest.
    """
    s, t = (normalize(features.flatten(2).mT, dim=-1) for features in (features_s, features_t))  # (n, p, c)
    n, p, _ = s.shape
    gamma = min(gamma, p)
    best = affinity.detach().topk(min(candidates, n), dim=-1).indices  # (n, k)
    pairs = torch.einsum("ipc,ikqc->ikpq", s, t[best])

    def mean_of_best(similarity: Tensor) -> Tensor:
        return similarity.topk(gamma, dim=-1).values.mean(-1)

    by_feature = (mean_of_best(pairs.amax(-1)) + mean_of_best(pairs.amax(-2))) / 2
    by_location = mean_of_best(pairs.diagonal(dim1=-2, dim2=-1))
    if locations is not None:
        own = torch.einsum("ipc,iqc->ipq", s, t)
        distance = torch.cdist(*locations)
        aligned = (_of_closest(own, distance, gamma) + _of_closest(own.mT, distance.mT, gamma)) / 2
        itself = best == torch.arange(n, device=best.device)[:, None]
        by_location = torch.where(itself, aligned[:, None], by_location)
    return affinity.scatter(1, best, (by_feature + by_location) / 2)


def _of_closest(similarity: Tensor, distance: Tensor, gamma: int) -> Tensor:
    """Mean similarity of cells to the ones nearest to them, over the gamma cells that are closest to theirs."""
    gap, nearest = distance.min(-1)
    matched = similarity.gather(-1, nearest[..., None])[..., 0]
    return matched.gather(-1, gap.topk(gamma, dim=-1, largest=False).indices).mean(-1)


def frank_wolfe(
    vertex: Float[Tensor, "n n"],
    edge: Float[Tensor, "e f"],
    edges_s: Int[Tensor, "2 e"],
    edges_t: Int[Tensor, "2 f"],
    *,
    max_steps: int = 20,
) -> Int[Tensor, " n"]:
    """A good permutation for ``<vertex, X> + sum edge_ef X[tail_e, tail_f] X[head_e, head_f]``, maximised.

    Frank-Wolfe with exact line search over doubly stochastic matrices, from half way between the uniform matrix and the
    best assignment of the vertices alone; the best permutation that was met is returned (Leordeanu et al. 2009).

    Args:
        vertex: affinities of nodes.
        edge: affinities of edges.
        edges_s: tails and heads of the first graph's edges.
        edges_t: tails and heads of the second graph's edges.
        max_steps: largest number of assignments.

    Returns:
        The column of each row.
    """
    n = len(vertex)
    tail_s, head_s = (one_hot(end, n, dtype=vertex.dtype) for end in edges_s)
    tail_t, head_t = (one_hot(end, n, dtype=vertex.dtype) for end in edges_t)

    def product(x: Tensor) -> Tensor:
        """The matrix of the quadratic form plus its transpose, applied to x."""
        forth = tail_s.T @ (edge * (head_s @ x @ head_t.T)) @ tail_t
        return forth + head_s.T @ (edge * (tail_s @ x @ tail_t.T)) @ head_t

    found = assign(vertex, maximize=True).assignment
    corner = one_hot(found, n, dtype=vertex.dtype)
    uniform = torch.full_like(corner, 1 / max(n, 1))
    bent = product(corner)
    best = float((vertex * corner).sum() + (bent * corner).sum() / 2)
    x, slope = (corner + uniform) / 2, vertex + (bent + product(uniform)) / 2
    for _ in range(max_steps):
        candidate = assign(slope, maximize=True).assignment
        corner = one_hot(candidate, n, dtype=vertex.dtype)
        step = corner - x
        change = product(step)
        value = float(((slope + change + vertex) * corner).sum()) / 2  # at the corner the slope is slope + change
        if value > best:
            best, found = value, candidate
        rise, bend = float((slope * step).sum()), float((change * step).sum()) / 2
        if rise <= 1e-6 * float(slope.abs().max()):
            break
        length = 1.0 if bend >= 0 else min(1.0, -rise / (2 * bend))
        x, slope = x + length * step, slope + length * change
    return found


def _edge_plan(plan: Tensor, edges_s: Tensor, edges_t: Tensor) -> Tensor:
    """Which pairs of edges a matching of nodes matches."""
    (tail_s, head_s), (tail_t, head_t) = edges_s, edges_t
    return plan[tail_s][:, tail_t] * plan[head_s][:, head_t]


def _relative_gumbel(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel noise in standard deviations of the tensor that it is added to."""
    deviation = like.std(correction=0) if like.numel() else 0.0
    return gumbel(shape, like, generator) * deviation


def _single(embeddings: Tensor) -> Tensor:
    """Which rows equal no other row."""
    return (embeddings[:, None] == embeddings[None]).all(-1).sum(-1) == 1
