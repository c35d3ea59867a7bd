"""Brute force for two parameters: components and cells counted at every pair of levels."""

import pytest
import torch


def n_components(present, edges):
    """Components of the present vertices under edges between them."""
    parent = list(range(len(present)))

    def root(v):
        while parent[v] != v:
            v = parent[v]
        return v

    count = sum(map(bool, present))
    for u, v in edges:
        a, b = root(int(u)), root(int(v))
        if a != b:
            parent[a] = b
            count -= 1
    return count


def counted(vertices, cells, first, second, degree):
    """The Hilbert function or Euler characteristic of a complex with H_2 = 0, shape (s, t), one pair at a time.

    `vertices` are (grade, grade) and `cells` are (corners, (grade, grade)), edges first of all.
    """
    table = torch.empty(len(first), len(second), dtype=torch.int64)
    for i, s in enumerate(first.tolist()):
        for j, t in enumerate(second.tolist()):
            present = [bool(a <= s and b <= t) for a, b in vertices]
            inside = [corners for corners, (a, b) in cells if a <= s and b <= t]
            h0 = n_components(present, [c for c in inside if len(c) == 2])
            chi = sum(present) + sum((-1) ** (len(c) - 1) for c in inside)
            table[i, j] = {0: h0, 1: h0 - chi, None: chi}[degree]
    return table


@pytest.fixture(scope="session")
def brute_force():
    return counted
