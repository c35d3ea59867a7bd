"""Points of diagrams as descriptors take them: padded to batches, with a mask."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_floating, check_same_device, check_shape
from diffmatch.topology.diagram import Diagram

__all__ = ["masked_points", "pad_diagrams", "tents"]


def pad_diagrams(
    diagrams: Sequence[Diagram | Float[Tensor, "_ 2"]],
) -> tuple[Float[Tensor, "b m 2"], Bool[Tensor, "b m"]]:
    """Diagrams of different sizes as one batch, for the descriptors.

    Args:
        diagrams: at least one diagram, or points (birth, death) of shape (m, 2). Essential classes are left out.

    Returns:
        The points, padded by zeros to the size of the largest diagram, and a mask that is true for real points.

    Raises:
        InputError: there are none, or one has a wrong shape.
    """
    if not diagrams:
        raise InputError("diagrams", "at least one", "none")
    points = [d.points() if isinstance(d, Diagram) else d for d in diagrams]
    for one in points:
        check_shape("diagrams", one, ("m", 2))
    padded = torch.nn.utils.rnn.pad_sequence(points, batch_first=True)
    sizes = torch.tensor([len(one) for one in points], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < sizes.unsqueeze(1)


def masked_points(points: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Births, deaths and mask of checked points, shapes (\\*b, m); what is padding becomes zero.

    Raises:
        InputError: wrong shapes or dtypes; NaN or infinite entries that the mask does not hide.
    """
    check_shape("points", points, ("m", 2), batch=True)
    check_floating("points", points)
    if mask is None:
        mask = torch.ones(points.shape[:-1], dtype=torch.bool, device=points.device)
    else:
        check_shape("mask", mask, tuple(points.shape[:-1]))
        check_same_device("mask", mask, points.device)
    points = torch.where(mask.unsqueeze(-1), points, 0)
    check_finite("points", points)
    births, deaths = points.unbind(-1)
    return births, deaths, mask


def tents(births: Tensor, deaths: Tensor, grid: Tensor) -> Tensor:
    """The function ``max(0, min(t - b, d - t))`` of each point on a grid, shape (\\*b, m, t)."""
    up, down = grid - births.unsqueeze(-1), deaths.unsqueeze(-1) - grid
    return torch.minimum(up, down).clamp_min(0)
