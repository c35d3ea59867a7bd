"""Degrees above 1 of a Rips filtration, by gudhi."""

from collections.abc import Sequence

import numpy as np

from diffmatch.errors import require

__all__ = ["general_pairs"]


def general_pairs(
    edges: np.ndarray, n: int, degrees: Sequence[int]
) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Critical edges of the degrees above 1.

    The filtration is given to gudhi by the ranks of the edges, which are distinct, so that ties are broken as
    everywhere else.

    Args:
        edges: ends of the edges in order, shape (m, 2).
        n: number of points.
        degrees: degrees >= 2, none of them for no work at all.

    Returns:
        By degree: ends of the edges that start and that end the finite bars, shapes (p, 2), and of those that start
        the essential ones, shape (e, 2).

    Raises:
        MissingExtraError: gudhi is not installed.
    """
    if not degrees:
        return {}
    gudhi = require("gudhi", extra="topology")
    tree = gudhi.SimplexTree()
    tree.insert_batch(np.arange(n, dtype=np.int32)[None], np.zeros(n))
    tree.insert_batch(edges.T.astype(np.int32), np.arange(1.0, len(edges) + 1))
    tree.expansion(max(degrees) + 1)
    tree.compute_persistence(min_persistence=0.0)
    _, finite, _, essential = tree.flag_persistence_generators()

    def of(rows: list[np.ndarray], degree: int, columns: int) -> np.ndarray:
        found = rows[degree - 1] if degree - 1 < len(rows) else np.empty((0, columns))
        return np.sort(found.reshape(-1, columns // 2, 2).astype(np.int64), axis=2).reshape(-1, columns)

    return {
        degree: (of(finite, degree, 4)[:, :2], of(finite, degree, 4)[:, 2:], of(essential, degree, 2))
        for degree in degrees
    }
