"""Which solver an element gets, by eps and the range of its cost: the first level of its eps scaling."""

import typing

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from diffmatch.matching.transport.costs import Cost, DenseCost
from diffmatch.matching.transport.problem import Problem

__all__ = ["first_level"]

SCALING_BELOW = 0.005
"""eps relative to the range of the cost below which eps scaling pays; above it, sweeps start at the final eps."""
SAMPLE_ROWS = 16
"""Rows of a stored cost that its range is estimated from: reading all of them costs as much as a sweep."""


def first_level(cost: Cost, problem: Problem, method: str) -> Float[Tensor, " b"]:
    """eps of the first level of the scaling; that of the problem for none, 0 for sweeps to the end.

    Args:
        cost: with b batch elements.
        problem: marginals and strengths.
        method: ``"sweeps"``, ``"newton"`` or ``"auto"``.
    """
    if method == "sweeps":
        return torch.zeros_like(problem.eps)
    if isinstance(cost, DenseCost):
        rows = cost.cost.detach()[:, :: max(1, cost.cost.shape[1] // SAMPLE_ROWS)]
        if rows.device.type == "cpu":
            # Small problems are done in less time than the tensor operations below take.
            span = torch.from_numpy(_spans(rows.contiguous().numpy()))
        else:
            span = DenseCost(rows).scale()
    else:
        span = cost.scale()
    first = torch.maximum(span / 4, problem.eps)
    return first if method == "newton" else torch.where(problem.eps > SCALING_BELOW * span, problem.eps, first)


@njit(cache=True, nogil=True)
@typing.no_type_check
def _spans(cost):
    """Largest minus smallest finite entry of each element, 0 where there is none."""
    spans = np.zeros(len(cost), cost.dtype)
    for k in range(len(cost)):
        low, high = np.inf, -np.inf
        for row in cost[k]:
            for entry in row:
                if entry < np.inf:
                    low, high = min(low, entry), max(high, entry)
        spans[k] = max(high - low, 0.0)
    return spans
