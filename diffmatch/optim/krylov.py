"""Shifted linear systems with a symmetric matrix that is known by its products."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

__all__ = ["Krylov"]


class Krylov:
    """Solves ``(H + shift I) x = -b`` for any number of shifts from one Krylov basis.

    Lanczos with full reorthogonalisation. The basis spans the same space for every shift, so that a second shift needs
    no product. Where H is indefinite on the space, its lowest eigenvalue there is added to the shift. Each product
    waits for the device twice, for the entries of the tridiagonal matrix.

    Args:
        product: H times a vector of shape (n,).
        right: b, shape (n,), not zero.
        limit: most products, and so vectors that are kept.
    """

    def __init__(self, product: Callable[[Tensor], Tensor], right: Tensor, *, limit: int) -> None:
        self._product: Callable[[Tensor], Tensor] | None = product
        self._norm = float(right.norm())
        self._limit = min(limit, right.numel())
        self._basis = [right / self._norm]
        self._diagonal: list[float] = []
        self._off: list[float] = []
        self._closed = False
        self._eigenvalues, self._eigenvectors = np.zeros(0), np.zeros((0, 0))

    @property
    def products(self) -> int:
        """Products taken so far."""
        return len(self._diagonal)

    def extend(self, shift: float, tol: float) -> None:
        """Add to the basis until the residual for this shift is at most ``tol`` times the norm of b."""
        while not self._closed and self.products < self._limit:
            self._add()
            weights = self._weights(shift)
            if self._off[-1] * abs(weights[-1]) <= tol * self._norm:
                break

    def release(self) -> None:
        """Let go of the product, and of the graph that it may hold."""
        self._product = None

    def solve(self, shift: float) -> Tensor:
        """The solution in the space of the basis, shape (n,)."""
        weights = self._weights(shift)
        solution = torch.zeros_like(self._basis[0])
        for vector, weight in zip(self._basis, weights.tolist(), strict=False):
            solution.add_(vector, alpha=weight)
        return solution

    def _add(self) -> None:
        if self._product is None:
            raise RuntimeError("the basis was closed by release()")
        last = self._basis[-1]
        image = self._product(last)
        alpha = float(image @ last)
        scale = float(image.norm())
        for _ in range(2):  # twice is enough (Giraud, Langou, Rozloznik, 2005)
            for vector in self._basis:
                image = image - (image @ vector) * vector
        beta = float(image.norm())
        self._diagonal.append(alpha)
        self._closed = not beta > 10 * torch.finfo(image.dtype).eps * scale  # the space holds the solution
        self._off.append(0.0 if self._closed else beta)
        if not self._closed and self.products < self._limit:
            self._basis.append(image / beta)
        self._eigenvalues, self._eigenvectors = eigh_tridiagonal(
            np.array(self._diagonal), np.array(self._off[: self.products - 1])
        )

    def _weights(self, shift: float) -> np.ndarray:
        """Coefficients of the solution in the basis."""
        values = self._eigenvalues + shift + max(0.0, -float(self._eigenvalues[0]))
        weights: np.ndarray = -self._norm * (self._eigenvectors @ (self._eigenvectors[0] / values))
        return weights
