"""Compiled shortest augmenting paths on the CPU: a whole batch in one call, with dual variables.

The method is that of Jonker and Volgenant (1987): augmenting row reduction, then one Dijkstra search for each row that
is still free. The searches follow Crouse (2016), which needs no square cost. Costs are read in their own precision and
computed in float64. The kernels release the interpreter lock and are serial.

Numba's cache does not notice edits in other files, so every jitted function that a kernel calls lives here.
"""

import math
import typing

import numpy as np
from numba import njit

SOLVED, INFEASIBLE, STOPPED, NOT_A_NUMBER, UNBOUNDED = range(5)
"""Status of one problem: STOPPED is for solvers that iterate; the last two name values that none can work with."""

REDUCTION_SWEEPS = 2
"""Sweeps of augmenting row reduction; more find few further matches."""

# Annotation checks would wrap what numba has to compile, hence the second decorator of each kernel.
_kernel = njit(cache=True, nogil=True, error_model="numpy")


@_kernel
@typing.no_type_check
def solve_batch(cost, rows, columns, sign, assignment, u, v, status, first, last):
    """Solve the problems ``first`` to ``last`` of a batch.

    Args:
        cost: shape (b, n, m), float32 or float64.
        rows: which rows are real, shape (b, n), bool.
        columns: which columns are real, shape (b, m), bool.
        sign: 1.0 to minimise, -1.0 to maximise.
        assignment: written: column of each row or -1, shape (b, n), int64.
        u: written: duals of the rows of ``sign * cost``, shape (b, n), float64; zero for padding.
        v: written: duals of the columns, shape (b, m), float64; zero for padding.
        status: written: one of the constants of this module, shape (b,), int8.
        first: number of the first problem.
        last: number after the last problem.
    """
    for b in range(first, last):
        status[b] = _solve(cost[b], rows[b], columns[b], sign, assignment[b], u[b], v[b])


@_kernel
@typing.no_type_check
def _solve(cost, rows, columns, sign, assignment, u, v):
    assignment[:], u[:], v[:] = -1, 0.0, 0.0
    row_index, column_index = np.flatnonzero(rows), np.flatnonzero(columns)
    transposed = row_index.size > column_index.size
    if transposed:
        short, long = column_index, row_index
    else:
        short, long = row_index, column_index
    work = np.empty((short.size, long.size))
    low, high = math.inf, -math.inf
    for i in range(short.size):
        for j in range(long.size):
            c = sign * (cost[long[j], short[i]] if transposed else cost[short[i], long[j]])
            if math.isnan(c):
                return NOT_A_NUMBER
            if c == -math.inf:
                return UNBOUNDED
            if c < math.inf:
                low, high = min(low, c), max(high, c)
            work[i, j] = c

    mate = np.empty(short.size, np.int64)
    short_dual, long_dual = np.empty(short.size), np.empty(long.size)
    complete = _match(work, mate, short_dual, long_dual)
    if not complete and high >= low:
        # Among the assignments with the most pairs the cheapest is wanted: a forbidden pair gets a cost that outweighs
        # all others together, and is dropped afterwards.
        penalty = high + (short.size + 1) * (high - low) + max(1.0, abs(high))
        priced = np.where(work == math.inf, penalty, work)
        _match(priced, mate, short_dual, long_dual)
        for i in range(short.size):
            if mate[i] >= 0 and work[i, mate[i]] == math.inf:
                mate[i] = -1

    for i in range(short.size):
        j = mate[i]
        if j >= 0:
            if transposed:
                assignment[long[j]] = short[i]
            else:
                assignment[short[i]] = long[j]
    for i in range(short.size):
        (v if transposed else u)[short[i]] = short_dual[i]
    for j in range(long.size):
        (u if transposed else v)[long[j]] = long_dual[j]
    return SOLVED if complete else INFEASIBLE


@_kernel
@typing.no_type_check
def _match(cost, column_of, u, v):
    """Cheapest assignment of all rows (no more than there are columns); False where a row finds no column."""
    n, m = cost.shape
    column_of[:], u[:], v[:] = -1, 0.0, 0.0
    row_of = np.full(m, -1, np.int64)
    free = np.arange(n)
    for _ in range(REDUCTION_SWEEPS):
        free = _reduce(cost, free, column_of, row_of, v)
    for i in range(n):
        if column_of[i] >= 0:
            u[i] = cost[i, column_of[i]] - v[column_of[i]]
    distance, previous = np.empty(m), np.empty(m, np.int64)
    waiting, visited = np.empty(m, np.int64), np.empty(m, np.int64)
    complete = True
    for i in free:
        complete &= _augment(cost, i, column_of, row_of, u, v, distance, previous, waiting, visited)
    return complete


@_kernel
@typing.no_type_check
def _reduce(cost, free, column_of, row_of, v):
    """Augmenting row reduction: each free row takes its best column and lowers its price to that of the second best.

    A row that loses its column bids again at once. Rounding can make such a duel long, so the bids of a sweep are
    counted. Returns the rows that are still free.
    """
    left = np.empty(free.size, np.int64)
    n_left, bids, budget = 0, 0, 4 * free.size
    for start in free:
        i = start
        while True:
            first, second, best = math.inf, math.inf, -1
            for j in range(v.size):
                reduced = cost[i, j] - v[j]
                if reduced < second:
                    if reduced < first or (reduced == first and row_of[best] >= 0 and row_of[j] < 0):
                        first, second, best = reduced, first, j
                    else:
                        second = reduced
            # The search decides between equals that are all taken, and where a price would become minus infinity.
            if second == math.inf or (first == second and row_of[best] >= 0):
                left[n_left] = i
                n_left += 1
                break
            v[best] -= second - first
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
def _augment(cost, start, column_of, row_of, u, v, distance, previous, waiting, visited):
    """Match one more row along the shortest alternating path from it; False where there is none."""
    m = v.size
    n_waiting, n_visited = m, 0
    for j in range(m):
        waiting[j], distance[j] = j, math.inf
    i, reached, sink = start, 0.0, -1
    while sink < 0:
        nearest, place, open_end = math.inf, -1, False
        for k in range(n_waiting):
            j = waiting[k]
            through = reached + (cost[i, j] - u[i] - v[j])
            if through < distance[j]:
                distance[j], previous[j] = through, i
            if distance[j] < nearest or (place >= 0 and distance[j] == nearest and row_of[j] < 0 and not open_end):
                nearest, place, open_end = distance[j], k, row_of[j] < 0
        if nearest == math.inf:
            return False
        reached, j = nearest, waiting[place]
        if row_of[j] < 0:
            sink = j
        else:
            n_waiting -= 1
            waiting[place] = waiting[n_waiting]
            visited[n_visited] = j
            n_visited += 1
            i = row_of[j]

    u[start] += reached
    for k in range(n_visited):
        j = visited[k]
        u[row_of[j]] += reached - distance[j]
        v[j] -= reached - distance[j]
    j = sink
    while True:
        i = previous[j]
        row_of[j] = i
        column_of[i], j = j, column_of[i]
        if i == start:
            return True
