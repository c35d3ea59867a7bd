"""Growing a set of pixels without a change of its topology: compiled loops of the surgery on fields."""

import heapq
import itertools
import typing

import numpy as np
from jaxtyping import Bool, Int32, Int64
from numba import njit

__all__ = ["grow"]

_OFFSETS = np.array(list(itertools.product((-1, 0, 1), repeat=3)), np.int64)
_CENTRE = 13


def _neighbours(most_changed: int, members: list[int]) -> Int32[np.ndarray, " 27"]:
    """Bit masks: of each of the 27 places, the places among `members` that are its neighbours."""
    masks = np.zeros(27, np.int32)
    for a in members:
        for b in members:
            step = np.abs(_OFFSETS[a] - _OFFSETS[b])
            if a != b and step.max() == 1 and step.sum() <= most_changed:
                masks[a] |= 1 << b
    return masks


_AROUND = [place for place in range(27) if place != _CENTRE]
_NEAR = [place for place in _AROUND if np.abs(_OFFSETS[place]).sum() <= 2]
_FACES = [place for place in _AROUND if np.abs(_OFFSETS[place]).sum() == 1]
_BY_CORNERS = _neighbours(3, _AROUND)
_BY_FACES = _neighbours(1, _NEAR)
_ALL_MASK = np.int32(sum(1 << place for place in _AROUND))
_NEAR_MASK = np.int32(sum(1 << place for place in _NEAR))
_FACE_MASK = np.int32(sum(1 << place for place in _FACES))


@njit(cache=True, nogil=True)
@typing.no_type_check
def grow(
    inside: Bool[np.ndarray, "nx ny nz"],
    rank: Int64[np.ndarray, "nx ny nz"],
    allowed: Bool[np.ndarray, "nx ny nz"],
    by_faces: bool,
    by_corners: bool,
) -> None:
    """Add allowed pixels to a set, in place, lowest rank first, as long as its topology stays what it is.

    A pixel is added if it is simple: if its neighbours in the set, and those outside, each form one piece that it
    touches (Bertrand and Malandain, 1994). It is looked at again whenever a neighbour has been added. The same function
    on the complement shrinks the set.

    Args:
        inside: the set; changed in place.
        rank: order of the pixels, distinct numbers >= 0.
        allowed: pixels that may be added; none of them on the border of the grid.
        by_faces: keep the topology of the set connected through faces, its complement through corners.
        by_corners: keep that of the set connected through corners, its complement through faces.
    """
    nx, ny, nz = inside.shape
    heap = [(np.int64(0), np.int64(0))]
    heap.clear()
    for i in range(1, nx - 1):
        for j in range(1, ny - 1):
            for k in range(1, nz - 1):
                if allowed[i, j, k] and not inside[i, j, k] and _around(inside, i, j, k) & _ALL_MASK:
                    heapq.heappush(heap, (rank[i, j, k], np.int64((i * ny + j) * nz + k)))
    while len(heap) > 0:
        at = heapq.heappop(heap)[1]
        i, j, k = at // (ny * nz), at // nz % ny, at % nz
        if inside[i, j, k] or not _is_simple(_around(inside, i, j, k), by_faces, by_corners):
            continue
        inside[i, j, k] = True
        for place in range(27):
            x, y, z = i + place // 9 - 1, j + place // 3 % 3 - 1, k + place % 3 - 1
            if allowed[x, y, z] and not inside[x, y, z]:
                heapq.heappush(heap, (rank[x, y, z], np.int64((x * ny + y) * nz + z)))


@njit(cache=True, nogil=True)
@typing.no_type_check
def _around(inside, i, j, k):
    """The pixels of the set among the 26 neighbours, as bits."""
    mask = np.int32(0)
    for place in range(27):
        if place != _CENTRE and inside[i + place // 9 - 1, j + place // 3 % 3 - 1, k + place % 3 - 1]:
            mask |= np.int32(1) << place
    return mask


@njit(cache=True, nogil=True)
@typing.no_type_check
def _is_simple(mask, by_faces, by_corners):
    """Whether a pixel with these neighbours can change sides without a change of topology."""
    outside = _ALL_MASK & ~mask
    if by_faces and not (
        _pieces(mask & _NEAR_MASK, _BY_FACES, _FACE_MASK) == 1 and _pieces(outside, _BY_CORNERS, _ALL_MASK) == 1
    ):
        return False
    return not by_corners or (
        _pieces(mask, _BY_CORNERS, _ALL_MASK) == 1 and _pieces(outside & _NEAR_MASK, _BY_FACES, _FACE_MASK) == 1
    )


@njit(cache=True, nogil=True)
@typing.no_type_check
def _pieces(mask, neighbours, touching):
    """Connected pieces of a set of places, of those that hold one of the places of `touching`."""
    count = 0
    while mask & touching:
        piece = np.int32(0)
        front = (mask & touching) & -(mask & touching)
        while front:
            piece |= front
            found = np.int32(0)
            for place in range(27):
                if front >> place & 1:
                    found |= neighbours[place]
            front = found & mask & ~piece
        mask &= ~piece
        count += 1
    return count
