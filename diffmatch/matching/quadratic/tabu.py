"""Robust tabu search for the Koopmans-Beckmann problem: minimise ``sum_ij a_ij b_p(i)p(j)`` over permutations p."""

import math
import typing
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_floating, check_same_device, check_shape

__all__ = ["QuadraticResult", "tabu_search"]

# Annotation checks would wrap what numba has to compile, hence the second decorator of each kernel.
_kernel = njit(cache=True, nogil=True)


@dataclass(frozen=True)
class QuadraticResult:
    """What a quadratic-assignment solver found.

    Attributes:
        assignment: partner in the second graph of each node of the first, shape (\\*b, n), int64.
        value: objective of that assignment, shape (\\*b).
        steps: exchanges that were made for each problem, all restarts together.
    """

    assignment: Int[Tensor, "*b n"]
    value: Float[Tensor, "*b"]
    steps: int


def tabu_search(
    a: Float[Tensor, "*b n n"],
    b: Float[Tensor, "*b n n"],
    *,
    steps: int = 20_000,
    restarts: int = 4,
    generator: torch.Generator | None = None,
) -> QuadraticResult:
    """Minimise ``sum_ij a_ij b_p(i)p(j)`` by exchanges of two partners (Taillard 1991, robust taboo search).

    Every step makes the best exchange that is not forbidden, better or worse; undoing it is forbidden for about n
    steps, unless that gives the best value so far. The table of all exchanges is updated in O(n^2) a step. The search
    is not differentiable and runs on the CPU in float64, wherever the inputs lie; problems of a batch are solved in
    turn.

    Args:
        a: weights of the first graph, shape (\\*b, n, n); the diagonal counts, symmetry is not needed.
        b: weights of the second graph, the same shape.
        steps: exchanges of each restart.
        restarts: random permutations that are started from; the best result is kept.
        generator: source of the starts and of the forbidden times, on the CPU.

    Returns:
        The best permutation of each problem, with its value in the dtype of `a`.

    Raises:
        InputError: shapes, dtypes or devices do not fit, an entry is not finite, or a count is below its least value.
    """
    _check(a, b, steps, restarts)
    *batch, n, _ = a.shape
    first = a.detach().reshape(math.prod(batch), n, n).to("cpu", torch.float64).numpy()
    second = b.detach().reshape(math.prod(batch), n, n).to("cpu", torch.float64).numpy()
    found = np.empty((len(first), n), np.int64)
    for k in range(len(first)):
        best = math.inf
        for _ in range(restarts):
            start = torch.randperm(n, generator=generator).numpy()
            random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
            value, permutation = _search(first[k], second[k], start, steps, random)
            if value < best:
                best, found[k] = value, permutation
    assignment = torch.from_numpy(found).reshape(*batch, n).to(a.device)
    value = _objective(a.detach(), b.detach(), assignment)
    return QuadraticResult(assignment, value, steps * restarts)


def _check(a: Tensor, b: Tensor, steps: int, restarts: int) -> None:
    check_shape("a", a, ("n", "n"), batch=True)
    if a.shape[-1] != a.shape[-2]:
        raise InputError("a", "square matrices", str(tuple(a.shape)))
    if b.shape != a.shape:
        raise InputError("b", f"shape {tuple(a.shape)}, that of a", str(tuple(b.shape)))
    check_same_device("b", b, a.device)
    for name, tensor in (("a", a), ("b", b)):
        check_floating(name, tensor)
        check_finite(name, tensor)
    for name, count, least in (("steps", steps, 0), ("restarts", restarts, 1)):
        if count < least:
            raise InputError(name, f"at least {least}", str(count))


def _objective(a: Tensor, b: Tensor, assignment: Tensor) -> Tensor:
    rows = b.gather(-2, assignment[..., None].expand_as(b))
    return (a * rows.gather(-1, assignment[..., None, :].expand_as(b))).sum((-2, -1))


@_kernel
@typing.no_type_check
def _exchange(a, b, p, r, s):
    """Change of the objective when r and s exchange their partners, in O(n)."""
    pr, ps = p[r], p[s]
    change = (a[r, r] - a[s, s]) * (b[ps, ps] - b[pr, pr]) + (a[r, s] - a[s, r]) * (b[ps, pr] - b[pr, ps])
    for k in range(len(p)):
        if k != r and k != s:
            pk = p[k]
            change += (a[k, r] - a[k, s]) * (b[pk, ps] - b[pk, pr]) + (a[r, k] - a[s, k]) * (b[ps, pk] - b[pr, pk])
    return change


@_kernel
@typing.no_type_check
def _search(a, b, start, steps, random):
    p, best_p, n = start.copy(), start.copy(), len(start)
    value, size = 0.0, 0.0
    for i in range(n):
        for j in range(n):
            value += a[i, j] * b[p[i], p[j]]
            size += abs(a[i, j] * b[p[i], p[j]])
    best, noise = value, 1e-12 * size
    table, free_at = np.zeros((n, n)), np.zeros((n, n), np.int64)
    for i in range(n):
        for j in range(i + 1, n):
            table[i, j] = _exchange(a, b, p, i, j)
    for step in range(1, steps + 1):
        r, s, least = -1, -1, np.inf
        for i in range(n):
            for j in range(i + 1, n):
                allowed = free_at[i, p[j]] < step or free_at[j, p[i]] < step or value + table[i, j] < best - noise
                if allowed and table[i, j] < least:
                    r, s, least = i, j, table[i, j]
        if r < 0:
            continue  # all are forbidden: the next step frees some
        p[r], p[s] = p[s], p[r]
        value += least
        free_at[r, p[s]] = step + int(random.uniform(0.9, 1.1) * n)
        free_at[s, p[r]] = step + int(random.uniform(0.9, 1.1) * n)
        if value < best - noise:
            best, best_p = value, p.copy()
        _update(a, b, p, r, s, table)
    return best, best_p


@_kernel
@typing.no_type_check
def _update(a, b, p, r, s, table):
    """Bring the table up to date after r and s were exchanged: O(1) for each pair without them (Taillard 1991)."""
    pr, ps = p[r], p[s]
    for i in range(len(p)):
        pi = p[i]
        for j in range(i + 1, len(p)):
            if i in (r, s) or j in (r, s):
                table[i, j] = _exchange(a, b, p, i, j)
            else:
                pj = p[j]
                table[i, j] += (a[r, i] - a[r, j] + a[s, j] - a[s, i]) * (b[ps, pi] - b[ps, pj] + b[pr, pj] - b[pr, pi])
                table[i, j] += (a[i, r] - a[j, r] + a[j, s] - a[i, s]) * (b[pi, ps] - b[pj, ps] + b[pj, pr] - b[pi, pr])
