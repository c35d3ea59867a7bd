"""Which solver runs: the dispatch, and one result object from whatever cost and problem."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_choice, check_positive
from diffmatch.matching.transport.adjoint import implicit_potentials
from diffmatch.matching.transport.costs import Cost, DenseCost
from diffmatch.matching.transport.kernels import DIRECT_SWEEPS, solve_dense
from diffmatch.matching.transport.levels import first_level
from diffmatch.matching.transport.newton import newton, scaled_start
from diffmatch.matching.transport.problem import Problem
from diffmatch.matching.transport.result import TransportResult
from diffmatch.matching.transport.sweeps import Solution, log_sweeps, rounded_error, unrolled_sweeps
from diffmatch.matching.transport.value import balanced_value, penalised_value

__all__ = ["ADJOINTS", "METHODS", "entropic_transport"]

ADJOINTS = ("implicit", "unroll", "value")
METHODS = ("auto", "sweeps", "newton")


def entropic_transport(
    cost: Cost,
    problem: Problem,
    *,
    batch: torch.Size,
    penalised: bool,
    init: Float[Tensor, "b n"] | None,
    tol: float | None,
    max_steps: int,
    method: str,
    adjoint: str,
    dtype: torch.dtype,
) -> TransportResult:
    """Solve a flat batch of problems and give the result back with its batch axes.

    Args:
        cost: the cost, with b batch elements.
        problem: marginals and strengths.
        batch: the axes that b stands for.
        penalised: whether the value is that of the KL form.
        init: column potentials to start from.
        tol: L1 marginal error to reach, relative to the mass; None for 1e-5 (single precision) or 1e-9.
        max_steps: largest number of steps.
        method: one of `METHODS`.
        adjoint: one of `ADJOINTS`.
        dtype: dtype of the plan.
    """
    check_choice("method", method, METHODS)
    check_choice("adjoint", adjoint, ADJOINTS)
    if max_steps < 1:
        raise InputError("max_steps", "a number >= 1", repr(max_steps))
    if tol is None:
        tol = 1e-9 if problem.a.dtype == torch.float64 else 1e-5
    check_positive("tol", tol)

    def run(plain: Cost, inside: Problem) -> Solution:
        with torch.no_grad():
            found = _solve(plain, inside, init, tol=tol, max_steps=max_steps, method=method)
            found = found if penalised else _centred(inside, found)
            single = found.f.dtype == torch.float32
            return rounded_error(plain, inside, found, tol=tol) if single else found

    if adjoint == "unroll":
        solution = unrolled_sweeps(cost, problem, init, tol=tol, max_steps=max_steps)
        f, g = solution.f, solution.g
    elif adjoint == "implicit":
        solution, f, g = implicit_potentials(cost, problem, run)
    else:
        solution = run(cost.with_tensors(*(x.detach() for x in cost.tensors)), problem)
        f, g = solution.f, solution.g
    constant = adjoint == "value"

    def plan() -> Tensor:
        entries = cost.plan_tensor(f, g, problem.eps)
        entries = entries.detach() if constant else entries
        return entries.reshape(*batch, *entries.shape[1:]).to(dtype)

    def value() -> Tensor:
        return (penalised_value if penalised else balanced_value)(cost, problem, f, g).reshape(batch)

    def transport_cost() -> Tensor:
        found = cost.inner(f, g, problem.eps)
        return (found.detach() if constant else found).reshape(batch)

    return TransportResult(
        f=f.reshape(*batch, f.shape[-1]),
        g=g.reshape(*batch, g.shape[-1]),
        error=solution.error.reshape(batch),
        steps=solution.steps.reshape(batch),
        converged=solution.converged.reshape(batch),
        make_plan=plan,
        make_value=value,
        make_cost=transport_cost,
        recorded=torch.is_grad_enabled(),
    )


def _solve(cost: Cost, problem: Problem, init: Tensor | None, *, tol: float, max_steps: int, method: str) -> Solution:
    first = first_level(cost, problem, method)
    if isinstance(cost, DenseCost) and runs_compiled(cost):
        return solve_dense(cost.cost, problem, init, tol=tol, max_steps=max_steps, newton=first)
    g = torch.zeros_like(problem.b) if init is None else init
    if method == "sweeps":
        return log_sweeps(cost, problem, g, tol=tol, max_steps=max_steps)
    start = scaled_start(cost, problem, g, first, tol=tol) if init is None else None
    swept = log_sweeps(cost, problem, g if start is None else start.g, tol=tol, max_steps=min(max_steps, DIRECT_SWEEPS))
    return _finished(cost, problem, swept, start, tol=tol, max_steps=max_steps)


def runs_compiled(cost: DenseCost) -> bool:
    """Whether the compiled solver takes this cost: all that are stored on the CPU."""
    return cost.cost.device.type == "cpu"


def _finished(
    cost: Cost, problem: Problem, swept: Solution, start: Solution | None, *, tol: float, max_steps: int
) -> Solution:
    """Newton for the elements that the sweeps left."""
    steps = swept.steps if start is None else swept.steps + start.steps
    left = (~swept.converged).nonzero()[:, 0]
    if not len(left) or max_steps <= DIRECT_SWEEPS:
        return Solution(swept.f, swept.g, swept.error, steps, swept.converged)
    found = newton(cost.select(left), problem.select(left), swept.g[left], tol=tol, max_steps=max_steps - DIRECT_SWEEPS)
    f, g, error = swept.f.clone(), swept.g.clone(), swept.error.clone()
    f[left], g[left], error[left] = found.f, found.g, found.error
    steps[left] += found.steps
    return Solution(f, g, error, steps, error <= tol * problem.a.sum(-1))


def _centred(problem: Problem, found: Solution) -> Solution:
    """Balanced potentials are defined up to a constant; the one chosen gives both sides the same mean."""
    f = torch.where(found.f > -torch.inf, found.f, 0.0)
    g = torch.where(found.g > -torch.inf, found.g, 0.0)
    total = problem.a.sum(-1) + problem.b.sum(-1)
    gap = ((problem.a * f).sum(-1) - (problem.b * g).sum(-1)) / torch.where(total > 0, total, 1.0)
    return Solution(found.f - gap[:, None], found.g + gap[:, None], found.error, found.steps, found.converged)
