"""Index pairs of grids whose axes may be closed to rings: all cells of the complex, one by one.

Cells stand in an array of about twice the size along every axis, those that extend along an axis at its odd places. The
V-construction has the pixels at the even places, a cell appearing with the last of its corners; the T-construction has
them at the odd places, a cell appearing with the first of the pixels that it is a face of. Cells are ordered by
(pixel, dimension), and their places in that order are their ages.

Degree 0 is an upward union-find over the edges. The degree below the top one is, by duality, a downward union-find of
the top cells over their sides, where the space beyond an open border is a component that began before all others.
In volumes, the squares that start no cavity are reduced over the edges that join no components. What is left over is
essential: a torus has loops, and a cavity or a whole volume, that never end.
"""

import typing
from collections.abc import Collection, Sequence
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt
from numba import njit

from diffmatch.topology.radix import argsort

__all__ = ["PixelPairs", "periodic_pairs"]

PixelPairs = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]
"""Flat numbers of the pixels of births, of deaths, and of essential births."""


def periodic_pairs(
    keys: npt.NDArray[np.signedinteger], *, periodic: Sequence[bool], top_cells: bool, degrees: Collection[int]
) -> dict[int, PixelPairs]:
    """Pairs by degree, without those that begin and end at one pixel.

    Args:
        keys: integers in the order of the values, shape (nx, ny) or (nx, ny, nz), at least one.
        periodic: for each axis, whether its last pixel is a neighbour of its first.
        top_cells: T-construction instead of V.
        degrees: which to compute, from 0 to the number of axes.
    """
    order = argsort(keys.reshape(-1))
    rank: npt.NDArray[np.int32] = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    source = _cells(rank.reshape(keys.shape), periodic, top_cells)
    dimension = np.zeros(source.shape, np.int8)
    for axis in range(keys.ndim):
        dimension[_at(axis, slice(1, None, 2))] += 1
    by_age = argsort(source.reshape(-1).astype(np.int64) * 4 + dimension.reshape(-1))
    age: npt.NDArray[np.int32] = np.empty(len(by_age), np.int32)
    age[by_age] = np.arange(len(by_age), dtype=np.int32)
    pixel = order[source.reshape(-1)[by_age]]  # by age
    return _pairs(age.reshape(source.shape), dimension, periodic, pixel, degrees)


def _at(axis: int, where: slice) -> tuple[slice, ...]:
    return (slice(None),) * axis + (where,)


def _cells(rank: npt.NDArray[np.int32], periodic: Sequence[bool], top_cells: bool) -> npt.NDArray[np.int32]:
    """The pixel, by its rank, with which each cell appears."""
    cells = rank
    for axis, ring in enumerate(periodic):
        n = cells.shape[axis]
        shape = list(cells.shape)
        shape[axis] = 2 * n if ring else 2 * n + (1 if top_cells else -1)
        wider = np.empty(shape, np.int32)
        wider[_at(axis, slice(int(top_cells), None, 2))] = cells
        if top_cells:
            before = np.roll(cells, 1, axis)
            if ring:
                between = np.minimum(before, cells)
            else:
                first, last = cells[_at(axis, slice(0, 1))], cells[_at(axis, slice(n - 1, n))]
                inner = np.minimum(before, cells)[_at(axis, slice(1, None))]
                between = np.concatenate((first, inner, last), axis)
            wider[_at(axis, slice(0, None, 2))] = between
        else:
            between = np.maximum(cells, np.roll(cells, -1, axis))
            wider[_at(axis, slice(1, None, 2))] = between if ring else between[_at(axis, slice(0, n - 1))]
        cells = wider
    return cells


def _pairs(
    age: npt.NDArray[np.int32],
    dimension: npt.NDArray[np.int8],
    periodic: Sequence[bool],
    pixel: npt.NDArray[np.int32],
    degrees: Collection[int],
) -> dict[int, PixelPairs]:
    """Pairs of cells by their ages, and the pixels of these."""
    top, n = age.ndim, age.size
    found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    edges, ends = _sides(age, dimension, periodic, 1)
    births, deaths, joins = _join(n, edges, ends)
    vertices = age[dimension == 0]
    found[0] = births, deaths, _without(vertices, births)
    if set(degrees) - {0}:
        tops, sides = _sides(age, dimension, periodic, top)
        facets = np.sort(age[dimension == top - 1])
        births, deaths = _split(n, tops, sides, facets)
        found[top] = tops[:0], tops[:0], _without(tops, deaths)
        cycles = edges[~joins]
        if top == 2:
            found[1] = births, deaths, _without(cycles, births)
        else:
            squares, boundary = _sides(age, dimension, periodic, 2)
            left = ~np.isin(squares, births, assume_unique=True)
            column_of = np.full(n, -2, np.int32)
            column_of[cycles] = -1
            partner = _reduce(boundary[left], column_of)
            closing, loops = squares[left][partner < 0], squares[left][partner >= 0]
            found[1] = partner[partner >= 0], loops, _without(cycles, partner)
            found[2] = births, deaths, closing
    result = {}
    for degree in degrees:
        first, last, essential = (pixel[ages] for ages in found[degree])
        lasting = first != last
        result[degree] = first[lasting], last[lasting], essential
    return result


def _without(ages: np.ndarray, others: np.ndarray) -> np.ndarray:
    rest: np.ndarray = ages[~np.isin(ages, others)]
    return rest


def _sides(
    age: npt.NDArray[np.int32], dimension: npt.NDArray[np.int8], periodic: Sequence[bool], degree: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Cells of a dimension from old to young, by age, and the ages of the 2 * dimension cells in their boundaries."""
    places = (dimension == degree).nonzero()
    cells = age[places]
    order = cells.argsort()
    cells, places = cells[order], tuple(place[order] for place in places)
    sides = np.empty((len(cells), 2 * degree), np.int32)
    column = np.zeros(len(cells), np.int64)
    for axis, place in enumerate(places):
        odd = (place % 2).nonzero()[0]
        for step in (-1, 1):
            beside = list(places)
            beside[axis] = (place + step) % age.shape[axis]
            sides[odd, column[odd]] = age[tuple(part[odd] for part in beside)]
            column[odd] += 1
    return cells, sides


@njit(cache=True, nogil=True)
@typing.no_type_check
def _find(parent, at):
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@njit(cache=True, nogil=True)
@typing.no_type_check
def _join(n, edges, ends):
    """Upward: the vertex and the edge that are the birth and the death of each component, and which edges these are."""
    parent, joins = np.arange(n).astype(np.int32), np.zeros(len(edges), np.bool_)
    births, deaths, count = np.empty(len(edges), np.int32), np.empty(len(edges), np.int32), 0
    for k in range(len(edges)):
        a, b = _find(parent, ends[k, 0]), _find(parent, ends[k, 1])
        if a != b:
            parent[max(a, b)] = min(a, b)
            births[count], deaths[count], joins[k] = max(a, b), edges[k], True
            count += 1
    return births[:count], deaths[:count], joins


@njit(cache=True, nogil=True)
@typing.no_type_check
def _split(n, tops, sides, facets):
    """Downward: the side where each component of the complement ends, and its top cell; ages, n being the outside."""
    beside = np.full((n, 2), n, np.int32)  # top cells at each side
    for k in range(len(tops)):
        for side in sides[k]:
            beside[side, 0 if beside[side, 0] == n else 1] = tops[k]
    parent = np.arange(n + 1).astype(np.int32)
    births, deaths, count = np.empty(len(facets), np.int32), np.empty(len(facets), np.int32), 0
    for k in range(len(facets) - 1, -1, -1):
        a, b = _find(parent, beside[facets[k], 0]), _find(parent, beside[facets[k], 1])
        if a != b:
            parent[min(a, b)] = max(a, b)
            births[count], deaths[count] = facets[k], min(a, b)
            count += 1
    return births[:count], deaths[:count]


@njit(cache=True, nogil=True)
@typing.no_type_check
def _reduce(boundary, column_of):
    """Reduce boundaries from old to young; the age of the cell that each is paired with, or -1.

    Args:
        boundary: ages, shape (m, k).
        column_of: for each age, -1 for a cell that may be paired, -2 for others; changed.
    """
    partner = np.full(len(boundary), -1, np.int32)
    start, pool, used = np.zeros(len(boundary) + 1, np.int64), np.empty(4 * len(boundary) + 4, np.int32), 0
    heap = [np.int64(1)]  # a younger cell is a lesser number
    for column in range(len(boundary)):
        heap.clear()
        for cell in boundary[column]:
            if column_of[cell] != -2:
                heappush(heap, -np.int64(cell))
        pivot = _pop(heap)
        while pivot >= 0 and column_of[pivot] >= 0:
            for k in range(start[column_of[pivot]], start[column_of[pivot] + 1]):
                heappush(heap, -np.int64(pool[k]))
            pivot = _pop(heap)
        if pivot >= 0:
            partner[column], column_of[pivot] = pivot, column
            rest = _pop(heap)
            while rest >= 0:
                if used == len(pool):
                    pool = np.concatenate((pool, np.empty(used, np.int32)))
                pool[used] = rest
                used += 1
                rest = _pop(heap)
        start[column + 1] = used
    return partner


@njit(cache=True, nogil=True)
@typing.no_type_check
def _pop(heap):
    """Take out the youngest cell that is there an odd number of times; -1 if there is none."""
    while len(heap) > 0:
        top, odd = heappop(heap), True
        while len(heap) > 0 and heap[0] == top:
            heappop(heap)
            odd = not odd
        if odd:
            return -top
    return np.int64(-1)
