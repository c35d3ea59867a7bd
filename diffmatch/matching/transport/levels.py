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
        step = max(1, cost.cost.shape[1] // SAMPLE_ROWS)
        if cost.cost.device.type == "cpu":
            # Small problems are done in less time than the tensor operations below take.
            values, eps = cost.cost.detach().contiguous().numpy(), problem.eps.detach().contiguous().numpy()
            return torch.from_numpy(_levels(values, eps, step, method == "newton"))
        cost = DenseCost(cost.cost[:, ::step])
    span = cost.scale()
    first = torch.maximum(span / 4, problem.eps)
    return first if method == "newton" else torch.where(problem.eps > SCALING_BELOW * span, problem.eps, first)


@njit(cache=True, nogil=True)
@typing.no_type_check
def _levels(cost, eps, step, always):
    """The rule for every element of a stored cost; its range is that of the finite entries, 0 where there are none."""
    levels = eps.copy()
    for k in range(len(cost)):
        low, high = np.inf, -np.inf
        for i in range(0, cost.shape[1], step):
            for entry in cost[k, i]:
                if entry < np.inf:
                    low, high = min(low, entry), max(high, entry)
        span = max(high - low, 0.0)
        if always or not eps[k] > SCALING_BELOW * span:
            levels[k] = max(span / 4, eps[k])
    return levels
