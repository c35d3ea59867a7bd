"""The learned matcher: candidates that support each other, passed through a small graph network.

The nodes are candidate matches, the edges say which of them agree in their frames. Each layer gathers, for each
candidate, messages from those that support it; how well an affine map fitted to the supporters predicts the candidate
itself; and how it stands against its rivals, which share one of its keypoints. A first round starts from mutual nearest
descriptors as supporters; a second one, on the candidates that are left, from those that the first found best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from diffmatch.errors import InputError, check_finite
from diffmatch.matching.keypoints.candidates import Candidates, Frames, Support, find_candidates, find_support
from diffmatch.matching.keypoints.evidence import (
    EDGE_FEATURES,
    FIT_FEATURES,
    NODE_FEATURES,
    RIVAL_FEATURES,
    affine_fit,
    describe_edges,
    describe_nodes,
    length_units,
    rival_shares,
)
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.transport import sinkhorn_sparse
from diffmatch.ops import gather_rows, segment_sum

__all__ = ["Matcher", "MatcherConfig", "Scored", "match_keypoints"]


@dataclass(frozen=True)
class MatcherConfig:
    """The shape of a matcher.

    Attributes:
        kind: descriptors that it is for.
        candidates: neighbours of each keypoint among the descriptors of the other image.
        neighbors: supporters that are looked at around each keypoint, in each image.
        width: numbers a candidate.
        message_width: numbers a message.
        layers: of the first round and of the second.
        keep: candidates with a logit above this enter the second round.
        decided: a pair of images ends after the first round if at most this share of its supporters is in doubt.
    """

    kind: str = "rootsift"
    candidates: int = 6
    neighbors: int = 32
    width: int = 64
    message_width: int = 48
    layers: tuple[int, int] = (2, 3)
    keep: float = -4.0
    decided: float = 0.02

    def __post_init__(self) -> None:
        for name in ("candidates", "neighbors", "width", "message_width"):
            if getattr(self, name) < 1:
                raise InputError(name, "at least 1", str(getattr(self, name)))
        if len(self.layers) != 2 or min(self.layers) < 1:
            raise InputError("layers", "two numbers of at least 1", str(self.layers))

    @staticmethod
    def from_dict(values: dict[str, object]) -> "MatcherConfig":
        """From a dictionary, as read from a file.

        Raises:
            InputError: an unknown or missing name.
        """
        known = {field.name for field in fields(MatcherConfig)}
        if values.keys() != known:
            raise InputError("config", ", ".join(sorted(known)), ", ".join(sorted(map(str, values))))
        layers = values["layers"]
        return MatcherConfig(**{**values, "layers": tuple(layers)})  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Scored:
    """What the matcher says about pairs of images.

    Attributes:
        candidates: all of them.
        logits: of each candidate after each layer, as (which candidates, logits); the second round knows a part only.
        final: the last logit of each candidate, shape (c,).
        left: whether it entered the second round, or its pair of images was decided before; shape (c,).
        bin_score: logit of staying without a partner.
        counts_a: keypoints of the first images.
        counts_b: keypoints of the second.
    """

    candidates: Candidates
    logits: list[tuple[Int64[Tensor, " _k"], Float[Tensor, " _k"]]]
    final: Float[Tensor, " c"]
    left: Bool[Tensor, " c"]
    bin_score: Float[Tensor, ""]
    counts_a: tuple[int, ...]
    counts_b: tuple[int, ...]

    def assignment(self, number: int, *, tol: float = 1e-3, max_steps: int = 30) -> "Assignment":
        """Soft one-to-one matching of one pair of images over the candidates that are left, by Sinkhorn with dustbins.

        Each keypoint has a dustbin of its own, and the dustbins of two keypoints that match take each other's mass.
        A dustbin that all share, as in SuperGlue, holds the mass of thousands; Sinkhorn then takes ten times the steps.

        Args:
            number: of the pair of images.
            tol: see :func:`~diffmatch.matching.sinkhorn_sparse`.
            max_steps: of Sinkhorn.
        """
        own = (self.left & (self.candidates.pair == number)).nonzero()[:, 0]
        a = self.candidates.a[own] - sum(self.counts_a[:number])
        b = self.candidates.b[own] - sum(self.counts_b[:number])
        known_a, row = a.unique(return_inverse=True)
        known_b, column = b.unique(return_inverse=True)
        m, n, count = len(known_a), len(known_b), len(own)
        rows, columns = torch.arange(m, device=a.device), torch.arange(n, device=a.device)
        pairs = torch.stack(
            (torch.cat((row, rows, m + columns, m + column)), torch.cat((column, n + rows, columns, n + row)))
        )
        logits = self.final[own].float() if self.final.dtype != torch.float64 else self.final[own]
        bins = self.bin_score.to(logits.dtype).expand(m + n)
        mass, size = logits.new_ones(m + n), m + n
        plan = logits
        if count:
            plan = sinkhorn_sparse(
                torch.cat((-logits, -bins, torch.zeros_like(logits))),
                pairs,
                mass,
                mass,
                sizes=(size, size),
                eps=1.0,
                tol=tol,
                max_steps=max_steps,
                method="sweeps",
                # Not the implicit one: it has an equation for each component of the graph of candidates too many.
                adjoint="unroll",
            ).plan
        return Assignment(
            own,
            a,
            b,
            plan[:count],
            logits.new_ones(self.counts_a[number]).index_copy(0, known_a, plan[count : count + m]),
            logits.new_ones(self.counts_b[number]).index_copy(0, known_b, plan[count + m : count + m + n]),
        )


@dataclass(frozen=True, eq=False)
class Assignment:
    """A soft matching of one pair of images.

    Attributes:
        candidate: numbers of the candidates that take part, shape (c,).
        a: their keypoints in the first image.
        b: their keypoints in the second.
        plan: their probabilities.
        alone_a: probability that a keypoint of the first image has no partner, shape (m,).
        alone_b: the same for the second, shape (n,).
    """

    candidate: Int64[Tensor, " c"]
    a: Int64[Tensor, " c"]
    b: Int64[Tensor, " c"]
    plan: Float[Tensor, " c"]
    alone_a: Float[Tensor, " m"]
    alone_b: Float[Tensor, " n"]

    def matches(self, threshold: float) -> tuple[Int64[Tensor, "p 2"], Float[Tensor, " p"]]:
        """The candidates that are best for both of their keypoints, and above a threshold; by rows of a."""
        top_a = _segment_max(self.plan, self.a, len(self.alone_a))
        top_b = _segment_max(self.plan, self.b, len(self.alone_b))
        best = (self.plan == top_a[self.a]) & (self.plan == top_b[self.b]) & (self.plan > threshold)
        pairs, scores = torch.stack((self.a[best], self.b[best]), -1), self.plan[best]
        return _one_to_one(pairs, scores)


class Matcher(nn.Module):
    """A network that scores candidate matches.

    Args:
        config: its shape.
    """

    def __init__(self, config: MatcherConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MatcherConfig()
        self.encoder = nn.Sequential(
            nn.Linear(NODE_FEATURES, config.width), nn.ReLU(), nn.Linear(config.width, config.width)
        )
        self.first = nn.ModuleList(_Layer(config) for _ in range(config.layers[0]))
        self.second = nn.ModuleList(_Layer(config) for _ in range(config.layers[1]))
        self.refresh = nn.Linear(2, config.width)
        self.bin_score = nn.Parameter(torch.zeros(()))

    def forward(self, a: Keypoints, b: Keypoints, *, early_exit: bool = False) -> Scored:
        """Score the candidates of one pair of images, or of a padded batch of pairs.

        Args:
            a: keypoints of the first image or images, with no or one batch axis.
            b: those of the second, as many.
            early_exit: leave the second round out for pairs of images that the first decides.

        Raises:
            InputError: kinds or numbers of images that do not fit.
        """
        for name, side in (("a", a), ("b", b)):
            if side.kind != self.config.kind:
                raise InputError(f"keypoints_{name}", f"descriptors of kind {self.config.kind!r}", repr(side.kind))
        if a.descriptors.shape[-1] != b.descriptors.shape[-1]:
            wanted = f"descriptors of {a.descriptors.shape[-1]} numbers, as of keypoints_a"
            raise InputError("keypoints_b", wanted, str(b.descriptors.shape[-1]))
        if a.mask.ndim == b.mask.ndim == 1:
            return self.score_pairs([a], [b], early_exit=early_exit)
        if a.mask.ndim != 2 or a.mask.shape[0] != b.mask.shape[0]:
            raise InputError("keypoints_b", f"a batch as of keypoints_a, {tuple(a.mask.shape)}", str(b.mask.shape))
        return self.score_pairs(a.unstack(), b.unstack(), early_exit=early_exit)

    def score_pairs(self, a: Sequence[Keypoints], b: Sequence[Keypoints], *, early_exit: bool = False) -> Scored:
        """Score the candidates of several pairs of images, each without batch axes."""
        dtype = self.bin_score.dtype
        frames_a, frames_b = Frames.of([x.to(dtype=dtype) for x in a]), Frames.of([x.to(dtype=dtype) for x in b])
        candidates, seeds, support = self._supported(frames_a, frames_b)
        everything = torch.arange(len(candidates.a), device=candidates.a.device)
        state = self.encoder(describe_nodes(frames_a, frames_b, candidates))
        state, logits = _round(self.first, state, frames_a, frames_b, candidates, support)
        history = [(everything, logit) for logit in logits]
        last = logits[-1]
        left = last.detach() > self.config.keep
        decided = left.new_zeros(len(candidates.counts))
        if early_exit:
            decided = _decided(last.detach(), seeds & left, candidates, self.config.decided)
        kept = (left & ~decided[candidates.pair]).nonzero()[:, 0]
        final = last
        if len(kept):
            part = candidates.select(left & ~decided[candidates.pair])
            confidence = last[kept]
            seeds = _leaders(confidence.detach(), part, len(frames_a.score), len(frames_b.score))
            hint = torch.stack((confidence, seeds.to(dtype)), -1).detach()
            support = find_support(frames_a, frames_b, part, seeds, neighbors=self.config.neighbors)
            state = state[kept] + self.refresh(hint)
            state, logits = _round(self.second, state, frames_a, frames_b, part, support)
            history += [(kept, logit) for logit in logits]
            final = last.index_copy(0, kept, logits[-1])
        return Scored(candidates, history, final, left, self.bin_score, frames_a.counts, frames_b.counts)

    def _supported(self, a: Frames, b: Frames) -> tuple[Candidates, Bool[Tensor, " c"], Support]:
        """Candidates that are mutual nearest neighbours or that two of those support; which are, and the support.

        That drops three candidates in four, and one right candidate in a hundred.
        """
        candidates = find_candidates(a, b, k=self.config.candidates)
        seeds = (candidates.rank_a == 0) & (candidates.rank_b == 0)
        support = find_support(a, b, candidates, seeds, neighbors=self.config.neighbors)
        amount = torch.bincount(support.target, minlength=len(seeds))
        keep = seeds | (amount >= 2)
        return candidates.select(keep), seeds[keep], support.select(keep)


def _round(
    layers: nn.ModuleList,
    state: Float[Tensor, "c w"],
    a: Frames,
    b: Frames,
    candidates: Candidates,
    support: Support,
) -> tuple[Float[Tensor, "c w"], list[Float[Tensor, " c"]]]:
    """Run layers over one support graph: the last state, and the logits after each layer."""
    edges, units = describe_edges(support), length_units(a, b, candidates)
    sizes, logits = (len(a.score), len(b.score)), []
    for layer in layers:
        state, logit = layer(state, support, edges, units, candidates, sizes)
        logits.append(logit)
    return state, logits


class _Layer(nn.Module):
    """Messages, the fit to the supporters, the rivals; then a new state and a logit of each candidate."""

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__()
        width, messages = config.width, config.message_width
        self.norm = nn.LayerNorm(width)
        self.from_source = nn.Linear(width, messages)
        self.from_target = nn.Linear(width, messages, bias=False)
        self.from_edge = nn.Linear(EDGE_FEATURES, messages)
        self.gate = nn.Linear(messages, 1)
        self.rival = nn.Linear(width, 1)
        inside = width + 2 * messages + 1 + FIT_FEATURES + RIVAL_FEATURES
        self.update = nn.Sequential(nn.Linear(inside, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(
        self,
        state: Float[Tensor, "c w"],
        support: Support,
        edges: Float[Tensor, "e f"],
        units: Float[Tensor, "c 2"],
        candidates: Candidates,
        sizes: tuple[int, int],
    ) -> tuple[Float[Tensor, "c w"], Float[Tensor, " c"]]:
        count, normed = len(state), self.norm(state)
        message = torch.relu(
            gather_rows(self.from_source(normed), support.source)
            + gather_rows(self.from_target(normed), support.target)
            + self.from_edge(edges)
        )
        trust = self.gate(message).sigmoid()
        total = segment_sum(torch.cat((message * trust, trust), -1), support.target, n_segments=count)
        received, amount = total[:, :-1], total[:, -1:]
        gathered = torch.cat(
            (
                normed,
                received / (amount + 1.0),
                received.log1p(),
                amount.log1p(),
                affine_fit(support, trust[:, 0], units),
                rival_shares(self.rival(normed)[:, 0], candidates, sizes),
            ),
            -1,
        )
        state = state + self.update(gathered)
        return state, self.head(state)[:, 0]


def match_keypoints(
    keypoints_a: Keypoints, keypoints_b: Keypoints, *, weights: Matcher | None = None, threshold: float = 0.7
) -> tuple[Int64[Tensor, "p 2"], Float[Tensor, " p"]]:
    """One-to-one matches of two images by the learned matcher; differentiable in the descriptors.

    Args:
        keypoints_a: of one image, on any device.
        keypoints_b: of the other image.
        weights: a matcher; by default the one that ships with the package, for RootSIFT.
        threshold: least probability of a match. Lower finds a few more matches in hard pairs of images, and more wrong
            ones.

    Returns:
        Rows of a and of b, sorted, and the probabilities; empty where there is nothing to match. Keypoints that differ
        in their orientation alone may all be matched.

    Raises:
        InputError: descriptors of another kind than the matcher's, a batch, or values that are not finite.
    """
    for name, side in (("keypoints_a", keypoints_a), ("keypoints_b", keypoints_b)):
        if side.mask.ndim != 1:
            raise InputError(name, "keypoints of one image", f"a batch {tuple(side.mask.shape)}")
        for what in ("positions", "scale", "orientation", "score", "descriptors"):
            check_finite(f"{name}.{what}", getattr(side, what)[side.mask])
    matcher = weights if weights is not None else _shipped(str(keypoints_a.device))
    scored = matcher(keypoints_a, keypoints_b, early_exit=not matcher.training)
    pairs, scores = scored.assignment(0).matches(threshold)
    rows_a, rows_b = keypoints_a.mask.nonzero()[:, 0], keypoints_b.mask.nonzero()[:, 0]
    return torch.stack((rows_a[pairs[:, 0]], rows_b[pairs[:, 1]]), -1), scores.to(keypoints_a.descriptors.dtype)


def _decided(
    logits: Float[Tensor, " c"], seeds: Bool[Tensor, " c"], candidates: Candidates, share: float
) -> Bool[Tensor, " p"]:
    """For each pair of images, whether few of its seeds have a probability between 5 and 95 percent."""
    count = len(candidates.counts)
    table = torch.stack((seeds & (logits.abs() < 3.0), seeds), -1).to(logits.dtype)
    doubt, total = segment_sum(table, candidates.pair, n_segments=count).unbind(-1)
    return doubt < share * total


def _leaders(logits: Float[Tensor, " c"], candidates: Candidates, m: int, n: int) -> Bool[Tensor, " c"]:
    """Candidates that are the best of both of their keypoints and likelier than one in five."""
    top_a = _segment_max(logits, candidates.a, m)[candidates.a]
    top_b = _segment_max(logits, candidates.b, n)[candidates.b]
    return (logits == top_a) & (logits == top_b) & (logits > -1.4)


def _segment_max(values: Float[Tensor, " c"], rows: Int64[Tensor, " c"], count: int) -> Float[Tensor, " n"]:
    top = values.new_full((count,), -torch.inf)
    return top.scatter_reduce(0, rows, values.detach(), "amax")


def _one_to_one(
    pairs: Int64[Tensor, "p 2"], scores: Float[Tensor, " p"]
) -> tuple[Int64[Tensor, "p 2"], Float[Tensor, " p"]]:
    """Without all but the first of pairs that share a keypoint, which equal scores leave."""
    index = torch.arange(len(pairs), device=pairs.device)
    keep = torch.ones_like(index, dtype=torch.bool)
    for side in (0, 1):
        size = int(pairs[:, side].max()) + 1 if len(pairs) else 0
        first = torch.full((size,), len(pairs), device=pairs.device)
        first = first.scatter_reduce(0, pairs[keep, side], index[keep], "amin")
        keep &= first[pairs[:, side]] == index
    return pairs[keep], scores[keep]


def _shipped(device: str) -> Matcher:
    from diffmatch.matching.keypoints.weights import shipped_matcher

    return shipped_matcher(device)
