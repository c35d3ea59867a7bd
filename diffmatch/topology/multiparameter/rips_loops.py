"""Loops of a function-Rips bifiltration: the Rips complexes of all sublevel sets of the function, one by one."""

import numpy as np
import torch

from diffmatch.topology.multiparameter.events import Events
from diffmatch.topology.rips_kernels import sweep_edges

__all__ = ["loop_events"]


def loop_events(at: np.ndarray, ends: np.ndarray, rank: np.ndarray, n_levels: int) -> Events:
    """Degree 1: at each level of the function, the bars of the points that have entered by it.

    What lies above the enclosing radius of these points is left out: from there on one of them is joined to all the
    others, and no loop is left.

    Args:
        at: level at which each point enters, shape (n,).
        ends: the pairs of points, shape (m, 2).
        rank: place of each pair in the order of their lengths, from 1, shape (m,).
        n_levels: number of levels of the function.

    Returns:
        codes ``rank * n_levels + level`` and weights.
    """
    n = len(at)
    order = rank.argsort()
    ends, rank = ends[order], rank[order].astype(np.int64)
    table = np.zeros((n, n), np.int64)
    table[ends[:, 0], ends[:, 1]] = table[ends[:, 1], ends[:, 0]] = rank
    enters = at[ends].max(1, initial=0)
    codes, weights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for level in range(n_levels):
        inside = (at <= level).nonzero()[0]
        if len(inside) < 4:
            continue
        enclosing = table[np.ix_(inside, inside)].max(1).min()
        # Ranks are the places from 1 on.
        seen = (enters[:enclosing] <= level).nonzero()[0]
        number = np.zeros(n, np.int64)
        number[inside] = np.arange(len(inside))
        start, stop, _ = sweep_edges(number[ends[seen]], len(inside))
        code = np.concatenate((rank[seen[start]], rank[seen[stop]])) * n_levels + level
        weight = np.repeat(np.array([1, -1]), len(start))
        codes.append(code)
        weights.append(weight)
        if level + 1 < n_levels:
            codes.append(code + 1)
            weights.append(-weight)
    return torch.from_numpy(np.concatenate(codes)), torch.from_numpy(np.concatenate(weights))
