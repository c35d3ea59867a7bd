"""Straight-through: the hard solution forward, the gradient of something smooth backward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmatch.autodiff.solvers import Solutions, Solver, check_costs, estimate, solve
from diffmatch.errors import InputError

__all__ = ["StraightThrough"]


@dataclass(frozen=True)
class StraightThrough:
    """The solution itself, with the gradient of a relaxation of it.

    Without a relaxation the solution of a maximising solver is treated as the identity of the scores, that of a
    minimising one as minus the identity of the costs (Sahoo et al. 2023): no second solve, no setting; the direction is
    right, the length is not. The loss has to be one whose gradient vanishes at the target: with the squared error this
    is the structured perceptron, while the gradient of the linear Hamming loss would push on for ever, and only what
    the loss reads is learned.

    The usual relaxation is entropic transport, whose plan is close to the solution at a low temperature; the gradient
    then is that of the plan.

    Args:
        relaxation: differentiable function of the costs with values of the same shapes as the solutions.
    """

    relaxation: Callable[..., Solutions] | None = None

    def __call__(
        self, solver: Solver, *costs: Tensor, maximize: bool = False, generator: torch.Generator | None = None
    ) -> Solutions:
        """Solve, with this gradient; see :class:`diffmatch.autodiff.Estimator`. Nothing is random here."""
        if self.relaxation is not None:
            return self._relaxed(self.relaxation, solver, costs)
        sign = 1.0 if maximize else -1.0

        def forward(costs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            return solve(solver, costs), ()

        def backward(costs: Sequence[Tensor], kept: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(torch.where(cost.isfinite(), sign * grad, 0) for cost, grad in zip(costs, grads, strict=True))

        return estimate(forward, backward, costs)

    @staticmethod
    def _relaxed(relaxation: Callable[..., Solutions], solver: Solver, costs: tuple[Tensor, ...]) -> Solutions:
        check_costs(costs)
        found = relaxation(*costs)
        soft = found if isinstance(found, tuple) else (found,)
        if [x.shape for x in soft] != [cost.shape for cost in costs]:
            raise InputError(
                "relaxation", f"shapes {[tuple(c.shape) for c in costs]}", str([tuple(x.shape) for x in soft])
            )
        hard = solve(solver, [cost.detach() for cost in costs])
        # x - x is exactly zero, so that the value is the hard solution to the last bit.
        passed = tuple(y + (x - x.detach()) for x, y in zip(soft, hard, strict=True))
        return passed[0] if len(passed) == 1 else passed
