"""Sparse gradients made smooth: of a few points to all points, of a few pixels to their surroundings."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_floating, check_positive, check_shape

__all__ = ["blurred_gradient", "diffeomorphic_gradient"]


def diffeomorphic_gradient(
    points: Float[Tensor, "n d"],
    gradient: Float[Tensor, "n d"],
    *,
    bandwidth: float | int,
    ridge: float | int = 1e-6,
    at: Float[Tensor, "m d"] | None = None,
) -> Float[Tensor, "m d"]:
    """The smooth vector field of least norm that agrees with a sparse gradient where that is not zero.

    ``v(x) = sum_i k(x, x_i) a_i`` over the points I with a gradient, ``(K_II + ridge) a = g_I``, with the Gaussian
    kernel ``k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2))``. Moving every point by ``-rate * v`` is a diffeomorphism of
    space where the rate times the Lipschitz constant of v is below one: points do not cross, and those around a moving
    point come along. It also carries a gradient that was found on a subset to the whole cloud, by ``at``.

    Args:
        points: shape (n, d).
        gradient: gradient at the points, mostly zero rows, shape (n, d).
        bandwidth: standard deviation of the kernel, > 0, in the unit of the points.
        ridge: added to the diagonal, > 0; larger values let points that are close together disagree with the gradient.
        at: where to evaluate the field, shape (m, d); None for the points.

    Returns:
        The field, shape (m, d), without gradients; zero where the gradient is zero everywhere.

    Raises:
        InputError: wrong shapes or dtypes, NaN or inf, numbers that are not positive.

    References:
        Carriere, Theveneau, Lacombe 2024, "Diffeomorphic interpolation for efficient persistence-based topological
        optimization".
    """
    check_shape("points", points, ("n", "d"))
    check_floating("points", points)
    check_shape("gradient", gradient, tuple(points.shape))
    check_finite("gradient", gradient)
    check_positive("bandwidth", bandwidth)
    check_positive("ridge", ridge)
    if at is not None:
        check_shape("at", at, ("m", points.shape[1]))
    with torch.no_grad():
        where = points if at is None else at
        moving = gradient.ne(0).any(1).nonzero().squeeze(1)
        sources = points[moving]
        system = _kernel(sources, sources, bandwidth)
        system.diagonal().add_(ridge)
        coefficients = torch.linalg.solve(system, gradient[moving])
        field: Tensor = _kernel(where, sources, bandwidth) @ coefficients
        return field


def blurred_gradient(gradient: Float[Tensor, "*shape"], *, bandwidth: float | int) -> Float[Tensor, "*shape"]:
    """A sparse gradient on a grid, blurred by a Gaussian and rescaled to the same slope.

    ``v = c * (kernel * g)`` with c such that ``<v, g> = |g|^2``, so that a small step along ``-v`` lowers the loss as
    much as one along ``-g``. Beyond the edges of the grid the gradient counts as zero.

    Args:
        gradient: shape of the field, one to three axes.
        bandwidth: standard deviation of the kernel, > 0, in pixels; it is cut off at four.

    Returns:
        The blurred gradient, zero if the gradient is.

    Raises:
        InputError: wrong dtype or number of axes, a bandwidth that is not positive.
    """
    check_floating("gradient", gradient)
    check_positive("bandwidth", bandwidth)
    if not 1 <= gradient.ndim <= 3:
        raise InputError("gradient", "one to three axes", f"shape {tuple(gradient.shape)}")
    with torch.no_grad():
        reach = math.ceil(4 * bandwidth)
        offset = torch.arange(-reach, reach + 1, dtype=gradient.dtype, device=gradient.device)
        kernel = torch.exp(-0.5 * (offset / bandwidth).square())
        blurred = gradient
        for axis in range(gradient.ndim):
            rows = blurred.movedim(axis, -1)
            lines = torch.nn.functional.conv1d(
                rows.reshape(-1, 1, rows.shape[-1]), kernel.view(1, 1, -1), padding=reach
            )
            blurred = lines.reshape(rows.shape).movedim(-1, axis)
        slope = (blurred * gradient).sum()
        return blurred * torch.where(slope > 0, gradient.square().sum() / torch.where(slope > 0, slope, 1), 0)


def _kernel(x: Tensor, y: Tensor, bandwidth: float | int) -> Tensor:
    squared = (x.unsqueeze(1) - y).square().sum(2)
    return torch.exp(squared / (-2 * bandwidth**2))
