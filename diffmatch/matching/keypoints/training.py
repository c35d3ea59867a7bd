"""Training of the matcher on synthetic scenes."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffmatch.errors import InputError
from diffmatch.fitting import fit
from diffmatch.history import FitState, History
from diffmatch.matching.keypoints.matcher import Assignment, Matcher, Scored
from diffmatch.matching.keypoints.scenes import Scenes
from diffmatch.matching.keypoints.synthetic import Observed, label_pairs

__all__ = ["TrainingSettings", "Validation", "matcher_loss", "train_matcher", "validate"]

logger = logging.getLogger(__name__)

Pair = tuple[Observed, Observed]

_TINY = 1e-6
"""Probabilities are kept above this in logarithms, so that one wrong label cannot dominate."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a matcher is trained.

    Attributes:
        steps: of the optimizer.
        pairs: pairs of views a step, on each process.
        scenes: scenes that the pairs are drawn from.
        validation_scenes: scenes for validation, of which one pair each is used.
        validate_every: steps between two validations.
        keypoints: smallest and largest number of keypoints of a view; a number between is drawn for each pair.
        lr: learning rate, which falls along a cosine.
        seed: of the order of the pairs and of the first weights.
    """

    steps: int = 800
    pairs: int = 4
    scenes: int = 520
    validation_scenes: int = 24
    validate_every: int = 250
    keypoints: tuple[int, int] = (300, 1400)
    lr: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "pairs", "scenes", "validation_scenes", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(name, "at least 1", str(getattr(self, name)))
        if not 1 <= self.keypoints[0] <= self.keypoints[1]:
            raise InputError("keypoints", "two rising numbers", str(self.keypoints))


@dataclass(frozen=True)
class Validation:
    """How a matcher does on pairs that it was not trained on.

    Attributes:
        loss: mean of the training loss.
        precision: share of right ones among the matches that can be judged, mean over the pairs that have matches.
        correct: right matches a pair.
        found: share of the right candidate matches (one for each keypoint) that were found, over all pairs.
    """

    loss: float
    precision: float
    correct: float
    found: float


def matcher_loss(scored: Scored, pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Terms of the loss of scored pairs: every layer's judgement of the candidates, and the last assignment.

    After each layer the logits are held against the labels (cross entropy; candidates that cannot be judged are left
    out). In the assignment a keypoint with right candidates should give them its mass, and one whose candidates are all
    wrong should give it to the dustbin.

    Args:
        scored: what the matcher said.
        pairs: the truth about the same pairs of images, in their order.

    Returns:
        ``layers`` and ``assignment``.
    """
    labels = _labels(scored, pairs)
    layers = scored.final.new_zeros((), dtype=torch.float32)
    for which, logits in scored.logits:
        known = labels[which] >= 0
        entropy = nn.functional.binary_cross_entropy_with_logits(
            logits.float(), labels[which].float().clamp(min=0.0), reduction="none"
        )
        layers = layers + (entropy * known).sum() / known.sum().clamp(min=1)
    terms = []
    for number in range(len(pairs)):
        assignment = scored.assignment(number, max_steps=20)
        terms.append(_assignment_loss(assignment, labels[assignment.candidate]))
    return {"layers": layers / max(1, len(scored.logits)), "assignment": 0.5 * torch.stack(terms).mean()}


def train_matcher(
    matcher: Matcher,
    scenes: Scenes,
    validation: Scenes,
    *,
    settings: TrainingSettings | None = None,
    optimizer: str = "adamw",
    autocast: torch.dtype | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = True,
    max_seconds: float | None = None,
    on_validation: Callable[[int, Validation], object] | None = None,
) -> History:
    """Train a matcher, in place, on the device of its parameters.

    Where ``torch.distributed`` is initialised (``torchrun``), each process takes other pairs and gradients are
    averaged. Which pairs a step sees depends on the settings and the step alone, so a training that was interrupted
    goes on to the same bits.

    Args:
        matcher: the network.
        scenes: what it trains on.
        validation: what it is validated on; made from other pictures.
        settings: steps, pairs and so on.
        optimizer: by name.
        autocast: ``torch.bfloat16`` or ``torch.float16`` for mixed precision.
        checkpoint: file to resume from, see :func:`~diffmatch.fit`.
        resume: go on from the checkpoint if it exists.
        progress: show a bar where standard error is a terminal.
        max_seconds: time limit of this call; on one process only.
        on_validation: called with the number of steps taken and the result.

    Returns:
        The curves.
    """
    settings = settings or TrainingSettings()
    rank, world = _process()
    if max_seconds is not None and world > 1:
        raise InputError("max_seconds", "None with several processes, which would not stop together", str(max_seconds))
    device = matcher.bin_score.device
    objective: nn.Module = _Objective(matcher)
    if world > 1:
        objective = nn.parallel.DistributedDataParallel(objective)
    sampler = _Sampler(scenes, settings, rank, world)

    def loss(step: int) -> Mapping[str, Tensor]:
        terms: Mapping[str, Tensor] = objective(_on_device(sampler.pairs(step), device))
        return terms

    def check(state: FitState) -> None:
        if on_validation is not None and state.step % settings.validate_every == 0:
            on_validation(state.step, validate(matcher, validation, settings.validation_scenes))

    return fit(
        matcher,
        loss,
        optimizer=optimizer,
        lr=settings.lr,
        steps=settings.steps,
        schedule="cosine",
        warmup=min(100, settings.steps // 10),
        clip_norm=1.0,
        ema=0.995 if settings.steps >= 1000 else None,
        autocast=autocast,
        callbacks=(check,),
        checkpoint=checkpoint,
        resume=resume,
        progress=progress and rank == 0,
        max_seconds=max_seconds,
        fingerprint={"training": asdict(settings), "matcher": asdict(matcher.config), "processes": world},
    )


@torch.no_grad()
def validate(matcher: Matcher, scenes: Scenes, count: int, *, threshold: float = 0.3) -> Validation:
    """Match one pair of views of each of some scenes.

    Args:
        matcher: the network; its mode is left as it was.
        scenes: where the pairs come from.
        count: scenes 0, ..., count - 1.
        threshold: least probability of a match.
    """
    device, training = matcher.bin_score.device, matcher.training
    matcher.eval()
    losses, precision, correct, possible = [], [], 0, 0
    order = scenes.pairs()
    for number in range(count):
        views = scenes.scene(number)
        first, second = order[number % len(order)]
        pair = _on_device([(views[first], views[second])], device)
        scored = matcher.score_pairs([pair[0][0].keypoints], [pair[0][1].keypoints])
        losses.append(sum(float(term) for term in matcher_loss(scored, pair).values()))
        pairs, _ = scored.assignment(0).matches(threshold)
        truth = label_pairs(*pair[0], pairs.T)
        right, judged = int((truth == 1).sum()), int((truth >= 0).sum())
        if judged:
            precision.append(right / judged)
        correct += right
        labels = _labels(scored, pair)
        possible += len(scored.candidates.a[labels == 1].unique())
    matcher.train(training)
    return Validation(
        sum(losses) / count, sum(precision) / max(1, len(precision)), correct / count, correct / max(1, possible)
    )


class _Objective(nn.Module):
    """The loss as a module, which is what data-parallel training wraps."""

    def __init__(self, matcher: Matcher) -> None:
        super().__init__()
        self.matcher = matcher

    def forward(self, pairs: list[Pair]) -> dict[str, Tensor]:
        scored = self.matcher.score_pairs([a.keypoints for a, _ in pairs], [b.keypoints for _, b in pairs])
        terms = matcher_loss(scored, pairs)
        # Without candidates a part of the network has no gradient, for which the other processes would wait forever.
        nothing = sum((p.sum() for p in self.parameters()), torch.zeros((), device=scored.final.device))
        return {**terms, "layers": terms["layers"] + 0.0 * nothing}


class _Sampler:
    """The pairs of each step: every scene once a round, in an order that the seed fixes, two of its views by chance."""

    def __init__(self, scenes: Scenes, settings: TrainingSettings, rank: int, world: int) -> None:
        self.scenes, self.settings, self.rank, self.world = scenes, settings, rank, world

    def pairs(self, step: int) -> list[Pair]:
        """The pairs of this process."""
        first = (step * self.world + self.rank) * self.settings.pairs
        return [self._pair(number) for number in range(first, first + self.settings.pairs)]

    def _pair(self, number: int) -> Pair:
        count, seed = self.settings.scenes, self.settings.seed
        turn, place = divmod(number, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + turn))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + 7919 * number + 1)
        choices = self.scenes.pairs()
        a, b = choices[int(torch.randint(len(choices), (), generator=generator))]
        views = self.scenes.scene(int(order[place]))
        low, high = self.settings.keypoints
        limit = round(low * (high / low) ** float(torch.rand((), generator=generator)))
        return _strongest(views[a], limit), _strongest(views[b], limit)


def _strongest(view: Observed, count: int) -> Observed:
    """The keypoints with the largest scores, which come first."""
    rows = torch.arange(min(count, view.keypoints.count))
    return Observed(view.keypoints.select(rows), view.plane[rows], view.homographies)


def _labels(scored: Scored, pairs: Sequence[Pair]) -> Int64[Tensor, " c"]:
    """The truth about all candidates."""
    candidates, parts, start_a, start_b, begin = scored.candidates, [], 0, 0, 0
    for number, (a, b) in enumerate(pairs):
        end = begin + candidates.counts[number]
        rows = torch.stack((candidates.a[begin:end] - start_a, candidates.b[begin:end] - start_b))
        parts.append(label_pairs(a, b, rows))
        start_a, start_b = start_a + scored.counts_a[number], start_b + scored.counts_b[number]
        begin = end
    return torch.cat(parts)


def _assignment_loss(assignment: Assignment, labels: Int64[Tensor, " c"]) -> Float[Tensor, ""]:
    """Mean of minus the log mass at the right place, over the keypoints of both images that have candidates."""
    losses = []
    for rows, alone in ((assignment.a, assignment.alone_a), (assignment.b, assignment.alone_b)):
        table = torch.stack((labels == 1, labels == -1, torch.ones_like(labels)), -1).to(alone.dtype)
        right, unsure, any_ = alone.new_zeros(len(alone), 3).index_add(0, rows, table).unbind(-1)
        mass = alone.new_zeros(len(alone)).index_add(0, rows, assignment.plan * (labels == 1))
        placed = torch.where(right > 0, mass, alone)
        known = (any_ > 0) & ((right > 0) | (unsure == 0))
        losses.append(-(placed.clamp(_TINY, 1.0).log() * known).sum() / known.sum().clamp(min=1))
    return (losses[0] + losses[1]) / 2


def _on_device(pairs: Sequence[Pair], device: torch.device) -> list[Pair]:
    def move(view: Observed) -> Observed:
        return Observed(view.keypoints.to(device), view.plane.to(device), view.homographies.to(device))

    return [(move(a), move(b)) for a, b in pairs]


def _process() -> tuple[int, int]:
    """Rank and number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
