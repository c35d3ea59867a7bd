"""Compiled solver for stored costs on the CPU: kernel sweeps, eps scaling and truncated Newton, one element at a time.

The tensor operations of :mod:`.sweeps` and :mod:`.newton` are its reference and its test. What it adds: each element
runs until it has converged and no longer, a sweep is one pass over memory, and the exponential is written out so that
it vectorises. All sums are in double precision; the kernel is stored in the precision of the cost.

Numba's cache does not notice edits in other files, so every jitted function that a kernel calls lives here.
"""

import math
import typing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from diffmatch.matching.transport.newton import FORCING, LEVEL_ERROR, LEVEL_SWEEPS, OVERSHOOT, PATIENCE, SHRINK, TINY
from diffmatch.matching.transport.problem import Problem
from diffmatch.matching.transport.sweeps import Solution

__all__ = ["solve_dense"]

DIRECT_SWEEPS = 100
"""Sweeps at the final eps before Newton takes over, where they were not prepared by eps scaling."""
CG_STEPS = 500
"""Largest number of conjugate gradient steps for one Newton step."""
FAR_SINGLE, FAR_DOUBLE = 1e8, 1e100
"""Scalings beyond this are absorbed into the potentials, before what underflowed in the kernel could matter."""

# Sums may be reordered, which vectorises them; infinities keep their meaning.
_kernel = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})


def solve_dense(
    cost: Float[Tensor, "b m n"],
    problem: Problem,
    g: Float[Tensor, "b n"] | None,
    *,
    tol: float,
    max_steps: int,
    newton: Float[Tensor, " b"],
) -> Solution:
    """Solve a batch on the CPU.

    Args:
        cost: the costs.
        problem: marginals and strengths.
        g: column potentials to start from; None starts from zero, with eps scaling where Newton finishes.
        tol: marginal error to reach, relative to the mass.
        max_steps: largest number of sweeps, conjugate gradient steps and evaluations of the kernel together.
        newton: eps of the first level of the scaling for the elements that Newton finishes (that of the problem for no
            scaling), 0 for plain sweeps.
    """
    batch, m, n = cost.shape
    arrays = [
        np.ascontiguousarray(x.detach().numpy(), np.float64)
        for x in (problem.a, problem.b, problem.eps, problem.slack_a, problem.slack_b, newton)
    ]
    f = np.empty((batch, m))
    start = np.zeros((batch, n)) if g is None else g.detach().to(torch.float64, copy=True).contiguous().numpy()
    error, steps = np.empty(batch), np.empty(batch, np.int64)
    values = cost.detach().contiguous().numpy()

    def run(low: int, high: int) -> None:
        _solve(values, *arrays, f, start, error, steps, tol, max_steps, g is not None, low, high)

    workers = min(torch.get_num_threads(), batch)
    if workers > 1 and cost.numel() > 1 << 14:
        # More parts than workers, since elements differ in how long they take.
        bounds = np.linspace(0, batch, min(batch, 4 * workers) + 1).astype(int)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(run, bounds[:-1].tolist(), bounds[1:].tolist()))
    else:
        run(0, batch)
    dtype = problem.a.dtype
    rows, columns, reached = (torch.from_numpy(x).to(dtype) for x in (f, start, error))
    converged = torch.from_numpy(error <= tol * arrays[0].sum(-1))
    return Solution(rows, columns, reached, torch.from_numpy(steps), converged)


@_kernel
@typing.no_type_check
def _solve(cost, a, b, eps, slack_a, slack_b, first, f, g, error, steps, tol, max_steps, warm, low, high):
    """Elements low to high of the batch."""
    m, n = cost.shape[1:]
    kernel = np.empty((m, n), cost.dtype)
    row_work, column_work = np.empty((7, m)), np.empty((3, n))
    for k in range(low, high):
        error[k], steps[k] = _solve_one(
            cost[k],
            a[k],
            b[k],
            (eps[k], slack_a[k] / eps[k], slack_b[k] / eps[k], first[k]),
            f[k],
            g[k],
            kernel,
            row_work,
            column_work,
            tol * a[k].sum(),
            max_steps,
            warm,
        )


@_kernel
@typing.no_type_check
def _solve_one(cost, a, b, strengths, f, g, kernel, row_work, column_work, limit, max_steps, warm):
    eps, per_rho_a, per_rho_b, first = strengths
    if len(a) == 0 or len(b) == 0:
        f[:] = -np.inf
        g[:] = -np.inf
        return a.sum(), 0
    newton = first > 0
    level = max(eps, first) if newton and not warm else eps
    _log_rows(cost, a, level, level * per_rho_a, g, f)
    steps = 1
    while True:
        last = level == eps
        slack_a, slack_b = level * per_rho_a, level * per_rho_b
        sweeps = max_steps - steps
        if newton:
            sweeps = min(sweeps, LEVEL_SWEEPS if first > eps and not warm else DIRECT_SWEEPS)
        wanted = limit if last else max(limit, LEVEL_ERROR * a.sum())
        error, spent = _sweeps(
            cost, a, b, level, slack_a, slack_b, f, g, kernel, row_work, column_work, wanted, sweeps, last and newton
        )
        steps += spent
        if last or steps >= max_steps:
            break
        level = max(eps, SHRINK * level)
    if last and newton and error > limit:
        error, steps = _newton(
            cost,
            a,
            b,
            eps,
            eps * per_rho_a,
            eps * per_rho_b,
            f,
            g,
            kernel,
            row_work,
            column_work,
            limit,
            steps,
            max_steps,
        )
    return error, steps


@_kernel
@typing.no_type_check
def _log_rows(cost, a, eps, slack, g, f):
    """Meet the row marginals in the log domain."""
    inverse = 1 / eps
    for i in range(len(a)):
        f[i] = -np.inf
        if a[i] > 0:
            top = -np.inf
            row = cost[i]
            for j in range(len(g)):
                top = max(top, g[j] - row[j])
            if top > -np.inf:
                total = 0.0
                for j in range(len(g)):
                    total += _exp((g[j] - row[j] - top) * inverse)
                f[i] = eps * (math.log(a[i]) - (math.log(total) + top * inverse) / (1 + slack))


@_kernel
@typing.no_type_check
def _columns(cost, b, eps, slack, f, g, kernel, c, r, shift, near):
    """Meet the column marginals, and leave the plan in `kernel`, its column sums in `c` and row sums in `r`.

    Exponents are taken relative to the old `g` if it is said to be `near`, and relative to the largest one of each
    column otherwise, or where that overflows.
    """
    m, n = len(f), len(g)
    inverse = 1 / eps
    for attempt in range(2):
        near = near and attempt == 0
        for j in range(n):
            shift[j] = -np.inf
            if near:
                shift[j] = -g[j] if g[j] > -np.inf else 0.0
            c[j] = 0.0
        if not near:
            for i in range(m):
                row, fi = cost[i], f[i]
                for j in range(n):
                    shift[j] = max(shift[j], fi - row[j])
            for j in range(n):
                if not shift[j] > -np.inf:
                    shift[j] = 0.0
        for i in range(m):
            row, out, fi = cost[i], kernel[i], f[i]
            if fi > -np.inf:
                for j in range(n):
                    value = _exp((fi - row[j] - shift[j]) * inverse)
                    out[j] = value
                    c[j] += value
            else:
                out[:] = 0
        fits = True
        for j in range(n):
            fits = fits and (not (b[j] > 0) or (c[j] > 1e-20 and c[j] < 1e30))
        if fits or not near:
            break
    for j in range(n):
        if b[j] > 0 and c[j] > 0:
            g[j] = eps * (math.log(b[j]) - (math.log(c[j]) + shift[j] * inverse) / (1 + slack))
            shift[j] = math.exp((g[j] + shift[j]) * inverse)
        else:
            g[j] = -np.inf
            shift[j] = 0.0
            c[j] = 0.0
        c[j] *= shift[j]
    for i in range(m):
        out = kernel[i]
        total = 0.0
        for j in range(n):
            value = out[j] * shift[j]
            out[j] = value
            total += value
        r[i] = total


@_kernel
@typing.no_type_check
def _targets(a, f, eps, slack, target):
    """What the rows should sum to; rows that cannot carry their mass keep it as a debt."""
    for i in range(len(a)):
        target[i] = a[i]
        if slack > 0 and f[i] > -np.inf:
            target[i] = math.exp((1 + slack) * math.log(a[i]) - slack * f[i] / eps)


@_kernel
@typing.no_type_check
def _sweeps(cost, a, b, eps, slack_a, slack_b, f, g, kernel, row_work, column_work, limit, max_sweeps, rebuild):
    """Scale the kernel ``diag(u) K diag(v)`` until the row error is within the limit; u and v end in f and g.

    The error that is returned is that of the potentials; with `rebuild`, the kernel is the plan at them.
    """
    m, n = len(a), len(b)
    r, target, u, kept = row_work[0], row_work[1], row_work[2], row_work[3]
    c, v, column = column_work[0], column_work[1], column_work[2]
    _columns(cost, b, eps, slack_b, f, g, kernel, c, r, v, True)
    spent, error = 1, np.inf
    far = FAR_SINGLE if kernel.itemsize == 4 else FAR_DOUBLE
    while True:
        _targets(a, f, eps, slack_a, target)
        u[:] = 1.0
        v[:] = 1.0
        c[:] = 0.0
        for j in range(n):
            if g[j] > -np.inf:
                c[j] = b[j]
                if slack_b > 0:
                    c[j] = math.exp((1 + slack_b) * math.log(b[j]) - slack_b * g[j] / eps)
        absorb = False
        while not absorb:
            error = 0.0
            low, high = np.inf, 0.0
            column[:] = 0.0
            kept[:] = u
            for i in range(m):
                row = kernel[i]
                total = 0.0
                for j in range(n):
                    total += row[j] * v[j]
                if not f[i] > -np.inf:
                    error += a[i]
                    continue
                wanted = target[i]
                if slack_a > 0:
                    wanted *= u[i] ** -slack_a
                error += abs(u[i] * total - wanted)
                scale = target[i] / total
                if slack_a > 0:
                    scale = scale ** (1 / (1 + slack_a))
                u[i] = scale
                low, high = min(low, scale), max(high, scale)
                for j in range(n):
                    column[j] += scale * row[j]
            spent += 1
            if error <= limit or spent >= max_sweeps or not (low > 1 / far and high < far):
                u[:] = kept
                break
            for j in range(n):
                if g[j] > -np.inf:
                    scale = c[j] / column[j]
                    if slack_b > 0:
                        scale = scale ** (1 / (1 + slack_b))
                    v[j] = scale
                    absorb = absorb or not (scale > 1 / far and scale < far)
        for i in range(m):
            if f[i] > -np.inf:
                f[i] += eps * math.log(u[i])
        done = error <= limit or spent >= max_sweeps
        for j in range(n):
            if g[j] > -np.inf and v[j] > 0 and v[j] < np.inf:
                g[j] += eps * math.log(v[j])
        if done and (not rebuild or error <= limit):
            break
        if not done:
            _log_rows(cost, a, eps, slack_a, g, f)
            spent += 1
        _columns(cost, b, eps, slack_b, f, g, kernel, c, r, v, True)
        spent += 1
        if done:
            break
    return error, spent


@_kernel
@typing.no_type_check
def _newton(cost, a, b, eps, slack_a, slack_b, f, g, kernel, row_work, column_work, limit, steps, max_steps):
    """Truncated Newton on the semi-dual in f, the columns always met exactly.

    Its gradient is (target - r), minus eps times its Hessian is ``diag(r + s target) - P diag(1 / ((1 + s) c)) P^T``.
    The kernel holds the plan at f and g on entry and on return.
    """
    m = len(a)
    r, target, d, residual = row_work[0], row_work[1], row_work[2], row_work[3]
    z, p, image = row_work[4], row_work[5], row_work[6]
    c, q, shift = column_work[0], column_work[1], column_work[2]
    best, stalled = np.inf, 0
    while True:
        _targets(a, f, eps, slack_a, target)
        error = 0.0
        for i in range(m):
            error += abs(target[i] - r[i])
        stalled = 0 if error < 0.9 * best else stalled + 1
        best = min(best, error)
        if error <= limit or steps >= max_steps or stalled >= PATIENCE:
            return error, steps
        # Conjugate gradients from 0, preconditioned by the diagonal.
        rho = 0.0
        for i in range(m):
            residual[i] = target[i] - r[i] if f[i] > -np.inf else 0.0
            diagonal = r[i] + slack_a * target[i]
            d[i] = 0.0
            z[i] = residual[i] / diagonal if diagonal > TINY else 0.0
            p[i] = z[i]
            rho += residual[i] * z[i]
        left = error
        for _ in range(CG_STEPS):
            if left <= FORCING * error or steps >= max_steps:
                break
            curvature = _hessian(kernel, r, c, target, slack_a, slack_b, p, q, image)
            steps += 1
            if not curvature > 0:
                break
            alpha, before = rho / curvature, rho
            rho, left = 0.0, 0.0
            for i in range(m):
                d[i] += alpha * p[i]
                residual[i] -= alpha * image[i]
                diagonal = r[i] + slack_a * target[i]
                z[i] = residual[i] / diagonal if diagonal > TINY else 0.0
                rho += residual[i] * z[i]
                left += abs(residual[i])
            for i in range(m):
                p[i] = z[i] + rho / before * p[i]
        # The semi-dual is concave, so a step that does not run far past its maximum along d has raised it.
        slope = 0.0
        for i in range(m):
            residual[i] = target[i] - r[i] if f[i] > -np.inf else 0.0
            slope += residual[i] * d[i]
            p[i] = f[i]
        scale = 1.0
        for _ in range(20):
            for i in range(m):
                f[i] = p[i] + scale * eps * d[i]
            _columns(cost, b, eps, slack_b, f, g, kernel, c, r, shift, True)
            steps += 1
            _targets(a, f, eps, slack_a, target)
            ahead = 0.0
            for i in range(m):
                if f[i] > -np.inf:
                    ahead += (target[i] - r[i]) * d[i]
            if ahead >= -OVERSHOOT * slope:
                break
            scale *= max(0.1, slope / (slope - ahead))
        if stalled > 0:
            # Far from the solution some rows carry almost nothing, which a sweep mends and Newton does not.
            _log_rows(cost, a, eps, slack_a, g, f)
            _columns(cost, b, eps, slack_b, f, g, kernel, c, r, shift, True)
            steps += 2


@_kernel
@typing.no_type_check
def _hessian(kernel, r, c, target, slack_a, slack_b, p, q, image):
    """``image = (diag(r + s target) - P diag(1 / ((1 + s) c)) P^T) p``; returns ``<p, image>``."""
    m, n = kernel.shape
    q[:] = 0.0
    for i in range(m):
        row, pi = kernel[i], p[i]
        for j in range(n):
            q[j] += pi * row[j]
    for j in range(n):
        q[j] = q[j] / ((1 + slack_b) * c[j]) if c[j] > TINY else 0.0
    curvature = 0.0
    for i in range(m):
        row = kernel[i]
        total = 0.0
        for j in range(n):
            total += row[j] * q[j]
        image[i] = (r[i] + slack_a * target[i]) * p[i] - total
        curvature += p[i] * image[i]
    return curvature


@_kernel
@typing.no_type_check
def _exp(x):
    """Exponential of a number up to 700, to 1e-13 relative; 0 below -600. Free of branches, so that it vectorises."""
    x = min(x, 700.0)
    n = math.floor(x * 1.4426950408889634 + 0.5)
    r = x - n * 0.6931471803691238 - n * 1.9082149292705877e-10
    p = 1 / 39916800 + r * (1 / 479001600)
    p = 1 / 3628800 + r * p
    p = 1 / 362880 + r * p
    p = 1 / 40320 + r * p
    p = 1 / 5040 + r * p
    p = 1 / 720 + r * p
    p = 1 / 120 + r * p
    p = 1 / 24 + r * p
    p = 1 / 6 + r * p
    p = 0.5 + r * p
    p = 1.0 + r * p
    p = 1.0 + r * p
    # The low bits of n + 1.5 * 2^52 are the integer n, to be put where a double keeps its exponent.
    power = np.int64((np.float64(n + 6755399441055744.0).view(np.int64) + 1023) << 52).view(np.float64)
    return p * power if x > -600.0 else 0.0
