"""Perturbed solvers: the mean solution under noise on the costs, and the loss that belongs to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.autodiff.noise import normal
from diffmatch.autodiff.solvers import Solutions, Solver, check_costs, estimate, inner, solve, solve_samples
from diffmatch.errors import InputError, check_positive

__all__ = ["Perturbed", "fenchel_young_loss"]


@dataclass(frozen=True)
class Perturbed:
    """The mean solution ``E[y(cost + scale Z)]`` under normal noise Z (Berthet et al. 2020).

    What is returned is soft: the mean over the samples. Its vector-Jacobian product, by integration by parts, is::

        gradient = 1 / (scale samples) sum_k <g, y_k - y(cost)> Z_k

    with the same draws as in the forward pass. It is right in expectation, with a variance that grows with the size of
    the problem; where the wanted solution is known, :func:`fenchel_young_loss` needs no such estimate.

    Args:
        scale: size of the noise, in the unit of the costs.
        samples: number of draws.
        vectorized: call the solver once, with the samples as one more leading axis of all costs; otherwise once for
            each of them.
    """

    scale: float = 1.0
    samples: int = 10
    vectorized: bool = True

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)
        check_positive("samples", self.samples)

    def __call__(
        self, solver: Solver, *costs: Tensor, maximize: bool = False, generator: torch.Generator | None = None
    ) -> Solutions:
        """Solve, with this gradient; see :class:`diffmatch.autodiff.Estimator`.

        The formula holds for minimising and for maximising solvers alike.
        """

        def forward(costs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            noise, solved = _samples(self, solver, costs, generator)
            centre = solve(solver, costs)
            return tuple(y.mean(0) for y in solved), (*noise, *solved, *centre)

        def backward(costs: Sequence[Tensor], kept: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
            n = len(costs)
            noise, solved, centre = kept[:n], kept[n : 2 * n], kept[2 * n :]
            # The solution without noise only lowers the variance: the noise has mean zero.
            weight = inner(grads, [y - y0 for y, y0 in zip(solved, centre, strict=True)])
            return tuple((weight * z).mean(0) / self.scale for z in noise)

        return estimate(forward, backward, costs)


def fenchel_young_loss(
    solver: Solver,
    costs: Tensor | tuple[Tensor, ...],
    targets: Tensor | tuple[Tensor, ...],
    *,
    perturbed: Perturbed | None = None,
    maximize: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*b"]:
    """How far costs are from having the targets as their solution, as a convex function of the costs.

    For a minimising solver (Berthet et al. 2020, section 3.3)::

        loss = <cost, target> - E[min_y <cost + scale Z, y>],   gradient = target - E[y(cost + scale Z)]

    It is least where the mean solution is the target. Up to a constant that no gradient sees it is not negative.

    Args:
        solver: see :class:`diffmatch.autodiff.Estimator`.
        costs: one tensor (\\*b, r, c), or several.
        targets: the wanted solutions, of the same shapes.
        perturbed: noise and number of samples; the defaults of :class:`Perturbed` if missing.
        maximize: the solver maximises.
        generator: source of the noise.

    Returns:
        The loss of each problem, shape (\\*b).
    """
    settings = perturbed if perturbed is not None else Perturbed()
    costs = costs if isinstance(costs, tuple) else (costs,)
    targets = targets if isinstance(targets, tuple) else (targets,)
    check_costs(costs)
    if [target.shape for target in targets] != [cost.shape for cost in costs]:
        raise InputError("targets", f"shapes {[tuple(c.shape) for c in costs]}", str([tuple(t.shape) for t in targets]))
    noise, solved = _samples(settings, solver, [cost.detach() for cost in costs], generator)
    moved = [cost + settings.scale * z for cost, z in zip(costs, noise, strict=True)]
    loss = inner(costs, targets) - inner(moved, solved).mean(0)
    return (-loss if maximize else loss)[..., 0, 0]


def _samples(
    settings: Perturbed, solver: Solver, costs: Sequence[Tensor], generator: torch.Generator | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Noise and solutions, with the samples as the leading axis."""
    noise = tuple(normal((settings.samples, *cost.shape), cost, generator) for cost in costs)
    moved = [cost + settings.scale * z for cost, z in zip(costs, noise, strict=True)]
    return noise, solve_samples(solver, moved, vectorized=settings.vectorized)
