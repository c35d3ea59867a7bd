"""What a transport solver returns: potentials, plan and values, and how far it came."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["ConvergenceError", "TransportResult"]


class ConvergenceError(RuntimeError):
    """A solver stopped before the marginal error that was asked for."""


@dataclass(frozen=True, eq=False)
class TransportResult:
    """A solution of a transport problem.

    The plan and the values are computed when they are first read, under the grad mode of the call that solved the
    problem. In every entropic problem the plan is ``exp((f + g - cost) / eps)``; exact potentials satisfy
    ``f + g <= cost`` with equality where mass flows.

    Attributes:
        f: potentials of the rows, shape (\\*b, m), in the unit of the cost; -inf where a row carries no mass.
        g: potentials of the columns, shape (\\*b, n).
        error: L1 distance of the marginals of the plan to what the problem asks for, shape (\\*b,).
        steps: passes over the cost or the kernel that were spent, shape (\\*b,), int64.
        converged: whether `error` is within the tolerance, shape (\\*b,).
        make_plan: computes `plan`.
        make_value: computes `value`.
        make_cost: computes `cost`.
        recorded: whether autograd was on when the problem was solved.
    """

    f: Float[Tensor, "*b m"]
    g: Float[Tensor, "*b n"]
    error: Float[Tensor, "*b"]
    steps: Int[Tensor, "*b"]
    converged: Bool[Tensor, "*b"]
    make_plan: Callable[[], Tensor]
    make_value: Callable[[], Tensor]
    make_cost: Callable[[], Tensor]
    recorded: bool = True

    @functools.cached_property
    def plan(self) -> Tensor:
        """The transport plan, shape (\\*b, m, n) for dense problems, one entry an edge for sparse ones."""
        return self._make(self.make_plan)

    @functools.cached_property
    def value(self) -> Tensor:
        """The optimal value with its regularisation, shape (\\*b,), as the dual gives it: a lower bound."""
        return self._make(self.make_value)

    @functools.cached_property
    def cost(self) -> Tensor:
        """The transport cost ``sum(plan * cost)`` without the regularisation, shape (\\*b,)."""
        return self._make(self.make_cost)

    def require_converged(self) -> "TransportResult":
        """This result, if every batch element converged; waits for the device.

        Raises:
            ConvergenceError: names how many elements did not, and the largest error.
        """
        failed = int((~self.converged).sum())
        if failed:
            worst = self.error[~self.converged].max().item()
            raise ConvergenceError(
                f"{failed} of {self.converged.numel()} transport problems did not converge: marginal error {worst:.3g} "
                f"after at most {int(self.steps.max())} steps"
            )
        return self

    def _make(self, make: Callable[[], Tensor]) -> Tensor:
        with torch.set_grad_enabled(self.recorded):
            return make()
