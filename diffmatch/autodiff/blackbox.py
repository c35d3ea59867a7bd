"""Black-box interpolation: a second solve with costs moved along the gradient."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmatch.autodiff.solvers import Solutions, Solver, estimate, solve, step_length
from diffmatch.errors import check_positive

__all__ = ["BlackBox"]


@dataclass(frozen=True)
class BlackBox:
    """Gradient of a piecewise affine interpolation of the loss (Vlastelica et al. 2020, algorithm 1).

    For a minimising solver y, upstream gradient g and strength lambda::

        y' = y(cost + lambda g),   gradient = (y' - y) / lambda

    It costs one more solve in the backward pass (none where g is zero, which is looked up: one synchronisation). For a
    loss that is linear in y it is the exact gradient of ``(V(cost + lambda g) - V(cost)) / lambda``, V the optimal
    value; a small lambda follows the loss closely and is zero almost everywhere, a large one is smooth and biased.
    Solutions that are unstable train badly: add ``alpha * target`` to the costs of the training examples, a margin
    (Rolinek et al. 2020).

    Args:
        strength: lambda, in the unit of cost per unit of gradient; or, if relative, a pure number (about 1).
        relative: measure ``strength`` in mean |cost| / mean |g| of each problem, which makes it independent of the
            scale of costs and losses.
    """

    strength: float = 10.0
    relative: bool = False

    def __post_init__(self) -> None:
        check_positive("strength", self.strength)

    def __call__(
        self, solver: Solver, *costs: Tensor, maximize: bool = False, generator: torch.Generator | None = None
    ) -> Solutions:
        """Solve, with this gradient; see :class:`diffmatch.autodiff.Estimator`. Nothing is random here."""
        sign = -1.0 if maximize else 1.0

        def forward(costs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            solutions = solve(solver, costs)
            return solutions, solutions

        def backward(
            costs: Sequence[Tensor], solutions: Sequence[Tensor], grads: Sequence[Tensor]
        ) -> tuple[Tensor, ...]:
            step = step_length(self.strength, self.relative, costs, grads)
            moved = solve(solver, [cost + sign * step * grad for cost, grad in zip(costs, grads, strict=True)])
            return tuple(sign * (new - old) / step for new, old in zip(moved, solutions, strict=True))

        return estimate(forward, backward, costs)
