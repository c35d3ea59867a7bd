"""The interface of all targets, and what they share."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.meshing.targets.normalization import Normalization

__all__ = ["Attributed", "Target", "value_and_gradient"]


@runtime_checkable
class Target(Protocol):
    """A solid that a fit aims at. Points are in its box: centred, longest side 1.8, inside the domain [-1, 1]^3.

    Tensors come back on the device and with the dtype of the points.
    """

    @property
    def normalization(self) -> Normalization:
        """From the target's own coordinates to the box."""
        ...

    @property
    def bounds(self) -> Float[Tensor, "2 3"]:
        """Low and high corner of the solid in the box, float64 on the CPU."""
        ...

    def sdf(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Signed distance, or another field of the right sign: negative inside; differentiable (once) in the points."""
        ...

    def value_and_gradient(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """`sdf` and its gradient, both without a graph."""
        ...


@runtime_checkable
class Attributed(Protocol):
    """A target that may have attributes, such as colours, to carry to the mesh fitted to it."""

    def attributes_at(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"] | None:
        """The attributes of the surface near points of the box, shape (n, d); None where the target has none."""
        ...


def value_and_gradient(
    function: Callable[[Tensor], Tensor], points: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
    """Value and gradient of a function of single points by automatic differentiation, both without a graph."""
    with torch.enable_grad():
        leaf = points.detach().requires_grad_()
        values = function(leaf)
        if not values.requires_grad:  # a field that is constant here
            return values, torch.zeros_like(points)
        (gradient,) = torch.autograd.grad(values.sum(), leaf, materialize_grads=True)
    return values.detach(), gradient
