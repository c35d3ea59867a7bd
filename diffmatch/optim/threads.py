"""Serial kernels that release the interpreter lock, run side by side on parts of a range."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["run_in_parts"]

_pool: ThreadPoolExecutor | None = None


def run_in_parts(kernel: Callable[..., Any], *arguments: Any, total: int, least: int) -> None:
    """Call ``kernel(*arguments, first, last)`` for parts that make up the range from 0 to ``total``.

    As many parts as torch may use threads, so that one setting governs both; the first runs in the calling thread.

    Args:
        kernel: function that releases the interpreter lock; what it does to one part depends on no other.
        *arguments: what all parts share.
        total: length of the range.
        least: length below which a part is not worth a thread.
    """
    parts = max(1, min(torch.get_num_threads(), total // least))
    bounds = [total * part // parts for part in range(parts + 1)]
    waiting = [_workers().submit(kernel, *arguments, *bounds[part : part + 2]) for part in range(1, parts)]
    kernel(*arguments, bounds[0], bounds[1])
    for future in waiting:
        future.result()


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="diffmatch-optim")
    return _pool


def _forget_workers() -> None:
    """A forked process inherits the pool without its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
