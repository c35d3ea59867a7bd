"""Implicit maximum likelihood: black-box interpolation under noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmatch.autodiff.noise import Noise, gumbel
from diffmatch.autodiff.solvers import Solutions, Solver, estimate, solve_samples, step_length
from diffmatch.errors import check_positive

__all__ = ["ImplicitMLE"]


@dataclass(frozen=True)
class ImplicitMLE:
    """Perturb-and-solve with the gradient of a maximum-likelihood step (Niepert et al. 2021, algorithm 1).

    For a minimising solver y, upstream gradient g, strength lambda and noise eta::

        solution = mean_k y(cost - eta_k)
        gradient = 1 / lambda mean_k [y(cost + lambda g - eta_k) - y(cost - eta_k)]

    With one sample the solution is a hard one. Without noise this is :class:`BlackBox`.

    Args:
        strength: lambda, in the unit of cost per unit of gradient; or, if relative, a pure number (about 1).
        samples: number of draws.
        scale: size of the noise, in the unit of the costs; 0 for none.
        noise: its distribution, such as :func:`diffmatch.autodiff.sum_of_gamma` of k for solutions with k ones.
        relative: measure ``strength`` in mean |cost| / mean |g| of each problem.
        vectorized: call the solver once, with the samples as one more leading axis of all costs; otherwise once for
            each of them.
    """

    strength: float = 10.0
    samples: int = 1
    scale: float = 1.0
    noise: Noise = gumbel
    relative: bool = False
    vectorized: bool = True

    def __post_init__(self) -> None:
        check_positive("strength", self.strength)
        check_positive("samples", self.samples)
        check_positive("scale", self.scale, allow_zero=True)

    def __call__(
        self, solver: Solver, *costs: Tensor, maximize: bool = False, generator: torch.Generator | None = None
    ) -> Solutions:
        """Solve, with this gradient; see :class:`diffmatch.autodiff.Estimator`."""
        sign = -1.0 if maximize else 1.0

        def forward(costs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            noisy = tuple(
                cost - sign * self.scale * self.noise((self.samples, *cost.shape), cost, generator) for cost in costs
            )
            solved = solve_samples(solver, noisy, vectorized=self.vectorized)
            return tuple(y.mean(0) for y in solved), (*noisy, *solved)

        def backward(costs: Sequence[Tensor], kept: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
            noisy, solved = kept[: len(costs)], kept[len(costs) :]
            step = step_length(self.strength, self.relative, costs, grads)
            target = [cost + sign * step * grad for cost, grad in zip(noisy, grads, strict=True)]
            moved = solve_samples(solver, target, vectorized=self.vectorized)
            return tuple(sign * (new - old).mean(0) / step for new, old in zip(moved, solved, strict=True))

        return estimate(forward, backward, costs)
