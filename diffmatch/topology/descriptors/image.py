"""Persistence images."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.errors import check_positive, check_same_device, check_shape
from diffmatch.topology.descriptors.points import masked_points

__all__ = ["persistence_image"]


def persistence_image(
    points: Float[Tensor, "*b m 2"],
    birth_edges: Float[Tensor, " w"],
    length_edges: Float[Tensor, " h"],
    *,
    bandwidth: float | int,
    power: float | int = 1.0,
    mask: Bool[Tensor, "*b m"] | None = None,
) -> Float[Tensor, "*b rows columns"]:
    """Diagrams as images: a Gaussian at (birth, persistence) of each point, integrated over the pixels.

    A point has the weight ``p^power`` of its persistence p, so that bars of length zero vanish continuously. Pixels
    hold integrals, not samples: what lies inside the image adds up to the weights whatever the resolution.

    Args:
        points: points (birth, death) with birth <= death, finite, shape (\\*b, m, 2).
        birth_edges: edges of the columns, increasing, shape (w,).
        length_edges: edges of the rows, in persistence, increasing, shape (h,).
        bandwidth: standard deviation of the Gaussians, in the unit of the points.
        power: exponent of the weights, >= 0.
        mask: true for real points, shape (\\*b, m); None for all. What padding holds does not matter.

    Returns:
        The images, shape (\\*b, h - 1, w - 1), row 0 for the shortest bars. Without points they are zero.

    Raises:
        InputError: wrong shapes or dtypes, NaN or inf, a bandwidth that is not positive.

    References:
        Adams et al. 2017, "Persistence images: a stable vector representation of persistent homology".
    """
    check_positive("bandwidth", bandwidth)
    check_positive("power", power, allow_zero=True)
    for name, edges in (("birth_edges", birth_edges), ("length_edges", length_edges)):
        check_shape(name, edges, ("edges",))
        check_same_device(name, edges, points.device)
    births, deaths, mask = masked_points(points, mask)
    length = deaths - births
    counts = mask & (length > 0)
    weight = torch.where(counts, torch.where(counts, length, 1) ** power, 0)
    columns = _shares(births, birth_edges, bandwidth)
    rows = _shares(length, length_edges, bandwidth)
    return torch.einsum("...m,...mh,...mw->...hw", weight, rows, columns)


def _shares(centres: Tensor, edges: Tensor, bandwidth: float | int) -> Tensor:
    """How much of a Gaussian at each centre lies between neighbouring edges, shape (\\*b, m, edges - 1)."""
    below: Tensor = torch.special.ndtr((edges.to(centres.dtype) - centres.unsqueeze(-1)) / bandwidth)
    return below.diff(dim=-1)
