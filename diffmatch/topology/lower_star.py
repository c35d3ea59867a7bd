"""Persistence of functions on the vertices of graphs and triangle meshes."""

import typing
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_positive, check_same_device, check_shape
from diffmatch.topology.diagram import Persistence
from diffmatch.topology.radix import argsort, ordered_keys
from diffmatch.topology.vertex_pairs import check_degrees, diagrams, filtration_values, vertex_pairs

__all__ = ["graph_persistence", "mesh_persistence"]

_Pairs = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]
"""Vertices of births, of deaths, and of essential births."""


def graph_persistence(
    values: Float[Tensor, " n"],
    edges: Int[Tensor, "e 2"],
    *,
    edge_values: Float[Tensor, " e"] | None = None,
    degrees: Sequence[int] | None = None,
    superlevel: bool = False,
    min_persistence: float = 0.0,
) -> Persistence:
    """Persistent homology of a graph filtered by a function on its vertices (lower star), or on both kinds of cells.

    An edge appears with the later of its ends, and, with ``edge_values``, not before its own value. Components
    (degree 0) are born at vertices and end where they meet an older one; each component of the graph has an essential
    class. Cycles (degree 1) never end: each is an essential class, born with the edge that closes it. The pairing runs
    on the CPU.

    Args:
        values: one a vertex, shape (n,). +inf (-inf with `superlevel`) marks vertices that never appear.
        edges: pairs of vertices, shape (e, 2), each edge once and in any direction; an edge that is given twice, or
            from a vertex to itself, closes a cycle of its own.
        edge_values: one an edge, shape (e,), of the dtype of ``values``; infinite ones mark edges that never appear.
        degrees: from 0 and 1; None for both.
        superlevel: filter from high values to low ones.
        min_persistence: bars of this length and shorter are left out.

    Returns:
        The diagrams. With ``edge_values``, indices from n on stand for edges: n + k for edge k.

    Raises:
        InputError: a shape, dtype or index is wrong, a value is NaN, or infinite on the side where the filtration
            begins; a degree is unknown.
    """
    check_shape("edges", edges, ("e", 2))
    wanted, n = check_degrees(degrees, 1), len(values)
    ascending = _check(values, "edges", edges, superlevel, min_persistence)
    if edge_values is not None:
        own = _check_edge_values(edge_values, values, len(edges), superlevel)
        values, ascending = torch.cat((values, edge_values)), torch.cat((ascending, own))
    order, rank = _ranks(ascending)
    ends = rank[edges.cpu().numpy()]
    high = ends.max(axis=1) if edge_values is None else np.maximum(ends.max(axis=1), rank[n:])
    found = _graph_pairs(order, ends, high, n)[:2]
    return _persistence(values, ascending, found, wanted, superlevel, min_persistence)


def mesh_persistence(
    values: Float[Tensor, " v"],
    faces: Int[Tensor, "f 3"],
    *,
    degrees: Sequence[int] | None = None,
    superlevel: bool = False,
    min_persistence: float = 0.0,
) -> Persistence:
    """Persistent homology of a triangle mesh filtered by a function on its vertices (lower star).

    Edges and faces appear with the last of their vertices; the bars are those of the function that is linear on each
    face. The mesh need be neither manifold nor closed: any set of triangles will do. A vertex without a face is a
    component. The essential classes are those of the mesh itself: components, independent loops, closed surfaces. The
    pairing runs on the CPU.

    Args:
        values: one a vertex, shape (v,). +inf (-inf with `superlevel`) marks vertices that never appear.
        faces: vertex indices, shape (f, 3), in any orientation.
        degrees: from 0 to 2; None for all.
        superlevel: filter from high values to low ones.
        min_persistence: bars of this length and shorter are left out.

    Raises:
        InputError: a shape, dtype or index is wrong, a face names a vertex twice or comes twice, a value is NaN, or
            infinite on the side where the filtration begins; a degree is unknown.
    """
    check_shape("faces", faces, ("f", 3))
    ascending = _check(values, "faces", faces, superlevel, min_persistence)
    wanted = check_degrees(degrees, 2)
    order, rank = _ranks(ascending)
    edges, triangles = _edges_and_triangles(rank[faces.cpu().numpy()])
    components, loops, positive = _graph_pairs(order, edges, edges[:, 0], len(order))
    if wanted == (0,):
        return _persistence(values, ascending, [components], wanted, superlevel, min_persistence)
    partner, fillers = _reduce_triangles(triangles, positive)
    filled = (partner >= 0).nonzero()[0]
    age = order[edges[:, 0]]  # vertex with which an edge appears
    apex = age[triangles[:, 0]]
    loops = age[filled], apex[partner[filled]], age[(positive & (partner < 0)).nonzero()[0]]
    none = np.empty(0, np.int32)
    return _persistence(
        values, ascending, [components, loops, (none, none, apex[fillers])], wanted, superlevel, min_persistence
    )


def _check(values: Tensor, argument: str, cells: Tensor, superlevel: bool, min_persistence: float) -> Tensor:
    """Check what graphs and meshes share; the values by which the filtration goes, on the CPU."""
    check_shape("values", values, ("n",))
    check_floating("values", values)
    check_positive("min_persistence", min_persistence, allow_zero=True)
    if cells.dtype not in (torch.int32, torch.int64):
        raise InputError(argument, "integers of 32 or 64 bits", str(cells.dtype))
    lowest, highest = (int(cells.min()), int(cells.max())) if cells.numel() else (0, -1)
    if lowest < 0 or highest >= len(values):
        raise InputError(argument, f"indices from 0 to {len(values) - 1}", f"{lowest} to {highest}")
    return filtration_values("values", values, superlevel=superlevel).cpu()


def _check_edge_values(edge_values: Tensor, values: Tensor, n_edges: int, superlevel: bool) -> Tensor:
    """The values by which the filtration of the edges goes, on the CPU."""
    check_shape("edge_values", edge_values, (n_edges,))
    check_same_device("edge_values", edge_values, values.device)
    if edge_values.dtype != values.dtype:
        raise InputError("edge_values", f"the dtype of the values, {values.dtype}", str(edge_values.dtype))
    return filtration_values("edge_values", edge_values, superlevel=superlevel).cpu()


def _edges_and_triangles(corners: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Edges by age, as ranks (younger end, older end), and triangles by age, as edges from young to old."""
    a, b, c = np.sort(corners, axis=1).astype(np.int64).T  # from old to young
    flat = int(((a == b) | (b == c)).sum())
    if flat:
        raise InputError("faces", "three different vertices a face", f"{flat} faces that name one twice")
    codes, side = np.unique(np.concatenate((c << 32 | b, c << 32 | a, b << 32 | a)), return_inverse=True)
    # From young to old: c is in the first two sides, and b is younger than a.
    triangles: npt.NDArray[np.int32] = side.reshape(3, -1).T.astype(np.int32)
    triangles = triangles[np.lexsort(triangles.T[::-1])]
    twice = int((triangles[1:] == triangles[:-1]).all(axis=1).sum())
    if twice:
        raise InputError("faces", "each face once", f"{twice} faces that are there already")
    edges: npt.NDArray[np.int32] = np.stack((codes >> 32, codes & 0xFFFFFFFF), axis=1).astype(np.int32)
    return edges, triangles


def _ranks(ascending: Tensor) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Vertices by increasing value, and the place of each vertex in that order."""
    order = argsort(ordered_keys(ascending))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return order, rank


def _graph_pairs(
    order: npt.NDArray[np.int32], edges: npt.NDArray[np.int32], high: npt.NDArray[np.int32], n: int
) -> tuple[_Pairs, _Pairs, npt.NDArray[np.bool_]]:
    """Bars of degree 0 and 1 of a graph, and which edges close a cycle.

    Args:
        order: what values are read from, by age: vertices, from number n on edges.
        edges: ranks of their ends, shape (e, 2).
        high: rank of what each edge appears with, shape (e,).
        n: number of vertices.
    """
    high = np.ascontiguousarray(high, np.int32)
    births, deaths, roots, positive = _join(len(order), np.ascontiguousarray(edges), high, argsort(high))
    none = np.empty(0, np.int32)
    roots = roots[order[roots] < n]
    return (order[births], order[deaths], order[roots]), (none, none, order[high[positive]]), positive


def _persistence(
    values: Tensor,
    ascending: Tensor,
    found: Sequence[_Pairs],
    degrees: tuple[int, ...],
    superlevel: bool,
    min_persistence: float,
) -> Persistence:
    pairs = [
        vertex_pairs(k, ascending, *map(torch.from_numpy, found[k]), min_persistence=min_persistence) for k in degrees
    ]
    return diagrams(values[None], [pairs], superlevel=superlevel)[0]


@njit(cache=True, nogil=True)
@typing.no_type_check
def _find(parent, at):
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@njit(cache=True, nogil=True)
@typing.no_type_check
def _join(n, edges, high, by_age):
    """Elder rule on ranks: births and deaths of components, those that stay, and which edges close a cycle."""
    parent, positive = np.arange(n).astype(np.int32), np.zeros(len(edges), np.bool_)
    births, deaths, count = np.empty(n, np.int32), np.empty(n, np.int32), 0
    for edge in by_age:
        a, b = _find(parent, edges[edge, 0]), _find(parent, edges[edge, 1])
        if a == b:
            positive[edge] = True
            continue
        births[count], deaths[count] = max(a, b), high[edge]
        parent[max(a, b)] = min(a, b)
        count += 1
    roots = np.array([at for at in range(n) if parent[at] == at], np.int32)
    return births[:count], deaths[:count], roots, positive


@njit(cache=True, nogil=True)
@typing.no_type_check
def _reduce_triangles(triangles, positive):
    """Reduce the boundaries of triangles, given by the ages of their edges and sorted by their own.

    Edges that join components are left out of the boundaries, since no loop is born with them. The triangle that each
    edge is paired with, or -1, and the triangles that close a surface.
    """
    partner, closing = np.full(len(positive), -1, np.int32), np.zeros(len(triangles), np.bool_)
    start, used = np.zeros((len(triangles), 2), np.int64), 0
    pool = np.empty(4 * len(triangles) + 4, np.int32)
    for triangle in range(len(triangles)):
        heap = [np.int64(1)]  # a younger edge is a lesser number
        heap.clear()
        for edge in triangles[triangle]:
            if positive[edge]:
                heappush(heap, -np.int64(edge))
        pivot = _pop(heap)
        while pivot >= 0 and partner[pivot] >= 0:
            first, last = start[partner[pivot]]
            for k in range(first, last):
                heappush(heap, -np.int64(pool[k]))
            pivot = _pop(heap)
        if pivot < 0:
            closing[triangle] = True
            continue
        partner[pivot] = triangle
        start[triangle, 0] = used
        rest = _pop(heap)
        while rest >= 0:
            if used == len(pool):
                pool = np.concatenate((pool, np.empty(used, np.int32)))
            pool[used] = rest
            used += 1
            rest = _pop(heap)
        start[triangle, 1] = used
    return partner, closing.nonzero()[0]


@njit(cache=True, nogil=True)
@typing.no_type_check
def _pop(heap):
    """Take out the youngest edge that is there an odd number of times; -1 if there is none."""
    while len(heap) > 0:
        top, odd = heappop(heap), True
        while len(heap) > 0 and heap[0] == top:
            heappop(heap)
            odd = not odd
        if odd:
            return -top
    return np.int64(-1)
