"""Products of pairs of rows, and the largest numbers of rows and columns, on the CPU, compiled."""

import typing

import numpy as np
from numba import njit

__all__ = ["row_products", "update_nearest"]

_LANES = 16  # numbers that are compared at once


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
@typing.no_type_check
def row_products(rows, first, second):
    """Inner products of pairs of rows, without gathering the rows.

    Args:
        rows: shape (n, d), contiguous.
        first: numbers of rows, shape (e,).
        second: numbers of rows, shape (e,).

    Returns:
        Shape (e,), in the type of the rows.
    """
    count, width = len(first), rows.shape[1]
    products = np.empty(count, rows.dtype)
    for pair in range(count):
        i, j = first[pair], second[pair]
        total = rows[i, 0] * rows[j, 0]
        for column in range(1, width):
            total += rows[i, column] * rows[j, column]
        products[pair] = total
    return products


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc"})
@typing.no_type_check
def update_nearest(block, top, start, values, index, best, back):
    """Update the largest numbers of each row and the largest of each column by a block of a matrix, in place.

    Of equal numbers the first stays.

    Args:
        block: rows from ``top`` and columns from ``start`` of the matrix, shape (r, c).
        top: number of its first row.
        start: number of its first column.
        values: the k largest numbers of each row so far, falling, shape (n, k).
        index: their columns, shape (n, k).
        best: the largest number of each column so far, shape (m,).
        back: its row, shape (m,).
    """
    height, width = block.shape
    last = values.shape[1] - 1
    for i in range(height):
        row = block[i]
        for c in range(width):
            # Selections, no branches: the loop is vectorised.
            better = row[c] > best[start + c]
            best[start + c] = row[c] if better else best[start + c]
            back[start + c] = top + i if better else back[start + c]
        least = values[top + i, last]
        whole = width - width % _LANES
        for first in range(0, whole, _LANES):
            largest = row[first]
            for c in range(1, _LANES):
                largest = max(largest, row[first + c])
            if largest > least:  # seldom, so that most of the row is only read
                for c in range(first, first + _LANES):
                    if row[c] > least:
                        least = _insert(values[top + i], index[top + i], row[c], start + c)
        for c in range(whole, width):
            if row[c] > least:
                least = _insert(values[top + i], index[top + i], row[c], start + c)


@njit(cache=True, nogil=True)
@typing.no_type_check
def _insert(values, index, value, number):
    """Put a number into a falling list, whose last one drops out; the new last one."""
    place = len(values) - 1
    while place > 0 and values[place - 1] < value:
        values[place], index[place] = values[place - 1], index[place - 1]
        place -= 1
    values[place], index[place] = value, number
    return values[-1]
