"""The eigenvector of the smallest eigenvalue, with a gradient that stays finite where eigenvalues meet."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["smallest_eigenvector"]

_RELATIVE_GAP = 1e-12  # of the trace, in float64: below this the gradient is damped


def smallest_eigenvector(matrix: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n"]:
    """Unit eigenvector of the smallest eigenvalue of a symmetric matrix.

    The derivative is that of the implicit function, dv = -(M - lambda I)^+ dM v. Where the two smallest eigenvalues
    meet, the eigenvector is not defined; each 1 / gap is then replaced by gap / (gap^2 + e^2), with e = 1e-12 of the
    trace, so that the gradient is bounded. That of ``torch.linalg.eigh`` is infinite there.

    Args:
        matrix: symmetric, shape (\\*b, n, n); computed in float64.

    Returns:
        Shape (\\*b, n), the dtype of the input; the entry of largest size is positive.
    """
    vector: Tensor = _SmallestEigenvector.apply(matrix.double())
    return vector.to(matrix.dtype)


class _SmallestEigenvector(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        first = vectors[..., 0]
        largest_entry = first.gather(-1, first.abs().argmax(dim=-1, keepdim=True))
        smallest: Tensor = first * torch.where(largest_entry < 0, -1.0, 1.0)
        ctx.save_for_backward(values, vectors, smallest)
        return smallest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        values, vectors, smallest = ctx.saved_tensors
        others, gaps = vectors[..., 1:], values[..., 1:] - values[..., :1]
        floor = _RELATIVE_GAP * values.abs().sum(dim=-1, keepdim=True) + torch.finfo(values.dtype).tiny ** 0.5
        inverse_gaps = gaps / (gaps.square() + floor.square())
        # dL = g . dv = -(others inverse_gaps others^T g) dM v, made symmetric as the input is.
        pulled = others @ (inverse_gaps[..., None] * (others.mT @ grad[..., None]))
        outer: Tensor = pulled @ smallest[..., None, :]
        return -(outer + outer.mT) / 2
