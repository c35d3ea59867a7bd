"""Ascent by exchanges: two nodes swap their partners while that raises the objective."""

import torch
from jaxtyping import Int
from torch import Tensor

from diffmatch.matching.quadratic.affinity import Affinity, one_hot_plan

__all__ = ["exchange_ascent"]


def exchange_ascent(
    affinity: Affinity, assignment: Int[Tensor, "*sb n"], *, max_steps: int = 1000
) -> tuple[Int[Tensor, "*sb n"], int]:
    """Make the best exchange of two partners until none raises J.

    The gradient is kept up to date, at the cost of R numbers for each pair of nodes with R Kronecker terms, or of one
    product for other affinities. A node without a partner takes part, and so does a partner without a node: where the
    sides differ, or are padded, the surplus is filled with nodes without affinities.

    Args:
        affinity: of any kind.
        assignment: where to start, -1 for no partner, shape (\\*s, \\*b, n).
        max_steps: largest number of exchanges of each element.

    Returns:
        The assignments that no exchange improves, and how many rounds were made.
    """
    *_, n, m = affinity.shape
    size = max(n, m)
    if size < 2:
        return assignment, 0
    square = affinity.padded(size, size)
    partners = _completed(assignment, size)
    slope = square.gradient(one_hot_plan(partners, square))
    # Half the gradient is about the objective; what is below its rounding is no rise.
    scale = (slope.abs() * one_hot_plan(partners, square)).sum((-2, -1)) / 2
    least = 16 * torch.finfo(slope.dtype).eps * scale
    upper = torch.ones(size, size, dtype=torch.bool, device=assignment.device).triu(1)
    table = square.curvature(partners, torch.arange(size, device=partners.device).expand_as(partners))
    for step in range(1, max_steps + 1):  # noqa: B007 (returned)
        gain = _gains(slope, partners, table).masked_fill(~upper, -torch.inf)
        best, index = gain.flatten(-2).max(-1)
        improves = best > least
        if not bool(improves.any()):
            break
        rows = torch.stack([index // size, index % size], -1)
        columns = partners.gather(-1, rows)
        change = 2 * square.exchange_product(rows, columns)
        slope = torch.where(improves[..., None, None], slope + change, slope)
        partners = partners.scatter(-1, rows, torch.where(improves.unsqueeze(-1), columns.flip(-1), columns))
        new = square.curvature(partners, rows)
        table = table.scatter(-2, rows.unsqueeze(-1).expand_as(new), new)
        table = table.scatter(-1, rows.unsqueeze(-2).expand_as(new.mT), new.mT)
    found = partners[..., :n]
    dropped = found >= m
    real_rows, real_columns = affinity.mask
    if real_rows is not None:
        dropped = dropped | ~real_rows
    if real_columns is not None:
        wide = torch.nn.functional.pad(real_columns, (0, size - m)).expand(*found.shape[:-1], size)
        dropped = dropped | ~wide.gather(-1, found)
    return found.masked_fill(dropped, -1), step


def _gains(slope: Tensor, partners: Tensor, curvature: Tensor) -> Tensor:
    """Rise of J by each exchange."""
    there = slope.gather(-1, partners.unsqueeze(-2).expand_as(slope))  # [r, s]: gradient of r with the partner of s
    own = there.diagonal(dim1=-2, dim2=-1)
    gain: Tensor = there + there.mT - own.unsqueeze(-1) - own.unsqueeze(-2) + curvature
    return gain


def _completed(assignment: Tensor, size: int) -> Tensor:
    """A permutation of `size` nodes that keeps the matches; nodes without a partner take the free ones in order."""
    *lead, n = assignment.shape
    padded = torch.nn.functional.pad(assignment, (0, size - n), value=-1)
    taken = torch.zeros((*lead, size + 1), dtype=torch.bool, device=assignment.device)
    taken.scatter_(-1, torch.where(padded >= 0, padded, size), torch.ones_like(padded, dtype=torch.bool))
    free = (~taken[..., :size]).to(torch.int64).argsort(dim=-1, descending=True, stable=True)
    order = (padded < 0).to(torch.int64).cumsum(-1) - 1
    return torch.where(padded >= 0, padded, free.gather(-1, order.clamp_min(0)))
