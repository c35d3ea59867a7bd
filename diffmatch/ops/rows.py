"""Rows of a tensor by number, with gradients that are fast and keep their bits."""

import math
import mmap
import sys
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["distinct_rows", "gather_rows", "lazy_zeros"]


def gather_rows(rows: Float[Tensor, "n d"], index: Int[Tensor, "*m"]) -> Float[Tensor, "*m d"]:
    """The rows that an index names, ``rows[index]``, with a gradient that adds in a fixed order.

    The gradient of plain indexing adds with atomic operations, on the CPU too, so that its last bits change from run
    to run; that of an embedding does not, and costs less.

    Args:
        rows: shape (n, d).
        index: row numbers, any shape.
    """
    return torch.nn.functional.embedding(index, rows)


def distinct_rows(tensor: Float[Tensor, "n *d"], index: Int[Tensor, " m"]) -> Float[Tensor, "m *d"]:
    """Distinct rows of a large tensor; the gradient writes only those rows.

    Args:
        tensor: shape (n, \\*d).
        index: row numbers, each at most once.
    """
    rows: Tensor = _DistinctRows.apply(tensor, index)
    return rows


class _DistinctRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = tensor.shape
        return tensor.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return lazy_zeros(ctx.shape, like=grad).index_copy_(0, index, grad), None


_MAPPED_BYTES = 2**25
"""From this size on, the C library's allocator no longer serves from memory that it holds (glibc: 32 MiB)."""


def lazy_zeros(shape: torch.Size, *, like: Tensor) -> Tensor:
    """Zeros with the dtype and device of another tensor; on the CPU, pages that are never written cost nothing."""
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
        return like.new_zeros(shape)
    if sys.platform != "win32" and math.prod(shape) * like.element_size() >= _MAPPED_BYTES:
        # Not by numpy, which asks for huge pages: of these, a few scattered rows touch nearly all.
        pages = mmap.mmap(-1, math.prod(shape) * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(pages, dtype=like.dtype).reshape(shape)
    return torch.from_numpy(np.zeros(shape, np.float64 if like.dtype == torch.float64 else np.float32))
