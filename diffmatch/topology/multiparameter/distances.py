"""Distances between signed measures: optimal transport, and its sliced version by sorting."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_positive, check_same_device, check_shape
from diffmatch.matching import assign
from diffmatch.topology.multiparameter.measure import SignedMeasure

__all__ = ["half_circle", "signed_sliced_distance", "signed_transport_distance"]


def signed_transport_distance(
    a: SignedMeasure,
    b: SignedMeasure,
    *,
    norm: float | int = 1,
    cap: Float[Tensor, " 2"] | None = None,
) -> Float[Tensor, ""]:
    """The optimal transport distance of order 1 between two signed measures.

    ``W_1(a+ + b-, b+ + a-)``: the positive part of one together with the negative part of the other are moved to the
    rest, unit by unit. The optimal matching is found without gradients (the envelope theorem), so the gradient is exact
    where that matching is unique and no matched points coincide. Between Hilbert measures of two parameters, with the
    l1 norm, it is at most twice the sum over all cells of the l1 distances of their grades; between Euler measures at
    most that sum.

    An exact assignment of all units, so it takes (units)^3 steps at worst; for thousands of points see
    :func:`signed_sliced_distance`.

    Args:
        a: a signed measure.
        b: the other one; the gradient reaches the points of both.
        norm: p of the norm between points, >= 1 or inf.
        cap: a corner, shape (2,). Coordinates above it are brought down to it, and what one measure has less of in
            total weight than the other is added there. Without it, measures of different total weight are inf apart,
            without gradients.

    Raises:
        InputError: a norm below 1, a cap that is not finite, points that are not finite.

    References:
        Loiseaux, Scoccola, Carrière, Botnan, Oudot 2023, "Stable vectorization of multiparameter persistent homology
        using signed barcodes as measures", section 3.
    """
    if not norm >= 1:
        raise InputError("norm", "a number >= 1 or inf", repr(norm))
    points, weights = _difference(a, b, cap)
    if int(weights.sum()):
        return points.new_full((), math.inf)
    sources = points.repeat_interleave(weights.clamp_min(0), dim=0)
    targets = points.repeat_interleave((-weights).clamp_min(0), dim=0)
    with torch.no_grad():
        cost = torch.linalg.vector_norm(sources[:, None] - targets, ord=norm, dim=-1)
        partner = assign(cost.double()).assignment
    distance: Tensor = torch.linalg.vector_norm(sources - targets[partner], ord=norm, dim=-1).sum()
    return distance


def signed_sliced_distance(
    a: SignedMeasure,
    b: SignedMeasure,
    *,
    directions: int = 50,
    cap: Float[Tensor, " 2"] | None = None,
) -> Float[Tensor, ""]:
    """The sliced Wasserstein distance of order 1 between two signed measures.

    The mean over directions of the transport distance of what is seen along them, the integral of
    ``|F_a - F_b|`` of the projected distribution functions: one sort a direction. It is at most the transport distance
    with the norm l2, its gradients are dense, and ``exp(-distance / s)`` is a positive definite kernel. Differentiable
    where no two projections coincide.

    Args:
        a: a signed measure.
        b: the other one; the gradient reaches the points of both.
        directions: number of lines, at equal angles in the half circle.
        cap: as in :func:`signed_transport_distance`.

    Raises:
        InputError: no directions, a cap that is not finite, points that are not finite.

    References:
        Carrière, Cuturi, Oudot 2017, "Sliced Wasserstein kernel for persistence diagrams"; Loiseaux et al. 2023.
    """
    check_positive("directions", directions)
    points, weights = _difference(a, b, cap)
    if int(weights.sum()):
        return points.new_full((), math.inf)
    seen, order = (points @ half_circle(directions, points)).sort(dim=0)
    excess = weights[order].cumsum(0)[:-1]
    return (excess.abs() * seen.diff(dim=0)).sum() / directions


def half_circle(directions: int, like: Tensor) -> Float[Tensor, "2 d"]:
    """Unit vectors at equal angles from 0 (the first axis) to below pi, one a column."""
    angle = torch.arange(directions, dtype=like.dtype, device=like.device) * (math.pi / directions)
    return torch.stack((angle.cos(), angle.sin()))


def _difference(
    a: SignedMeasure, b: SignedMeasure, cap: Tensor | None
) -> tuple[Float[Tensor, "p 2"], Int[Tensor, " p"]]:
    """Points and weights of a - b, with what is missing at the cap."""
    check_same_device("b", b.points, a.points.device)
    points, weights = torch.cat((a.points, b.points)), torch.cat((a.weights, -b.weights))
    if cap is not None:
        check_shape("cap", cap, (2,))
        check_finite("cap", cap)
        corner = cap.to(points)
        points = torch.cat((torch.minimum(points, corner), corner[None]))
        weights = torch.cat((weights, -weights.sum()[None]))
    check_finite("points", points.detach())
    return points, weights
