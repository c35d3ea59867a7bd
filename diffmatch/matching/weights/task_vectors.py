"""Models fine-tuned from one base, merged by what each has learned: its weights less the base's."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.matching.weights.interpolation import check_same_entries, combine, tensor_key

__all__ = ["dare", "task_arithmetic", "ties"]

State = Mapping[str, Tensor]


def task_arithmetic(base: State, states: Sequence[State], *, scale: float | Sequence[float] = 0.3) -> dict[str, Tensor]:
    """Add what each model has learned to the base: θ₀ + Σ_m λ_m (θ_m − θ₀).

    Args:
        base: state of the model that all were fine-tuned from.
        states: one a model, same entries and shapes; heads that differ are left out.
        scale: λ, one for all or one a model; 0.3 suits about eight tasks, 1/M gives the average.

    Returns:
        The merged state; integers are the base's.

    Raises:
        InputError: the states differ in entries or shapes, or there are not as many factors.

    References:
        Ilharco et al. 2023, "Editing Models with Task Arithmetic".
    """
    factors = _factors(scale, len(states))
    check_same_entries([base, *states])

    def add(tensors: list[Tensor]) -> Tensor:
        first, *others = tensors
        total = first.clone()
        for tensor, factor in zip(others, factors, strict=True):
            total += factor * (tensor - first)
        return total

    return combine([base, *states], add)


def ties(base: State, states: Sequence[State], *, keep: float = 0.2, scale: float = 1.0) -> dict[str, Tensor]:
    """Add what the models agree on: task vectors trimmed, signs elected, agreeing entries averaged.

    Of each task vector the share ``keep`` of entries with the largest magnitude stays, over all its tensors together.
    Each entry's sign is that of the sum over models, and the entry becomes the mean of those that are not zero and have
    this sign.

    Args:
        base: state of the model that all were fine-tuned from.
        states: one a model, same entries and shapes; heads that differ are left out.
        keep: share of entries that stay, in (0, 1].
        scale: factor on the merged task vector.

    Returns:
        The merged state; integers are the base's.

    Raises:
        InputError: the states differ in entries or shapes, or ``keep`` is no share.

    References:
        Yadav, Tam, Choshen, Raffel, Bansal 2023, "TIES-Merging: Resolving Interference When Merging Models".
    """
    check_same_entries([base, *states])
    if not 0 < keep <= 1:
        raise InputError("keep", "a share in (0, 1]", str(keep))
    thresholds = [_threshold(base, state, keep) for state in states]

    def elect(tensors: list[Tensor]) -> Tensor:
        first, *others = tensors
        vectors = torch.stack([tensor - first for tensor in others])
        least = torch.stack([t.to(vectors) for t in thresholds]).reshape(-1, *[1] * first.ndim)
        vectors = torch.where(vectors.abs() >= least, vectors, 0)
        agrees = (vectors * vectors.sum(0).sign()) > 0
        mean = (vectors * agrees).sum(0) / agrees.sum(0).clamp_min(1)
        return first + scale * mean

    return combine([base, *states], elect)


def dare(
    base: State, state: State, *, drop: float = 0.9, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Drop entries of a model's task vector at random and rescale the others by 1 / (1 − p).

    The result, whose expectation is the model itself, is then merged with others by any of the methods.

    Args:
        base: state of the model that it was fine-tuned from.
        state: the fine-tuned one.
        drop: probability p of an entry to be dropped, in [0, 1).
        generator: source of randomness, on the device of the base.

    Returns:
        A state with a sparse task vector; integers are the base's.

    Raises:
        InputError: the states differ in entries or shapes, or ``drop`` is no probability below one.

    References:
        Yu, Yu, Yu, Huang, Li 2024, "Language Models are Super Mario", section 3.1.
    """
    check_same_entries([base, state])
    if not 0 <= drop < 1:
        raise InputError("drop", "a probability in [0, 1)", str(drop))

    def thin(tensors: list[Tensor]) -> Tensor:
        first, tuned = tensors
        kept = torch.rand(first.shape, generator=generator, device=first.device, dtype=first.dtype) >= drop
        return first + torch.where(kept, (tuned - first) / (1 - drop), 0)

    return combine([base, state], thin)


def _factors(scale: float | Sequence[float], count: int) -> list[float]:
    factors = [float(scale)] * count if isinstance(scale, int | float) else [float(s) for s in scale]
    if len(factors) != count:
        raise InputError("scale", f"one number or {count}, one a model", str(len(factors)))
    return factors


def _threshold(base: State, state: State, keep: float) -> Tensor:
    """The magnitude that the share of largest entries of a task vector reaches; shared memory counts once."""
    moved: dict[object, Tensor] = {}
    for name, first in base.items():
        if first.is_floating_point():
            work = torch.promote_types(first.dtype, torch.float32)
            difference = state[name].detach().to(first.device, work) - first.detach().to(work)
            moved.setdefault((tensor_key(first), tensor_key(state[name])), difference.abs().flatten())
    device = next(iter(moved.values())).device
    magnitudes = torch.cat([tensor.to(device) for tensor in moved.values()])
    rank = len(magnitudes) - max(int(keep * len(magnitudes)), 1)
    return magnitudes.kthvalue(rank + 1).values
