"""Fundamental and essential matrices: weighted linear fits, and distances of matches to them."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.matching.keypoints.geometry.eigenvectors import smallest_eigenvector
from diffmatch.matching.keypoints.geometry.normalization import check_matches, homogeneous, normalize_points

__all__ = ["essential_8point", "fundamental_8point", "sampson_distance", "symmetric_epipolar_distance"]


def fundamental_8point(
    points_a: Float[Tensor, "*b n 2"],
    points_b: Float[Tensor, "*b n 2"],
    *,
    weights: Float[Tensor, "*b n"] | None = None,
) -> Float[Tensor, "*b 3 3"]:
    """The fundamental matrix of weighted matches by the normalised eight-point algorithm (Hartley 1997).

    The nearest matrix of rank two is F - F v v^T, v the right singular vector of the smallest singular value.
    Differentiable in points and weights; bounded gradients, and a finite result that means nothing, where the points
    are degenerate (such as all in one plane).

    Args:
        points_a: pixels, shape (\\*b, n, 2), n at least 8.
        points_b: the matched points.
        weights: not negative, shape (\\*b, n); a match of weight zero may hold NaN. Ones by default.

    Returns:
        F with x_b^T F x_a = 0, unit norm, rank two; shape (\\*b, 3, 3), computed in float64.

    Raises:
        InputError: shapes do not fit, or fewer than eight matches.
    """
    linear, to_a, to_b = _linear_fit(points_a, points_b, weights)
    null = smallest_eigenvector(linear.mT @ linear)[..., None]
    rank_two = linear - (linear @ null) @ null.mT
    return _unit(to_b.mT @ rank_two @ to_a).to(points_a.dtype)


def essential_8point(
    points_a: Float[Tensor, "*b n 2"],
    points_b: Float[Tensor, "*b n 2"],
    *,
    weights: Float[Tensor, "*b n"] | None = None,
) -> Float[Tensor, "*b 3 3"]:
    """The essential matrix of weighted matches in normalised coordinates: eight points, then two equal singular values.

    The projection is by a singular value decomposition, whose gradient is not bounded: train through
    :func:`fundamental_8point`, and use this one for values.

    Args:
        points_a: K_a^-1 of the pixels, shape (\\*b, n, 2), n at least 8.
        points_b: K_b^-1 of the matched pixels.
        weights: not negative, shape (\\*b, n).

    Returns:
        E with x_b^T E x_a = 0 and singular values (1, 1, 0), shape (\\*b, 3, 3).

    Raises:
        InputError: shapes do not fit, or fewer than eight matches.
    """
    linear, to_a, to_b = _linear_fit(points_a, points_b, weights)
    u, _, vt = torch.linalg.svd(to_b.mT @ linear @ to_a)
    essential: Tensor = u[..., :2] @ vt[..., :2, :]
    return essential.to(points_a.dtype)


def _linear_fit(
    points_a: Float[Tensor, "*b n 2"], points_b: Float[Tensor, "*b n 2"], weights: Float[Tensor, "*b n"] | None
) -> tuple[Float[Tensor, "*b 3 3"], Float[Tensor, "*b 3 3"], Float[Tensor, "*b 3 3"]]:
    """The best matrix of any rank between normalised points, and the normalisations."""
    a, b, w = check_matches(points_a, points_b, weights, least=8)
    a, to_a = normalize_points(a, w)
    b, to_b = normalize_points(b, w)
    rows = (homogeneous(b)[..., :, None] * homogeneous(a)[..., None, :]).flatten(-2)
    moments = (rows * w[..., None]).mT @ rows
    return smallest_eigenvector(moments).unflatten(-1, (3, 3)), to_a, to_b


def _unit(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    return matrix / matrix.square().sum(dim=(-2, -1), keepdim=True).clamp_min(1e-300).sqrt()


def _terms(
    fundamental: Float[Tensor, "*#b 3 3"], points_a: Float[Tensor, "*#b n 2"], points_b: Float[Tensor, "*#b n 2"]
) -> tuple[Float[Tensor, "*c n"], Float[Tensor, "*#c n"], Float[Tensor, "*#c n"]]:
    """Squared value of x_b^T F x_a, and the squared norms of the normals of both epipolar lines."""
    a, b = homogeneous(points_a), homogeneous(points_b)
    lines_b, lines_a = a @ fundamental.mT, b @ fundamental
    value = (b * lines_b).sum(dim=-1).square()
    return value, lines_a[..., :2].square().sum(dim=-1), lines_b[..., :2].square().sum(dim=-1)


def sampson_distance(
    fundamental: Float[Tensor, "*#b 3 3"], points_a: Float[Tensor, "*#b n 2"], points_b: Float[Tensor, "*#b n 2"]
) -> Float[Tensor, "*c n"]:
    """Squared Sampson distance in squared pixels: first-order distance of a match to the epipolar geometry.

    Args:
        fundamental: shape (\\*b, 3, 3).
        points_a: shape (\\*b, n, 2).
        points_b: shape (\\*b, n, 2).
    """
    value, norm_a, norm_b = _terms(fundamental, points_a, points_b)
    return value / (norm_a + norm_b).clamp_min(torch.finfo(value.dtype).tiny)


def symmetric_epipolar_distance(
    fundamental: Float[Tensor, "*#b 3 3"], points_a: Float[Tensor, "*#b n 2"], points_b: Float[Tensor, "*#b n 2"]
) -> Float[Tensor, "*c n"]:
    """Mean distance in pixels of both points of a match to their epipolar lines.

    Args:
        fundamental: shape (\\*b, 3, 3).
        points_a: shape (\\*b, n, 2).
        points_b: shape (\\*b, n, 2).
    """
    value, norm_a, norm_b = _terms(fundamental, points_a, points_b)
    tiny = torch.finfo(value.dtype).tiny
    size = value.clamp_min(tiny).sqrt()
    return (size * norm_a.clamp_min(tiny).rsqrt() + size * norm_b.clamp_min(tiny).rsqrt()) / 2
