"""The reference for fields: all cells of the complex, and the reduction of their boundaries."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

Bars = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="session")
def reference() -> Callable[[np.ndarray, str], Bars]:
    return bars


def bars(field: np.ndarray, construction: str) -> Bars:
    """For each degree the sorted finite bars of a sublevel filtration, and the births of the endless ones."""
    values = _vertex_cells(field) if construction == "V" else _top_cells(field)
    # A coordinate of a cell along which it extends is odd.
    dimension = {cell: sum(x % 2 for x in cell) for cell in np.ndindex(values.shape)}
    cells = sorted(dimension, key=lambda cell: (values[cell], dimension[cell]))
    place = {cell: i for i, cell in enumerate(cells)}
    columns: dict[int, set[int]] = {}  # by pivot
    finite, open_cells = [[] for _ in range(field.ndim + 1)], set()
    for i, cell in enumerate(cells):
        column = {
            place[(*cell[:axis], cell[axis] + side, *cell[axis + 1 :])]
            for axis, side in itertools.product(range(field.ndim), (-1, 1))
            if cell[axis] % 2
        }
        while column and max(column) in columns:
            column ^= columns[max(column)]
        if column:
            columns[max(column)] = column
            open_cells.remove(max(column))
            finite[dimension[cells[max(column)]]].append((values[cells[max(column)]], values[cell]))
        else:
            open_cells.add(i)
    result = []
    for degree in range(field.ndim):
        points = np.array([bar for bar in finite[degree] if bar[0] < bar[1]]).reshape(-1, 2)
        endless = [values[cells[i]] for i in open_cells if dimension[cells[i]] == degree]
        masked = np.isinf(points[:, 1])
        endless = np.array([*(x for x in endless if np.isfinite(x)), *points[masked, 0]])
        result.append((points[~masked][np.lexsort(points[~masked].T)], np.sort(endless)))
    return result


def _vertex_cells(field: np.ndarray) -> np.ndarray:
    for axis in range(field.ndim):
        low, high = np.delete(field, -1, axis), np.delete(field, 0, axis)
        shape = [2 * n - 1 if i == axis else n for i, n in enumerate(field.shape)]
        wide, at = np.empty(shape), [slice(None)] * field.ndim
        for start, part in ((0, field), (1, np.maximum(low, high))):
            at[axis] = slice(start, None, 2)
            wide[tuple(at)] = part
        field = wide
    return field


def _top_cells(field: np.ndarray) -> np.ndarray:
    for axis in range(field.ndim):
        padded = np.pad(field, [(int(i == axis),) * 2 for i in range(field.ndim)], constant_values=np.inf)
        walls = np.minimum(np.delete(padded, -1, axis), np.delete(padded, 0, axis))
        shape = [2 * n + 1 if i == axis else n for i, n in enumerate(field.shape)]
        wide, at = np.empty(shape), [slice(None)] * field.ndim
        for start, part in ((1, field), (0, walls)):
            at[axis] = slice(start, None, 2)
            wide[tuple(at)] = part
        field = wide
    return field
