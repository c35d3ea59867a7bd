"""Weighted points brought to a common place and size before a linear fit (Hartley 1997)."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_shape

__all__ = ["check_matches", "homogeneous", "normalize_points"]


def check_matches(
    points_a: Float[Tensor, "*b n 2"],
    points_b: Float[Tensor, "*b n 2"],
    weights: Float[Tensor, "*b n"] | None,
    *,
    least: int,
) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b n 2"], Float[Tensor, "*b n"]]:
    """Matches in float64, with weights, and with zeros where the weight is zero, so that padding may hold NaN.

    Raises:
        InputError: shapes that do not fit, integer points, fewer rows than ``least``.
    """
    check_shape("points_a", points_a, ("n", 2), batch=True)
    check_floating("points_a", points_a)
    check_shape("points_b", points_b, tuple(points_a.shape))
    n = points_a.shape[-2]
    if n < least:
        raise InputError("points_a", f"at least {least} matches", str(n))
    if weights is None:
        weights = torch.ones_like(points_a[..., 0])
    check_shape("weights", weights, tuple(points_a.shape[:-1]))
    used = (weights > 0)[..., None]
    return (
        torch.where(used, points_a, 0).double(),
        torch.where(used, points_b, 0).double(),
        torch.where(used[..., 0], weights, 0).double(),
    )


def normalize_points(
    points: Float[Tensor, "*b n 2"], weights: Float[Tensor, "*b n"]
) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b 3 3"]]:
    """Points with weighted mean zero and weighted root mean square distance sqrt(2) from it, and the map to them."""
    total = weights.sum(dim=-1, keepdim=True).clamp_min(1e-30)
    share = (weights / total)[..., None]
    centre = (share * points).sum(dim=-2, keepdim=True)
    spread = (share * (points - centre).square()).sum(dim=(-2, -1)).clamp_min(1e-30).sqrt()
    scale = 2**0.5 / spread
    one, zero = torch.ones_like(scale), torch.zeros_like(scale)
    shift = -scale[..., None] * centre[..., 0, :]
    rows = [scale, zero, shift[..., 0], zero, scale, shift[..., 1], zero, zero, one]
    return (points - centre) * scale[..., None, None], torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def homogeneous(points: Float[Tensor, "*b n 2"]) -> Float[Tensor, "*b n 3"]:
    """Points with a third coordinate of one."""
    return torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
