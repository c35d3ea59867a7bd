"""Compiled loops for critical sets: a boundary matrix reduced together with the additions that reduce it."""

import typing

import numpy as np
from numba import njit

__all__ = ["inverse_row", "reduce_columns"]

_kernel = njit(cache=True, nogil=True)
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@_kernel
@typing.no_type_check
def _toggle(tree, offsets, i):
    """Flip an element of a set that is kept as a tree of bits, 64 children a node."""
    for level in range(len(offsets)):
        word = offsets[level] + (i >> 6)
        before = tree[word]
        tree[word] = before ^ (_ONE << np.uint64(i & 63))
        if before != _ZERO and tree[word] != _ZERO:
            break
        i >>= 6


@_kernel
@typing.no_type_check
def _largest(tree, offsets):
    """The largest element of the set, or -1."""
    if tree[offsets[-1]] == _ZERO:
        return -1
    i = 0
    for level in range(len(offsets) - 1, -1, -1):
        word, position, half = tree[offsets[level] + i], 0, np.uint64(32)
        while half:
            if word >> half:
                word >>= half
                position += np.int64(half)
            half >>= _ONE
        i = 64 * i + position
    return i


@_kernel
@typing.no_type_check
def _drain(tree, offsets, pool, used):
    """Append the elements of the set to a pool, largest first, and leave the set empty."""
    i = _largest(tree, offsets)
    while i >= 0:
        _toggle(tree, offsets, i)
        if used == len(pool):
            longer = np.empty(2 * used, np.int64)
            for q in range(used):
                longer[q] = pool[q]
            pool = longer
        pool[used] = i
        used += 1
        i = _largest(tree, offsets)
    return pool, used


@_kernel
@typing.no_type_check
def reduce_columns(start, rows):
    """Reduce a square boundary matrix D from left to right: R = D V, no two columns of R with the same lowest row.

    Args:
        start: where the rows of each column begin, shape (n + 1,).
        rows: rows of the entries, in filtration order as the columns are.

    Returns:
        The lowest row of each column of R, -1 for a zero column, shape (n,); where the rows of each column of V begin,
        shape (n + 1,), and these rows, the largest (the diagonal) first.
    """
    n = len(start) - 1
    words, size = (n + 63) // 64, (n + 63) // 64
    offsets = [0]
    while words > 1:
        offsets.append(size)
        words = (words + 63) // 64
        size += words
    levels = np.array(offsets)
    column, sums = np.zeros(max(size, 1), np.uint64), np.zeros(max(size, 1), np.uint64)
    owner, low = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    r_start, v_start = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    r_pool, v_pool = np.empty(4 * n + 1, np.int64), np.empty(4 * n + 1, np.int64)
    r_used, v_used = 0, 0
    for c in range(n):
        for q in range(start[c], start[c + 1]):
            _toggle(column, levels, rows[q])
        _toggle(sums, levels, c)
        pivot = _largest(column, levels)
        while pivot >= 0 and owner[pivot] >= 0:
            other = owner[pivot]
            for q in range(r_start[other], r_start[other + 1]):
                _toggle(column, levels, r_pool[q])
            for q in range(v_start[other], v_start[other + 1]):
                _toggle(sums, levels, v_pool[q])
            pivot = _largest(column, levels)
        low[c] = pivot
        if pivot >= 0:
            owner[pivot] = c
        r_pool, r_used = _drain(column, levels, r_pool, r_used)
        v_pool, v_used = _drain(sums, levels, v_pool, v_used)
        r_start[c + 1], v_start[c + 1] = r_used, v_used
    return low, v_start, v_pool[:v_used]


@_kernel
@typing.no_type_check
def inverse_row(v_start, v_rows, row):
    """A row of the inverse of V: the columns with an entry, as a mask, shape (n,)."""
    n = len(v_start) - 1
    inverse = np.zeros(n, np.bool_)
    inverse[row] = True
    for c in range(row + 1, n):
        odd = False
        for q in range(v_start[c] + 1, v_start[c + 1]):  # the first entry is the diagonal
            odd ^= inverse[v_rows[q]]
        inverse[c] = odd
    return inverse
