"""The longest way of an optimal bottleneck matching."""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

__all__ = ["bottleneck_edge"]


def bottleneck_edge(
    between: np.ndarray, x_diagonal: np.ndarray, y_diagonal: np.ndarray
) -> tuple[int | None, int | None]:
    """The pair of points, or the point and the diagonal (None), whose distance is the bottleneck.

    Args:
        between: distances of the points of two diagrams, shape (m, n), m + n > 0.
        x_diagonal: distances of the m points to the diagonal.
        y_diagonal: distances of the n points to the diagonal.
    """
    m, n = between.shape
    candidates = np.concatenate((between.ravel(), x_diagonal, y_diagonal))
    order = candidates.argsort(kind="stable")
    low, high = 0, len(order) - 1
    while low < high:
        middle = (low + high) // 2
        radius = candidates[order[middle]]
        near = between <= radius
        # Those that cannot reach the diagonal need partners. A matching that covers those of one side and one that
        # covers those of the other side can be joined to one that covers both (Mendelsohn and Dulmage).
        if _covers(near[x_diagonal > radius]) and _covers(near[:, y_diagonal > radius].T):
            high = middle
        else:
            low = middle + 1
    edge = int(order[low])
    if edge < m * n:
        return edge // n, edge % n
    return (edge - m * n, None) if edge < m * n + m else (None, edge - m * n - m)


def _covers(near: np.ndarray) -> bool:
    """Whether every row can have a column of its own."""
    if near.shape[0] > near.shape[1] or not near.any(axis=1).all():
        return False
    if near.shape[0] == 0:
        return True
    return bool((maximum_bipartite_matching(csr_array(near), perm_type="column") >= 0).all())
