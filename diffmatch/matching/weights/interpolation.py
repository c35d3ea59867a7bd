"""Points between the states of models: straight lines, arcs, weighted means."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from diffmatch.errors import InputError, check_choice

__all__ = ["average_states", "check_same_entries", "check_weights", "interpolate_states", "tensor_key"]

State = Mapping[str, Tensor]


def interpolate_states(
    state_a: State, state_b: State, t: float, *, method: Literal["linear", "spherical"] = "linear"
) -> dict[str, Tensor]:
    """The state a share t of the way from one model to another.

    Linear: (1 − t) A + t B. Spherical, tensor by tensor: with φ the angle between A and B as vectors,
    [sin((1 − t)φ) A + sin(tφ) B] / sin φ, which keeps the length where both have the same; tensors that are nearly
    parallel are taken linearly. Integers, such as the counters of batch norm, are the first model's. Means and
    variances of batch norm are interpolated like all else and want :func:`reset_batch_norm` afterwards.

    Args:
        state_a: at t = 0.
        state_b: at t = 1; same entries and shapes.
        t: may lie outside [0, 1].
        method: which path.

    Returns:
        A new state, dtypes and devices of the first; entries that share memory in both do so afterwards.

    Raises:
        InputError: the states differ in entries or shapes, or t is not finite.

    References:
        Shoemake 1985, "Animating rotation with quaternion curves" (the arc).
    """
    check_choice("method", method, ("linear", "spherical"))
    check_same_entries([state_a, state_b])
    if not math.isfinite(t):
        raise InputError("t", "a finite number", str(t))
    if method == "linear":
        return combine([state_a, state_b], lambda pair: pair[0].lerp(pair[1], t))
    return combine([state_a, state_b], lambda pair: _arc(pair[0], pair[1], t))


def average_states(states: Sequence[State], *, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Weighted mean of the states of models, Σ_m w_m θ_m.

    Args:
        states: one a model, same entries and shapes.
        weights: one a model, that sum to one; equal if None.

    Returns:
        A new state, dtypes and devices of the first; integers are the first model's, and entries that share memory in
        all states do so afterwards.

    Raises:
        InputError: the states differ in entries or shapes, or the weights are no shares of them.
    """
    check_same_entries(states)
    shares = check_weights(weights, len(states))

    def mean(tensors: list[Tensor]) -> Tensor:
        total = tensors[0] * shares[0]
        for tensor, share in zip(tensors[1:], shares[1:], strict=True):
            total = total.add_(tensor, alpha=share)
        return total

    return combine(states, mean)


def combine(states: Sequence[State], function: Callable[[list[Tensor]], Tensor]) -> dict[str, Tensor]:
    """A function of the floating-point tensors of several states, entry by entry.

    The function sees half precision as single, and all on the device of the first; it may not change its arguments.
    """
    result: dict[str, Tensor] = {}
    done: dict[object, Tensor] = {}
    for name, first in states[0].items():
        if not (first.is_floating_point() or first.is_complex()):
            result[name] = first.clone()
            continue
        key = tuple(tensor_key(state[name]) for state in states)
        if key not in done:
            work = torch.promote_types(first.dtype, torch.float32)
            tensors = [state[name].detach().to(first.device, work) for state in states]
            done[key] = function(tensors).to(first.dtype)
        result[name] = done[key]
    return result


def tensor_key(tensor: Tensor) -> object:
    """Equal for tensors that are the same view of the same memory."""
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def check_same_entries(states: Sequence[State], argument: str = "states") -> None:
    """Check that states have the same entries and shapes.

    Raises:
        InputError: there is none, or listing what differs.
    """
    if not states:
        raise InputError(argument, "at least one state", "none")
    wrong = []
    for m, state in enumerate(states[1:], 1):
        wrong += [f"no {name} in state {m}" for name in states[0] if name not in state]
        wrong += [f"{name} in state {m} only" for name in state if name not in states[0]]
        wrong += [
            f"{name} {tuple(tensor.shape)} and {tuple(state[name].shape)}"
            for name, tensor in states[0].items()
            if name in state and state[name].shape != tensor.shape
        ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(argument, "the same entries and shapes in all", ", ".join(wrong[:8]) + more)


def check_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """The shares of so many models, equal ones if None.

    Raises:
        InputError: their number differs, or they are not finite or do not sum to one.
    """
    if weights is None:
        return [1 / count] * count
    shares = [float(w) for w in weights]
    if len(shares) != count:
        raise InputError("weights", f"{count} numbers, one a model", str(len(shares)))
    if not abs(sum(shares) - 1) < 1e-6:
        raise InputError("weights", "finite numbers that sum to 1", str(shares))
    return shares


def _arc(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y = a.flatten().double(), b.flatten().double()
    cosine = torch.dot(x, y) / (x.norm() * y.norm())
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    arc = (((1 - t) * angle).sin() * x + (t * angle).sin() * y) / sine
    # Where the angle is not defined (a zero tensor) or the arc is (nearly) a line or half a circle, the straight line.
    return torch.where(sine > 1e-6, arc, x.lerp(y, t)).reshape(a.shape).to(a.dtype)
