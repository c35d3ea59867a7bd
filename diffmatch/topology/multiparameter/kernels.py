"""Compiled loops of two-parameter filtrations: the cells of images, and components by a growing spanning forest.

A vertex or an edge enters at a pair of levels (a, b). The components of all sublevel sets are known from the minimum
spanning forests, in the order of a, of the slices {level of the second axis <= b}: each vertex adds one, each edge of
the forest takes one away. As b grows the forest changes edge by edge, and every change is a point of the signed measure
of degree 0: an edge that comes in weighs -1 at (its a, b), one that goes out +1. So the Moebius inversion happens where
the events are, and no table of the Hilbert function is made.

Before the sweep, a vertex that enters together with an edge to a vertex that is there already is contracted into it,
since it never starts a component (a discrete gradient in two parameters); in images that is most of them.
"""

import typing

import numpy as np
from numba import njit

__all__ = ["component_events", "grid_cells", "grid_edges"]

_kernel = njit(cache=True, nogil=True)


@_kernel
@typing.no_type_check
def grid_edges(a, b, shape, diagonal):
    """Neighbouring pixels, through sides or through corners too, and the levels at which their edges enter.

    Args:
        a: level of each pixel on the first axis, flat.
        b: level on the second axis.
        shape: (rows, columns).
        diagonal: eight neighbours instead of four.

    Returns:
        the ends of the edges, shape (m, 2), int32, and their levels a and b, shape (m,).
    """
    rows, columns = shape
    most = (4 if diagonal else 2) * rows * columns
    ends, at_a, at_b = np.empty((most, 2), np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    m = 0
    for i in range(rows):
        for j in range(columns):
            u = i * columns + j
            for k in range(4 if diagonal else 2):
                y, x = (i, j + 1) if k == 0 else (i + 1, j + (0, 0, 1, -1)[k])
                if y >= rows or x >= columns or x < 0:
                    continue
                v = y * columns + x
                ends[m, 0], ends[m, 1] = u, v
                at_a[m], at_b[m] = max(a[u], a[v]), max(b[u], b[v])
                m += 1
    return ends[:m], at_a[:m], at_b[:m]


@_kernel
@typing.no_type_check
def grid_cells(a, b, shape, size, diagonal):
    """Signed cells of an image: 1 for even, -1 for odd dimensions, as far as they ever enter.

    With `diagonal`, the cells are the cliques of eight-neighbours: the nerve of the closed pixels. The two diagonals,
    four triangles and one tetrahedron of a block of four are counted one by one.

    Args:
        a: level of each pixel on the first axis, flat.
        b: level on the second axis.
        shape: (rows, columns).
        size: number of levels on each axis; a cell at that level never enters.
        diagonal: eight neighbours instead of four.

    Returns:
        the codes ``a * size[1] + b`` of the cells, int64, and their signs, int64.
    """
    rows, columns = shape
    most = (10 if diagonal else 4) * rows * columns
    codes, signs = np.empty(most, np.int64), np.empty(most, np.int64)
    m = 0
    for i in range(rows):
        for j in range(columns):
            u = i * columns + j
            right, down = j + 1 < columns, i + 1 < rows
            if a[u] < size[0] and b[u] < size[1]:
                m = _put(codes, signs, m, a[u], b[u], size, 1)
            if right:
                r = u + 1
                m = _put(codes, signs, m, max(a[u], a[r]), max(b[u], b[r]), size, -1)
            if down:
                d = u + columns
                m = _put(codes, signs, m, max(a[u], a[d]), max(b[u], b[d]), size, -1)
            if not (right and down):
                continue
            r, d, c = u + 1, u + columns, u + columns + 1
            ur_a, ur_b, dc_a, dc_b = max(a[u], a[r]), max(b[u], b[r]), max(a[d], a[c]), max(b[d], b[c])
            if diagonal:
                m = _put(codes, signs, m, max(a[u], a[c]), max(b[u], b[c]), size, -1)
                m = _put(codes, signs, m, max(a[r], a[d]), max(b[r], b[d]), size, -1)
                m = _put(codes, signs, m, max(ur_a, a[d]), max(ur_b, b[d]), size, 1)
                m = _put(codes, signs, m, max(ur_a, a[c]), max(ur_b, b[c]), size, 1)
                m = _put(codes, signs, m, max(dc_a, a[u]), max(dc_b, b[u]), size, 1)
                m = _put(codes, signs, m, max(dc_a, a[r]), max(dc_b, b[r]), size, 1)
            m = _put(codes, signs, m, max(ur_a, dc_a), max(ur_b, dc_b), size, -1 if diagonal else 1)
    return codes[:m], signs[:m]


@_kernel
@typing.no_type_check
def _put(codes, signs, m, a, b, size, sign):
    if a < size[0] and b < size[1]:
        codes[m], signs[m] = np.int64(a) * size[1] + b, sign
        m += 1
    return m


@_kernel
@typing.no_type_check
def component_events(a, b, ends, edge_a, edge_b, size):
    """The signed measure of degree 0 of a graph with two filtrations, as events that may still cancel.

    Args:
        a: level at which each vertex enters on the first axis, shape (n,), at most ``size[0]``, which means never.
        b: the same on the second axis.
        ends: vertices of the edges, shape (m, 2).
        edge_a: level at which each edge enters, not below those of its ends, shape (m,).
        edge_b: the same on the second axis.
        size: number of levels on each axis.

    Returns:
        the codes ``a * size[1] + b`` of the events, int64, and their weights 1 or -1, int64.
    """
    n = len(a)
    parent = np.arange(n).astype(np.int32)
    left, m = _contract(a, b, ends, edge_a, edge_b, size, parent)
    # Number the vertices that stay, and name edges by them.
    number, count = np.full(n, -1, np.int32), 0
    codes, weights = np.empty(n + 2 * m, np.int64), np.empty(n + 2 * m, np.int64)
    for v in range(n):
        if parent[v] == v and a[v] < size[0] and b[v] < size[1]:
            number[v] = count
            codes[count], weights[count] = np.int64(a[v]) * size[1] + b[v], 1
            count += 1
    first, second = np.empty(m, np.int32), np.empty(m, np.int32)
    used = 0
    for k in range(m):
        e = left[k]
        u, v = _root(parent, ends[e, 0]), _root(parent, ends[e, 1])
        if u != v:
            first[used], second[used], left[used] = number[u], number[v], e
            used += 1
    order = _by_levels(edge_a, edge_b, left[:used], size)
    total = _sweep(order, left, first, second, edge_a, edge_b, size[1], count, codes, weights)
    return codes[:total], weights[:total]


@_kernel
@typing.no_type_check
def _root(parent, at):
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@_kernel
@typing.no_type_check
def _contract(a, b, ends, edge_a, edge_b, size, parent):
    """Contract vertices into neighbours; the edges that are left and ever enter, and how many."""
    left, m = np.empty(len(ends), np.int32), 0
    for e in range(len(ends)):
        if edge_a[e] >= size[0] or edge_b[e] >= size[1]:
            continue
        contracted = False
        for side in range(2):
            v, other = ends[e, side], ends[e, 1 - side]
            if parent[v] == v and edge_a[e] == a[v] and edge_b[e] == b[v]:
                root = _root(parent, other)
                if root != v:
                    parent[v] = root
                    contracted = True
                    break
        if not contracted:
            left[m] = e
            m += 1
    return left, m


@_kernel
@typing.no_type_check
def _by_levels(edge_a, edge_b, left, size):
    """Places in `left` by increasing (b, a), by counting."""
    order = np.arange(len(left)).astype(np.int32)
    for axis in range(2):
        levels, r = (edge_a, size[0]) if axis == 0 else (edge_b, size[1])
        start = np.zeros(r + 1, np.int32)
        for k in range(len(left)):
            start[levels[left[k]] + 1] += 1
        for i in range(r):
            start[i + 1] += start[i]
        sorted_order = np.empty_like(order)
        for k in range(len(left)):
            level = levels[left[order[k]]]
            sorted_order[start[level]] = order[k]
            start[level] += 1
        order = sorted_order
    return order


@_kernel
@typing.no_type_check
def _sweep(order, left, first, second, edge_a, edge_b, r, n, codes, weights):
    """Grow the forest level by level of the second axis and write its changes behind the n events of the vertices."""
    forest, grown, size = np.empty(n, np.int32), np.empty(n, np.int32), 0
    parent, total, begin = np.empty(n, np.int32), n, 0
    while begin < len(order):
        level = edge_b[left[order[begin]]]
        end = begin
        while end < len(order) and edge_b[left[order[end]]] == level:
            end += 1
        for v in range(n):
            parent[v] = v
        old, new, kept = 0, begin, 0
        while old < size or new < end:
            # Of equal edges the old one first: the forest changes no more than it must.
            from_forest = new == end or (old < size and edge_a[left[forest[old]]] <= edge_a[left[order[new]]])
            if from_forest:
                k = forest[old]
                old += 1
            else:
                k = order[new]
                new += 1
            u, v = _root(parent, first[k]), _root(parent, second[k])
            if u != v:
                parent[max(u, v)] = min(u, v)
                grown[kept] = k
                kept += 1
            if (u != v) != from_forest:
                codes[total] = np.int64(edge_a[left[k]]) * r + level
                weights[total] = 1 if from_forest else -1
                total += 1
        forest, grown, size, begin = grown, forest, kept, end
    return total
