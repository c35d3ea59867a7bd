"""Signed measures of graphs and triangle meshes with two functions on their vertices."""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_shape
from diffmatch.topology.lower_star import mesh_persistence
from diffmatch.topology.multiparameter.axes import Axis, Levels, make_axes
from diffmatch.topology.multiparameter.events import (
    Events,
    cell_events,
    graph_events,
    graph_events_by_tensors,
    negated,
)
from diffmatch.topology.multiparameter.images import check_degree
from diffmatch.topology.multiparameter.measure import SignedMeasure, collect, from_codes

__all__ = ["check_cells", "graph_signed_measure", "mesh_signed_measure"]


def graph_signed_measure(
    values: Float[Tensor, "2 n"],
    edges: Int[Tensor, "m 2"],
    *,
    degree: int | None = 0,
    levels: Levels = None,
) -> SignedMeasure:
    """The signed measure of a graph with two functions on its vertices (lower star in both).

    An edge enters when both functions have passed both of its ends. Loops of the graph (degree 1) never end; each edge
    that closes one counts, parallel edges and edges from a vertex to itself too.

    Differentiable in the values as :func:`~.images.image_signed_measure` is in a field, with the same meaning of
    ``levels``. Tensors on the CPU are swept by compiled loops, others by tensor operations.

    Args:
        values: both functions, shape (2, n), floating point; +inf in either marks vertices that never appear.
        edges: ends of the edges, shape (m, 2).
        degree: 0, 1, or None for the Euler characteristic.
        levels: None for all values, a number of quantiles, or the increasing levels of both functions.

    Raises:
        InputError: wrong shapes, dtypes or indices, NaN, -inf, an unknown degree, levels that do not increase.
    """
    check_cells(values, "edges", edges, 2)
    check_degree(degree, 1)
    x, y = make_axes("values", values, levels)
    return _measure(x, y, edges.T, [edges], [], degree)


def mesh_signed_measure(
    values: Float[Tensor, "2 v"],
    faces: Int[Tensor, "f 3"],
    *,
    degree: int | None = 0,
    levels: Levels = None,
) -> SignedMeasure:
    """The signed measure of a triangle mesh with two functions on its vertices (lower star in both).

    Components come from a spanning forest, loops from ``H_1 = H_0 + H_2 - chi`` and cavities (degree 2) from the closed
    parts of the mesh: where no edge has more than two faces, each adds a point at the largest values on it. Meshes with
    such edges are reduced slice by slice, which takes a step of :func:`~diffmatch.topology.mesh_persistence` for each
    level of the second function.

    Differentiable in the values as :func:`~.images.image_signed_measure` is in a field, with the same meaning of
    ``levels``.

    Args:
        values: both functions, shape (2, v), floating point; +inf in either marks vertices that never appear.
        faces: vertex indices, shape (f, 3). A vertex without a face is a component.
        degree: 0, 1, 2, or None for the Euler characteristic.
        levels: None for all values, a number of quantiles, or the increasing levels of both functions.

    Raises:
        InputError: wrong shapes, dtypes or indices, NaN, -inf, an unknown degree, levels that do not increase, faces
            that name a vertex twice or come twice.
    """
    check_cells(values, "faces", faces, 3)
    check_degree(degree, 2)
    corners = faces.long().sort(dim=1).values
    flat = int((corners[:, 1:] == corners[:, :-1]).any(1).sum())
    twice = len(corners) - len(corners.unique(dim=0))
    if flat or twice:
        raise InputError("faces", "three vertices a face, and each face once", f"{flat} and {twice} others")
    sides, side = torch.cat((corners[:, :2], corners[:, 1:], corners[:, ::2])).unique(dim=0, return_inverse=True)
    x, y = make_axes("values", values, levels)
    closed = _closed(x, y, faces, side.reshape(3, -1)) if degree in (1, 2) else []
    return _measure(x, y, sides.T, [sides, corners], closed, degree)


def check_cells(values: Tensor, argument: str, cells: Tensor, corners: int) -> None:
    """Check two functions on vertices, and cells given by the indices of their corners.

    Raises:
        InputError: wrong shapes, dtypes or indices.
    """
    check_shape("values", values, (2, "n"))
    check_floating("values", values)
    check_shape(argument, cells, ("m", corners))
    if cells.dtype not in (torch.int32, torch.int64):
        raise InputError(argument, "integers of 32 or 64 bits", str(cells.dtype))
    lowest, highest = (int(cells.min()), int(cells.max())) if cells.numel() else (0, -1)
    if lowest < 0 or highest >= values.shape[1]:
        raise InputError(argument, f"indices from 0 to {values.shape[1] - 1}", f"{lowest} to {highest}")


def _measure(
    x: Axis, y: Axis, ends: Tensor, cells: list[Tensor], closed: list[Events], degree: int | None
) -> SignedMeasure:
    """Components, cells and closed surfaces, put together for a degree."""
    size = x.size, y.size
    parts = [*closed]
    if degree in (0, 1):
        parts.append(_components(x, y, ends.long()))
    if degree in (None, 1):
        euler = [cell_events(x.index, y.index, 1, size)]
        for dimension, corners in enumerate(cells, start=1):
            first, second = (axis.index[corners.long()].amax(1) for axis in (x, y))
            euler.append(cell_events(first, second, (-1) ** dimension, size))
        parts += [negated(part) for part in euler] if degree == 1 else euler
    none = x.entries[:0]
    codes, weights = collect([none, *(c for c, _ in parts)], [none, *(w for _, w in parts)], size)
    return from_codes(codes, weights, size, x.coordinates, y.coordinates, degree)


def _components(x: Axis, y: Axis, ends: Int[Tensor, "2 m"]) -> Events:
    size = x.size, y.size
    if x.index.device.type != "cpu":
        return graph_events_by_tensors(x.index, y.index, ends, size)
    edges = [axis.index[ends].amax(0).numpy() for axis in (x, y)]
    return graph_events((x.array(), y.array()), ends.T.contiguous().numpy(), (edges[0], edges[1]), size)


def _closed(x: Axis, y: Axis, faces: Tensor, side: Int[Tensor, "3 f"]) -> list[Events]:
    """Degree 2: the closed surfaces among the faces that enter."""
    size = x.size, y.size
    a, b = (axis.index[faces.long()].amax(1) for axis in (x, y))
    entering = ((a < size[0]) & (b < size[1])).nonzero().squeeze(1)
    side = side[:, entering]
    count = torch.bincount(side.reshape(-1))
    if len(count) and int(count.max()) > 2:
        return _closed_by_slices(x, y, faces)
    part = torch.from_numpy(_parts_of_faces(side.cpu().numpy())).long().to(faces.device)
    n_parts = int(part.max()) + 1 if len(part) else 0
    whole = torch.ones(n_parts, dtype=torch.bool, device=faces.device)
    whole[part[(count[side] == 1).any(0)]] = False
    last = [
        torch.zeros(n_parts, dtype=torch.int64, device=faces.device).scatter_reduce(
            0, part, level[entering].long(), "amax"
        )
        for level in (a, b)
    ]
    return [cell_events(last[0][whole], last[1][whole], 1, size)]


def _parts_of_faces(side: np.ndarray) -> np.ndarray:
    """Number of the part, connected through edges, that each face belongs to."""
    n = side.shape[1]
    ones = np.ones(side.size, bool)
    of_side = coo_array((ones, (np.tile(np.arange(n), 3), side.ravel())), shape=(n, int(side.max(initial=-1)) + 1))
    labels: np.ndarray = connected_components(of_side.tocsr() @ of_side.T.tocsr(), directed=False)[1]
    return labels


def _closed_by_slices(x: Axis, y: Axis, faces: Tensor) -> list[Events]:
    events = []
    for level in range(y.size):
        slice_ = torch.where((y.index <= level) & (x.index < x.size), x.index.double(), torch.inf)
        apex = mesh_persistence(slice_, faces, degrees=(2,))[2].essential_index
        codes = x.index[apex].long() * y.size + level
        events.append((codes, torch.ones_like(codes)))
        if level + 1 < y.size:
            events.append((codes + 1, -torch.ones_like(codes)))
    return events
