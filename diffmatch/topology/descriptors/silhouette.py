"""Persistence silhouettes."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.errors import check_positive, check_same_device, check_shape
from diffmatch.topology.descriptors.points import masked_points, tents

__all__ = ["persistence_silhouette"]


def persistence_silhouette(
    points: Float[Tensor, "*b m 2"],
    grid: Float[Tensor, " t"],
    *,
    power: float | int = 1.0,
    mask: Bool[Tensor, "*b m"] | None = None,
) -> Float[Tensor, "*b t"]:
    """The mean of the triangle functions of the points, weighted by a power of their persistence.

    ``sum w_i max(0, min(t - b_i, d_i - t)) / sum w_i`` with ``w_i = (d_i - b_i)^power``.

    Args:
        points: points (birth, death) with birth <= death, finite, shape (\\*b, m, 2).
        grid: values of t, shape (t,).
        power: exponent of the weights, >= 0; large ones favour the long bars.
        mask: true for real points, shape (\\*b, m); None for all. What padding holds does not matter.

    Returns:
        The silhouettes, shape (\\*b, t). Without points of positive persistence they are zero.

    Raises:
        InputError: wrong shapes or dtypes, NaN or inf.

    References:
        Chazal et al. 2014, "Stochastic convergence of persistence landscapes and silhouettes".
    """
    check_positive("power", power, allow_zero=True)
    check_shape("grid", grid, ("t",))
    check_same_device("grid", grid, points.device)
    births, deaths, mask = masked_points(points, mask)
    length = deaths - births
    counts = mask & (length > 0)
    weight = torch.where(counts, torch.where(counts, length, 1) ** power, 0)
    total = weight.sum(-1, keepdim=True)
    share = weight / torch.where(total > 0, total, 1)
    return (share.unsqueeze(-1) * tents(births, deaths, grid.to(points.dtype))).sum(-2)
