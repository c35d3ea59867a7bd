"""Homographies: a weighted linear fit, and what is measured of them."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.matching.keypoints.geometry.eigenvectors import smallest_eigenvector
from diffmatch.matching.keypoints.geometry.normalization import check_matches, homogeneous, normalize_points

__all__ = ["apply_homography", "corner_error", "homography_dlt"]


def homography_dlt(
    points_a: Float[Tensor, "*b n 2"],
    points_b: Float[Tensor, "*b n 2"],
    *,
    weights: Float[Tensor, "*b n"] | None = None,
) -> Float[Tensor, "*b 3 3"]:
    """The homography that weighted matches agree with best, by the normalised direct linear transform.

    Minimises the weighted sum of squared algebraic errors over the unit vectors (Hartley and Zisserman 2004,
    section 4.1). Differentiable in points and weights, with bounded gradients where the points are degenerate (all on
    a line, or fewer than four of positive weight); the result then means nothing, but is finite.

    Args:
        points_a: pixels, shape (\\*b, n, 2), n at least 4.
        points_b: the matched points, shape (\\*b, n, 2).
        weights: not negative, shape (\\*b, n); a match of weight zero may hold NaN. Ones by default.

    Returns:
        Maps points of A to points of B, of unit norm, with a positive last entry; shape (\\*b, 3, 3), computed in
        float64.

    Raises:
        InputError: shapes do not fit, or fewer than four matches.
    """
    a, b, w = check_matches(points_a, points_b, weights, least=4)
    a, to_a = normalize_points(a, w)
    b, to_b = normalize_points(b, w)
    p, zero = homogeneous(a), torch.zeros_like(homogeneous(a))
    rows_x = torch.cat([-p, zero, b[..., :1] * p], dim=-1)
    rows_y = torch.cat([zero, -p, b[..., 1:] * p], dim=-1)
    weighted_x, weighted_y = rows_x * w[..., None], rows_y * w[..., None]
    found = smallest_eigenvector(weighted_x.mT @ rows_x + weighted_y.mT @ rows_y).unflatten(-1, (3, 3))
    return _unit(torch.linalg.solve(to_b, found @ to_a)).to(points_a.dtype)


def _unit(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    norm = matrix.square().sum(dim=(-2, -1), keepdim=True).clamp_min(1e-300).sqrt()
    return matrix / norm * torch.where(matrix[..., 2:, 2:] < 0, -1.0, 1.0)


def apply_homography(homography: Float[Tensor, "*#b 3 3"], points: Float[Tensor, "*#b n 2"]) -> Float[Tensor, "*c n 2"]:
    """Map points; a point that goes to infinity becomes large, not NaN.

    Args:
        homography: shape (\\*b, 3, 3).
        points: shape (\\*b, n, 2); leading axes are broadcast.
    """
    mapped = homogeneous(points) @ homography.mT
    depth = mapped[..., 2:]
    smallest = torch.finfo(depth.dtype).eps * homography.abs().amax(dim=(-2, -1))[..., None, None]
    depth = torch.where(depth.abs() < smallest, torch.where(depth < 0, -smallest, smallest), depth)
    return mapped[..., :2] / depth


def corner_error(
    homography: Float[Tensor, "*b 3 3"], truth: Float[Tensor, "*b 3 3"], *, size: tuple[int, int]
) -> Float[Tensor, " *b"]:
    """Mean distance in pixels of the four corners of image A, mapped by two homographies.

    Args:
        homography: shape (\\*b, 3, 3).
        truth: shape (\\*b, 3, 3).
        size: width and height of image A.
    """
    w, h = size[0] - 1.0, size[1] - 1.0
    corners = homography.new_tensor([[0.0, 0.0], [w, 0.0], [w, h], [0.0, h]]).expand(*homography.shape[:-2], 4, 2)
    off = apply_homography(homography, corners) - apply_homography(truth, corners)
    return off.square().sum(dim=-1).clamp_min(1e-24).sqrt().mean(dim=-1)
