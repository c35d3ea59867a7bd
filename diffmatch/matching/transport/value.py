"""Optimal values from the dual, with gradients by the envelope theorem."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.matching.transport.costs import Cost
from diffmatch.matching.transport.problem import Problem, guarded_log

__all__ = ["balanced_value", "penalised_value"]


def balanced_value(
    cost: Cost, problem: Problem, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"]
) -> Float[Tensor, " b"]:
    """``<a, f> + <b, g> - eps sum P``, the dual of ``<C, P> + eps sum P (log P - 1)``.

    The potentials enter as constants: at the optimum their gradient vanishes, and dC = P, da = f, db = g,
    deps = sum P (log P - 1) remain.
    """
    f, g = f.detach(), g.detach()
    return _linear(problem.a, f) + _linear(problem.b, g) - problem.eps * cost.mass(f, g, problem.eps)


def penalised_value(
    cost: Cost, problem: Problem, f: Float[Tensor, "b m"], g: Float[Tensor, "b n"]
) -> Float[Tensor, " b"]:
    """The dual of ``<C, P> + eps KL(P | a b^T) + rho_a KL(P 1 | a) + rho_b KL(P^T 1 | b)``.

    Its variables are ``f - eps log a`` and ``g - eps log b``, which enter as constants as above.
    """
    eps = problem.eps[:, None]
    shift_a, shift_b = eps * guarded_log(problem.a), eps * guarded_log(problem.b)
    inner_f = torch.where(f > -torch.inf, f - shift_a, -torch.inf).detach()
    inner_g = torch.where(g > -torch.inf, g - shift_b, -torch.inf).detach()
    mass = cost.mass(_shifted(inner_f, shift_a), _shifted(inner_g, shift_b), problem.eps)
    independent = problem.a.sum(-1) * problem.b.sum(-1)
    return (
        _conjugate(problem.a, inner_f, problem.slack_a, problem.eps)
        + _conjugate(problem.b, inner_g, problem.slack_b, problem.eps)
        - problem.eps * (mass - independent)
    )


def _linear(a: Tensor, f: Tensor) -> Tensor:
    return (a * torch.where(f > -torch.inf, f, 0.0)).sum(-1)


def _shifted(f: Tensor, shift: Tensor) -> Tensor:
    """``f + shift`` without a gradient through infinities."""
    held = (f > -torch.inf) & (shift > -torch.inf)
    return torch.where(held, torch.where(held, f, 0.0) + torch.where(held, shift, 0.0), -torch.inf)


def _conjugate(a: Tensor, f: Tensor, slack: Tensor, eps: Tensor) -> Tensor:
    """``<a, rho (1 - exp(-f / rho))>`` with rho = eps / slack, which is ``<a, f>`` for slack 0."""
    f = torch.where((f > -torch.inf) & (a > 0), f, 0.0)
    rho = eps / torch.where(slack > 0, slack, 1.0)
    curved = -rho[:, None] * torch.expm1(-f / rho[:, None])
    return (a * torch.where(slack[:, None] > 0, curved, f)).sum(-1)
