"""Entropic optimal transport with a stored cost: the public door."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_shape
from diffmatch.matching.transport.arguments import (
    Mask,
    Penalty,
    flat_init,
    flat_masses,
    flat_strength,
    held,
    masked_cost,
    mean_cost,
    slacks,
    working_dtype,
)
from diffmatch.matching.transport.costs import DenseCost
from diffmatch.matching.transport.partial import sinkhorn_partial
from diffmatch.matching.transport.problem import Problem
from diffmatch.matching.transport.result import TransportResult
from diffmatch.matching.transport.solve import entropic_transport

__all__ = ["sinkhorn"]


def sinkhorn(
    cost: Float[Tensor, "*b m n"],
    a: Float[Tensor, "*c m"] | None = None,
    b: Float[Tensor, "*d n"] | None = None,
    *,
    eps: float | Tensor,
    rho: Penalty = None,
    mass: float | Tensor | None = None,
    mask: Mask = None,
    init: tuple[Tensor, Tensor] | TransportResult | None = None,
    tol: float | None = None,
    max_steps: int = 10_000,
    method: str = "auto",
    adjoint: str = "implicit",
    eps_relative: bool = False,
    check: bool | None = None,
) -> TransportResult:
    """Entropic transport: balanced, unbalanced (``rho``) or partial (``mass``).

    Balanced, it minimises ``<C, P> + eps sum P (log P - 1)`` over the plans with marginals a and b. With `rho` it
    minimises ``<C, P> + eps KL(P | a b^T) + rho_a KL(P 1 | a) + rho_b KL(P^T 1 | b)``, with
    ``KL(p | q) = sum p log(p / q) - p + q``. With `mass` it moves exactly that much, each marginal an upper bound
    (see :func:`.partial.sinkhorn_partial`). In all of them ``P = exp((f + g - C) / eps)`` for the potentials of the
    result.

    Args:
        cost: costs C, shape (\\*b, m, n); +inf forbids a pair. Half precision is computed in single precision; the plan
            comes back in the dtype of the cost, potentials and values in single precision.
        a: masses of the rows, shape (\\*b, m) or broadcast to it, >= 0; uniform with total 1 by default.
        b: masses of the columns, shape (\\*b, n). Totals that differ by less than 1e-4 are made equal by scaling b.
        eps: entropic strength in the unit of the cost: a number, or a tensor of the batch shape (or scalar).
        rho: KL penalty on both marginals, or on each of (rows, columns), in the unit of the cost; inf holds a marginal.
        mass: how much to transport, at most the smaller total: a number, or a tensor of the batch shape.
        mask: (rows, columns), bool of shape (\\*b, m) and (\\*b, n), true for real entries, or None for all. Padding
            may hold anything; its plan is 0, its potential -inf and its gradient 0.
        init: potentials (f, g) of an earlier solution, or that result, to start from.
        tol: L1 marginal error to reach, relative to the total of a; 1e-5 by default, 1e-9 in double precision.
            Rounding of single-precision potentials adds about 1e-7 times the range of the cost over eps; the error of
            the result counts it, `converged` allows for it.
        max_steps: largest number of steps, where a step is a pass over the cost or the kernel.
        method: ``"sweeps"`` (Sinkhorn), ``"newton"`` (eps scaling and truncated Newton, for small eps), or ``"auto"``,
            which takes the faster by eps and the range of the cost.
        adjoint: how gradients pass. ``"implicit"`` (default): by the implicit function theorem at the solution.
            ``"unroll"``: autograd through plain sweeps from `init`; memory grows with the steps. ``"value"``: the value
            alone is differentiable (envelope theorem), plan and potentials are constants. The gradient of the value is
            that of the envelope theorem in all of them.
        eps_relative: `eps` is relative to the mean cost of the allowed pairs of each batch element.
        check: look for NaN, negative masses and unequal totals, which waits for the device; by default on the CPU only.

    Returns:
        The result; solvers that stop early say so in its `converged` and `error`.

    Raises:
        InputError: what does not fit, by argument.
    """
    check_shape("cost", cost, ("m", "n"), batch=True)
    check_floating("cost", cost)
    check = cost.device.type == "cpu" if check is None else check
    if mass is not None:
        if rho is not None:
            raise InputError("rho", "None where mass is given", repr(rho))
        return sinkhorn_partial(
            cost,
            a,
            b,
            mass=mass,
            eps=eps,
            mask=mask,
            init=init,
            tol=tol,
            max_steps=max_steps,
            method=method,
            adjoint=adjoint,
            eps_relative=eps_relative,
            check=check,
        )
    *lead, m, n = cost.shape
    batch, dtype = torch.Size(lead), cost.dtype
    cost = masked_cost(cost, mask, check=check).to(working_dtype(dtype))
    masses = flat_masses(a, b, batch=batch, sizes=(m, n), mask=mask, like=cost, balanced=held(rho), check=check)
    strength = flat_strength(eps, batch=batch, like=cost, check=check)
    cost = cost.reshape(math.prod(batch), m, n)
    if eps_relative:
        strength = strength * mean_cost(cost, masses)
    slack_a, slack_b = slacks(rho, strength)
    return entropic_transport(
        DenseCost(cost),
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
