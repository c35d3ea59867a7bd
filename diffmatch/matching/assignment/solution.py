"""What every solver gives back, before it is dressed for the caller."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """A solved batch.

    Attributes:
        assignment: column of each row or -1, shape (b, n), int64.
        u: duals of the rows, shape (b, n), float64.
        v: duals of the columns, shape (b, m), float64.
        steps: rounds of the method, shape (b,), int64.
        status: a constant of :mod:`.kernels`, shape (b,), int8.
    """

    assignment: Tensor
    u: Tensor
    v: Tensor
    steps: Tensor
    status: Tensor
