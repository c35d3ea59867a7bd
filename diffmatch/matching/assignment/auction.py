"""A batched auction in tensor operations, for any device (Bertsekas 1988; Jacobi form with eps scaling).

Rows bid for columns. A row without one bids for the column of the best profit, ``-cost - price``, by how much that
exceeds the second best plus eps; each column goes to its highest bid. Once every row has a column, the total is within
n eps of the optimum, and the prices are kept for the next, smaller eps. All bidders of all problems bid at once.

Every problem is made square: rows and columns that are missing or masked become dummies at no cost, which real ones may
take only on the side that has too many. What is forbidden gets a cost that outweighs all that is not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffmatch.matching.assignment.kernels import INFEASIBLE, NOT_A_NUMBER, SOLVED, STOPPED, UNBOUNDED
from diffmatch.matching.assignment.solution import Solution

SCALING = 5.0
"""Factor from one eps to the next."""


@dataclass(frozen=True)
class _Square:
    """Square problems, k rows and columns each, whose least allowed cost is zero.

    Attributes:
        cost: finite costs, shape (b, k, k).
        allowed: pairs of a real row and a real column that are not forbidden, shape (b, k, k).
        rows: real rows, shape (b, k).
        columns: real columns, shape (b, k).
        low: what was subtracted from the costs, shape (b,).
        spread: largest allowed cost, shape (b,).
        status: NOT_A_NUMBER or UNBOUNDED for problems that cannot be solved, else SOLVED, shape (b,).
    """

    cost: Tensor
    allowed: Tensor
    rows: Tensor
    columns: Tensor
    low: Tensor
    spread: Tensor
    status: Tensor


def solve_auction(
    cost: Tensor, rows: Tensor, columns: Tensor, *, maximize: bool, tol: float, max_steps: int
) -> Solution:
    """Solve a batch by auction, in float64; synchronises once a round, to count the bidders.

    Args:
        cost: shape (b, n, m).
        rows: which rows are real, shape (b, n).
        columns: which columns are real, shape (b, m).
        maximize: take the largest total instead of the smallest.
        tol: how far from the optimum the total may be, relative to the largest minus the smallest cost of a problem.
        max_steps: rounds after which what has been found is given back with the status STOPPED.
    """
    _, n, m = cost.shape
    sign = -1.0 if maximize else 1.0
    square = _square(sign * cost.to(torch.float64), rows, columns)
    column_of, price, steps = _auction(square, tol, max_steps)

    at = column_of[:, :n]
    made = (at >= 0) & square.allowed[:, :n].gather(-1, at.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    unfinished = torch.where((column_of < 0).any(-1), STOPPED, INFEASIBLE)
    complete = made.sum(-1) == torch.minimum(rows.sum(-1), columns.sum(-1))
    status = torch.where(square.status == SOLVED, torch.where(complete, SOLVED, unfinished), square.status)
    u, v = _duals(square, price)
    return Solution(
        assignment=torch.where(made, at, -1),
        u=sign * u[:, :n],
        v=sign * v[:, :m],
        steps=steps,
        status=status.to(torch.int8),
    )


def _square(cost: Tensor, rows: Tensor, columns: Tensor) -> _Square:
    _, n, m = cost.shape
    k = max(n, m, 1)
    cost = torch.nn.functional.pad(cost, (0, k - m, 0, k - n))
    rows, columns = (torch.nn.functional.pad(mask, (0, k - mask.shape[-1])) for mask in (rows, columns))
    real = rows[:, :, None] & columns[:, None, :]
    cost = torch.where(real, cost, 0)
    status = torch.where((cost == -torch.inf).any(-1).any(-1), UNBOUNDED, SOLVED)
    status = torch.where(cost.isnan().any(-1).any(-1), NOT_A_NUMBER, status)

    allowed = real & cost.isfinite()
    low = torch.where(allowed, cost, torch.inf).amin((-1, -2))
    low = torch.where(low.isfinite(), low, 0)
    shifted = torch.where(allowed, cost - low[:, None, None], 0)
    spread = shifted.amax((-1, -2))
    penalty = ((k + 2) * torch.where(spread > 0, spread, 1))[:, None, None]
    surplus = (rows.sum(-1) - columns.sum(-1))[:, None, None]
    row, column = rows[:, :, None], columns[:, None, :]
    free = (~row & ~column) | (row & ~column & (surplus > 0)) | (~row & column & (surplus < 0))
    blocked = torch.where(real, penalty, (k + 2) * penalty)  # that a real row is left out weighs more
    return _Square(torch.where(allowed | free, shifted, blocked), allowed, rows, columns, low, spread, status)


def _auction(square: _Square, tol: float, max_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Column of each row (-1 where the rounds did not suffice), price of each column, and rounds."""
    cost = square.cost
    batch, k, _ = cost.shape
    largest = cost.amax((-1, -2))
    # Below the rounding of the prices, which can exceed the costs, a bid would not raise a price.
    smallest = torch.maximum(tol * square.spread / k, 64 * torch.finfo(cost.dtype).eps * largest)
    smallest = smallest.clamp_min(torch.finfo(cost.dtype).tiny)
    eps = torch.maximum(largest / 2, smallest)
    price, steps = cost.new_zeros(batch, k), torch.zeros(batch, dtype=torch.int64, device=cost.device)
    column_of = torch.full((batch, k), -1, device=cost.device)
    row_of = column_of.clone()
    while True:
        lower = (column_of >= 0).all(-1) & (eps > smallest)
        eps = torch.where(lower, torch.maximum(eps / SCALING, smallest), eps)
        column_of, row_of = (torch.where(lower[:, None], -1, x) for x in (column_of, row_of))
        bidding = (column_of < 0) & (steps < max_steps)[:, None]
        problem, row = bidding.nonzero(as_tuple=True)
        if not len(problem):
            return column_of, price, steps
        column_of, row_of, price = _bid(cost, eps, column_of, row_of, price, problem, row)
        steps += bidding.any(-1)


def _bid(
    cost: Tensor, eps: Tensor, column_of: Tensor, row_of: Tensor, price: Tensor, problem: Tensor, row: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One round: the bids of some rows, and who has what afterwards at what price; ties go to the lowest index."""
    batch, k = price.shape
    profit = -(cost[problem, row] + price[problem])
    first, column = profit.max(-1)
    second = profit.scatter(-1, column[:, None], -torch.inf).amax(-1)
    second = torch.where(second.isfinite(), second, first)
    bid = price[problem, column] + (first - second) + eps[problem]

    place = problem * k + column
    highest = torch.full_like(price, -torch.inf).flatten().scatter_reduce(0, place, bid, "amax")
    rivals = torch.where(bid == highest[place], row, k)
    winner = place.new_full((batch * k,), k).scatter_reduce(0, place, rivals, "amin")
    winner, highest = winner.view(batch, k), highest.view(batch, k)
    sold = winner < k

    # Column k is for those who are not meant.
    room = torch.nn.functional.pad(column_of, (0, 1))
    room.scatter_(-1, torch.where(sold & (row_of >= 0), row_of, k), -1)
    room.scatter_(-1, winner, torch.arange(k, device=price.device).expand(batch, k))
    return room[:, :k], torch.where(sold, winner, row_of), torch.where(sold, highest, price)


def _duals(square: _Square, price: Tensor) -> tuple[Tensor, Tensor]:
    """Dual variables of the problems as they were given, feasible up to rounding whatever the prices are."""
    surplus = square.rows.sum(-1) - square.columns.sum(-1)
    # The dummies of the longer side fix the constant that the prices are free to have.
    least_real = torch.where(square.columns, price, torch.inf).amin(-1)
    least_dummy = torch.where(square.columns, torch.inf, price).amin(-1)
    level = torch.where(surplus > 0, least_dummy + square.low, torch.where(surplus < 0, least_real, 0))
    v = torch.where(square.columns, level[:, None] - price, 0)
    cost = square.cost + square.low[:, None, None]
    u = torch.where(square.columns[:, None, :], cost - v[:, None, :], torch.inf).amin(-1)
    u = torch.where((surplus > 0)[:, None], u.clamp_max(0), u)
    return torch.where(square.rows & u.isfinite(), u, 0), v
