"""Compiled loops for alpha complexes: faces of a Delaunay triangulation, empty spheres, and the pairing of degree 1."""

import typing

import numpy as np
from numba import njit

__all__ = ["empty_spheres", "faces_of", "pair_columns"]

_kernel = njit(cache=True, nogil=True)
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@_kernel
@typing.no_type_check
def faces_of(simplices):
    """Number the faces of simplices that leave out one vertex.

    By their vertices, not by the neighbours that a triangulation reports: those are incomplete for points in special
    position.

    Args:
        simplices: sorted vertices, shape (t, k).

    Returns:
        The faces of each simplex, the one without vertex i at i, shape (t, k), and their vertices, shape (m, k - 1).
    """
    t, k = simplices.shape
    size = np.int64(64)
    while size < 2 * t * k:
        size *= 2
    table = np.full(size, -1, np.int64)  # open addressing
    face_of = np.empty((t, k), np.int64)
    faces = np.empty((t * k, k - 1), np.int64)
    count = 0
    for s in range(t):
        for i in range(k):
            mixed = np.uint64(0)
            for q in range(k - 1):
                faces[count, q] = simplices[s, q + (q >= i)]
                mixed = (mixed ^ np.uint64(faces[count, q])) * np.uint64(0x9E3779B97F4A7C15)
                mixed ^= mixed >> np.uint64(29)
            at = np.int64(mixed & np.uint64(size - 1))
            while table[at] >= 0 and not _same_row(faces, table[at], count):
                at = (at + 1) & (size - 1)
            if table[at] < 0:
                table[at] = count
                count += 1
            face_of[s, i] = table[at]
    return face_of, faces[:count].copy()


@_kernel
@typing.no_type_check
def _same_row(table, i, j):
    same = True
    for q in range(table.shape[1]):
        same &= table[i, q] == table[j, q]
    return same


@_kernel
@typing.no_type_check
def empty_spheres(points, cofaces, face_of, centres, squared, above):
    """Which faces have a smallest circumsphere without an opposite vertex inside, and their lowest cofaces.

    Args:
        points: shape (n, d).
        cofaces: vertices of the simplices one dimension up, shape (t, k).
        face_of: their faces, the one without vertex i at i, shape (t, k).
        centres: centres of the smallest circumspheres of the faces, shape (m, d).
        squared: their squared radii, shape (m,).
        above: filtration values of the cofaces, shape (t,).

    Returns:
        Whether the sphere is empty, shape (m,), and the coface with the smallest value, shape (m,).
    """
    empty = np.ones(len(centres), np.bool_)
    lowest = np.full(len(centres), -1, np.int64)
    for t in range(len(cofaces)):
        for i in range(cofaces.shape[1]):
            face = face_of[t, i]
            distance = 0.0
            for axis in range(points.shape[1]):
                distance += (points[cofaces[t, i], axis] - centres[face, axis]) ** 2
            if distance < squared[face]:
                empty[face] = False
            if lowest[face] < 0 or above[t] < above[lowest[face]]:
                lowest[face] = t
    return empty, lowest


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
def pair_columns(columns, n_rows):
    """Reduce boundary columns of three rows each, all of which have a pivot in the end (clearing has removed the
    others).

    Args:
        columns: rows in filtration order, columns too; -1 for a row that needs no entry, shape (m, 3).
        n_rows: number of rows.

    Returns:
        The pivot row of each column, -1 for one that is reduced to nothing, shape (m,).
    """
    offsets, size, width = [0], (n_rows + 63) // 64, (n_rows + 63) // 64
    while width > 1:
        offsets.append(size)
        width = (width + 63) // 64
        size += width
    levels = np.array(offsets)
    tree = np.zeros(max(size, 1), np.uint64)
    owner = np.full(n_rows, -1, np.int64)
    pivots = np.full(len(columns), -1, np.int64)
    start = np.full(len(columns), -1, np.int64)  # of a reduced column in the pool, -1 for one that is as it came
    stop = np.full(len(columns), -1, np.int64)
    pool, used = np.empty(1024, np.int64), 0
    for c in range(len(columns)):
        for i in range(3):
            if columns[c, i] >= 0:
                _toggle(tree, levels, columns[c, i])
        reduced = False
        pivot = _largest(tree, levels)
        while pivot >= 0 and owner[pivot] >= 0:
            other = owner[pivot]
            if start[other] < 0:
                for i in range(3):
                    if columns[other, i] >= 0:
                        _toggle(tree, levels, columns[other, i])
            for q in range(start[other], stop[other]):
                _toggle(tree, levels, pool[q])
            reduced = True
            pivot = _largest(tree, levels)
        if pivot >= 0:
            owner[pivot], pivots[c] = c, pivot
        if reduced:
            start[c] = used
        row = pivot
        while row >= 0:
            _toggle(tree, levels, row)
            if reduced:
                if used == len(pool):
                    longer = np.empty(2 * used, np.int64)
                    for q in range(used):
                        longer[q] = pool[q]
                    pool = longer
                pool[used] = row
                used += 1
            row = _largest(tree, levels)
        if reduced:
            stop[c] = used
    return pivots
