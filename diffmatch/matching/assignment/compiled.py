"""The compiled solver behind tensors: a thread pool over the batch."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from diffmatch.matching.assignment.kernels import solve_batch
from diffmatch.matching.assignment.solution import Solution

WORTH_A_THREAD = 100_000
"""Entries of cost below which starting a thread takes about as long as the work."""


def solve_compiled(cost: Tensor, rows: Tensor, columns: Tensor, *, maximize: bool) -> Solution:
    """Solve a batch on the CPU, exactly up to the rounding of float64.

    Args:
        cost: shape (b, n, m), float32 or float64.
        rows: which rows are real, shape (b, n).
        columns: which columns are real, shape (b, m).
        maximize: take the largest total instead of the smallest.
    """
    batch, n, m = cost.shape
    assignment = np.empty((batch, n), np.int64)
    u, v, status = np.empty((batch, n)), np.empty((batch, m)), np.empty(batch, np.int8)
    sign = -1.0 if maximize else 1.0
    data = cost.contiguous().numpy(), rows.contiguous().numpy(), columns.contiguous().numpy()

    def work(first: int, last: int) -> None:
        solve_batch(*data, sign, assignment, u, v, status, first, last)

    threads = min(batch, torch.get_num_threads(), cost.numel() // WORTH_A_THREAD)
    if threads <= 1:
        work(0, batch)
    else:
        bounds = [batch * k // threads for k in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, bounds[:-1], bounds[1:]))
    return Solution(
        assignment=torch.from_numpy(assignment),
        u=torch.from_numpy(sign * u),
        v=torch.from_numpy(sign * v),
        steps=torch.zeros(batch, dtype=torch.int64),
        status=torch.from_numpy(status),
    )
