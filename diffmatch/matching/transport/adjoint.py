"""Gradients of the potentials by the implicit function theorem.

With ``r = P 1`` and ``c = P^T 1`` of the returned plan, and upstream gradients L_f, L_g, solve

    [ (1 + s_a) diag(r)   P                 ] [x]   [eps L_f]
    [ P^T                 (1 + s_b) diag(c) ] [y] = [eps L_g]

and read off ``dC = P (x + y) / eps`` and the rest. The matrix is the derivative of the optimality conditions of
:mod:`.problem`, so one system serves balanced, unbalanced, partial and dustbin problems (for the balanced one:
Luise, Rudi, Pontil, Ciliberto 2018; Eisenberger et al. 2022).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffmatch.matching.transport.conjugate import conjugate_gradients
from diffmatch.matching.transport.costs import Cost, DensePlan, Plan
from diffmatch.matching.transport.problem import Problem
from diffmatch.matching.transport.sweeps import Solution

__all__ = ["implicit_potentials", "solve_adjoint"]

TINY = 1e-30
"""Rows and columns with less mass than this carry no gradient."""
DIRECT = 256
"""Up to this many unknowns the system is factorised, above it is solved by conjugate gradients."""


def implicit_potentials(
    cost: Cost, problem: Problem, solve: Callable[[Cost, Problem], Solution]
) -> tuple[Solution, Tensor, Tensor]:
    """Solve outside of autograd; returns the solution, and its potentials with their gradients attached."""
    found: list[Solution] = []

    def run(plain: Cost, inside: Problem) -> Solution:
        found.append(solve(plain, inside))
        return found[0]

    inputs = (problem.a, problem.b, problem.eps, problem.slack_a, problem.slack_b)
    f, g = _Potentials.apply(cost.with_tensors, run, *inputs, *cost.tensors)
    return found[0], f, g


class _Potentials(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rebuild: Callable[..., Cost], solve: Callable[[Cost, Problem], Solution], *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        solution = solve(rebuild(*inputs[5:]), Problem(*inputs[:5]))
        ctx.rebuild = rebuild
        ctx.save_for_backward(*inputs, solution.f, solution.g)
        return solution.f, solution.g

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_f: Tensor, grad_g: Tensor) -> tuple[Any, ...]:
        *inputs, f, g = ctx.saved_tensors
        problem, cost = Problem(*inputs[:5]), ctx.rebuild(*inputs[5:])
        eps = problem.eps
        plan = cost.plan(f, g, eps)
        r, c = plan.rows(torch.ones_like(g)), plan.columns(torch.ones_like(f))
        x, y = solve_adjoint(plan, problem, r, c, eps[:, None] * grad_f, eps[:, None] * grad_g)
        tensors, entropy = plan.gradients(x / eps[:, None], y / eps[:, None], ctx.needs_input_grad[7:])
        d_a, slack_a, eps_a = _side(x * r, f, problem.a, eps, problem.slack_a)
        d_b, slack_b, eps_b = _side(y * c, g, problem.b, eps, problem.slack_b)
        return None, None, d_a, d_b, entropy + eps_a + eps_b, slack_a, slack_b, *tensors


def _side(xr: Tensor, f: Tensor, a: Tensor, eps: Tensor, slack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of mass, slack and eps through ``log r = (1 + s) log a - s f / eps`` of one side."""
    held = (a > 0) & (f > -torch.inf)
    mass, ratio = torch.where(held, a, 1.0), torch.where(held, f, 0.0) / eps[:, None]
    d_slack = (xr * (mass.log() - ratio)).sum(-1)
    return (1 + slack[:, None]) * xr / mass, d_slack, slack * (xr * ratio).sum(-1) / eps


def solve_adjoint(
    plan: Plan,
    problem: Problem,
    r: Float[Tensor, "b m"],
    c: Float[Tensor, "b n"],
    q_a: Float[Tensor, "b m"],
    q_b: Float[Tensor, "b n"],
) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b n"]]:
    """Solve the system of this module for the right-hand side (q_a, q_b).

    Where both marginals are held the potentials are defined up to one constant only; the part of the right-hand side
    that would depend on it is projected out.
    """
    live_a, live_b = r > TINY, c > TINY
    q_a, q_b = torch.where(live_a, q_a, 0.0), torch.where(live_b, q_b, 0.0)
    exact = (problem.slack_a == 0) & (problem.slack_b == 0)
    excess = torch.where(exact, (q_a.sum(-1) - q_b.sum(-1)) / (r.sum(-1) + c.sum(-1)).clamp(min=TINY), 0.0)
    q_a, q_b = q_a - excess[:, None] * r, q_b + excess[:, None] * c
    diagonal_a = torch.where(live_a, (1 + problem.slack_a[:, None]) * r, 1.0)
    diagonal_b = torch.where(live_b, (1 + problem.slack_b[:, None]) * c, 1.0)
    if r.shape[1] <= c.shape[1]:
        x = _schur(plan.rows, plan.columns, _entries(plan), diagonal_a, diagonal_b, q_a, q_b, live_a, exact)
        y = (q_b - plan.columns(x)) / diagonal_b
    else:
        entries = _entries(plan)
        entries = None if entries is None else entries.mT
        y = _schur(plan.columns, plan.rows, entries, diagonal_b, diagonal_a, q_b, q_a, live_b, exact)
        x = (q_a - plan.rows(y)) / diagonal_a
    return torch.where(live_a, x, 0.0), torch.where(live_b, y, 0.0)


def _entries(plan: Plan) -> Tensor | None:
    return plan.entries if isinstance(plan, DensePlan) else None


def _schur(
    rows: Callable[[Tensor], Tensor],
    columns: Callable[[Tensor], Tensor],
    entries: Tensor | None,
    diagonal_a: Tensor,
    diagonal_b: Tensor,
    q_a: Tensor,
    q_b: Tensor,
    live: Tensor,
    exact: Tensor,
) -> Tensor:
    """Solve ``(D_a - P D_b^-1 P^T) x = q_a - P D_b^-1 q_b``."""
    right = torch.where(live, q_a - rows(q_b / diagonal_b), 0.0)

    def schur(x: Tensor) -> Tensor:
        return diagonal_a * x - rows(columns(x) / diagonal_b)

    if entries is None or diagonal_a.shape[1] > DIRECT:
        return conjugate_gradients(schur, diagonal_a, right, rtol=1e-11 if right.dtype == torch.float64 else 1e-6)
    scale = diagonal_a.rsqrt()
    scaled = entries * scale[:, :, None]
    matrix = -torch.bmm(scaled / diagonal_b[:, None, :], scaled.mT)
    # In these coordinates the constant vector is diagonal_a^(1/2); lifting it removes the null space of held marginals.
    null = torch.where(live & exact[:, None], diagonal_a.sqrt(), 0.0)
    null = null / null.norm(dim=-1, keepdim=True).clamp(min=TINY)
    ridge = 1e-12 if right.dtype == torch.float64 else 1e-6
    matrix += null[:, :, None] * null[:, None, :]
    matrix.diagonal(dim1=-2, dim2=-1).add_(1 + ridge)
    factor, _ = torch.linalg.cholesky_ex(matrix)

    def solve(z: Tensor) -> Tensor:
        return scale * torch.cholesky_solve((scale * z)[:, :, None], factor)[:, :, 0]

    x = solve(right)
    return x + solve(right - schur(x))  # one refinement takes the ridge back where it matters
