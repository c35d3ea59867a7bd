"""Transport between point clouds, without storing the cost where it is large."""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffmatch.errors import InputError, check_finite, check_floating, check_same_device, check_shape
from diffmatch.matching.transport.arguments import (
    Mask,
    Penalty,
    check_mask,
    flat_init,
    flat_masses,
    flat_strength,
    held,
    slacks,
    working_dtype,
)
from diffmatch.matching.transport.costs import DenseCost
from diffmatch.matching.transport.problem import Problem
from diffmatch.matching.transport.result import TransportResult
from diffmatch.matching.transport.solve import entropic_transport

__all__ = ["PointCost", "sinkhorn_points"]

STORED = 1 << 22
"""Up to this many entries the cost is stored, which is faster; above, it is computed again in each pass."""
BLOCK = 1 << 20
"""Entries of the cost that are held at a time where it is not stored."""


def sinkhorn_points(
    x: Float[Tensor, "*b m d"],
    y: Float[Tensor, "*b n d"],
    a: Float[Tensor, "*c m"] | None = None,
    b: Float[Tensor, "*e n"] | None = None,
    *,
    eps: float | Tensor,
    p: int = 2,
    rho: Penalty = None,
    mask: Mask = None,
    init: tuple[Tensor, Tensor] | TransportResult | None = None,
    tol: float | None = None,
    max_steps: int = 10_000,
    method: str = "auto",
    adjoint: str = "implicit",
    check: bool | None = None,
) -> TransportResult:
    """Entropic transport between points with the cost ``|x - y|^p``; the other arguments are those of `sinkhorn`.

    Above four million pairs the cost is never stored: memory stays linear in the points, forward and backward, until
    the plan of the result is read.

    Args:
        x: points with masses `a`, shape (\\*b, m, d).
        y: points with masses `b`, shape (\\*b, n, d).
        a: masses of the rows, uniform by default.
        b: masses of the columns.
        eps: entropic strength, in the unit of the cost.
        p: 2 for squared distances, 1 for distances.
        rho: KL penalties of unbalanced transport.
        mask: real rows and columns; padding may hold anything.
        init: potentials or a result to start from.
        tol: L1 marginal error to reach, relative to the total of a.
        max_steps: largest number of steps.
        method: ``"sweeps"``, ``"newton"`` or ``"auto"``.
        adjoint: ``"implicit"``, ``"unroll"`` or ``"value"``.
        check: look for NaN and wrong masses; by default on the CPU only.

    Raises:
        InputError: shapes that do not fit, non-finite points, or what `sinkhorn` raises.
    """
    check_shape("x", x, ("m", "d"), batch=True)
    check_floating("x", x)
    check_shape("y", y, ("n", x.shape[-1]), batch=True)
    check_same_device("y", y, x.device)
    if y.shape[:-2] != x.shape[:-2] or y.dtype != x.dtype:
        raise InputError("y", f"batch axes {tuple(x.shape[:-2])} and {x.dtype}", f"{tuple(y.shape[:-2])} and {y.dtype}")
    if p not in (1, 2):
        raise InputError("p", "1 or 2", repr(p))
    check = x.device.type == "cpu" if check is None else check
    *lead, m, d = x.shape
    n, batch, dtype = y.shape[-2], torch.Size(lead), x.dtype
    if mask is not None:
        check_mask(mask, (m, n), x.device)
        x, y = (
            q if real is None else torch.where(real[..., None], q, 0.0) for q, real in zip((x, y), mask, strict=True)
        )
    if check:
        check_finite("x", x)
        check_finite("y", y)
    count = math.prod(batch)
    x, y = x.to(working_dtype(dtype)), y.to(working_dtype(dtype))
    masses = flat_masses(a, b, batch=batch, sizes=(m, n), mask=mask, like=x, balanced=held(rho), check=check)
    strength = flat_strength(eps, batch=batch, like=x, check=check)
    slack_a, slack_b = slacks(rho, strength)
    cost = PointCost(x.reshape(count, m, d), y.reshape(count, n, d), p)
    return entropic_transport(
        DenseCost(cost.matrix()) if count * m * n <= STORED else cost,
        Problem(masses.a, masses.b, strength, slack_a, slack_b),
        batch=batch,
        penalised=rho is not None,
        init=flat_init(init, batch=batch, size=n, like=x),
        tol=tol,
        max_steps=max_steps,
        method=method,
        adjoint=adjoint,
        dtype=dtype,
    )


class PointCost:
    """``C_ij = |x_i - y_j|^p`` for points (b, m, d) and (b, n, d), computed by blocks of rows."""

    def __init__(self, x: Float[Tensor, "b m d"], y: Float[Tensor, "b n d"], p: int) -> None:
        self.x, self.y, self.p = x, y, p

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Both clouds."""
        return self.x, self.y

    def with_tensors(self, *tensors: Tensor) -> "PointCost":
        """The same distance between other clouds."""
        x, y = tensors
        return PointCost(x, y, self.p)

    def select(self, index: Int[Tensor, " k"]) -> "PointCost":
        """Some batch elements."""
        return PointCost(self.x[index], self.y[index], self.p)

    def matrix(self) -> Float[Tensor, "b m n"]:
        """The cost, stored."""
        return _distance(self.x, self.y, self.p)

    def lse_rows(self, g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, "b m"]:
        """Log-sum-exp over the columns."""

        def block(x: Tensor, y: Tensor, g: Tensor, eps: Tensor) -> Tensor:
            return torch.logsumexp((g[:, None, :] - _distance(x, y, self.p)) / eps[:, None, None], -1)

        return torch.cat([_frugal(block, self.x[:, i], self.y, g, eps) for i in self._blocks()], -1)

    def lse_columns(self, f: Float[Tensor, "b m"], eps: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
        """Log-sum-exp over the rows."""
        return self._turned().lse_rows(f, eps)

    def plan(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> "PointPlan":
        """The plan, computed again in each product."""
        return PointPlan(self, f, g, eps)

    def plan_tensor(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Tensor:
        """The plan, shape (b, m, n): the one thing here that takes quadratic memory."""
        return DenseCost(self.matrix()).plan_tensor(f, g, eps)

    def mass(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Sum of the plan."""
        return self._sum(lambda plan, cost: plan.sum((-2, -1)), f, g, eps)

    def inner(self, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"], eps: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Transport cost of the plan."""
        return self._sum(lambda plan, cost: (plan * cost).sum((-2, -1)), f, g, eps)

    def scale(self) -> Float[Tensor, " b"]:
        """Upper bound of the range of the cost: the diagonal of the box around both clouds, to the power p."""
        if self.x.shape[1] == 0 or self.y.shape[1] == 0:
            return self.x.new_zeros(len(self.x))
        points = torch.cat((self.x, self.y), 1)
        diagonal: Tensor = torch.linalg.vector_norm(points.amax(1) - points.amin(1), dim=-1)
        return diagonal if self.p == 1 else diagonal.square()

    def _sum(self, reduce: Callable[[Tensor, Tensor], Tensor], f: Tensor, g: Tensor, eps: Tensor) -> Tensor:
        def block(x: Tensor, y: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> Tensor:
            cost = _distance(x, y, self.p)
            return reduce(DenseCost(cost).plan_tensor(f, g, eps), cost)

        parts = [_frugal(block, self.x[:, i], self.y, f[:, i], g, eps) for i in self._blocks()]
        return torch.stack(parts).sum(0)

    def _turned(self) -> "PointCost":
        return PointCost(self.y, self.x, self.p)

    def _blocks(self) -> Iterator[slice]:
        """Slices of rows; one at least, so that an empty side keeps its shape."""
        rows = max(1, BLOCK // max(1, len(self.x) * self.y.shape[1]))
        return (slice(i, i + rows) for i in range(0, max(1, self.x.shape[1]), rows))


class PointPlan:
    """A plan between points that is never stored."""

    def __init__(self, cost: PointCost, f: Tensor, g: Tensor, eps: Tensor) -> None:
        self.cost, self.f, self.g, self.eps = cost, f, g, eps

    def rows(self, y: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """Plan times vector."""
        return torch.cat([(plan @ y[:, :, None])[:, :, 0] for _, _, plan in self._parts()], -1)

    def columns(self, x: Float[Tensor, "b m"]) -> Float[Tensor, "b n"]:
        """Transposed plan times vector."""
        return PointPlan(self.cost._turned(), self.g, self.f, self.eps).rows(x)

    def gradients(
        self, x: Float[Tensor, "b m"], y: Float[Tensor, "b n"], needed: tuple[bool, ...]
    ) -> tuple[tuple[Tensor | None, ...], Float[Tensor, " b"]]:
        """Gradients of both clouds and the entropy term, contracted block by block."""
        from_x, d_y = [], torch.zeros_like(self.cost.y)
        entropy = torch.zeros_like(self.eps)
        for i, cost, plan in self._parts():
            weighted = x[:, i, None] + y[:, None, :]
            entropy = entropy + (torch.xlogy(plan, plan) * weighted).sum((-2, -1))
            # d|x - y|^p = p |x - y|^(p - 2) (x - y) for p of 1 and 2, and 0 where the points coincide.
            slope = 2.0 if self.cost.p == 2 else torch.where(cost > 0, 1 / cost.clamp(min=1e-30), 0.0)
            weighted = weighted * plan * slope
            points = self.cost.x[:, i]
            from_x.append(weighted.sum(-1, keepdim=True) * points - weighted @ self.cost.y)
            d_y += weighted.sum(-2)[:, :, None] * self.cost.y - weighted.mT @ points
        return (torch.cat(from_x, 1), d_y), entropy

    def _parts(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, their costs and their part of the plan."""
        for i in self.cost._blocks():
            cost = _distance(self.cost.x[:, i], self.cost.y, self.cost.p)
            yield i, cost, DenseCost(cost).plan(self.f[:, i], self.g, self.eps).entries


def _distance(x: Tensor, y: Tensor, p: int) -> Tensor:
    if p == 1:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    centre = y.detach().mean(1, keepdim=True) if y.shape[1] else 0.0
    x, y = x - centre, y - centre  # cancellation in the sum below grows with the distance from the origin
    squares = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None, :]
    return torch.baddbmm(squares, x, y.mT, alpha=-2).clamp(min=0)


def _frugal(block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Compute a block; where autograd records, keep its inputs only and compute it again in the backward."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        found: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return found
    return block(*inputs)
