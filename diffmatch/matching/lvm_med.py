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

__all__ = ["GraphMatching", "SecondOrderMatching", "edge_affinity", "frank_wolfe", "local_affinity", "neighbour_edges"]

QuadraticSolver = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``solver(vertex (n, n), edge (e, f), edges_s (2, e), edges_t (2, f))`` gives the column of each row, (n,)."""


@dataclass(frozen=True, eq=False)
class GraphMatching:
    """A batch matched between its views.

    Attributes:
        loss: Hamming distance of the matching to the identity, for each node that counts.
        assignment: node of the second view for each node of the first, with the noise of the training, shape (n,).
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
    maps; edge affinity a cosine of differences; a quadratic assignment of Gumbel-perturbed affinities; its Hamming
    distance to the identity as the loss; gradients by :class:`diffmatch.autodiff.ImplicitMLE`.

    The gradient vanishes once the matching is right with some margin. Early in a training it is a weak signal: add
    :func:`diffmatch.matching.losses.info_nce` of the same embeddings with a weight that falls.

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
        solver: QuadraticSolver | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"neighbours": neighbours, "gamma": gamma, "candidates": candidates}.items():
            check_positive(name, value)
        if not 0 <= alpha <= 1:
            raise InputError("alpha", "a number between 0 and 1", repr(alpha))
        self.neighbours, self.alpha, self.gamma, self.candidates = neighbours, alpha, gamma, candidates
        self.estimator = ImplicitMLE(strength, samples=samples, scale=noise, noise=_relative_gumbel, vectorized=False)
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
        edge = edge_affinity(nodes_s, nodes_t, edges_s, edges_t)

        def solve(vertex: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
            plan = one_hot(self.solver(vertex, edge, edges_s, edges_t), n, dtype=vertex.dtype)
            return plan, _edge_plan(plan, edges_s, edges_t)

        solved = self.estimator(solve, vertex, edge, maximize=True, generator=generator)
        assert isinstance(solved, tuple)  # two costs, two solutions
        plan, edge_plan = solved
        truth = torch.eye(n, dtype=plan.dtype, device=plan.device)
        # The estimator sees a gradient of one an entry, so that its strength is in the unit of the affinities.
        differing = ((1 - 2 * truth) * plan + truth)[counts].sum() / counts.sum().clamp_min(1)
        loss = _scaled_gradient(plan, truth, counts, differing)
        found = plan.detach().argmax(-1)
        right = (found == torch.arange(n, device=found.device))[counts]
        accuracy = right.to(plan.dtype).sum() / counts.sum().clamp_min(1)
        objective = ((vertex * plan).sum() + (edge * edge_plan).sum()).detach()
        return GraphMatching(loss, found, accuracy, objective)

    def _refine(self, nodes: Tensor, edges: Tensor) -> Tensor:
        for layer in self.layers:
            nodes = layer(nodes, edges)
        return normalize(nodes, dim=-1)
