"""The Sinkhorn divergence between weighted point clouds."""

import functools

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.matching.transport.arguments import Mask, Penalty
from diffmatch.matching.transport.points import sinkhorn_points

__all__ = ["sinkhorn_divergence"]


def sinkhorn_divergence(
    x: Float[Tensor, "*b m d"],
    y: Float[Tensor, "*b n d"],
    a: Float[Tensor, "*c m"] | None = None,
    b: Float[Tensor, "*e n"] | None = None,
    *,
    eps: float | Tensor,
    p: int = 2,
    rho: Penalty = None,
    mask: Mask = None,
    tol: float | None = None,
    max_steps: int = 10_000,
) -> Float[Tensor, "*b"]:
    """``OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2 + eps / 2 (sum a - sum b)^2`` with the cost ``|x - y|^p``.

    OT is the entropic value with the reference measure a b^T. The divergence is never negative, 0 for equal clouds, and
    pulls points together without the shrinking bias of OT alone (Feydy et al. 2019, "Interpolating between optimal
    transport and MMD"; Séjourné et al. 2019 for finite `rho`). Gradients pass by the envelope theorem.

    Args:
        x: points with masses `a`, shape (\\*b, m, d).
        y: points with masses `b`, shape (\\*b, n, d).
        a: masses of x, uniform by default.
        b: masses of y.
        eps: entropic strength, in the unit of the cost.
        p: 2 for squared distances, 1 for distances.
        rho: KL penalty of both marginals; None for balanced transport.
        mask: real points of x and of y.
        tol: L1 marginal error to reach, relative to the mass.
        max_steps: largest number of steps of each of the three problems.

    Raises:
        InputError: what :func:`.points.sinkhorn_points` raises.
    """
    # Written with a finite or infinite penalty, the value is that of the KL form.
    penalty = float("inf") if rho is None else rho
    one, two = mask if mask is not None else (None, None)
    transport = functools.partial(
        sinkhorn_points, eps=eps, p=p, rho=penalty, tol=tol, max_steps=max_steps, adjoint="value"
    )
    both = transport(x, y, a, b, mask=(one, two))
    self_x = transport(x, x, a, a, mask=(one, one))
    self_y = transport(y, y, b, b, mask=(two, two))
    found = both.value - (self_x.value + self_y.value) / 2
    if rho is not None:
        total_x = 1.0 if a is None else (a if one is None else torch.where(one, a, 0.0)).sum(-1)
        total_y = 1.0 if b is None else (b if two is None else torch.where(two, b, 0.0)).sum(-1)
        found = found + eps / 2 * (total_x - total_y) ** 2
    return found
