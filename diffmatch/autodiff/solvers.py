"""The one interface of all estimators: how gradients pass through a solver that has none.

A *solver* maps cost tensors to solution tensors and is otherwise unknown. Each solution belongs to the cost in the same
place and has its shape; the solver minimises the sum of their inner products (or maximises it, if told so). A linear
assignment has one cost and one solution; a quadratic one has the costs of nodes and of pairs of edges, and solutions
that say which nodes and which edges are matched.

Costs have shape (\\*b, r, c): the last two axes are one problem, those before them are a batch, the same for all costs.
A problem whose cost is a vector is given as one row.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError

__all__ = ["Estimator", "Solver"]

Solutions = Tensor | tuple[Tensor, ...]

Solver = Callable[..., Solutions]
"""``solver(*costs)`` gives one solution, or a tuple of as many as there are costs."""


@runtime_checkable
class Estimator(Protocol):
    """A way to let gradients pass; settings are its fields, ``estimator(solver, *costs)`` is a differentiable solve."""

    def __call__(
        self, solver: Solver, *costs: Tensor, maximize: bool = False, generator: torch.Generator | None = None
    ) -> Solutions:
        """Solve, with a gradient.

        Args:
            solver: what is to be differentiated; it is called without recording.
            costs: its arguments.
            maximize: the solver maximises instead of minimising.
            generator: source of the noise, where there is any.

        Returns:
            What the solver returns, one tensor or a tuple.
        """
        ...


Forward = Callable[[Sequence[Tensor]], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
"""Detached costs to solutions, and the tensors to keep for the backward pass."""
Backward = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]
"""Detached costs, kept tensors and the gradients by the solutions to gradients by the costs."""


def estimate(forward: Forward, backward: Backward, costs: Sequence[Tensor]) -> Solutions:
    """Call ``forward``, and let ``backward`` give its gradient; one tensor for one cost, else a tuple."""
    check_costs(costs)
    solutions: tuple[Tensor, ...] = _Estimate.apply(forward, backward, *costs)
    return solutions[0] if len(costs) == 1 else solutions


class _Estimate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward: Forward, backward: Backward, *costs: Tensor) -> tuple[Tensor, ...]:
        costs = tuple(cost.detach() for cost in costs)
        solutions, kept = forward(costs)
        ctx.save_for_backward(*costs, *kept)
        ctx.n_costs, ctx.rule = len(costs), backward
        return tuple(solution.clone() for solution in solutions)  # what is kept must not be changed by the caller

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        costs, kept = ctx.saved_tensors[: ctx.n_costs], ctx.saved_tensors[ctx.n_costs :]
        if not any(bool(grad.any()) for grad in grads):
            return None, None, *(torch.zeros_like(cost) for cost in costs)
        return None, None, *ctx.rule(costs, kept, grads)


def check_costs(costs: Sequence[Tensor]) -> None:
    """Check that there are costs, all of them batches of matrices.

    Raises:
        InputError: there is none, one is no floating-point matrix, or the batch axes differ.
    """
    if not costs:
        raise InputError("costs", "at least one tensor", "none")
    for cost in costs:
        if cost.dim() < 2 or not cost.is_floating_point():
            raise InputError("costs", "floating-point tensors (*b, r, c)", f"{cost.dtype} {tuple(cost.shape)}")
        if cost.shape[:-2] != costs[0].shape[:-2]:
            raise InputError(
                "costs", "the same batch axes for all", f"{tuple(costs[0].shape[:-2])} and {tuple(cost.shape[:-2])}"
            )


def solve(solver: Solver, costs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Call a solver without recording, and check what it gives.

    Raises:
        InputError: the solutions do not have the shapes of the costs.
    """
    with torch.no_grad():
        found = solver(*costs)
    solutions = found if isinstance(found, tuple) else (found,)
    shapes = [tuple(solution.shape) for solution in solutions]
    wanted = [tuple(cost.shape) for cost in costs]
    if shapes != wanted:
        raise InputError("solver", f"solutions of the shapes {wanted}", str(shapes))
    return tuple(solution.to(cost.dtype) for solution, cost in zip(solutions, costs, strict=True))


def solve_samples(solver: Solver, costs: Sequence[Tensor], *, vectorized: bool) -> tuple[Tensor, ...]:
    """Solve costs with a leading axis of samples, all in one call or one by one."""
    if vectorized:
        return solve(solver, costs)
    solved = [solve(solver, sample) for sample in zip(*costs, strict=True)]
    return tuple(torch.stack(solutions) for solutions in zip(*solved, strict=True))


def inner(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Float[Tensor, "*b 1 1"]:
    """Inner product of each problem, summed over its tensors; zeros in y win over infinities in x."""
    products = [torch.where(y == 0, 0, x * y).sum((-1, -2), keepdim=True) for x, y in zip(xs, ys, strict=True)]
    return torch.stack(products).sum(0)


def step_length(
    strength: float, relative: bool, costs: Sequence[Tensor], grads: Sequence[Tensor]
) -> Float[Tensor, "*b 1 1"]:
    """How far to move the costs along the gradient; if relative, in units of mean |cost| / mean |grad| of a problem."""
    if not relative:
        return costs[0].new_full((1, 1), strength)

    def size(tensors: Sequence[Tensor]) -> Tensor:
        absolute = [torch.where(x.isfinite(), x.abs(), 0).sum((-1, -2), keepdim=True) for x in tensors]
        return torch.stack(absolute).sum(0)

    costs_size, grads_size = size(costs), size(grads)
    usable = (costs_size > 0) & (grads_size > 0)
    return torch.where(usable, strength * costs_size / torch.where(usable, grads_size, 1), strength)
