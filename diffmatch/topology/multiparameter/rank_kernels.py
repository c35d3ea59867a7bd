"""Compiled sweep of the rank invariant of components in two parameters.

For levels j <= l of the second axis, let X be what has entered by j and Y what has entered by l, both growing along the
first axis. A component of Y counts, in the image of the components of X, from the first vertex of X in it on: its bar
begins with that vertex and ends where, at an edge of the spanning forest of Y, it meets a component with an older one.
So the forest of Y is swept once for each j, with the vertices of X alone having an age. From one j to the next few bars
change, and only changes are written: this is the Moebius inversion in j; that in l is two events a change.
"""

import typing

import numpy as np
from numba import njit

__all__ = ["rank_events"]

_kernel = njit(cache=True, nogil=True)


@_kernel
@typing.no_type_check
def _root(parent, at):
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@_kernel
@typing.no_type_check
def _grow(forest, size, fresh, ends, edge_a, parent, grown):
    """The spanning forest, in the order of the first axis, of a forest and of new edges in that order; its size."""
    for v in range(len(parent)):
        parent[v] = v
    old, new, kept = 0, 0, 0
    while old < size or new < len(fresh):
        if new == len(fresh) or (old < size and edge_a[forest[old]] <= edge_a[fresh[new]]):
            e = forest[old]
            old += 1
        else:
            e = fresh[new]
            new += 1
        u, v = _root(parent, ends[e, 0]), _root(parent, ends[e, 1])
        if u != v:
            parent[max(u, v)] = min(u, v)
            grown[kept] = e
            kept += 1
    return kept


@_kernel
@typing.no_type_check
def _bars(forest, size, ends, edge_a, parent, age, never, bars):
    """For each edge of the forest, then for each vertex as a root, the age of the bar that ends there, or `never`.

    Which vertex is a root does not depend on ages.
    """
    n = len(parent)
    for v in range(n):
        parent[v] = v
    for k in range(size):
        e = forest[k]
        u, v = _root(parent, ends[e, 0]), _root(parent, ends[e, 1])
        u, v = min(u, v), max(u, v)
        parent[v] = u
        younger = max(age[u], age[v])
        age[u] = min(age[u], age[v])
        bars[k] = younger if younger < edge_a[e] else never
    for v in range(n):
        bars[size + v] = age[v] if parent[v] == v else never


@_kernel
@typing.no_type_check
def rank_events(a, b, ends, edge_a, edge_b, by_level, size):
    """Bars of the image persistence of all pairs of slices, by inclusion and exclusion.

    Args:
        a: level at which each vertex enters on the first axis, shape (n,); `size[0]` for never.
        b: the same on the second axis.
        ends: ends of the edges, shape (m, 2).
        edge_a: level at which each edge enters, not below those of its ends, shape (m,).
        edge_b: the same on the second axis.
        by_level: numbers of the edges that ever enter, by increasing (edge_b, edge_a).
        size: number of levels on each axis.

    Returns:
        levels of the births (first, second axis) and of the deaths, shape (k, 4), int32, where a death at ``size``
        means never; and weights 1 or -1, shape (k,), int64.
    """
    n, never, r = len(a), size[0], size[1]
    forest, grown, kept, begin = np.empty(n, np.int32), np.empty(n, np.int32), 0, 0
    parent, age = np.empty(n, np.int32), np.empty(n, np.int32)
    bars, before = np.empty(2 * n, np.int32), np.empty(2 * n, np.int32)
    events, weights, count = np.empty((1024, 4), np.int32), np.empty(1024, np.int64), 0
    for l in range(r):  # noqa: E741 (as in the text above)
        end = begin
        while end < len(by_level) and edge_b[by_level[end]] == l:
            end += 1
        kept = _grow(forest, kept, by_level[begin:end], ends, edge_a, parent, grown)
        forest, grown, begin = grown, forest, end
        for k in range(kept + n):
            before[k] = never
        for j in range(l + 1):
            for v in range(n):
                age[v] = a[v] if b[v] <= j else never
            _bars(forest, kept, ends, edge_a, parent, age, never, bars)
            for k in range(kept + n):
                if bars[k] == before[k]:
                    continue
                death = edge_a[forest[k]] if k < kept else never
                if count + 4 > len(weights):
                    events, weights = _longer(events, weights)
                for bar, sign in ((bars[k], 1), (before[k], -1)):
                    if bar == never:
                        continue
                    for last in range(l if j < l else l + 1, l + 2):
                        events[count, 0], events[count, 1] = bar, j
                        events[count, 2], events[count, 3] = death, last
                        weights[count] = sign if last > l else -sign
                        count += 1
            bars, before = before, bars
    return events[:count], weights[:count]


@_kernel
@typing.no_type_check
def _longer(events, weights):
    """The same lists with twice the room."""
    more, heavier = np.empty((2 * len(events), 4), np.int32), np.empty(2 * len(weights), np.int64)
    for k in range(len(weights)):
        heavier[k] = weights[k]
        for i in range(4):
            more[k, i] = events[k, i]
    return more, heavier
