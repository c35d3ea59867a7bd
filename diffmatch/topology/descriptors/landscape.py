"""Persistence landscapes."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.errors import InputError, check_same_device, check_shape
from diffmatch.topology.descriptors.points import masked_points, tents

__all__ = ["persistence_landscape"]


def persistence_landscape(
    points: Float[Tensor, "*b m 2"],
    grid: Float[Tensor, " t"],
    *,
    levels: int = 5,
    mask: Bool[Tensor, "*b m"] | None = None,
) -> Float[Tensor, "*b levels t"]:
    """The first landscape functions of diagrams on a grid.

    ``lambda_k(t)`` is the k-th largest of ``max(0, min(t - b_i, d_i - t))``. Differentiable in the points wherever no
    two of these are equal and none is at a kink; functions beyond the number of points are zero.

    Args:
        points: points (birth, death) with birth <= death, finite, shape (\\*b, m, 2).
        grid: values of t, shape (t,).
        levels: how many functions.
        mask: true for real points, shape (\\*b, m); None for all. What padding holds does not matter.

    Returns:
        The functions, from the largest, shape (\\*b, levels, t). Without points they are zero.

    Raises:
        InputError: wrong shapes or dtypes, NaN or inf, fewer than one level.

    References:
        Bubenik 2015, "Statistical topological data analysis using persistence landscapes".
    """
    if levels < 1:
        raise InputError("levels", "an integer >= 1", repr(levels))
    check_shape("grid", grid, ("t",))
    check_same_device("grid", grid, points.device)
    births, deaths, _ = masked_points(points, mask)
    heights = tents(births, deaths, grid.to(points.dtype))  # padding has birth = death, so height 0
    present = min(levels, heights.shape[-2])
    largest = heights.topk(present, dim=-2).values
    return torch.nn.functional.pad(largest, (0, 0, 0, levels - present))
