"""What a quadratic-assignment solver returns."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["QuadraticResult"]


@dataclass(frozen=True, eq=False)
class QuadraticResult:
    """What a quadratic-assignment solver found.

    Attributes:
        assignment: partner in the second graph of each node of the first, -1 for none, shape (\\*b, n), int64.
        value: objective of that assignment, shape (\\*b).
        plan: what was rounded to the assignment, shape (\\*b, n, m); the assignment itself for searches that have no
            relaxation.
        steps: rounds of the method, all restarts together.
        converged: the method stopped by its own rule and not by the largest number of steps, shape (\\*b); always
            true for searches of a fixed length.
    """

    assignment: Int[Tensor, "*b n"]
    value: Float[Tensor, "*b"]
    plan: Float[Tensor, "*b n m"]
    steps: int
    converged: Bool[Tensor, "*b"]
