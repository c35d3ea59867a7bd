"""Sinkhorn sweeps in the log domain: the reference solver, on any device and for any cost."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmatch.matching.transport.costs import Cost
from diffmatch.matching.transport.problem import Problem, damped_update

__all__ = [
    "Solution",
    "log_sweeps",
    "marginal_error",
    "rounded_error",
    "row_sums",
    "sweep",
    "unrolled_sweeps",
    "wanted_rows",
]


@dataclass(frozen=True)
class Solution:
    """Potentials of a batch of problems, and how far each came."""

    f: Float[Tensor, "b m"]
    g: Float[Tensor, "b n"]
    error: Float[Tensor, " b"]
    steps: Int[Tensor, " b"]
    converged: Bool[Tensor, " b"]


def sweep(cost: Cost, problem: Problem, g: Float[Tensor, "b n"]) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b n"]]:
    """One update of both potentials; the columns are met exactly afterwards."""
    f = damped_update(problem.a, problem.eps, problem.slack_a, cost.lse_rows(g, problem.eps))
    return f, damped_update(problem.b, problem.eps, problem.slack_b, cost.lse_columns(f, problem.eps))


def marginal_error(
    cost: Cost, problem: Problem, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"]
) -> Float[Tensor, " b"]:
    """L1 distance of the row sums to what the problem asks of them."""
    return (wanted_rows(problem, f) - row_sums(cost, problem, f, g)).abs().sum(-1)


def rounded_error(cost: Cost, problem: Problem, found: Solution, *, tol: float) -> Solution:
    """The error of single-precision potentials as they are returned, both marginals counted.

    Their rounding alone moves the exponents of the plan by 1e-7 of the range of the cost over eps, which no number of
    steps takes away; `converged` allows for it.
    """
    f, g, eps = found.f, found.g, problem.eps
    columns = Problem(problem.b, problem.a, eps, problem.slack_b, problem.slack_a)
    sums = torch.where(g > -torch.inf, (g / eps[:, None] + cost.lse_columns(f, eps)).exp(), 0.0)
    error = marginal_error(cost, problem, f, g) + (wanted_rows(columns, g) - sums).abs().sum(-1)
    rounding = (4 * torch.finfo(f.dtype).eps * (1 + cost.scale() / eps)).clamp(max=1e-2)
    converged = found.converged & (error <= (tol + rounding) * problem.a.sum(-1))
    return Solution(f, g, error, found.steps, converged)


def row_sums(cost: Cost, problem: Problem, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
    """Row sums of the plan, 0 in rows that can carry nothing."""
    sums = (f / problem.eps[:, None] + cost.lse_rows(g, problem.eps)).exp()
    return torch.where(f > -torch.inf, sums, 0.0)


def wanted_rows(problem: Problem, f: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
    """What the rows should sum to at the potentials f; rows that can carry nothing keep their mass as a debt."""
    slack, eps = problem.slack_a[:, None], problem.eps[:, None]
    held = f > -torch.inf
    damped = ((1 + slack) * problem.a.log() - slack * f / eps).exp()
    return torch.where(held & (slack > 0), damped, problem.a)


def log_sweeps(
    cost: Cost, problem: Problem, g: Float[Tensor, "b n"], *, tol: float, max_steps: int, every: int = 10
) -> Solution:
    """Sweep until the marginal error of each batch element is within ``tol`` times its mass.

    Elements are tested every `every` sweeps, which is the only synchronisation, and leave the batch as they converge.
    """
    limit = tol * problem.a.sum(-1)
    f = torch.full_like(problem.a, -torch.inf)
    error = torch.full_like(problem.eps, torch.inf)
    steps = torch.zeros_like(problem.eps, dtype=torch.int64)
    active = torch.arange(len(g), device=g.device)
    part, inside, g = cost, problem, g.clone()
    spent = 0
    while len(active) and spent < max_steps:
        count = min(every, max_steps - spent)
        column = g[active]
        for _ in range(count):
            row, column = sweep(part, inside, column)
        spent += count
        found = marginal_error(part, inside, row, column)
        f[active], g[active], error[active], steps[active] = row, column, found, spent
        going = ~(found <= limit[active])
        if not bool(going.all()):
            kept = going.nonzero()[:, 0]
            active, part, inside = active[kept], part.select(kept), inside.select(kept)
    return Solution(f, g, error, steps, error <= limit)


def unrolled_sweeps(
    cost: Cost, problem: Problem, g: Float[Tensor, "b n"] | None, *, tol: float, max_steps: int, every: int = 10
) -> Solution:
    """The same sweeps recorded by autograd, on the whole batch until all elements have converged."""
    limit = tol * problem.a.detach().sum(-1)
    g = torch.zeros_like(problem.b) if g is None else g
    f = torch.full_like(problem.a, -torch.inf)
    error = torch.full_like(problem.eps, torch.inf).detach()
    spent = 0
    while spent < max_steps and bool((error > limit).any()):
        count = min(every, max_steps - spent)
        for _ in range(count):
            f, g = sweep(cost, problem, g)
        spent += count
        with torch.no_grad():
            error = marginal_error(cost, problem, f, g)
    steps = torch.full_like(error, spent, dtype=torch.int64)
    return Solution(f, g, error, steps, error <= limit)
