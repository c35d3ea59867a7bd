"""Distances at the nodes of a grid, exact where they are near."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.meshing.grid import Grid

__all__ = ["near_distances"]

BLOCK = 4


def near_distances(
    grid: Grid,
    distance: Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]],
    *,
    reach: float,
    device: torch.device | str = "cpu",
) -> Float[Tensor, " nodes"]:
    """A signed distance at the nodes, in float64, computed only where it may be within reach.

    A distance changes by no more than one walks. So one value in the middle of a block of nodes tells whether all of
    them are farther than ``reach``; they then get its sign and a lower bound of their distance that is beyond reach.

    Args:
        grid: the cells.
        distance: an exact signed distance, or anything else that changes by no more than one walks.
        reach: up to which distance the values are wanted.
        device: of the nodes.
    """
    spacing, origin = (torch.tensor(x, dtype=torch.float64, device=device) for x in (grid.spacing, grid.origin))
    blocks = [-(-n // BLOCK) for n in grid.node_shape]
    index = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64, device=device) for n in blocks))
    middle = distance(origin + spacing * (BLOCK * index + (BLOCK - 1) / 2)).reshape(blocks)
    radius = (BLOCK - 1) / 2 * float(torch.linalg.vector_norm(spacing))
    bound = torch.copysign(middle.abs() - radius, middle)
    near = middle.abs() <= radius + reach
    for axis, n in enumerate(grid.node_shape):
        bound, near = (x.repeat_interleave(BLOCK, axis).narrow(axis, 0, n) for x in (bound, near))
    values, asked = bound.flatten(), near.flatten()
    values[asked] = distance(grid.nodes(dtype=torch.float64, device=device)[asked])
    return values
