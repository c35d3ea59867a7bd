"""Permutations learned from the loss of the mean model, through weights that are free and permutations that follow."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from diffmatch.errors import InputError, check_positive
from diffmatch.fitting import fit
from diffmatch.history import FitState
from diffmatch.matching.weights.ascent import Alignment, Structure, ascend, first_looks
from diffmatch.matching.weights.evaluate import Batches, LossFunction
from diffmatch.matching.weights.midpoint import LearnedMatch, Midpoint
from diffmatch.matching.weights.permute import Permutations, check_state, full_permutations
from diffmatch.matching.weights.spec import PermutationSpec
from diffmatch.matching.weights.weight_matching import check_finite, learned_names, norm_products, ready_tensors

__all__ = ["match_straight_through"]

_DECAY = 0.9
"""Of the running mean of the loss, by which the permutations of a step are judged."""

_SHARE = 0.1
"""Of the model as permuted by a given start in the free weights at the beginning, for weight matching to find it."""


def match_straight_through(
    model: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    spec: PermutationSpec,
    data: Batches,
    *,
    loss: LossFunction = F.cross_entropy,
    start: Sequence[Mapping[str, Tensor]] | None = None,
    steps: int = 60,
    lr: float = 2e-3,
    max_sweeps: int = 2,
    progress: bool = True,
) -> LearnedMatch:
    """Align two or more models so that their mean has a small loss, by a straight-through estimator.

    Each model but the first gets free weights Θ̃, which begin as those of the first, and the permutation that weight
    matching finds between them and the model. The loss is that of the mean (Θ_1 + Σ_m π_m·Θ_m) / M; its gradient passes
    through π_m·Θ_m to Θ̃_m as if they were equal. At first this is weight matching; the steps then leave it for
    permutations that the loss prefers. With a start, the free weights begin with some of the model as permuted by it,
    so that what is found is near the start rather than near weight matching.

    It takes a run of the model and some sweeps of weight matching a step. What it finds is good at that mean and need
    not be elsewhere: of three models aligned to the first, the second and third are not thereby aligned with each
    other.

    Args:
        model: runs the mean; it is neither changed nor moved.
        states: state dicts of the models, two at least; the first stays.
        spec: what may move.
        data: batches of inputs and targets, gone through again and again, one batch a step.
        loss: mean loss of a batch from outputs and targets.
        start: permutations to begin with, one dict a model; those of :func:`match_weights` if None.
        steps: of Adam on the free weights.
        lr: its learning rate.
        max_sweeps: of weight matching in each step, from the permutations of the step before.
        progress: show a bar on a terminal.

    Returns:
        Of the start (or weight matching), the step with the least running mean of the loss, and the last one, the
        permutations whose mean model has the smallest loss on all data.

    Raises:
        InputError: an argument does not fit the others, or there are no data.

    References:
        Ainsworth, Hayase, Srinivasa 2023, "Git Re-Basin", section 3.3.
    """
    if len(states) < 2:
        raise InputError("states", "two states or more", str(len(states)))
    if start is not None and len(start) != len(states):
        raise InputError("start", f"{len(states)} dicts, one a model", str(len(start)))
    check_positive("steps", steps)
    for m, state in enumerate(states):
        check_state(f"states[{m}]", state, spec)
    middle = Midpoint(model, states, spec, data, loss)
    projected = _Projected(states, spec, start, max_sweeps)
    first = projected.permutations()
    if start is not None:
        first = [full_permutations(spec, permutations) for permutations in start]
    running: float | None = None
    least, best = float("inf"), first

    def loss_of_mean() -> Tensor:
        return middle.next_loss(projected.mean())

    def judge(state: FitState) -> None:
        nonlocal running, least, best
        running = state.loss if running is None else _DECAY * running + (1 - _DECAY) * state.loss
        if running < least:
            least, best = running, projected.permutations()

    latents = [tensor for free in projected.latents for tensor in free.values()]
    history = fit(latents, loss_of_mean, optimizer="adam", lr=lr, steps=steps, callbacks=[judge], progress=progress)
    candidates = [first, best, projected.permutations()]
    losses = [middle.mean_loss(permutations) for permutations in candidates]
    chosen = min(range(len(losses)), key=losses.__getitem__)
    return LearnedMatch(candidates[chosen], losses[chosen], losses[0], history)


class _Projected:
    """Free weights and the permuted models nearest to them.

    Attributes:
        latents: the free weights of each model but the first.
    """

    def __init__(
        self,
        states: Sequence[Mapping[str, Tensor]],
        spec: PermutationSpec,
        start: Sequence[Mapping[str, Tensor]] | None,
        max_sweeps: int,
    ) -> None:
        names = learned_names(states[0], spec)
        for m, state in enumerate(states):
            check_finite(f"states[{m}]", state, names)
        tensors = [ready_tensors(state, names) for state in states]
        structure = Structure(PermutationSpec(spec.atoms, {name: spec.layouts[name] for name in names}))
        self.names, self.max_sweeps = structure.names, max_sweeps
        begun = [full_permutations(spec, permutations) for permutations in start or [{}] * len(states)]
        self.start = begun[0]
        self.anchor = Alignment(structure, tensors[0], tensors[0], self.start, 0.0).b
        self.models = [
            Alignment(structure, self.anchor, own, first, 1e-7 * norm_products([tensors[0], own]))
            for own, first in zip(tensors[1:], begun[1:], strict=True)
        ]
        self.latents = []
        for aligned in self.models:
            share = 0.0 if start is None else _SHARE
            free = {name: self.anchor[name].lerp(aligned.b[name], share) for name in self.names}
            aligned.against(free)
            if start is None:
                first_looks(aligned)
            ascend(aligned, max_sweeps=100)
            self.latents.append({name: tensor.clone().requires_grad_() for name, tensor in free.items()})

    def mean(self) -> dict[str, Tensor]:
        """Follow the free weights; then the mean of the models, whose gradient goes to the free weights."""
        for aligned, free in zip(self.models, self.latents, strict=True):
            aligned.against({name: tensor.detach() for name, tensor in free.items()})
            ascend(aligned, max_sweeps=self.max_sweeps)
        found = {}
        for name in self.names:
            total = self.anchor[name]
            for aligned, free in zip(self.models, self.latents, strict=True):
                total = total + (aligned.b[name] + (free[name] - free[name].detach()))
            found[name] = total / (1 + len(self.models))
        return found

    def permutations(self) -> list[Permutations]:
        """Of all models."""
        return [self.start, *(aligned.permutations for aligned in self.models)]
