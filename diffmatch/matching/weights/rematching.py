"""Compiled assignment that begins from the solution of a similar problem, as successive Gram matrices of one atom are.

Shortest augmenting paths as in :mod:`diffmatch.matching.assignment.kernels`, but every row whose present partner is
still its best at the given prices is matched at once, so that the work grows with what has changed. Profits are read in
their own precision and computed in float64. The kernels release the interpreter lock and are serial.
"""

import math
import typing

import numpy as np
from numba import njit

REDUCTION_SWEEPS = 2
"""Sweeps of augmenting row reduction; more find few further matches."""

# Annotation checks would wrap what numba has to compile, hence the second decorator of each kernel.
_kernel = njit(cache=True, nogil=True, error_model="numpy")
# Least and largest may be taken in any order, eight at a time; infinity keeps its meaning.
_vector_kernel = njit(cache=True, nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc"})


@_kernel
@typing.no_type_check
def rematch(profit, prices, column_of):
    """The assignment of largest total profit; where it is not unique, one near the present.

    Args:
        profit: shape (n, n), finite, float32 or float64.
        prices: of the columns, shape (n,), float64: any to begin with; afterwards the duals of the assignment.
        column_of: column of each row, shape (n,), int64: any permutation to begin with.

    Returns:
        By how much the total beats that of the identity.
    """
    n = prices.size
    row_of = np.full(n, -1, np.int64)
    best = np.empty(n)
    free = np.empty(n, np.int64)
    n_free = 0
    for i in range(n):
        most = _largest_difference(profit[i], prices)
        best[i] = most
        present = column_of[i]
        if profit[i, present] - prices[present] >= most:
            row_of[present] = i
        else:
            column_of[i] = -1
            free[n_free] = i
            n_free += 1
    left = free[:n_free].copy()
    for _ in range(REDUCTION_SWEEPS):
        left = _reduce(profit, left, column_of, row_of, prices)
    for i in range(n):
        if column_of[i] >= 0:
            best[i] = profit[i, column_of[i]] - prices[column_of[i]]
    nearest, final, asked = np.empty(n), np.empty(n), np.empty(n)
    previous, visited = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in left:
        _augment(profit, i, column_of, row_of, best, prices, nearest, final, previous, visited, asked)
    gain = 0.0
    for i in range(n):
        gain += float(profit[i, column_of[i]]) - float(profit[i, i])
    return gain


@_kernel
@typing.no_type_check
def _reduce(profit, free, column_of, row_of, prices):
    """Augmenting row reduction: each free row takes its best column and raises its price to the second best's.

    A row that loses its column bids again at once. Rounding can make such a duel long, so the bids of a sweep are
    counted. Returns the rows that are still free.
    """
    left = np.empty(free.size, np.int64)
    n_left, bids, budget = 0, 0, 4 * free.size
    for start in free:
        i = start
        while True:
            first, second, best = -math.inf, -math.inf, -1
            for j in range(prices.size):
                value = profit[i, j] - prices[j]
                if value > second:
                    if value > first or (value == first and row_of[best] >= 0 and row_of[j] < 0):
                        first, second, best = value, first, j
                    else:
                        second = value
            # The search decides between equals that are all taken, and where there is no second.
            if second == -math.inf or (first == second and row_of[best] >= 0):
                left[n_left] = i
                n_left += 1
                break
            prices[best] += first - second
            loser = row_of[best]
            row_of[best], column_of[i] = i, best
            if loser < 0:
                break
            column_of[loser] = -1
            bids += 1
            if bids < budget:
                i = loser
            else:
                left[n_left] = loser
                n_left += 1
                break
    return left[:n_left].copy()


@_kernel
@typing.no_type_check
def _augment(profit, start, column_of, row_of, best, prices, nearest, final, previous, visited, asked):
    """Match one more row along the shortest alternating path from it."""
    n = prices.size
    for j in range(n):
        asked[j], nearest[j] = prices[j], math.inf
    best[start] = _largest_difference(profit[start], prices)
    n_visited, i, reached, sink = 0, start, 0.0, -1
    while sink < 0:
        reached = _relax(profit[i], asked, reached + best[i], i, nearest, previous)
        place = -1
        for j in range(n):
            if nearest[j] == reached and (place < 0 or row_of[j] < 0):
                place = j
                if row_of[j] < 0:
                    break
        if row_of[place] < 0:
            sink = place
        else:
            final[place], nearest[place], asked[place] = reached, math.inf, math.inf
            visited[n_visited] = place
            n_visited += 1
            i = row_of[place]

    best[start] -= reached
    for k in range(n_visited):
        j = visited[k]
        best[row_of[j]] -= reached - final[j]
        prices[j] += reached - final[j]
    j = sink
    while True:
        i = previous[j]
        row_of[j] = i
        column_of[i], j = j, column_of[i]
        if i == start:
            return


@_vector_kernel
@typing.no_type_check
def _relax(profit, asked, base, i, nearest, previous):
    """Shorten the paths to all columns by those through row ``i``; the smallest length."""
    least = math.inf
    for j in range(asked.size):
        through = base + (asked[j] - profit[j])
        shorter = through < nearest[j]
        nearest[j] = through if shorter else nearest[j]
        previous[j] = i if shorter else previous[j]
        least = min(least, nearest[j])
    return least


@_vector_kernel
@typing.no_type_check
def _largest_difference(profit, prices):
    most = -math.inf
    for j in range(prices.size):
        most = max(most, profit[j] - prices[j])
    return most
