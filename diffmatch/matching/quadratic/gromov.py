"""Gromov-Wasserstein transport: soft matches of two spaces of which only the distances within each are known."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_positive, check_same_device, check_shape
from diffmatch.matching.transport.sinkhorn import sinkhorn

__all__ = ["GromovResult", "gromov_wasserstein"]


@dataclass(frozen=True, eq=False)
class GromovResult:
    """A transport plan between two spaces.

    Attributes:
        plan: mass that goes from each point of the first space to each of the second, shape (\\*b, n, m); a constant
            for autograd.
        value: ``alpha GW(P) + (1 - alpha) <M, P>`` without the entropy, shape (\\*b,). Its gradient by the distances
            and M is that at the plan that was found.
        error: L1 distance of the marginals of the plan to the masses, shape (\\*b,).
        steps: outer steps, each of them a transport problem.
        converged: the plan stopped to change, shape (\\*b,).
    """

    plan: Float[Tensor, "*b n m"]
    value: Float[Tensor, "*b"]
    error: Float[Tensor, "*b"]
    steps: int
    converged: Bool[Tensor, "*b"]


def gromov_wasserstein(
    a: Float[Tensor, "*b n n"],
    b: Float[Tensor, "*b m m"],
    p: Float[Tensor, "*b n"] | None = None,
    q: Float[Tensor, "*b m"] | None = None,
    *,
    eps: float,
    cost: Float[Tensor, "*b n m"] | None = None,
    alpha: float = 0.5,
    proximal: bool = True,
    eps_relative: bool = False,
    mask: tuple[Bool[Tensor, "*b n"] | None, Bool[Tensor, "*b m"] | None] | None = None,
    init: Float[Tensor, "*b n m"] | None = None,
    tol: float | None = None,
    max_steps: int = 200,
    inner_steps: int = 1000,
) -> GromovResult:
    """Minimise ``GW(P) = sum (a_ij - b_kl)^2 P_ik P_jl`` over the plans with marginals p and q, to a stationary point.

    With a `cost` M between the two spaces, ``alpha GW(P) + (1 - alpha) <M, P>`` is minimised (fused, Vayer et al.
    2019). Each step is an entropic transport problem with the gradient at the last plan as its cost (Peyre, Cuturi and
    Solomon 2016). As a proximal step (Xu et al. 2019) it starts from the last plan: the limit has no entropy, and eps
    is a step size only. Otherwise the limit is a stationary point of the objective minus eps times the entropy of P,
    and the steps need not converge where eps is small.

    Args:
        a: distances, or any other numbers of pairs, in the first space, shape (\\*b, n, n).
        b: in the second, shape (\\*b, m, m).
        p: masses of the first space with total 1, shape (\\*b, n); uniform by default.
        q: masses of the second, shape (\\*b, m).
        eps: strength of the entropy, or of the proximal term, in the unit of a squared.
        cost: M, shape (\\*b, n, m).
        alpha: weight of GW where there is a cost, between 0 and 1; without one it is 1.
        proximal: proximal steps; else entropic ones.
        eps_relative: eps is relative to the largest absolute gradient at the first plan.
        mask: which points are real; the padding may hold anything, and its plan is zero.
        init: first plan; by default the product of the masses.
        tol: L1 change of the plan at which it stops; None for 1e-5 (single precision) or 1e-9.
        max_steps: largest number of steps.
        inner_steps: largest number of passes in each transport problem.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a number out of its range.
    """
    _check(a, b, cost, eps, alpha)
    *batch, n, _ = a.shape
    m = b.shape[-1]
    rows, columns = mask if mask is not None else (None, None)
    first, second = _cleaned(a, rows, rows), _cleaned(b, columns, columns)
    between = None if cost is None else _cleaned(cost, rows, columns)
    alpha = 1.0 if cost is None else alpha
    tol = tol if tol is not None else (1e-9 if a.dtype == torch.float64 else 1e-5)
    check_positive("tol", tol)
    p, q = (_masses(x, size, side, a, tuple(batch)) for x, size, side in ((p, n, rows), (q, m, columns)))
    with torch.no_grad():
        problem = _Problem(first.detach(), second.detach(), None if between is None else between.detach(), p, q, alpha)
        plan = p.unsqueeze(-1) * q.unsqueeze(-2) if init is None else init
        check_shape("init", plan, (*batch, n, m))
        strength = torch.full(batch, eps, dtype=a.dtype, device=a.device)
        if eps_relative and plan.numel():
            strength = strength * problem.gradient(plan).abs().amax((-2, -1))
        converged = torch.zeros(batch, dtype=torch.bool, device=a.device)
        step = 0
        for step in range(1, max_steps + 1):
            target = problem.gradient(plan)
            if proximal:
                smallest = torch.finfo(a.dtype).tiny
                target = target - strength[..., None, None] * plan.clamp_min(smallest).log()
            # Constants along rows and columns do not change the plan, but rounding of large ones does.
            target = target - target.mean(-1, keepdim=True)
            found = sinkhorn(
                target, p, q, eps=strength, mask=mask, tol=tol / 10, max_steps=inner_steps, adjoint="value", check=False
            ).plan
            change = (found - plan).abs().sum((-2, -1))
            plan, converged = found, change <= tol
            if step % 5 == 0 and bool(converged.all()):
                break
    marginal_a, marginal_b = plan.sum(-1), plan.sum(-2)
    error = (marginal_a - p).abs().sum(-1) + (marginal_b - q).abs().sum(-1)
    return GromovResult(plan, _value(first, second, between, plan, alpha), error, step, converged)


@dataclass(frozen=True)
class _Problem:
    a: Tensor
    b: Tensor
    cost: Tensor | None
    p: Tensor
    q: Tensor
    alpha: float

    def gradient(self, plan: Tensor) -> Tensor:
        """Derivative of the objective by a plan with the marginals p and q."""
        squares_a, squares_b = self.a.square(), self.b.square()
        own_a = ((squares_a + squares_a.mT) @ self.p.unsqueeze(-1)).squeeze(-1)
        own_b = ((squares_b + squares_b.mT) @ self.q.unsqueeze(-1)).squeeze(-1)
        mixed = self.a @ plan @ self.b.mT + self.a.mT @ plan @ self.b
        slope: Tensor = self.alpha * (own_a.unsqueeze(-1) + own_b.unsqueeze(-2) - 2 * mixed)
        return slope if self.cost is None else slope + (1 - self.alpha) * self.cost


def _value(a: Tensor, b: Tensor, cost: Tensor | None, plan: Tensor, alpha: float) -> Tensor:
    rows, columns = plan.sum(-1), plan.sum(-2)
    own_a = (a.square() * rows.unsqueeze(-1) * rows.unsqueeze(-2)).sum((-2, -1))
    own_b = (b.square() * columns.unsqueeze(-1) * columns.unsqueeze(-2)).sum((-2, -1))
    value: Tensor = alpha * (own_a + own_b - 2 * (plan * (a @ plan @ b.mT)).sum((-2, -1)))
    return value if cost is None else value + (1 - alpha) * (cost * plan).sum((-2, -1))


def _masses(given: Tensor | None, size: int, real: Tensor | None, like: Tensor, batch: tuple[int, ...]) -> Tensor:
    shape = (*batch, size)
    if given is not None:
        return (given if real is None else torch.where(real, given, 0)).to(like.dtype).expand(shape)
    if real is None:
        return like.new_full(shape, 1 / max(size, 1))
    return (real / real.sum(-1, keepdim=True).clamp_min(1)).to(like.dtype).expand(shape)


def _cleaned(values: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Zero in the padding, whatever stood there."""
    for side, axis in ((rows, -1), (columns, -2)):
        if side is not None:
            values = torch.where(side.unsqueeze(axis), values, 0)
    return values


def _check(a: Tensor, b: Tensor, cost: Tensor | None, eps: float, alpha: float) -> None:
    for name, matrix in (("a", a), ("b", b)):
        check_shape(name, matrix, ("n", "n"), batch=True)
        check_floating(name, matrix)
        if matrix.shape[-1] != matrix.shape[-2]:
            raise InputError(name, "square matrices", str(tuple(matrix.shape)))
    if b.shape[:-2] != a.shape[:-2] or b.dtype != a.dtype:
        raise InputError("b", f"batch axes {tuple(a.shape[:-2])} and {a.dtype}", f"{tuple(b.shape[:-2])} and {b.dtype}")
    check_same_device("b", b, a.device)
    if cost is not None:
        check_shape("cost", cost, (*a.shape[:-1], b.shape[-1]))
        check_same_device("cost", cost, a.device)
    check_positive("eps", eps)
    if not (math.isfinite(alpha) and 0 <= alpha <= 1):
        raise InputError("alpha", "a number between 0 and 1", repr(alpha))
