"""Signed measures of images with two channels."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_choice, check_floating, check_shape
from diffmatch.topology.cubical import Construction
from diffmatch.topology.multiparameter.axes import Axis, Levels, make_axes
from diffmatch.topology.multiparameter.events import (
    Events,
    cell_events,
    graph_events,
    graph_events_by_tensors,
    negated,
)
from diffmatch.topology.multiparameter.kernels import grid_cells, grid_edges
from diffmatch.topology.multiparameter.measure import SignedMeasure, collect, from_codes

__all__ = ["check_degree", "image_signed_measure"]


def image_signed_measure(
    field: Float[Tensor, "2 h w"],
    *,
    degree: int | None = 0,
    levels: Levels = None,
    construction: Construction = "V",
) -> SignedMeasure:
    """The signed measure of an image with two channels: of its Hilbert function, or of its Euler characteristic.

    The sets ``{field[0] <= s and field[1] <= t}`` grow with both levels. The measure of degree 0 or 1 is the Moebius
    inversion of the number of their components or loops, ``H(s, t)``; with degree None, of their Euler characteristic.
    Components come from one spanning forest that grows with t, cells are counted, and loops are what is missing: in
    the plane, ``chi = H_0 - H_1``. Negate a channel for its superlevel sets.

    Differentiable in the field where no two values of a channel that matter change their order: the points' coordinates
    are values of pixels, read by gathering. With a number of levels they are those of the pixels at these quantiles,
    and only these have a gradient (the measure on quantiles is as smooth as its levels are). With levels as tensors
    gradients go to the levels, and none reaches the field. At ties the gradient is one element of the generalised
    gradient. Images on the CPU are swept by compiled loops, others by tensor operations on their device, with memory
    for every pixel at every level of the second axis.

    Args:
        field: shape (2, h, w), floating point. A pixel with +inf in either channel never appears.
        degree: 0, 1, or None for the Euler characteristic.
        levels: None for all values as levels, which costs a number of steps up to (pixels)^2 for degrees 0 and 1; a
            number for that many quantiles a channel; or the increasing levels of both channels, shapes (s,) and (t,).
            Each value counts at the next level that is not below it.
        construction: ``"V"`` joins pixels through sides, ``"T"`` through corners too
            (see :func:`~diffmatch.topology.cubical_persistence`).

    Returns:
        The measure; its total weight is the rank at the last levels. An image without pixels has no points.

    Raises:
        InputError: wrong shape or dtype, NaN, -inf, an unknown degree or construction, levels that do not increase.

    References:
        Loiseaux, Scoccola, Carrière, Botnan, Oudot 2023, "Stable vectorization of multiparameter persistent homology
        using signed barcodes as measures"; Scoccola, Setlur, Loiseaux, Carrière, Oudot 2024, "Differentiability and
        optimization of multiparameter persistent homology".
    """
    check_shape("field", field, (2, "h", "w"))
    check_floating("field", field)
    check_degree(degree, 1)
    check_choice("construction", construction, ("V", "T"))
    x, y = make_axes("field", field.reshape(2, -1), levels)
    size = x.size, y.size
    shape, diagonal = tuple(field.shape[1:]), construction == "T"
    parts: list[Events] = []
    if degree is not None:
        parts.append(_components(x, y, shape, diagonal))
    if degree != 0:
        cells = _cells(x, y, shape, diagonal)
        parts += [negated(part) for part in cells] if degree == 1 else cells
    codes, weights = collect([c for c, _ in parts], [w for _, w in parts], size)
    return from_codes(codes, weights, size, x.coordinates, y.coordinates, degree)


def check_degree(degree: int | None, top: int) -> None:
    """Check a degree of homology, None standing for the Euler characteristic.

    Raises:
        InputError: it is unknown.
    """
    if degree is not None and degree not in range(top + 1):
        raise InputError("degree", f"an integer from 0 to {top}, or None for the Euler characteristic", repr(degree))


def _components(x: Axis, y: Axis, shape: tuple[int, ...], diagonal: bool) -> Events:
    size = x.size, y.size
    if x.index.device.type == "cpu":
        ends, *levels = grid_edges(x.array(), y.array(), shape, diagonal)
        return graph_events((x.array(), y.array()), ends, (levels[0], levels[1]), size)
    pixels = torch.arange(len(x.index), device=x.index.device).reshape(shape)
    ends = torch.cat([torch.stack((u.reshape(-1), v.reshape(-1))) for u, v in _neighbours(pixels, diagonal)], 1)
    return graph_events_by_tensors(x.index, y.index, ends, size)


def _cells(x: Axis, y: Axis, shape: tuple[int, ...], diagonal: bool) -> list[Events]:
    size = x.size, y.size
    if x.index.device.type == "cpu":
        codes, signs = grid_cells(x.array(), y.array(), shape, size, diagonal)
        return [(torch.from_numpy(codes), torch.from_numpy(signs))]
    a, b = x.index.reshape(shape), y.index.reshape(shape)
    return [
        cell_events(first, second, sign, size)
        for (sign, first), (_, second) in zip(_cell_levels(a, diagonal), _cell_levels(b, diagonal), strict=True)
    ]


def _neighbours(pixels: Int[Tensor, "h w"], diagonal: bool) -> list[tuple[Tensor, Tensor]]:
    pairs = [(pixels[:, :-1], pixels[:, 1:]), (pixels[:-1], pixels[1:])]
    if diagonal:
        pairs += [(pixels[:-1, :-1], pixels[1:, 1:]), (pixels[:-1, 1:], pixels[1:, :-1])]
    return pairs


def _cell_levels(index: Int[Tensor, "h w"], diagonal: bool) -> list[tuple[int, Int[Tensor, " c"]]]:
    """Signs and levels of the cells of :func:`~.kernels.grid_cells`, by tensor operations."""
    edges = [torch.maximum(u, v).reshape(-1) for u, v in _neighbours(index, diagonal)]
    corners = torch.stack((index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
    block = corners.amax(0).reshape(-1)
    cells = [(1, index.reshape(-1))] + [(-1, edge) for edge in edges]
    if not diagonal:
        return [*cells, (1, block)]
    triangles = [(1, corners[[j for j in range(4) if j != i]].amax(0).reshape(-1)) for i in range(4)]
    return [*cells, *triangles, (-1, block)]
