"""Compiled loops for Vietoris-Rips filtrations: the minimum spanning tree and the sweep that pairs degrees 0 and 1.

The sweep adds the edges in order and holds a cocycle for each loop that is alive (persistent cohomology). An edge
brings all triangles of which it is the longest side, one for each common neighbour of its ends, with it:

- ends in two components: the edge kills the younger one;
- no common neighbour: the edge starts a loop, its cocycle is the edge itself;
- else the first triangle pairs with the edge at once (an apparent pair: nothing is reduced), which says for each
  cocycle whether the edge belongs to it; the other triangles kill the cocycles that do not vanish on them, youngest
  first.

Adjacency and cocycles are bit sets, 64 points a word, so that all triangles of an edge are looked at in n / 64 steps a
cocycle. Nothing but the edges is enumerated or stored.

References:
    de Silva, Morozov, Vejdemo-Johansson 2011, "Persistent cohomology and circular coordinates"; Bauer 2021, "Ripser:
    efficient computation of Vietoris-Rips persistence barcodes" (apparent pairs).
"""

import typing

import numpy as np
from numba import njit

__all__ = ["merge_components", "spanning_tree", "sweep_edges"]

_kernel = njit(cache=True, nogil=True)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@_kernel
@typing.no_type_check
def spanning_tree(values):
    """Edges of a minimum spanning forest of a dense graph by Prim's algorithm.

    Args:
        values: symmetric edge values, shape (n, n); inf where there is no edge.

    Returns:
        The ends of the edges, shape (m, 2), int64.
    """
    n = len(values)
    best, near = np.full(n, np.inf), np.full(n, -1, np.int64)
    rest = np.arange(n)
    edges = np.empty((max(n - 1, 0), 2), np.int64)
    count, left = 0, n
    here, at = 0, 0
    while left > 0:
        left -= 1
        rest[at] = rest[left]
        row = values[here]
        at, least = 0, np.inf
        for k in range(left):
            j = rest[k]
            if row[j] < best[j]:
                best[j], near[j] = row[j], here
            if best[j] < least:
                least, at = best[j], k
        if left:
            here = rest[at]
            if near[here] >= 0:
                edges[count, 0], edges[count, 1] = min(here, near[here]), max(here, near[here])
                count += 1
    return edges[:count]


@_kernel
@typing.no_type_check
def _root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@_kernel
@typing.no_type_check
def merge_components(edges, age):
    """Degree 0 by union and find.

    Args:
        edges: ends of the edges in order, shape (m, 2).
        age: rank of each vertex, shape (n,).

    Returns:
        The vertex that starts each finite bar and the number of the edge that ends it, shapes (p,); the vertices of the
        bars that never end, shape (e,).
    """
    n = len(age)
    parent = np.arange(n)
    born, dies = np.empty(n, np.int64), np.empty(n, np.int64)
    count = 0
    for e in range(len(edges)):
        a, b = _root(parent, edges[e, 0]), _root(parent, edges[e, 1])
        if a == b:
            continue
        if age[a] > age[b]:
            a, b = b, a
        parent[b] = a
        born[count], dies[count] = b, e
        count += 1
        if count == n - 1:
            break
    essential = np.empty(n - count, np.int64)
    k = 0
    for i in range(n):
        if parent[i] == i:
            essential[k] = i
            k += 1
    return born[:count], dies[:count], essential


@_kernel
@typing.no_type_check
def _lowest(word):
    """Position of the lowest bit that is set."""
    position, half = np.int64(0), np.uint64(32)
    while half:
        if word & ((_ONE << half) - _ONE) == _ZERO:
            word >>= half
            position += np.int64(half)
        half >>= _ONE
    return position


@_kernel
@typing.no_type_check
def _bit(rows, i, k):
    return (rows[i, k >> 6] >> np.uint64(k & 63)) & _ONE


@_kernel
@typing.no_type_check
def _set_bit(rows, i, k):
    rows[i, k >> 6] |= _ONE << np.uint64(k & 63)


@_kernel
@typing.no_type_check
def _first_common(adjacent, i, j):
    """The first common neighbour of two points, or -1."""
    for w in range(adjacent.shape[1]):
        common = adjacent[i, w] & adjacent[j, w]
        if common != _ZERO:
            return 64 * w + _lowest(common)
    return -1


@_kernel
@typing.no_type_check
def _values_on(cocycle, i, j, adjacent):
    """Whether a cocycle takes the value 1, and whether it takes 0, on (i, k) + (j, k) for the common neighbours k."""
    ones, zeros = _ZERO, _ZERO
    for w in range(adjacent.shape[1]):
        common = adjacent[i, w] & adjacent[j, w]
        value = cocycle[i, w] ^ cocycle[j, w]
        ones |= common & value
        zeros |= common & ~value
        if ones != _ZERO and zeros != _ZERO:
            break
    return ones != _ZERO, zeros != _ZERO


@_kernel
@typing.no_type_check
def _odd_neighbour(cocycle, i, j, adjacent, first):
    """A common neighbour on which a cocycle differs from its value at the first one."""
    flip = _ALL if _bit(cocycle, i, first) ^ _bit(cocycle, j, first) else _ZERO
    for w in range(adjacent.shape[1]):
        odd = (cocycle[i, w] ^ cocycle[j, w] ^ flip) & adjacent[i, w] & adjacent[j, w]
        if odd != _ZERO:
            return 64 * w + _lowest(odd)
    return -1


@_kernel
@typing.no_type_check
def _include(cocycles, touched, slot, i, j):
    """Let an edge belong to a cocycle."""
    _set_bit(cocycles[slot], i, j)
    _set_bit(cocycles[slot], j, i)
    _set_bit(touched, i, slot)
    _set_bit(touched, j, slot)


@_kernel
@typing.no_type_check
def _add(cocycles, touched, source, target):
    """Add one cocycle to another."""
    for v in range(len(touched)):
        if _bit(touched, v, source):
            for w in range(cocycles.shape[2]):
                cocycles[target, v, w] ^= cocycles[source, v, w]
            _set_bit(touched, v, target)


@_kernel
@typing.no_type_check
def _clear(cocycles, touched, slot):
    for v in range(len(touched)):
        if _bit(touched, v, slot):
            for w in range(cocycles.shape[2]):
                cocycles[slot, v, w] = _ZERO
            touched[v, slot >> 6] &= ~(_ONE << np.uint64(slot & 63))


@_kernel
@typing.no_type_check
def _free_slot(started):
    for slot in range(len(started)):
        if started[slot] < 0:
            return slot
    return -1


@_kernel
@typing.no_type_check
def _grown(cocycles, touched, started):
    """The same cocycles with room for twice as many."""
    slots, n, words = cocycles.shape
    more = np.zeros((2 * slots, n, words), np.uint64)
    wider = np.zeros((n, (2 * slots + 63) // 64), np.uint64)
    longer = np.full(2 * slots, -1, np.int64)
    # Loops, since numba compiles slice assignments for seconds.
    for slot in range(slots):
        longer[slot] = started[slot]
        for v in range(n):
            for w in range(words):
                more[slot, v, w] = cocycles[slot, v, w]
    for v in range(n):
        for w in range(touched.shape[1]):
            wider[v, w] = touched[v, w]
    return more, wider, longer


@_kernel
@typing.no_type_check
def _extend(cocycles, touched, adjacent, i, j, open_slots):
    """Extend the cocycles by a new edge; return how many are not zero on all of its triangles and put them first."""
    count = 0
    for w in range(touched.shape[1]):
        slots = touched[i, w] | touched[j, w]  # the others are zero on the edge and on its triangles
        while slots != _ZERO:
            slot = 64 * w + _lowest(slots)
            slots &= slots - _ONE
            one, zero = _values_on(cocycles[slot], i, j, adjacent)
            if one and zero:
                open_slots[count] = slot
                count += 1
            elif one:
                _include(cocycles, touched, slot, i, j)
    return count


@_kernel
@typing.no_type_check
def _take_youngest(open_slots, count, started):
    """Move the cocycle that started last behind the others."""
    at = 0
    for q in range(1, count):
        if started[open_slots[q]] > started[open_slots[at]]:
            at = q
    youngest = open_slots[at]
    open_slots[at] = open_slots[count - 1]
    open_slots[count - 1] = youngest
    return youngest


@_kernel
@typing.no_type_check
def _eliminate(cocycles, touched, adjacent, i, j, first, youngest, open_slots, count):
    """Add a dying cocycle to those that are odd where it is; return how many are still not zero on all triangles."""
    k = _odd_neighbour(cocycles[youngest], i, j, adjacent, first)
    left = 0
    for q in range(count):
        slot = open_slots[q]
        x = cocycles[slot]
        if _bit(x, i, k) ^ _bit(x, j, k) ^ _bit(x, i, first) ^ _bit(x, j, first):
            _add(cocycles, touched, youngest, slot)
        one, zero = _values_on(x, i, j, adjacent)
        if one and zero:
            open_slots[left] = slot
            left += 1
        elif one:
            _include(cocycles, touched, slot, i, j)
    return left


@_kernel
@typing.no_type_check
def sweep_edges(edges, n):
    """Degree 1 of a Rips filtration.

    Args:
        edges: ends of the edges in order, shape (m, 2).
        n: number of points.

    Returns:
        The numbers of the edges that start and end each finite bar, shapes (p,); and those of the edges that start the
        bars which the last edge leaves alive, among entries of -1.
    """
    words = (n + 63) // 64
    adjacent = np.zeros((n, words), np.uint64)
    parent = np.arange(n)
    cocycles = np.zeros((8, n, words), np.uint64)
    touched = np.zeros((n, 1), np.uint64)  # bit c of row v: cocycle c holds an edge at v (or did before an addition)
    started = np.full(8, -1, np.int64)  # edge that started the cocycle of each slot, -1 for a free one
    open_slots = np.empty(8, np.int64)
    born, dies = np.empty(len(edges), np.int64), np.empty(len(edges), np.int64)
    count, alive = 0, 0
    for e in range(len(edges)):
        i, j = edges[e, 0], edges[e, 1]
        a, b = _root(parent, i), _root(parent, j)
        if a != b:
            parent[b] = a
        else:
            first = _first_common(adjacent, i, j)
            if first < 0:
                slot = _free_slot(started)
                if slot < 0:
                    slot = len(started)
                    cocycles, touched, started = _grown(cocycles, touched, started)
                    open_slots = np.empty(len(started), np.int64)
                started[slot] = e
                _include(cocycles, touched, slot, i, j)
                alive += 1
            elif alive:
                waiting = _extend(cocycles, touched, adjacent, i, j, open_slots)
                while waiting:
                    youngest = _take_youngest(open_slots, waiting, started)
                    waiting -= 1
                    waiting = _eliminate(cocycles, touched, adjacent, i, j, first, youngest, open_slots, waiting)
                    born[count], dies[count] = started[youngest], e
                    count += 1
                    _clear(cocycles, touched, youngest)
                    started[youngest] = -1
                    alive -= 1
        _set_bit(adjacent, i, j)
        _set_bit(adjacent, j, i)
    return born[:count], dies[:count], started
