"""Transport along listed pairs: nearest neighbours, or any sparse set of pairs that may carry mass."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_same_device, check_shape
from diffmatch.matching.transport.arguments import (
    Penalty,
    flat_init,
    flat_masses,
    flat_strength,
    held,
    masked_cost,
    slacks,
    working_dtype,
)
from diffmatch.matching.transport.problem import Problem
from diffmatch.matching.transport.result import TransportResult
from diffmatch.matching.transport.solve import entropic_transport

__all__ = ["EdgeCost", "sinkhorn_sparse"]


def sinkhorn_sparse(
    cost: Float[Tensor, "*b k"],
    pairs: Int[Tensor, "*p 2 k"],
    a: Float[Tensor, "*c m"] | None = None,
    b: Float[Tensor, "*d n"] | None = None,
    *,
    sizes: tuple[int, int],
    eps: float | Tensor,
    rho: Penalty = None,
    init: tuple[Tensor, Tensor] | TransportResult | None = None,
    tol: float | None = None,
    max_steps: int = 10_000,
    method: str = "auto",
    adjoint: str = "implicit",
    check: bool | None = None,
) -> TransportResult:
    """Entropic transport where only the listed pairs may carry mass; the other arguments are those of `sinkhorn`.

    Each step costs one pass over the k pairs. Balanced problems need pairs that admit a plan with both marginals (k
    nearest neighbours of each row alone rarely do): what cannot be met is left in `error`; give `rho` for the others.

    Args:
        cost: costs of the pairs, shape (\\*b, k); +inf for pairs that pad a list.
        pairs: row and column of each pair, int64, shape (2, k), or (\\*b, 2, k) for lists that differ; each pair once.
        a: masses of the rows, uniform by default.
        b: masses of the columns.
        sizes: numbers of rows and columns (m, n).
        eps: entropic strength, in the unit of the cost.
        rho: KL penalties of unbalanced transport.
        init: potentials or a result to start from.
        tol: L1 marginal error to reach, relative to the total of a.
        max_steps: largest number of steps.
        method: ``"sweeps"``, ``"newton"`` or ``"auto"``.
        adjoint: ``"implicit"``, ``"unroll"`` or ``"value"``.
        check: look for NaN, wrong masses and indices out of range; by default on the CPU only.

    Returns:
        The result; its plan has the shape of `cost`.

    Raises:
        InputError: shapes that do not fit, indices out of range, or what `sinkhorn` raises.
    """
    check_shape("cost", cost, ("k",), batch=True)
    check_floating("cost", cost)
    check_shape("pairs", pairs, (2, cost.shape[-1]), batch=True)
    check_same_device("pairs", pairs, cost.device)
    check = cost.device.type == "cpu" if check is None else check
    m, n = sizes
    batch, dtype, k = cost.shape[:-1], cost.dtype, cost.shape[-1]
    if check and pairs.numel():
        low, high = int(pairs.amin()), pairs.amax(-1).reshape(-1, 2).amax(0).tolist()
        if low < 0 or high[0] >= m or high[1] >= n:
            raise InputError("pairs", f"rows below {m} and columns below {n}", f"{low} to {high}")
    count = math.prod(batch)
    cost = masked_cost(cost[..., None, :], None, check=check)[..., 0, :].to(working_dtype(dtype))
    masses = flat_masses(a, b, batch=batch, sizes=(m, n), mask=None, like=cost, balanced=held(rho), check=check)
    strength = flat_strength(eps, batch=batch, like=cost, check=check)
    slack_a, slack_b = slacks(rho, strength)
    rows, columns = pairs.expand(*batch, 2, k).reshape(count, 2, k).unbind(1)
    return entropic_transport(
        EdgeCost(cost.reshape(count, k), rows, columns, sizes),
        Problem(masses.a, masses.b, strength, slack_a, slack_b),
        batch=batch,
        penalised=rho is not None,
        init=flat_init(init, batch=batch, size=n, like=cost),
        tol=tol,
        max_steps=max_steps,
        method=method,
        adjoint=adjoint,
        dtype=dtype,
    )


class EdgeCost:
    """Costs (b, k) of listed pairs; all others are forbidden."""

    def __init__(
        self,
        cost: Float[Tensor, "b k"],
        rows: Int[Tensor, "b k"],
        columns: Int[Tensor, "b k"],
        sizes: tuple[int, int],
    ) -> None:
        self.cost, self.rows, self.columns, self.sizes = cost, rows, columns, sizes

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The costs of the pairs."""
        return (self.cost,)

    def with_tensors(self, *tensors: Tensor) -> "EdgeCost":
        """Other costs of the same pairs."""
        (cost,) = tensors
        return EdgeCost(cost, self.rows, self.columns, self.sizes)

    def select(self, index: Int[Tensor, " k"]) -> "EdgeCost":
        """Some batch elements."""
        return EdgeCost(self.cost[index], self.rows[index], self.columns[index], self.sizes)

    def lse_rows(self, g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, "b m"]:
        """Log-sum-exp over the pairs of each row."""
        return _scattered_lse(g.gather(1, self.columns) - self.cost, eps, self.rows, self.sizes[0])

    def lse_columns(self, f: Float[Tensor, "b m"], eps: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
        """Log-sum-exp over the pairs of each column."""
        return _scattered_lse(f.gather(1, self.rows) - self.cost, eps, self.columns, self.sizes[1])

    def plan(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> "EdgePlan":
        """The plan, one entry a pair."""
        return EdgePlan(self.plan_tensor(f, g, eps), self)

    def plan_tensor(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Tensor:
        """The plan, shape (b, k)."""
        exponent = f.gather(1, self.rows) + g.gather(1, self.columns) - self.cost
        allowed = exponent > -torch.inf
        return torch.where(allowed, (torch.where(allowed, exponent, 0.0) / eps[:, None]).exp(), 0.0)

    def mass(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Sum of the plan."""
        return self.plan_tensor(f, g, eps).sum(-1)

    def inner(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Transport cost of the plan."""
        return (self.plan_tensor(f, g, eps) * torch.where(self.cost < torch.inf, self.cost, 0.0)).sum(-1)

    def scale(self) -> Float[Tensor, " b"]:
        """Largest minus smallest finite cost."""
        if self.cost.shape[1] == 0:
            return self.cost.new_zeros(len(self.cost))
        finite = self.cost < torch.inf
        high = torch.where(finite, self.cost, -torch.inf).amax(-1)
        return (high - self.cost.amin(-1)).clamp(min=0).nan_to_num(0.0)


class EdgePlan:
    """A plan with one entry (b, k) a pair."""

    def __init__(self, entries: Float[Tensor, "b k"], cost: EdgeCost) -> None:
        self.entries, self.cost = entries, cost

    def rows(self, y: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """Plan times vector."""
        out = y.new_zeros(len(y), self.cost.sizes[0])
        return out.scatter_add_(1, self.cost.rows, self.entries * y.gather(1, self.cost.columns))

    def columns(self, x: Float[Tensor, "b m"]) -> Float[Tensor, "b n"]:
        """Transposed plan times vector."""
        out = x.new_zeros(len(x), self.cost.sizes[1])
        return out.scatter_add_(1, self.cost.columns, self.entries * x.gather(1, self.cost.rows))

    def gradients(
        self, x: Float[Tensor, "b m"], y: Float[Tensor, "b n"], needed: tuple[bool, ...]
    ) -> tuple[tuple[Tensor | None, ...], Float[Tensor, " b"]]:
        """The gradient of the costs of the pairs, and the entropy term."""
        weighted = x.gather(1, self.cost.rows) + y.gather(1, self.cost.columns)
        entropy = (torch.xlogy(self.entries, self.entries) * weighted).sum(-1)
        return (weighted * self.entries,), entropy


def _scattered_lse(x: Tensor, eps: Tensor, index: Tensor, size: int) -> Tensor:
    """``LSE(x / eps)`` over the entries of each index, -inf where there is none."""
    allowed = x > -torch.inf
    scaled = torch.where(allowed, x, 0.0) / eps[:, None]
    with torch.no_grad():
        top = x.new_full((len(x), size), -torch.inf)
        top = top.scatter_reduce(1, index, torch.where(allowed, scaled, -torch.inf), "amax")
        top = torch.where(top > -torch.inf, top, 0.0)
    terms = torch.where(allowed, (scaled - top.gather(1, index)).exp(), 0.0)
    total = x.new_zeros(len(x), size).scatter_add(1, index, terms)
    return torch.where(total > 0, torch.where(total > 0, total, 1.0).log() + top, -torch.inf)
