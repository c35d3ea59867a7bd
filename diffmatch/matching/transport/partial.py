"""Partial transport of a fixed mass, as a balanced problem with one more point on each side."""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_positive
from diffmatch.matching.transport.arguments import (
    Mask,
    flat_init,
    flat_masses,
    flat_strength,
    masked_cost,
    mean_cost,
    working_dtype,
)
from diffmatch.matching.transport.costs import DenseCost
from diffmatch.matching.transport.problem import Problem
from diffmatch.matching.transport.result import TransportResult
from diffmatch.matching.transport.solve import entropic_transport

__all__ = ["augmented_cost", "sinkhorn_partial"]


def augmented_cost(
    cost: Float[Tensor, "b m n"], column: Tensor | float, row: Tensor | float, corner: Tensor | float
) -> Float[Tensor, "b m+1 n+1"]:
    """The cost with one more column, row and their corner, given as what broadcasts to (b, m), (b, n) and (b,)."""
    b, m, n = cost.shape

    def border(value: Tensor | float, *shape: int) -> Tensor:
        return torch.as_tensor(value, dtype=cost.dtype, device=cost.device).expand(shape)

    top = torch.cat((cost, border(column, b, m)[:, :, None]), -1)
    bottom = torch.cat((border(row, b, n), border(corner, b)[:, None]), -1)
    return torch.cat((top, bottom[:, None, :]), -2)


def sinkhorn_partial(
    cost: Float[Tensor, "*b m n"],
    a: Float[Tensor, "*c m"] | None = None,
    b: Float[Tensor, "*d n"] | None = None,
    *,
    mass: float | Tensor,
    eps: float | Tensor,
    mask: Mask = None,
    init: tuple[Tensor, Tensor] | TransportResult | None = None,
    tol: float | None = None,
    max_steps: int = 10_000,
    method: str = "auto",
    adjoint: str = "implicit",
    eps_relative: bool = False,
    check: bool = True,
) -> TransportResult:
    """Move exactly `mass` at least cost, each marginal an upper bound; the arguments are those of `sinkhorn`.

    What stays goes at no cost to one extra point on the other side (Caffarelli and McCann 2010; Chapel, Alaya and Gasso
    2020), and enters the entropy there. The potentials of the result are those of the m + 1 rows and n + 1 columns; the
    plan, its cost and its gradient are those of the m x n real pairs, the value is that of the extended problem.

    Raises:
        InputError: `mass` is not between 0 and the smaller total, or what `sinkhorn` raises.
    """
    *lead, m, n = cost.shape
    batch, dtype = torch.Size(lead), cost.dtype
    cost = masked_cost(cost, mask, check=check).to(working_dtype(dtype))
    masses = flat_masses(a, b, batch=batch, sizes=(m, n), mask=mask, like=cost, balanced=False, check=check)
    strength = flat_strength(eps, batch=batch, like=cost, check=check)
    cost = cost.reshape(math.prod(batch), m, n)
    if eps_relative:
        strength = strength * mean_cost(cost, masses)
    moved = _moved(mass, batch=batch, like=cost)
    left_a, left_b = masses.a.sum(-1) - moved, masses.b.sum(-1) - moved
    if check and bool((torch.minimum(left_a, left_b) < -1e-6 * moved).any() | (moved < 0).any()):
        raise InputError("mass", "between 0 and the smaller total of a and b", str(mass))
    extended = Problem(
        torch.cat((masses.a, left_b.clamp(min=0)[:, None]), -1),
        torch.cat((masses.b, left_a.clamp(min=0)[:, None]), -1),
        strength,
        torch.zeros_like(strength),
        torch.zeros_like(strength),
    )
    result = entropic_transport(
        DenseCost(augmented_cost(cost, 0.0, 0.0, torch.inf)),
        extended,
        batch=batch,
        penalised=False,
        init=flat_init(init, batch=batch, size=n + 1, like=cost),
        tol=tol,
        max_steps=max_steps,
        method=method,
        adjoint=adjoint,
        dtype=dtype,
    )
    return dataclasses.replace(result, make_plan=lambda: result.plan[..., :m, :n])


def _moved(mass: float | Tensor, *, batch: torch.Size, like: Tensor) -> Float[Tensor, " b"]:
    if not isinstance(mass, Tensor):
        check_positive("mass", mass, allow_zero=True)
        mass = like.new_tensor(mass)
    try:
        return mass.to(like).expand(batch).reshape(math.prod(batch))
    except RuntimeError:
        raise InputError("mass", f"a number or shape {tuple(batch)}", str(tuple(mass.shape))) from None
