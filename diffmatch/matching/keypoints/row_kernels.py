"""Products of pairs of rows, and the largest number of each column, on the CPU, compiled."""

import typing

import numpy as np
from numba import njit

__all__ = ["column_maxima", "row_products"]


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


@njit(cache=True, nogil=True)
@typing.no_type_check
def column_maxima(block, start, best, row):
    """Update the largest number of each column, and its row, by a block of rows; the first of equal ones stays.

    Args:
        block: rows ``start`` and following of a matrix, shape (b, m).
        start: number of the first row of the block.
        best: largest numbers so far, shape (m,), changed in place.
        row: the rows they are in, shape (m,), changed in place.
    """
    for i in range(block.shape[0]):
        for column in range(block.shape[1]):
            # Selections, no branches: the loop is vectorised.
            better = block[i, column] > best[column]
            best[column] = block[i, column] if better else best[column]
            row[column] = start + i if better else row[column]
