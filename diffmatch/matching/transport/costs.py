"""Costs as the solvers see them: log-sum-exps of both sides, and the plan as a linear operator."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Cost", "DenseCost", "DensePlan", "Plan"]


@runtime_checkable
class Plan(Protocol):
    """A plan (or kernel) ``P = exp((f + g - C) / eps)`` at fixed potentials."""

    def rows(self, y: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """``P y``."""

    def columns(self, x: Float[Tensor, "b m"]) -> Float[Tensor, "b n"]:
        """``P^T x``."""

    def gradients(
        self, x: Float[Tensor, "b m"], y: Float[Tensor, "b n"], needed: tuple[bool, ...]
    ) -> tuple[tuple[Tensor | None, ...], Float[Tensor, " b"]]:
        """Gradients of the cost's tensors from ``dC_ij = P_ij (x_i + y_j)``; ``sum_ij P_ij log P_ij (x_i + y_j)``."""


@runtime_checkable
class Cost(Protocol):
    """A batch of costs ``C`` between m rows and n columns."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The differentiable tensors that the cost is made of."""

    def with_tensors(self, *tensors: Tensor) -> "Cost":
        """The same cost made of other tensors."""

    def select(self, index: Int[Tensor, " k"]) -> "Cost":
        """The costs of some batch elements."""

    def lse_rows(self, g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, "b m"]:
        """``LSE_j((g_j - C_ij) / eps)``; -inf where all terms are."""

    def lse_columns(self, f: Float[Tensor, "b m"], eps: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
        """``LSE_i((f_i - C_ij) / eps)``."""

    def plan(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Plan:
        """The plan as an operator, outside of autograd."""

    def plan_tensor(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Tensor:
        """The plan as a tensor, differentiable in everything."""

    def mass(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """``sum(P)``, differentiable in everything."""

    def inner(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """``sum(P * C)``, differentiable in everything."""

    def scale(self) -> Float[Tensor, " b"]:
        """Largest minus smallest finite cost."""


class DenseCost:
    """A cost that is stored, shape (b, m, n); +inf forbids a pair."""

    def __init__(self, cost: Float[Tensor, "b m n"]) -> None:
        self.cost = cost

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The cost itself."""
        return (self.cost,)

    def with_tensors(self, *tensors: Tensor) -> "DenseCost":
        """Another cost."""
        return DenseCost(*tensors)

    def select(self, index: Int[Tensor, " k"]) -> "DenseCost":
        """Some batch elements."""
        return DenseCost(self.cost[index])

    def lse_rows(self, g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, "b m"]:
        """Log-sum-exp over the columns."""
        return _logsumexp(g[:, None, :] - self.cost, eps, -1)

    def lse_columns(self, f: Float[Tensor, "b m"], eps: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
        """Log-sum-exp over the rows."""
        return _logsumexp(f[:, :, None] - self.cost, eps, -2)

    def plan(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> "DensePlan":
        """The plan, stored."""
        return DensePlan(_entries(self.cost, f, g, eps))

    def plan_tensor(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Tensor:
        """The plan, shape (b, m, n)."""
        plan: Tensor = _PlanEntries.apply(self.cost, f, g, eps)
        return plan

    def mass(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Sum of the plan."""
        return self.plan_tensor(f, g, eps).sum((-2, -1))

    def inner(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Transport cost of the plan."""
        allowed = torch.where(torch.isfinite(self.cost), self.cost, 0.0)
        return (self.plan_tensor(f, g, eps) * allowed).sum((-2, -1))

    def scale(self) -> Float[Tensor, " b"]:
        """Largest minus smallest finite cost, 0 for an empty one; waits for the device once."""
        if self.cost[:1].numel() == 0:
            return self.cost.new_zeros(len(self.cost))
        flat = self.cost.detach().flatten(1)
        low, high = torch.aminmax(flat, dim=1)
        if bool((high == torch.inf).any()):
            high = torch.where(flat < torch.inf, flat, -torch.inf).amax(1)
        return (high - low).clamp(min=0).nan_to_num(0.0)


class DensePlan:
    """A stored plan, shape (b, m, n)."""

    def __init__(self, entries: Float[Tensor, "b m n"]) -> None:
        self.entries = entries

    def rows(self, y: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """Matrix times vector."""
        return torch.bmm(self.entries, y[:, :, None])[:, :, 0]

    def columns(self, x: Float[Tensor, "b m"]) -> Float[Tensor, "b n"]:
        """Transposed matrix times vector."""
        return torch.bmm(x[:, None, :], self.entries)[:, 0]

    def gradients(
        self, x: Float[Tensor, "b m"], y: Float[Tensor, "b n"], needed: tuple[bool, ...]
    ) -> tuple[tuple[Tensor | None, ...], Float[Tensor, " b"]]:
        """The gradient of the cost, shape (b, m, n), and the entropy term."""
        weighted = x[:, :, None] + y[:, None, :]
        entropy = torch.einsum("bmn,bmn->b", torch.xlogy(self.entries, self.entries), weighted)
        return (weighted.mul_(self.entries) if needed[0] else None,), entropy


def _logsumexp(x: Tensor, eps: Tensor, dim: int) -> Tensor:
    """``LSE(x / eps)``; -inf passes no gradient to anything."""
    if torch.is_grad_enabled() and (x.requires_grad or eps.requires_grad):
        allowed = x > -torch.inf
        some = allowed.any(dim)
        x = torch.where(allowed, torch.where(allowed, x, 0.0) / eps[:, None, None], -torch.inf)
        found = torch.logsumexp(torch.where(some.unsqueeze(dim), x, 0.0), dim)
        return torch.where(some, found, -torch.inf)
    return torch.logsumexp(x / eps[:, None, None], dim)


def _entries(cost: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> Tensor:
    """``exp((f + g - C) / eps)`` in one buffer; no infinity meets its opposite, since f and g are never +inf."""
    return (f[:, :, None] - cost).add_(g[:, None, :]).div_(eps[:, None, None]).exp_()


class _PlanEntries(torch.autograd.Function):
    """Keeps the plan alone for its backward."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> Tensor:
        plan = _entries(cost, f, g, eps)
        ctx.save_for_backward(plan, eps)
        return plan

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan, eps = ctx.saved_tensors
        weighted = (grad * plan).div_(eps[:, None, None])
        d_eps = None
        if ctx.needs_input_grad[3]:
            d_eps = -torch.einsum("bmn,bmn->b", grad, torch.xlogy(plan, plan)) / eps
        d_f = weighted.sum(-1) if ctx.needs_input_grad[1] else None
        d_g = weighted.sum(-2) if ctx.needs_input_grad[2] else None
        return (weighted.neg_() if ctx.needs_input_grad[0] else None), d_f, d_g, d_eps
