"""Robust tabu search for the Koopmans-Beckmann problem: minimise ``sum_ij a_ij b_p(i)p(j)`` over permutations p."""

import math
import typing

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_floating, check_same_device, check_shape
from diffmatch.matching.assignment.result import one_hot
from diffmatch.matching.quadratic.result import QuadraticResult

__all__ = ["tabu_search"]

PATIENCE = 5
"""An exchange that gives both nodes partners which they have not had for this many times n^2 steps is made, whatever it
costs."""

# Annotation checks would wrap what numba has to compile, hence the second decorator of each kernel.
_kernel = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})


def tabu_search(
    a: Float[Tensor, "*b n n"],
    b: Float[Tensor, "*b n n"],
    *,
    steps: int = 20_000,
    restarts: int = 4,
    generator: torch.Generator | None = None,
) -> QuadraticResult:
    """Minimise ``sum_ij a_ij b_p(i)p(j)`` by exchanges of two partners (Taillard 1991, robust taboo search).

    Every step makes the best exchange that is not forbidden, better or worse, one of several equal ones at random;
    undoing it is forbidden for about n steps, unless that gives the best value so far, and what was not tried for long
    is forced. The table of all exchanges is updated in O(n^2) a step, half of it for symmetric problems. The search is
    not differentiable and runs on the CPU in float64, wherever the inputs lie; problems of a batch are solved in
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
    plan = one_hot(assignment, n, dtype=a.dtype)
    converged = torch.ones(batch, dtype=torch.bool, device=a.device)
    return QuadraticResult(assignment, value, plan, steps * restarts, converged)


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
def _search(a, b, start, steps, random):
    n = len(start)
    p, best_p = start.copy(), start.copy()
    moved = b[start][:, start]  # weights between the partners of nodes, kept up to date
    symmetric = True
    value, size = 0.0, 0.0
    for i in range(n):
        for j in range(n):
            value += a[i, j] * moved[i, j]
            size += abs(a[i, j] * moved[i, j])
            symmetric &= a[i, j] == a[j, i] and b[i, j] == b[j, i]
    a_t, moved_t = (a, moved) if symmetric else (a.T.copy(), moved.T.copy())
    best, noise = value, 1e-12 * size
    table, free_at = np.zeros((n, n)), np.zeros((n, n), np.int64)  # the latter by node and by node that has the partner
    for i in range(n):
        for j in range(n):
            free_at[i, j] = -(n * i + p[j])  # distinct, or all pairs would be forced at once
            if i < j:
                table[i, j] = _exchange(a, a_t, moved, moved_t, i, j, symmetric)
    for step in range(1, steps + 1):
        r, s = _choose(table, free_at, step, best - value - noise, noise, random)
        if r < 0:
            continue  # all are forbidden: the next step frees some
        value += table[r, s]
        free_at[r, r] = step + int(random.uniform(0.9, 1.1) * n)
        free_at[s, s] = step + int(random.uniform(0.9, 1.1) * n)
        p[r], p[s] = p[s], p[r]
        for i in range(n):
            free_at[i, r], free_at[i, s] = free_at[i, s], free_at[i, r]
        _update(a, a_t, moved, moved_t, r, s, table, symmetric)
        if value < best - noise:
            best, best_p = value, p.copy()
    return best, best_p


@_kernel
@typing.no_type_check
def _choose(table, free_at, step, improvement, noise, random):
    """The best exchange that is allowed, one of the equals at random; forced ones come first."""
    n = len(table)
    r, s, least, ties, forced = -1, -1, np.inf, 0, False
    old = step - PATIENCE * n * n
    for i in range(n):
        for j in range(i + 1, n):
            change = table[i, j]
            if change > least + noise and (forced or max(free_at[i, j], free_at[j, i]) >= old):
                continue
            latest = max(free_at[i, j], free_at[j, i])
            force = latest < old or change < improvement
            if not force and (forced or min(free_at[i, j], free_at[j, i]) >= step):
                continue
            if (force and not forced) or change < least - noise:
                r, s, least, ties, forced = i, j, change, 1, force
            elif change <= least + noise:
                ties += 1
                if random.random() * ties < 1:
                    r, s = i, j
    return r, s


@_kernel
@typing.no_type_check
def _exchange(a, a_t, b, b_t, i, j, symmetric):
    """Change of the objective when i and j exchange their partners, in O(n); b is that of the partners."""
    rows = 0.0
    for k in range(len(a)):
        rows += (a[i, k] - a[j, k]) * (b[j, k] - b[i, k])
    columns = rows
    if not symmetric:
        columns = 0.0
        for k in range(len(a)):
            columns += (a_t[i, k] - a_t[j, k]) * (b_t[j, k] - b_t[i, k])
    # The terms k = i and k = j of both sums stand for four pairs whose ends both move.
    rows -= (a[i, i] - a[j, i]) * (b[j, i] - b[i, i]) + (a[i, j] - a[j, j]) * (b[j, j] - b[i, j])
    columns -= (a[i, i] - a[i, j]) * (b[i, j] - b[i, i]) + (a[j, i] - a[j, j]) * (b[j, j] - b[j, i])
    return rows + columns + (a[i, i] - a[j, j]) * (b[j, j] - b[i, i]) + (a[i, j] - a[j, i]) * (b[j, i] - b[i, j])


@_kernel
@typing.no_type_check
def _update(a, a_t, b, b_t, r, s, table, symmetric):
    """Exchange r and s, and bring the table up to date: O(1) for each pair without them (Taillard 1991)."""
    n = len(a)
    change_a, change_b = a[s] - a[r], b[s] - b[r]
    other_a, other_b = a_t[s] - a_t[r], b_t[s] - b_t[r]
    for i in range(n):
        for j in range(i + 1, n):
            rows = (change_a[j] - change_a[i]) * (change_b[j] - change_b[i])
            columns = rows if symmetric else (other_a[j] - other_a[i]) * (other_b[j] - other_b[i])
            table[i, j] += rows + columns
    for k in range(n):
        b[r, k], b[s, k] = b[s, k], b[r, k]
    for k in range(n):
        b[k, r], b[k, s] = b[k, s], b[k, r]
    if not symmetric:
        b_t[:] = b.T
    for k in range(n):
        for end in (r, s):
            if k != end:
                i, j = min(k, end), max(k, end)
                table[i, j] = _exchange(a, a_t, b, b_t, i, j, symmetric)
