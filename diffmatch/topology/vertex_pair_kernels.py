"""Bars of functions on vertices on the CPU: which are kept, and in what order."""

import typing

import numpy as np
import numpy.typing as npt
from numba import njit

from diffmatch.topology.radix import argsort

__all__ = ["bars"]

_LONGEST_TIE = 32
"""Longer runs of bars of one length are not sorted by insertion."""

Vertices: typing.TypeAlias = npt.NDArray[np.int64]


def bars(
    values: npt.NDArray[np.floating],
    births: npt.NDArray[np.integer],
    deaths: npt.NDArray[np.integer],
    essential: npt.NDArray[np.integer],
    min_persistence: float,
) -> tuple[Vertices, Vertices, Vertices]:
    """The bars longer than `min_persistence`, longest first, equal ones by their vertices; and those without an end.

    Args:
        values: of a sublevel filtration, shape (n,), without NaN and -inf.
        births: vertex of each birth, shape (p,).
        deaths: vertex of each death, shape (p,).
        essential: vertex of the birth of each class that never dies, shape (e,).
        min_persistence: bars of this length and shorter are left out, >= 0.

    Returns:
        the births and the deaths of the bars that end, shape (q,), and the finite births of all classes that do not,
        or at infinity only, by value and vertex.
    """
    first, last, length, endless = _kept(values, births, deaths, essential, min_persistence)
    # The bits of positive numbers are in their order.
    keys = ~length.view(np.int64 if length.dtype == np.float64 else np.int32)
    order = argsort(keys)
    if not _sort_ties(keys, first, last, order):
        order = np.lexsort((last, first, keys)).astype(np.int32)
    if len(endless) > 1:
        endless = endless[np.lexsort((endless, values[endless]))]
    return first[order], last[order], endless


@njit(cache=True, nogil=True)
@typing.no_type_check
def _kept(values, births, deaths, essential, min_persistence):
    """Births, deaths and lengths of the bars that are kept, and the finite births of the classes without end."""
    n, count, n_endless = len(births), 0, 0
    first, last, endless = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n + len(essential), np.int64)
    length = np.empty(n, values.dtype)
    for vertex in essential:
        if values[vertex] < np.inf:
            endless[n_endless] = vertex
            n_endless += 1
    for i in range(n):
        born, died = values[births[i]], values[deaths[i]]
        if born == np.inf:
            continue
        if died == np.inf:
            endless[n_endless] = births[i]
            n_endless += 1
        elif died - born > min_persistence:
            first[count], last[count], length[count] = births[i], deaths[i], died - born
            count += 1
    return first[:count], last[:count], length[:count], endless[:n_endless].copy()


@njit(cache=True, nogil=True)
@typing.no_type_check
def _sort_ties(keys, first, last, order):
    """Sort `order` by (first, last) within each run of equal keys; False if a run is too long for that."""
    n, start = len(order), 0
    while start < n:
        end = start + 1
        while end < n and keys[order[end]] == keys[order[start]]:
            end += 1
        if end - start > _LONGEST_TIE:
            return False
        for i in range(start + 1, end):
            bar, j = order[i], i
            while j > start:
                other = order[j - 1]
                if first[other] < first[bar] or (first[other] == first[bar] and last[other] < last[bar]):
                    break
                order[j] = other
                j -= 1
            order[j] = bar
        start = end
    return True
