"""Eps scaling and truncated Newton on the semi-dual, for any cost on any device.

After an exact column update the semi-dual in f has the gradient (wanted row sums - row sums) and, times eps, the
negative Hessian ``S = diag(r + s r*) - P diag(1 / ((1 + s) c)) P^T``. Its system is solved by conjugate gradients to a
twentieth of the gradient, which takes about the square root of the number of sweeps that Sinkhorn would need (Brauer,
Clason, Lorenz, Wirth 2017; Kemertas, Farahmand, Jepson 2025, on truncated Newton with annealing).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.matching.transport.conjugate import conjugate_gradients
from diffmatch.matching.transport.costs import Cost
from diffmatch.matching.transport.problem import Problem, damped_update
from diffmatch.matching.transport.sweeps import Solution, log_sweeps, row_sums, sweep, wanted_rows

__all__ = [
    "FORCING",
    "LEVEL_ERROR",
    "LEVEL_SWEEPS",
    "OVERSHOOT",
    "PATIENCE",
    "SHRINK",
    "TINY",
    "newton",
    "scaled_start",
]

LEVEL_SWEEPS = 20
"""Sweeps on a level of eps scaling."""
LEVEL_ERROR = 1e-2
"""Relative marginal error that is enough on a level of eps scaling."""
SHRINK = 0.5
"""Ratio of eps from level to level."""
FORCING = 0.05
"""Residual of the Newton system, relative to its right-hand side."""
OVERSHOOT = 0.5
"""A Newton step is shortened when the slope at its end is more negative than this part of the slope at its start."""
PATIENCE = 25
"""Newton gives up after this many steps in a row that did not reduce the error by a tenth; a sweep follows each."""
TINY = 1e-30
"""Rows and columns with less mass than this take no part in a Newton step."""


def scaled_start(
    cost: Cost, problem: Problem, g: Float[Tensor, "b n"], first: Float[Tensor, " b"], *, tol: float
) -> Solution:
    """Column potentials after a decreasing sequence of eps, from `first` to the level above that of the problem."""
    level = torch.maximum(first, problem.eps)
    steps = torch.zeros_like(level, dtype=torch.int64)
    found = log_sweeps(cost, problem.at(level), g, tol=max(tol, LEVEL_ERROR), max_steps=1)
    while bool((level > problem.eps).any()):
        found = log_sweeps(cost, problem.at(level), found.g, tol=max(tol, LEVEL_ERROR), max_steps=LEVEL_SWEEPS, every=5)
        steps += found.steps
        level = torch.maximum(level * SHRINK, problem.eps)
    return Solution(found.f, found.g, found.error, steps, found.converged)


def newton(cost: Cost, problem: Problem, g: Float[Tensor, "b n"], *, tol: float, max_steps: int) -> Solution:
    """Truncated Newton from column potentials; elements leave the batch as they converge, tested once a step."""
    limit = tol * problem.a.sum(-1)
    f, g = torch.full_like(problem.a, -torch.inf), g.clone()
    error = torch.full_like(problem.eps, torch.inf)
    steps = torch.zeros_like(problem.eps, dtype=torch.int64)
    active = torch.arange(len(g), device=g.device)
    part, inside = cost, problem
    row, column = sweep(part, inside, g)
    spent = 1
    best, stalled = torch.full_like(error, torch.inf), torch.zeros_like(steps)
    while len(active):
        plan = part.plan(row, column, inside.eps)
        r, c = plan.rows(torch.ones_like(column)), plan.columns(torch.ones_like(row))
        wanted = wanted_rows(inside, row)
        found = (wanted - r).abs().sum(-1)
        f[active], g[active], error[active], steps[active] = row, column, found, spent
        better = found < 0.9 * best[active]
        stalled[active] = torch.where(better, 0, stalled[active] + 1)
        best[active] = torch.minimum(found, best[active])
        going = ~(found <= limit[active]) & (stalled[active] < PATIENCE)
        starved = (stalled[active] > 0)[:, None]
        if spent >= max_steps or not bool(going.any()):
            break
        diagonal_a = torch.where(r > TINY, r + inside.slack_a[:, None] * wanted, 1.0)
        diagonal_b = torch.where(c > TINY, (1 + inside.slack_b[:, None]) * c, 1.0)
        right = torch.where((r > TINY) & going[:, None], wanted - r, 0.0)
        products = 0

        def hessian(x: Tensor) -> Tensor:
            nonlocal products
            products += 1
            return diagonal_a * x - plan.rows(plan.columns(x) / diagonal_b)  # noqa: B023 (used at once)

        direction = conjugate_gradients(hessian, diagonal_a, right, rtol=FORCING, every=4, max_steps=500)
        row, column, tries = _line_search(part, inside, row, right, direction)
        if bool(starved.any()):
            # Far from the solution some rows carry almost nothing, which a sweep mends and Newton does not.
            swept_row, swept_column = sweep(part, inside, column)
            row, column = torch.where(starved, swept_row, row), torch.where(starved, swept_column, column)
        spent += products + tries + 1
        if not bool(going.all()):
            kept = going.nonzero()[:, 0]
            active, part, inside = active[kept], part.select(kept), inside.select(kept)
            row, column = row[kept], column[kept]
    return Solution(f, g, error, steps, error <= limit)


def _line_search(
    cost: Cost, problem: Problem, f: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Shorten the step until it does not run far past the maximum along it, which for a concave function raises it."""
    slope = (gradient * direction).sum(-1)
    scale = torch.ones_like(slope)
    tries = 0
    while True:
        tries += 1
        moved = f + (scale * problem.eps)[:, None] * direction
        column = damped_update(problem.b, problem.eps, problem.slack_b, cost.lse_columns(moved, problem.eps))
        change = wanted_rows(problem, moved) - row_sums(cost, problem, moved, column)
        ahead = (torch.where(moved > -torch.inf, change, 0.0) * direction).sum(-1)
        short = ahead >= -OVERSHOOT * slope
        if tries == 20 or bool(short.all()):
            break
        scale = torch.where(short, scale, scale * (slope / (slope - ahead)).clamp(min=0.1))
    return moved, column, tries
