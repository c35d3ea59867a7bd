"""Inside and outside of oriented points: their generalised winding number, by a tree of dipoles."""

import math
import typing
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

__all__ = ["DipoleTree", "SureCells", "dipole_tree", "winding_numbers"]

LEAF, FAN = 16, 8  # points in a leaf, and children of a node of the tree
REACH = 2.0  # a node farther away than this many of its radii counts as one dipole
SURE = 0.3  # least distance of a winding number from 1/2 that leaves no doubt

_kernel = njit(cache=True, nogil=True, error_model="numpy")


class DipoleTree(NamedTuple):
    """Oriented points with areas, grouped by place, for sums of dipoles.

    Attributes:
        points: positions in the order of the tree, shape (n, 3).
        vectors: normals as long as the areas, shape (n, 3).
        first: index of the first node of each level, leaves first, and the end; shape (levels + 1,).
        centres: of the nodes, shape (m, 3).
        moments: sums of the vectors, shape (m, 3).
        radii: of the nodes, shape (m,).
    """

    points: np.ndarray
    vectors: np.ndarray
    first: np.ndarray
    centres: np.ndarray
    moments: np.ndarray
    radii: np.ndarray


def dipole_tree(points: np.ndarray, vectors: np.ndarray) -> DipoleTree:
    """Group points by place.

    Args:
        points: positions, shape (n, 3), neighbours in space near each other in memory (as a k-d tree orders them).
        vectors: normals as long as the areas they stand for, shape (n, 3).
    """
    areas = np.linalg.norm(vectors, axis=1)
    starts = np.arange(0, len(points), LEAF)
    total = np.add.reduceat(areas, starts)
    centres = np.add.reduceat(points * areas[:, None], starts) / total[:, None]
    moments = np.add.reduceat(vectors, starts)
    spread = np.linalg.norm(points - np.repeat(centres, np.diff(np.r_[starts, len(points)]), axis=0), axis=1)
    levels = [(centres, moments, np.maximum.reduceat(spread, starts))]
    while len(centres) > 1:
        starts = np.arange(0, len(centres), FAN)
        sums = np.add.reduceat(total, starts)
        parents = np.add.reduceat(centres * total[:, None], starts) / sums[:, None]
        counts = np.diff(np.r_[starts, len(centres)])
        spread = np.linalg.norm(centres - np.repeat(parents, counts, axis=0), axis=1) + levels[-1][2]
        centres, moments, total = parents, np.add.reduceat(moments, starts), sums
        levels.append((centres, moments, np.maximum.reduceat(spread, starts)))
    first = np.cumsum([0] + [len(level[0]) for level in levels])
    return DipoleTree(points, vectors, first, *(np.concatenate(column) for column in zip(*levels, strict=True)))


def winding_numbers(tree: DipoleTree, queries: np.ndarray) -> np.ndarray:
    """Generalised winding numbers of oriented points: 1 inside, 0 outside, 1/2 between the two; shape (n,)."""
    values = np.empty(len(queries))
    _winding(*tree, queries, values)
    return values


class SureCells:
    """Winding numbers of points, looked up where no point and no change of sign is near.

    Args:
        tree: the oriented points.
        distances: their distance function: positions (n, 3) to (n,).
        half: the lattice covers [-half, half]^3.
        cells: of the lattice along each side.
    """

    def __init__(
        self, tree: DipoleTree, distances: Callable[[np.ndarray], np.ndarray], *, half: float, cells: int
    ) -> None:
        self._tree, self._half, self._cells = tree, half, cells
        axis = np.linspace(-half, half, cells + 1)
        nodes = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        clear = distances(nodes) > math.sqrt(3) * 2 * half / cells  # no point in the cells around the node
        winding = np.full(len(nodes), 0.5)
        winding[clear] = winding_numbers(tree, nodes[clear])
        side = np.where(np.abs(winding - 0.5) > SURE, np.sign(winding - 0.5), 0).astype(np.int8)
        side = np.asarray(side).reshape((cells + 1,) * 3)
        ends = (slice(0, cells), slice(1, None))
        corners = np.stack([side[i, j, k] for i in ends for j in ends for k in ends])
        total = corners.sum(0)
        self._side: np.ndarray = np.asarray(np.where(np.abs(total) == 8, np.sign(total), 0))

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """Winding numbers, exactly 0 or 1 in cells without doubt; shape (n,)."""
        cell = np.floor((queries + self._half) * (self._cells / (2 * self._half))).astype(np.int64)
        within: np.ndarray = np.all((cell >= 0) & (cell < self._cells), axis=1)
        i, j, k = (cell * within[:, None]).T
        side = np.asarray(np.where(within, self._side[i, j, k], 0))
        values: np.ndarray = np.asarray(np.where(side > 0, 1.0, 0.0))
        doubt: np.ndarray = np.asarray(side == 0)
        values[doubt] = winding_numbers(self._tree, queries[doubt])
        return values


@_kernel
@typing.no_type_check
def _winding(points, vectors, first, centres, moments, radii, queries, values):
    stack_level, stack_node = np.empty(256, np.int64), np.empty(256, np.int64)
    top = len(first) - 2
    for q in range(len(queries)):
        x, y, z = queries[q]
        total = 0.0
        stack_level[0], stack_node[0], n = top, 0, 1
        while n > 0:
            n -= 1
            level, node = stack_level[n], stack_node[n]
            at = first[level] + node
            dx, dy, dz = centres[at, 0] - x, centres[at, 1] - y, centres[at, 2] - z
            square = dx * dx + dy * dy + dz * dz
            if square > (REACH * radii[at]) ** 2:
                dot = dx * moments[at, 0] + dy * moments[at, 1] + dz * moments[at, 2]
                total += dot / (square * math.sqrt(square))
            elif level == 0:
                for i in range(node * LEAF, min(node * LEAF + LEAF, len(points))):
                    dx, dy, dz = points[i, 0] - x, points[i, 1] - y, points[i, 2] - z
                    square = dx * dx + dy * dy + dz * dz
                    if square > 0:
                        dot = dx * vectors[i, 0] + dy * vectors[i, 1] + dz * vectors[i, 2]
                        total += dot / (square * math.sqrt(square))
            else:
                for child in range(node * FAN, min(node * FAN + FAN, first[level] - first[level - 1])):
                    stack_level[n], stack_node[n] = level - 1, child
                    n += 1
        values[q] = total / (4 * math.pi)
