"""What optimizers that differentiate the loss themselves ask of a closure."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffmatch.errors import InputError

__all__ = ["check_gradients", "evaluate", "need_closure"]


def need_closure(closure: Callable[[], Any] | None) -> Callable[[], Any]:
    """The closure, which cannot be left out.

    Raises:
        InputError: there is none.
    """
    if closure is None:
        raise InputError("closure", "a function that returns the loss with its graph", "None")
    return closure


def evaluate(closure: Callable[[], Any]) -> Any:
    """The loss with its graph, also where the caller has switched gradients off."""
    with torch.enable_grad():
        return closure()


def check_gradients(grads: Sequence[Tensor | None]) -> None:
    """Look at the norms of all gradients together, in one transfer, before anything is done with them.

    Raises:
        FloatingPointError: one is NaN or infinite; the message says which.
    """
    present = [(index, g.detach()) for index, g in enumerate(grads) if g is not None]
    if not present:
        return
    norms = torch._foreach_norm([g for _, g in present])
    device = norms[0].device
    values = torch.stack([norm.to(device, torch.float32) for norm in norms]).tolist()
    for (index, g), norm in zip(present, values, strict=True):
        # A large float64 norm overflows in float32, and a half one in itself: those are looked at by their entries.
        if not math.isfinite(norm) and not bool(g.isfinite().all()):
            raise FloatingPointError(f"the gradient of parameter {index} of shape {tuple(g.shape)} is not finite")
