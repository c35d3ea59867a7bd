"""Index pairs of three-dimensional grids: two union-finds over saddles, and a reduction for degree 1.

Voxels are vertices (V-construction) in the total order of (key, index). A voxel brings with it the edges, squares and
cubes of which it is the highest corner. They are the vertices, edges and triangles of its lower link, a part of the
surface of an octahedron, where collapses are easy: a spanning forest pairs edges of the grid with squares, its first
root with the voxel, and what the cubes leave of the other squares is critical, as are the further roots (the discrete
gradient of Robins, Wood and Sheppard, 2011, with as few critical cells as homology allows). Nearly all voxels have no
critical cell and take part in nothing that follows.

Degree 0: upward union-find over the voxels with critical edges. Degree 2: by duality, downward union-find over the
voxels with critical squares, through all 26 neighbours. Both work as in :mod:`.plane`. Degree 1: the critical squares
that start no cavity, upward, each with its boundary of edges in a set ordered by age; the youngest edge leaves it by
adding a square: the one that the gradient pairs it with, or the column of an earlier critical square; an edge that has
neither is the birth of the loop that the square fills. Edges that end a component never are such a birth and are
left out of all boundaries. The set is a tree of 64-bit words (Bauer, Kerber, Reininghaus and Wagner, 2017, section 4).

What lies outside the grid is one node, above all voxels (V-construction) or below all (T-construction of the negated
field); cells between outside voxels are left out: a shell around a box has no loops, so that loops relative to it are
the same. In the arrays, which have a margin of one voxel, the outside is the number 0.
"""

import itertools
import typing
from collections.abc import Collection
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

from diffmatch.topology.radix import argsort

__all__ = ["volume_pairs"]

_SHELL = [step for step in itertools.product((-1, 0, 1), repeat=3) if step != (0, 0, 0)]
"""Steps to the 26 neighbours, by increasing flat index; the first 13 come before the voxel."""
_DIRECTIONS = [(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)]
_SIDES = [(a, b) for a, b in itertools.combinations(range(6), 2) if a // 2 != b // 2]
_OCTANTS = list(itertools.product((0, 1), (2, 3), (4, 5)))


def _corners(*directions: int) -> int:
    """The neighbours, as bits, that make a cell with the voxel: all sums of some of the directions."""
    bits = 0
    for size in range(1, len(directions) + 1):
        for some in itertools.combinations(directions, size):
            step = tuple(int(x) for x in np.sum([_DIRECTIONS[d] for d in some], axis=0))
            bits |= 1 << _SHELL.index((step[0], step[1], step[2]))
    return bits


_EDGE_BITS = np.array([_corners(d) for d in range(6)], np.int64)
_SQUARE_BITS = np.array([_corners(*side) for side in _SIDES], np.int64)
_CUBE_BITS = np.array([_corners(*octant) for octant in _OCTANTS], np.int64)
_SQUARE_SIDES = np.array(_SIDES, np.int64)
_SQUARE_CUBES = np.array([[i for i, o in enumerate(_OCTANTS) if set(s) <= set(o)] for s in _SIDES], np.int64)
_NEAR = (np.abs(np.subtract.outer(_SHELL, _SHELL).diagonal(axis1=1, axis2=3)).max(axis=2) < 2) @ (1 << np.arange(26))
"""Which of the 26 neighbours touch which."""
_BIT_COUNT = np.array([bin(i).count("1") for i in range(256)], np.int64)
_LAST_BIT_FACTOR = 0x03F79D71B4CB0A89
_LAST_BIT = np.zeros(64, np.int64)
for _i in range(64):
    _LAST_BIT[((_LAST_BIT_FACTOR << _i) & (2**64 - 1)) >> 58] = _i
"""Number of a single bit: the product with a de Bruijn factor has it in its six leading bits."""

_END, _NEGATIVE, _CRITICAL = 63, 6, 1 << 30
_HIGHEST = np.iinfo(np.int32).max
# A gradient word describes the edges of which a voxel is the higher end, without the one that is paired with the voxel
# itself, from old to young, six bits each: the direction, and the direction that spans the square with it which the
# edge is paired with. A critical edge has its own direction there, or _NEGATIVE once it has ended a component. _END
# fills the word up. The bit _CRITICAL says that there are critical edges.


def volume_pairs(
    keys: npt.NDArray[np.signedinteger], *, outside_low: bool, degrees: Collection[int]
) -> dict[int, npt.NDArray[np.int32]]:
    """Pairs (lower end, upper end) by degree, flat voxel numbers, shape (p, 2), without those of equal keys.

    With the outside below, the oldest minimum is the outside, which has no pair; with the outside above, the oldest
    maximum is.

    Args:
        keys: integers in the order of the values, shape (nx, ny, nz), at least one.
        outside_low: the outside lies below all voxels instead of above them.
        degrees: which of 0, 1, 2 to compute.
    """
    extreme = np.iinfo(keys.dtype)
    padded = np.full([n + 2 for n in keys.shape], extreme.min if outside_low else extreme.max, keys.dtype)
    padded[1:-1, 1:-1, 1:-1] = keys
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    flat, steps = padded.reshape(-1), np.array(_SHELL) @ strides
    directions = np.array(_DIRECTIONS) @ strides
    words, cycles = link_tables()
    down, up = np.zeros(flat.shape, np.int32), np.zeros(flat.shape, np.int32)
    gradient = np.empty(flat.shape, np.int32)
    forks, rings = np.empty(keys.size, np.int32), np.empty(keys.size, np.int32)
    n_forks, n_rings, n_edges, n_squares = _classify(
        flat, keys.shape, steps, directions, words, cycles, down, up, gradient, forks, rings
    )
    forks, rings = forks[:n_forks], rings[:n_rings]
    forks, rings = forks[argsort(flat[forks])], rings[argsort(flat[rings])]
    filled = np.zeros(len(rings), np.int32)
    result = {}
    if 0 in degrees or 1 in degrees:
        result[0] = _join(flat, keys.shape, directions, down, gradient, forks, n_edges)
    if 2 in degrees or 1 in degrees:
        result[2] = _split(flat, keys.shape, steps, up, rings, filled, n_squares)
    if 1 in degrees:
        del up
        descending = inner_order(flat, keys.shape)
        result[1] = _loops(
            flat, keys.shape, steps, directions, gradient, down, forks, rings, filled, descending, n_edges
        )
    return {degree: result[degree] for degree in degrees}


def inner_order(flat: npt.NDArray[np.signedinteger], shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Voxels of the padded array, without the margin, from the highest to the lowest."""
    numbers = np.arange(len(flat), dtype=np.int32).reshape([n + 2 for n in shape])[1:-1, 1:-1, 1:-1].reshape(-1)
    return numbers[argsort(flat[numbers])][::-1]


@lru_cache(maxsize=1)
def link_tables() -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """The gradient word, and the cycles, of each graph of edges (6 bits) and squares (12 bits) in a lower link."""
    words, cycles = np.zeros(1 << 18, np.int32), np.zeros(1 << 18, np.int8)
    _fill_tables(words, cycles)
    return words, cycles


@njit(cache=True, nogil=True)
@typing.no_type_check
def _fill_tables(words, cycles):
    for link in range(len(words)):
        edges, near, n_squares, valid = link & 63, np.zeros(6, np.int64), 0, True
        for i in range(12):
            if link >> 6 + i & 1:
                a, b = _SQUARE_SIDES[i]
                near[a] |= 1 << b
                near[b] |= 1 << a
                n_squares += 1
                valid &= (edges >> a & 1) == 1 and (edges >> b & 1) == 1
        if not valid:
            continue
        word, at, n_trees, left = _CRITICAL - 1, 0, 0, edges
        queue = np.empty(6, np.int64)
        while left:
            head, tail = 0, 1
            queue[0] = _LAST_BIT[(left & -left) * _LAST_BIT_FACTOR >> 58 & 63]
            left &= ~(1 << queue[0])
            if n_trees:
                word = word & ~(63 << at) | (queue[0] | queue[0] << 3) << at | _CRITICAL
                at += 6
            n_trees += 1
            while head < tail:
                parent = queue[head]
                head += 1
                for child in range(6):
                    if near[parent] & left & 1 << child:
                        left &= ~(1 << child)
                        queue[tail] = child
                        tail += 1
                        word = word & ~(63 << at) | (child | parent << 3) << at
                        at += 6
        words[link], cycles[link] = word, n_squares - _BIT_COUNT[edges] + n_trees


@njit(cache=True, nogil=True)
@typing.no_type_check
def _lower_neighbours(keys, at, steps):
    """Bits of the neighbours that are lower; of equal ones, those are that come first in the array."""
    key, mask = keys[at], 0
    for i in range(13):
        mask |= (keys[at + steps[i]] <= key) << i
    for i in range(13, 26):
        mask |= (keys[at + steps[i]] < key) << i
    return mask


@njit(cache=True, nogil=True)
@typing.no_type_check
def _lower_link(mask):
    """Edges and squares (6 and 12 bits), and cubes (8 bits), all of whose corners are lower."""
    link, cubes = 0, 0
    for i in range(6):
        link |= (mask & _EDGE_BITS[i] != 0) << i
    for i in range(12):
        link |= (mask & _SQUARE_BITS[i] == _SQUARE_BITS[i]) << 6 + i
    for i in range(8):
        cubes |= (mask & _CUBE_BITS[i] == _CUBE_BITS[i]) << i
    return link, cubes


@njit(cache=True, nogil=True)
@typing.no_type_check
def _last_bit(bits):
    return _LAST_BIT[(bits & -bits) * _LAST_BIT_FACTOR >> 58 & 63]


@njit(cache=True, nogil=True)
@typing.no_type_check
def _classify(keys, shape, steps, directions, words, cycles, down, up, gradient, forks, rings):
    """Set paths and gradient of every voxel; list those with critical edges and those with critical squares."""
    nx, ny, nz = shape
    n_forks, n_rings, n_edges, n_squares = 0, 0, 0, 0
    for i in range(1, nx + 1):
        for j in range(1, ny + 1):
            start = (i * (ny + 2) + j) * (nz + 2)
            for at in range(start + 1, start + nz + 1):
                mask = _lower_neighbours(keys, at, steps)
                link, cubes = _lower_link(mask)
                word = words[link]
                gradient[at] = word
                down[at] = at + directions[_last_bit(link)] if link else at
                higher = ~mask & (1 << 26) - 1
                up[at] = at + steps[_last_bit(higher)] if higher else at
                if word & _CRITICAL:
                    forks[n_forks] = at
                    n_forks += 1
                    n_edges += 5
                squares = cycles[link] - _BIT_COUNT[cubes] + (cubes == 255)
                if squares:
                    rings[n_rings] = at
                    n_rings += 1
                    n_squares += squares
    return n_forks, n_rings, n_edges, n_squares


@njit(cache=True, nogil=True)
@typing.no_type_check
def _find(parent, at):
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@njit(cache=True, nogil=True)
@typing.no_type_check
def _number(at, shape):
    """Flat number in the grid of a voxel of the padded array."""
    _, ny, nz = shape
    row = at // (nz + 2)
    return ((row // (ny + 2) - 1) * ny + row % (ny + 2) - 1) * nz + at % (nz + 2) - 1


@njit(cache=True, nogil=True)
@typing.no_type_check
def _join(keys, shape, directions, parent, gradient, forks, capacity):
    """Upward sweep: components that meet at critical edges; these edges are marked in the gradient words."""
    count, pairs = 0, np.empty((min(capacity, len(keys) // 2 + 1), 2), np.int32)
    for at in forks:
        root = _find(parent, at)
        for i in range(5):
            entry = gradient[at] >> 6 * i & 63
            if entry == _END:
                break
            if entry & 7 != entry >> 3:
                continue
            other = _find(parent, at + directions[entry & 7])
            if other == root:
                continue
            gradient[at] = gradient[at] & ~(63 << 6 * i) | (entry & 7 | _NEGATIVE << 3) << 6 * i
            older, younger = root, other
            if keys[other] < keys[root] or (keys[other] == keys[root] and other < root):
                older, younger = other, root
            parent[younger] = older
            root = older
            if keys[younger] != keys[at]:
                pairs[count, 0], pairs[count, 1] = _number(younger, shape), _number(at, shape)
                count += 1
    return pairs[:count]


@njit(cache=True, nogil=True)
@typing.no_type_check
def _split(keys, shape, steps, parent, rings, filled, capacity):
    """Downward sweep: components of the complement; `filled` counts, for each voxel, those that meet at it."""
    count, pairs = 0, np.empty((capacity, 2), np.int32)
    for turn in range(len(rings) - 1, -1, -1):
        at = rings[turn]
        left = ~_lower_neighbours(keys, at, steps) & (1 << 26) - 1
        root = _find(parent, at)
        first = True
        while left:
            seed = left & -left
            component, front = seed, seed
            while front:
                bit = front & -front
                grown = _NEAR[_last_bit(bit)] & left & ~component
                component |= grown
                front = front & ~bit | grown
            left &= ~component
            if first:  # the path from the voxel itself leads there
                first = False
                continue
            other = _find(parent, at + steps[_last_bit(seed)])
            if other == root:
                continue
            filled[turn] += 1
            older, younger = root, other
            if keys[other] > keys[root] or (keys[other] == keys[root] and other > root):
                older, younger = other, root
            parent[younger] = older
            root = older
            if keys[younger] != keys[at]:
                pairs[count, 0], pairs[count, 1] = _number(at, shape), _number(younger, shape)
                count += 1
    return pairs[:count]


@njit(cache=True, nogil=True)
@typing.no_type_check
def _critical_squares(mask, word):
    """Bits of the squares of a lower link that neither the forest nor the cubes take."""
    link, cubes = _lower_link(mask)
    free = link >> 6
    for i in range(5):
        entry = word >> 6 * i & 63
        if entry == _END:
            break
        a, b = min(entry & 7, entry >> 3), max(entry & 7, entry >> 3)
        for s in range(12):
            if _SQUARE_SIDES[s, 0] == a and _SQUARE_SIDES[s, 1] == b:
                free &= ~(1 << s)
    # Cubes collapse from where one is missing.
    going = cubes != 0
    while going:
        going = False
        for s in range(12):
            first, second = cubes >> _SQUARE_CUBES[s, 0] & 1, cubes >> _SQUARE_CUBES[s, 1] & 1
            if free >> s & 1 and first != second:
                free &= ~(1 << s)
                cubes &= ~(1 << _SQUARE_CUBES[s, 0] | 1 << _SQUARE_CUBES[s, 1])
                going = True
    return free


@njit(cache=True, nogil=True)
@typing.no_type_check
def _toggle(words, levels, key):
    """Put a key into the set, or take it out; each word has a bit one level up that says whether it is not zero."""
    for level in range(len(levels) - 1):
        at = levels[level] + (key >> 6)
        before = words[at]
        after = before ^ np.int64(1) << (key & 63)
        words[at] = after
        if before != 0 and after != 0:
            break
        key >>= 6


@njit(cache=True, nogil=True)
@typing.no_type_check
def _first(words, levels):
    """The least key of the set, or -1."""
    level = len(levels) - 2
    if words[levels[level]] == 0:
        return np.int64(-1)
    key = np.int64(0)
    while level >= 0:
        key = key << 6 | _last_bit(words[levels[level] + key])
        level -= 1
    return key


@njit(cache=True, nogil=True)
@typing.no_type_check
def _toggle_edge(words, levels, gradient, rank, directions, at, direction):
    """Toggle the edge from a voxel in a direction, unless it is paired with a voxel or has ended a component."""
    other = at + directions[direction]
    high = at
    if rank[other] < rank[at]:  # ranks fall as values rise
        high, direction = other, direction ^ 1
    if rank[high] == _HIGHEST:
        return
    word = gradient[high]
    for i in range(5):
        entry = word >> 6 * i & 63
        if entry & 7 == direction:
            if entry >> 3 != _NEGATIVE:
                _toggle(words, levels, np.int64(rank[high]) << 3 | 7 - i)
            return
        if entry == _END:
            return


@njit(cache=True, nogil=True)
@typing.no_type_check
def _toggle_boundary(words, levels, gradient, rank, directions, at, a, b):
    """Toggle the four edges of the square that a voxel spans with two directions."""
    _toggle_edge(words, levels, gradient, rank, directions, at, a)
    _toggle_edge(words, levels, gradient, rank, directions, at, b)
    _toggle_edge(words, levels, gradient, rank, directions, at + directions[a], b)
    _toggle_edge(words, levels, gradient, rank, directions, at + directions[b], a)


@njit(cache=True, nogil=True)
@typing.no_type_check
def _loops(keys, shape, steps, directions, gradient, slot, forks, rings, filled, descending, n_slots):
    """Reduce the critical squares upward; pairs (edge, square) by their highest voxels."""
    rank = np.full(len(keys), _HIGHEST, np.int32)
    for i in range(len(descending)):
        rank[descending[i]] = i
    for i in range(len(forks)):
        slot[forks[i]] = 5 * i  # of the first critical edge of the voxel
    column_of = np.full(n_slots, -1, np.int32)
    levels, size = [np.int64(0)], 8 * len(descending)
    while size > 1:
        size = (size + 63) // 64
        levels.append(levels[-1] + size)
    offsets = np.array(levels)
    words = np.zeros(offsets[-1], np.int64)
    start, n_columns, used, count = np.zeros(n_slots + 1, np.int64), 0, 0, 0
    pool, pairs = np.empty(1024, np.int32), np.empty((n_slots, 2), np.int32)
    for turn in range(len(rings)):
        at = rings[turn]
        free = _critical_squares(_lower_neighbours(keys, at, steps), gradient[at])
        if _BIT_COUNT[free & 255] + _BIT_COUNT[free >> 8] == filled[turn]:
            continue  # each starts a cavity
        for s in range(12):
            if not free >> s & 1:
                continue
            _toggle_boundary(words, offsets, gradient, rank, directions, at, _SQUARE_SIDES[s, 0], _SQUARE_SIDES[s, 1])
            while True:
                key = _first(words, offsets)
                if key < 0:
                    break  # one of several squares here, and this one starts a cavity
                birth, i = descending[key >> 3], 7 - (key & 7)
                entry = gradient[birth] >> 6 * i & 63
                if entry & 7 != entry >> 3:
                    _toggle_boundary(words, offsets, gradient, rank, directions, birth, entry & 7, entry >> 3)
                    continue
                column = column_of[slot[birth] + i]
                _toggle(words, offsets, key)
                if column >= 0:
                    for k in range(start[column], start[column + 1]):
                        _toggle(words, offsets, np.int64(pool[k]))
                    continue
                column_of[slot[birth] + i] = n_columns
                rest = _first(words, offsets)
                while rest >= 0:
                    if used == len(pool):
                        pool = np.concatenate((pool, np.empty(used, np.int32)))
                    pool[used] = rest
                    used += 1
                    _toggle(words, offsets, rest)
                    rest = _first(words, offsets)
                n_columns += 1
                start[n_columns] = used
                if keys[birth] != keys[at]:
                    pairs[count, 0], pairs[count, 1] = _number(birth, shape), _number(at, shape)
                    count += 1
                break
    return pairs[:count]
