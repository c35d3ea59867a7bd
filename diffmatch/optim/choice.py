"""Which optimizer suits a problem, and why."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from diffmatch.errors import check_choice

__all__ = ["Choice", "Problem", "choose_optimizer"]

Problem = Literal["smooth", "absolute", "sampled"]

_HISTORY = 100
"""Pairs of vectors that L-BFGS keeps, as torch does by default."""

_SHARE = 0.5
"""Of the device's memory that parameters, gradients and an optimizer's state may fill; the loss needs the rest."""


@dataclass(frozen=True)
class Choice:
    """The name of an optimizer and the reason for it, in a phrase."""

    name: str
    reason: str


def choose_optimizer(
    params: Sequence[Tensor], *, problem: Problem = "sampled", groups: int = 1, reads_once: bool = False
) -> Choice:
    """The optimizer to begin with.

    L-BFGS needs the fewest evaluations of a smooth loss that is the same at each of them, but its line search is misled
    by kinks and by samples: those take AdamW. Where AdamW's two numbers a parameter would fill the memory, its states
    are held in 8 bits.

    Args:
        params: what is fitted.
        problem: ``"smooth"``: twice differentiable and the same at every evaluation; ``"absolute"``: the same at every
            evaluation with kinks where it is small, as sums of absolute values; ``"sampled"``: drawn anew at each.
        groups: number of parameter groups; L-BFGS takes one.
        reads_once: something needs an optimizer that reads the gradients once a step.

    Raises:
        InputError: an unknown kind of problem.

    Examples:
        >>> choose_optimizer([torch.zeros(3)], problem="smooth").name
        'lbfgs'
    """
    check_choice("problem", problem, get_args(Problem))
    count = sum(p.numel() for p in params)
    bytes_each = max(p.element_size() for p in params)
    room = _SHARE * _memory(params[0].device)
    if problem == "smooth":
        if groups > 1:
            blocker = "there are several parameter groups"
        elif reads_once:
            blocker = "gradients are to be read once a step"
        elif (_HISTORY * 2 + 3) * bytes_each * count > room:
            blocker = "its history would fill the memory"
        else:
            return Choice("lbfgs", "a smooth loss, the same at every evaluation")
        reason = f"a smooth loss would suit lbfgs, but {blocker}"
    else:
        reason = {
            "absolute": "a loss with kinks, which mislead a line search",
            "sampled": "the loss may differ from call to call, which misleads a line search",
        }[problem]
    if 4 * bytes_each * count > room:
        return Choice("adamw8bit", f"{reason}; states in 8 bits, since AdamW's would fill the memory")
    return Choice("adamw", reason)


def _memory(device: torch.device) -> float:
    """Bytes that a device has in all, so that the choice does not depend on what else is running."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return float("inf")
