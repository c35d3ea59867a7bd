"""The weights of FlexiCubes cells: activation, and the order that other implementations keep them in."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_shape
from diffmatch.meshing.case_tables import cell_geometry
from diffmatch.ops import distinct_rows

__all__ = ["from_public_order", "to_public_order"]

WEIGHT_SCALE = 0.99
"""Reach of the weights: below 1 it keeps all of them positive."""


def corner_weight(alpha: Tensor, scale: float) -> Tensor:
    """``1 + scale * tanh(alpha)``, in (0, 2); also the activation of the edge weights beta."""
    # As a sigmoid: torch computes it three times as fast, and the sum with 1 hides the last bits of a tanh near 0.
    return torch.add(alpha.new_tensor(1 - scale), (2 * alpha).sigmoid_(), alpha=2 * scale)


def corner_slope(weight: Tensor, scale: float) -> Tensor:
    """Derivative of :func:`corner_weight` where it has these values."""
    return scale - (weight - 1).square() / scale


def split_weight(gamma: Tensor, scale: float) -> Tensor:
    """``scale * sigmoid(gamma) + (1 - scale) / 2``, in (0, 1)."""
    # Torch rounds the sigmoid of strided numbers in another way.
    return scale * gamma.contiguous().sigmoid() + (1 - scale) / 2


def split_slope(weight: Tensor, scale: float) -> Tensor:
    """Derivative of :func:`split_weight` where it has these values."""
    reach = weight - (1 - scale) / 2
    return reach - reach.square() / scale


def weights_of_cells(
    raw: Sequence[Tensor | None], cell: Int[Tensor, " k"], weight_cells: Int[Tensor, " c"] | None
) -> list[Tensor | None]:
    """Raw weights of the surface cells, shape (k, \\*w) of each kind.

    Args:
        raw: weights of all cells, or of those that ``weight_cells`` lists, shape (c, \\*w); None stays None.
        cell: surface cells, ascending.
        weight_cells: cells that the rows of ``raw`` belong to, ascending; others have zeros, which are neutral.
    """
    if all(weight is None for weight in raw):
        return list(raw)
    if weight_cells is None:
        index = cell.long()
        return [None if weight is None else distinct_rows(weight, index) for weight in raw]
    if weight_cells is cell or (len(weight_cells) == len(cell) and bool((weight_cells == cell).all())):
        return list(raw)
    place = torch.searchsorted(weight_cells, cell.to(weight_cells.dtype)).clamp_max(max(len(weight_cells) - 1, 0))
    listed = weight_cells[place] == cell if len(weight_cells) else torch.zeros_like(cell, dtype=torch.bool)
    slot = listed.nonzero().squeeze(1)

    def spread(weight: Tensor) -> Tensor:
        return weight.new_zeros(len(cell), *weight.shape[1:]).index_put((slot,), weight[place[listed]])

    return [None if weight is None else spread(weight) for weight in raw]


# The public implementation (nv-tlabs/FlexiCubes) numbers corners as we do and lists edges by these pairs of corners.
_PUBLIC_EDGES = ((0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4))


@lru_cache(maxsize=1)
def _edge_order() -> tuple[list[int], list[int]]:
    """For each of our edges the place in the public order, and the reverse."""
    place = {frozenset(pair): i for i, pair in enumerate(_PUBLIC_EDGES)}
    ours = [place[frozenset(pair)] for pair in cell_geometry().edge_corners.tolist()]
    return ours, [ours.index(i) for i in range(12)]


def from_public_order(
    weights: Float[Tensor, "*b cells 21"],
) -> tuple[Float[Tensor, "*b cells 8"], Float[Tensor, "*b cells 12"], Float[Tensor, "*b cells"]]:
    """Split cell weights kept as by the public FlexiCubes code into alpha, beta and gamma of this package.

    That code keeps 21 raw numbers a cell: beta of its 12 edges in its own order, alpha of the 8 corners, gamma. Cells
    run with the last axis fastest in both.

    Args:
        weights: shape (\\*b, cells, 21).

    Returns:
        alpha (\\*b, cells, 8), beta (\\*b, cells, 12) and gamma (\\*b, cells).

    Raises:
        InputError: the last axis is not 21.
    """
    check_shape("weights", weights, ("cells", 21), batch=True)
    ours, _ = _edge_order()
    return weights[..., 12:20], weights[..., ours], weights[..., 20]


def to_public_order(
    alpha: Float[Tensor, "*b cells 8"], beta: Float[Tensor, "*b cells 12"], gamma: Float[Tensor, "*b cells"]
) -> Float[Tensor, "*b cells 21"]:
    """Inverse of :func:`from_public_order`.

    Raises:
        InputError: the shapes are not (\\*b, cells, 8), (\\*b, cells, 12) and (\\*b, cells).
    """
    check_shape("alpha", alpha, ("cells", 8), batch=True)
    check_shape("beta", beta, (*alpha.shape[:-1], 12))
    if gamma.shape != alpha.shape[:-1]:
        raise InputError("gamma", f"shape {tuple(alpha.shape[:-1])}", str(tuple(gamma.shape)))
    _, public = _edge_order()
    return torch.cat((beta[..., public], alpha, gamma.unsqueeze(-1)), -1)
