"""Index pairs of two-dimensional grids: two union-finds over the saddles.

Pixels are vertices (V-construction) in the total order of (key, index). The eight pixels around one form a ring, and
which of them are lower says all about the pixel: components of lower pixels (four neighbours) meet at it, and as many
components of higher pixels (eight neighbours) separate. A pixel where there are two or more is a saddle; at all others
nothing happens, so only saddles are sorted. The upward sweep over them pairs minima with the saddle where the younger
component ends (degree 0), the downward sweep, by duality, maxima with the saddle where their loop began (degree 1).

Components are trees in one array: an ordinary pixel points to some lower (higher) neighbour, a minimum (maximum) to
itself or to the older one that its component was joined to. Paths are followed, and halved, from saddles only.

What lies outside the grid is one node, above all pixels (V-construction) or below all (T-construction of the negated
field); in the array, which has a margin of one pixel, it is the number 0.
"""

import typing
from collections.abc import Collection
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

from diffmatch.topology.radix import argsort

__all__ = ["plane_pairs"]

_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
"""Row and column steps to the neighbours, in ring order, which is the order of the bits in a pixel's byte."""


def plane_pairs(
    keys: npt.NDArray[np.signedinteger], *, outside_low: bool, degrees: Collection[int]
) -> dict[int, npt.NDArray[np.int32]]:
    """Pairs (lower end, upper end) by degree, flat pixel numbers, shape (p, 2), without those of equal keys.

    Degree 0 are the pairs (minimum, saddle) of the upward sweep, degree 1 the pairs (saddle, maximum) of the downward
    one. With the outside below, the oldest minimum is the outside, which has no pair; with the outside above, the
    oldest maximum is.

    Args:
        keys: integers in the order of the values, shape (nx, ny), at least one.
        outside_low: the outside lies below all pixels instead of above them.
        degrees: which to compute.
    """
    extreme = np.iinfo(keys.dtype)
    padded = np.full([n + 2 for n in keys.shape], extreme.min if outside_low else extreme.max, keys.dtype)
    padded[1:-1, 1:-1] = keys
    width, flat = padded.shape[1], padded.reshape(-1)
    n_links, links, first = ring_table()
    steps = np.array([i * width + j for i, j in _RING], np.int64)
    down, up = np.empty(flat.shape, np.int32), np.empty(flat.shape, np.int32)
    saddles, masks = np.empty(keys.size, np.int32), np.empty(keys.size, np.uint8)
    count = _classify(flat, keys.shape, steps, n_links, first, down, up, saddles, masks)
    saddles, masks = saddles[:count], masks[:count]
    order = argsort(flat[saddles])
    saddles, masks = saddles[order], masks[order]
    parents = (down, up)
    return {
        degree: _sweep(flat, width, parents[degree], saddles, masks, links[degree], steps, degree == 1)
        for degree in degrees
    }


@lru_cache(maxsize=1)
def ring_table() -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """For each byte of lower neighbours: the components around the pixel.

    Returns:
        the number of components of lower pixels that touch the pixel, shape (256,); a ring position in each of the
        (lower, upper) components, ended by -1, shape (2, 256, 5); the lowest position that a (lower, upper) path may
        go to, or -1, shape (2, 256).
    """
    number, links, first = np.zeros(256, np.int8), np.full((2, 256, 5), -1, np.int8), np.full((2, 256), -1, np.int8)
    for mask in range(256):
        for side in range(2):
            members = [i for i in range(8) if mask >> i & 1 != side]
            representatives = _components(members, diagonal=side == 1)
            links[side, mask, : len(representatives)] = representatives
            first[side, mask] = representatives[0] if representatives else -1
        number[mask] = (links[0, mask] >= 0).sum()
    return number, links, first


def _components(members: list[int], *, diagonal: bool) -> list[int]:
    """One ring position for each component; with four neighbours, only components that touch the centre count."""
    representatives, left = [], set(members)
    while left:
        stack = [min(left)]
        component = set()
        while stack:
            at = stack.pop()
            if at in component:
                continue
            component.add(at)
            near = [(at + 1) % 8, (at - 1) % 8]
            if diagonal and at % 2 == 0:  # north and east touch at a corner
                near += [(at + 2) % 8, (at - 2) % 8]
            stack += [i for i in near if i in left]
        left -= component
        touching = sorted(component) if diagonal else sorted(i for i in component if i % 2 == 0)
        representatives += touching[:1]
    return representatives


@njit(cache=True, nogil=True)
@typing.no_type_check
def _classify(keys, shape, steps, n_links, first, down, up, saddles, masks):
    """Set the paths down and up of every pixel, and list the saddles with their bytes; how many there are."""
    width, count = shape[1] + 2, 0
    down[:width], up[:width] = 0, 0
    down[-width:], up[-width:] = 0, 0
    north, south = -width, width
    for i in range(1, shape[0] + 1):
        start = i * width
        down[start], up[start], down[start + width - 1], up[start + width - 1] = 0, 0, 0, 0
        for at in range(start + 1, start + width - 1):
            key = keys[at]
            # Of equal keys, the pixel that comes first in the array is the lower one.
            mask = (
                (keys[at + north] <= key)
                | (keys[at + north + 1] <= key) << 1
                | (keys[at + 1] < key) << 2
                | (keys[at + south + 1] < key) << 3
                | (keys[at + south] < key) << 4
                | (keys[at + south - 1] < key) << 5
                | (keys[at - 1] <= key) << 6
                | (keys[at + north - 1] <= key) << 7
            )
            low, high = first[0, mask], first[1, mask]
            down[at] = at if low < 0 else at + steps[low]
            up[at] = at if high < 0 else at + steps[high]
            if n_links[mask] > 1:
                saddles[count], masks[count] = at, mask
                count += 1
    return count


@njit(cache=True, nogil=True)
@typing.no_type_check
def _find(parent, at):
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@njit(cache=True, nogil=True)
@typing.no_type_check
def _sweep(keys, width, parent, saddles, masks, links, steps, downward):
    """Join the components at each saddle, the younger to the older; pairs (lower end, upper end) of unequal keys."""
    count, capacity = 0, min(3 * len(saddles), len(keys) // 2 + 1)  # no two neighbours both are minima (maxima)
    pairs = np.empty((capacity, 2), np.int32)
    for i in range(len(saddles)):
        turn = len(saddles) - 1 - i if downward else i
        saddle, mask = saddles[turn], masks[turn]
        root = _find(parent, saddle + steps[links[mask, 0]])
        for j in range(1, 4):
            if links[mask, j] < 0:
                break
            other = _find(parent, saddle + steps[links[mask, j]])
            if other == root:
                continue
            other_lower = keys[other] < keys[root] or (keys[other] == keys[root] and other < root)
            older, younger = (root, other) if other_lower == downward else (other, root)
            parent[younger] = older
            root = older
            if keys[younger] != keys[saddle]:
                first, second = (saddle, younger) if downward else (younger, saddle)
                pairs[count, 0] = (first // width - 1) * (width - 2) + first % width - 1
                pairs[count, 1] = (second // width - 1) * (width - 2) + second % width - 1
                count += 1
    return pairs[:count]
