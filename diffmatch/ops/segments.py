"""Sums over groups of rows."""

import torch
from jaxtyping import Int, Num
from torch import Tensor

__all__ = ["offsets_to_index", "segment_sum"]


def segment_sum(rows: Num[Tensor, "m *d"], segment: Int[Tensor, " m"], *, n_segments: int) -> Num[Tensor, "n *d"]:
    """Sum the rows of each segment.

    On CUDA the order of the additions is not fixed, unless ``torch.use_deterministic_algorithms(True)`` is set.

    Args:
        rows: shape (m, \\*d).
        segment: number of the segment of each row, in [0, n_segments), any order.
        n_segments: number of segments; those without rows are zero.
    """
    return rows.new_zeros((n_segments, *rows.shape[1:])).index_add(0, segment, rows)


def offsets_to_index(offsets: Int[Tensor, " n1"]) -> Int[Tensor, " m"]:
    """Segment of each row of a packed tensor: offsets ``[0, 2, 5]`` give ``[0, 0, 1, 1, 1]``."""
    sizes = offsets.diff()
    return torch.repeat_interleave(torch.arange(len(sizes), device=offsets.device), sizes)
