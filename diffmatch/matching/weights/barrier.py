"""How much loss rises between models: the curve of the loss on the way, and its barrier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffmatch.errors import InputError
from diffmatch.matching.weights.evaluate import (
    Batches,
    LossFunction,
    check_batches,
    check_model_state,
    evaluating,
    inputs_of,
    mean_loss,
    outputs,
    targets_of,
)
from diffmatch.matching.weights.interpolation import average_states, interpolate_states
from diffmatch.matching.weights.repair import Repair, mend

__all__ = ["Barrier", "barrier_curve", "fit_temperature", "mean_barrier"]


@dataclass(frozen=True)
class Barrier:
    """The loss on the way between models.

    Attributes:
        lambdas: places on the way, shape (p,), float64, from 0 to 1. Between two models 0 is the first and 1 the
            second. With more, 0 stands for the models themselves and 1 for their mean.
        losses: loss at each of them, shape (p,), float64; at the place of several models their (weighted) mean loss.
        barrier: max_λ [L(λ) − (1 − λ) L(0) − λ L(1)] between two models, zero at least since the ends count; with
            more, the loss of the mean less the mean loss.
        temperatures: by which the outputs were divided at each place, shape (p,), float64; ones unless calibrated.
    """

    lambdas: Float[Tensor, " p"]
    losses: Float[Tensor, " p"]
    barrier: float
    temperatures: Float[Tensor, " p"]


def barrier_curve(
    model: nn.Module,
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    data: Batches,
    *,
    loss: LossFunction = F.cross_entropy,
    points: int | Sequence[float] = 11,
    method: Literal["linear", "spherical"] = "linear",
    repair: Repair = "none",
    calibrate: bool = False,
    statistics: Batches | None = None,
) -> Barrier:
    """Loss of a model on the way between two states, and how far it rises above the straight line between their losses.

    The states are taken as they are; align them first (:func:`apply_permutations`). The models at the ends are never
    repaired, what lies between is, anew at each place. Any loss will do: with the share of wrong answers the barrier is
    one of accuracy.

    Args:
        model: any module; it is neither changed nor moved.
        state_a: at λ = 0.
        state_b: at λ = 1.
        data: batches of inputs and targets.
        loss: mean loss of a batch from outputs and targets.
        points: how many places, evenly spaced with both ends, or the places inside (0, 1).
        method: path of :func:`interpolate_states`.
        repair: ``"none"``, ``"reset"`` (:func:`reset_batch_norm`) or ``"repair"`` (:func:`repair`).
        calibrate: divide the outputs, which must be logits with class indices as targets, by the temperature of
            :func:`fit_temperature` at each place, ends included.
        statistics: batches that the repair measures; ``data`` if None.

    Raises:
        InputError: an argument does not fit the others.
    """
    check_batches("data", data)
    for argument, state in (("state_a", state_a), ("state_b", state_b)):
        check_model_state(argument, model, state)
    places = _places(points)
    measured = data if statistics is None else statistics
    losses, temperatures = [], []
    for t in places:
        if t in (0.0, 1.0):
            state = state_b if t else state_a
        else:
            state = interpolate_states(state_a, state_b, t, method=method)
            state = mend(repair, model, state, [state_a, state_b], measured, weights=(1 - t, t))
        temperatures.append(_temperature(model, state, data) if calibrate else 1.0)
        losses.append(mean_loss(model, state, data, loss, temperature=temperatures[-1]))
    lambdas, found = torch.tensor(places, dtype=torch.float64), torch.tensor(losses, dtype=torch.float64)
    rise = found - found[0].lerp(found[-1], lambdas)
    return Barrier(lambdas, found, float(rise.max()), torch.tensor(temperatures, dtype=torch.float64))


def mean_barrier(
    model: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    data: Batches,
    *,
    mean: Mapping[str, Tensor] | None = None,
    weights: Sequence[float] | None = None,
    loss: LossFunction = F.cross_entropy,
) -> Barrier:
    """Loss of the mean of several models less the mean of their losses.

    Args:
        model: any module; it is neither changed nor moved.
        states: one a model, aligned.
        data: batches of inputs and targets.
        mean: the merged state where it is more than :func:`average_states`, such as repaired.
        weights: shares of the models; equal if None.
        loss: mean loss of a batch from outputs and targets.

    Returns:
        The mean loss at λ = 0, the merged model's at λ = 1.
    """
    check_batches("data", data)
    merged = average_states(states, weights=weights) if mean is None else mean
    check_model_state("states", model, merged)
    shares = [1 / len(states)] * len(states) if weights is None else list(weights)
    own = sum(share * mean_loss(model, state, data, loss) for state, share in zip(states, shares, strict=True))
    losses = torch.tensor([own, mean_loss(model, merged, data, loss)], dtype=torch.float64)
    return Barrier(losses.new_tensor([0.0, 1.0]), losses, float(losses[1] - losses[0]), torch.ones_like(losses))


def fit_temperature(logits: Float[Tensor, "n c"], targets: Int[Tensor, " n"], *, steps: int = 50) -> Float[Tensor, ""]:
    """The temperature T > 0 that minimises the cross-entropy of logits / T.

    Convex in β = 1/T, so that Newton steps on it, kept inside a bracket that shrinks with the sign of the slope, always
    converge. T is held in [0.01, 100]; where all answers are right, or no better than chance, it nears the one end or
    the other.

    Args:
        logits: shape (n, c).
        targets: class indices, shape (n,).
        steps: of Newton's method.

    References:
        Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural networks", section 4.2.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise InputError("logits, targets", "shapes (n, c) and (n,)", f"{tuple(logits.shape)}, {tuple(targets.shape)}")
    z = logits.detach().double()
    right = z.gather(1, targets.long()[:, None]).squeeze(1)
    low, high, beta = z.new_tensor(0.01), z.new_tensor(100.0), z.new_tensor(1.0)
    for _ in range(steps):
        p = (beta * z).softmax(1)
        mean = (p * z).sum(1)
        slope = (mean - right).mean()
        curvature = ((p * z.square()).sum(1) - mean.square()).mean()
        low, high = torch.where(slope < 0, beta, low), torch.where(slope > 0, beta, high)
        step = beta - slope / curvature.clamp_min(torch.finfo(z.dtype).tiny)
        beta = torch.where((step > low) & (step < high), step, (low * high).sqrt())
    return (1 / beta).to(logits.dtype)


def _temperature(model: nn.Module, state: Mapping[str, Tensor], data: Batches) -> float:
    logits, targets = [], []
    with evaluating(model), torch.no_grad():
        for batch in data:
            logits.append(outputs(model, state, inputs_of(batch)))
            targets.append(targets_of(batch).to(logits[-1].device))
    return float(fit_temperature(torch.cat(logits), torch.cat(targets)))


def _places(points: int | Sequence[float]) -> list[float]:
    if isinstance(points, int):
        if points < 2:
            raise InputError("points", "2 places at least", str(points))
        return [i / (points - 1) for i in range(points)]
    inside = sorted(float(t) for t in points)
    if any(not 0 < t < 1 for t in inside):
        raise InputError("points", "places inside (0, 1)", str(inside))
    return [0.0, *inside, 1.0]
