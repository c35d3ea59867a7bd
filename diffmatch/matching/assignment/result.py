"""What an assignment returns."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmatch.matching.transport.result import ConvergenceError

__all__ = ["AssignmentResult", "one_hot"]


@dataclass(frozen=True, eq=False)
class AssignmentResult:
    """An optimal linear assignment of rows to columns.

    Attributes:
        assignment: column of each row, -1 for a row without one, shape (\\*b, n), int64.
        value: total cost (or score) of the pairs, shape (\\*b,); differentiable, its gradient is the matrix of the
            assignment.
        f: dual variables of the rows, shape (\\*b, n), a certificate: ``f_i + g_j <= cost_ij`` for every allowed pair
            (``>=`` where a score was maximised) with equality on the matched ones, and zero for what is left over on
            the longer side; so a complete assignment has ``value = sum(f) + sum(g)``. Padding has zero.
        g: dual variables of the columns, shape (\\*b, m).
        error: by how much the value may miss the optimum, as the dual variables bound it, shape (\\*b,); about the
            rounding for exact solvers, infinite where ``converged`` is false.
        steps: rounds of bidding, shape (\\*b,), int64; zero for the solver that has none.
        converged: every row, or every column where there are fewer, has a partner, shape (\\*b,). Where that is
            impossible the assignment is the cheapest among those with the most pairs.
    """

    assignment: Int[Tensor, "*b n"]
    value: Float[Tensor, "*b"]
    f: Float[Tensor, "*b n"]
    g: Float[Tensor, "*b m"]
    error: Float[Tensor, "*b"]
    steps: Int[Tensor, "*b"]
    converged: Bool[Tensor, "*b"]
    estimated: Float[Tensor, "*b n m"] | None = field(default=None, repr=False)

    @property
    def plan(self) -> Float[Tensor, "*b n m"]:
        """The assignment as a matrix of zeros and ones, or what an estimator of its gradient made of it."""
        if self.estimated is not None:
            return self.estimated
        return one_hot(self.assignment, self.g.shape[-1], dtype=self.g.dtype)

    @property
    def inverse(self) -> Int[Tensor, "*b m"]:
        """Row of each column, -1 for a column without one, shape (\\*b, m), int64."""
        *batch, n = self.assignment.shape
        m = self.g.shape[-1]
        rows = torch.arange(n, device=self.assignment.device).expand(*batch, n)
        found = self.assignment.new_full((*batch, m + 1), -1)
        target = torch.where(self.assignment >= 0, self.assignment, m)  # the last entry is for rows without a column
        return found.scatter_(-1, target, rows)[..., :m]

    def require_converged(self) -> "AssignmentResult":
        """This result, if every batch element has a complete assignment; waits for the device.

        Raises:
            ConvergenceError: names how many have not.
        """
        failed = int((~self.converged).sum())
        if failed:
            raise ConvergenceError(
                f"{failed} of {self.converged.numel()} assignments are not complete: forbidden pairs leave too few, "
                "or the steps did not suffice"
            )
        return self


def one_hot(assignment: Int[Tensor, "*b n"], m: int, *, dtype: torch.dtype) -> Float[Tensor, "*b n m"]:
    """Matrices of zeros and ones, with a row of zeros for -1."""
    columns = torch.arange(m, device=assignment.device)
    return (assignment.unsqueeze(-1) == columns).to(dtype)
