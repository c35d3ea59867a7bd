"""Batched conjugate gradients."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["conjugate_gradients"]


def conjugate_gradients(
    matvec: Callable[[Tensor], Tensor],
    diagonal: Float[Tensor, "b m"],
    right: Float[Tensor, "b m"],
    *,
    rtol: float,
    max_steps: int = 1000,
    every: int = 10,
) -> Float[Tensor, "b m"]:
    """Solve with a diagonal preconditioner from zero, to a residual of `rtol` in its norm.

    All elements are tested together every `every` steps, which is the only synchronisation.
    """
    x, residual = torch.zeros_like(right), right
    z = residual / diagonal
    direction, rho = z, (residual * z).sum(-1, keepdim=True)
    limit = rho * rtol**2
    for step in range(max_steps):
        if step % every == 0 and not bool((rho > limit).any()):
            break
        image = matvec(direction)
        curvature = (direction * image).sum(-1, keepdim=True)
        # An element that is done has no direction left; it stays where it is.
        going = (curvature > 0) & (rho > limit)
        alpha = torch.where(going, rho / torch.where(going, curvature, 1.0), 0.0)
        x, residual = x + alpha * direction, residual - alpha * image
        z = residual / diagonal
        rho, before = torch.where(going, (residual * z).sum(-1, keepdim=True), rho), rho
        direction = z + torch.where(going, rho / torch.where(going, before, 1.0), 0.0) * direction
    return x
