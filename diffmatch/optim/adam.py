"""The rules of Adam, AdamW and momentum in tensor operations, for the optimizers that store states in other ways."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffmatch.optim.elementwise import Rule, Steps, bias_corrections, decay

__all__ = ["ADAM", "ADAMW", "MOMENTUM", "adam_update"]


def adam_update(
    grads: list[Tensor], buffers: list[list[Tensor]], steps: Steps, group: Mapping[str, Any]
) -> tuple[Tensor, ...]:
    """Take gradients into both moments, in place, and return the update without the learning rate.

    ``m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)``
    """
    (moments_1, moments_2), (b1, b2) = buffers, group["betas"]
    torch._foreach_mul_(moments_1, b1)
    torch._foreach_add_(moments_1, grads, alpha=1 - b1)
    torch._foreach_mul_(moments_2, b2)
    torch._foreach_addcmul_(moments_2, grads, grads, value=1 - b2)
    denominator = torch._foreach_sqrt(moments_2)
    torch._foreach_div_(denominator, [correction**0.5 for correction in bias_corrections(b2, steps)])
    torch._foreach_add_(denominator, group["eps"])
    torch._foreach_mul_(denominator, bias_corrections(b1, steps))
    return torch._foreach_div(moments_1, denominator)


def _adam(
    params: list[Tensor], grads: list[Tensor], buffers: list[list[Tensor]], steps: Steps, group: Mapping[str, Any]
) -> None:
    _move(params, adam_update(_with_penalty(params, grads, group), buffers, steps, group), group)


def _adamw(
    params: list[Tensor], grads: list[Tensor], buffers: list[list[Tensor]], steps: Steps, group: Mapping[str, Any]
) -> None:
    decay(params, group)
    _move(params, adam_update(grads, buffers, steps, group), group)


def _momentum(
    params: list[Tensor], grads: list[Tensor], buffers: list[list[Tensor]], steps: Steps, group: Mapping[str, Any]
) -> None:
    (momenta,) = buffers
    torch._foreach_mul_(momenta, group["momentum"])
    torch._foreach_add_(momenta, _with_penalty(params, grads, group))
    _move(params, torch._foreach_mul(momenta, 1.0), group)


def _with_penalty(params: list[Tensor], grads: list[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
    """Gradients of the loss with ``weight_decay / 2 * |params|^2`` added."""
    if not group["weight_decay"]:
        return grads
    return list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))


def _move(params: list[Tensor], update: tuple[Tensor, ...], group: Mapping[str, Any]) -> None:
    """``params -= lr * update``; the update is overwritten."""
    torch._foreach_mul_(update, group["lr"])
    torch._foreach_sub_(params, update)


ADAM = Rule(buffers=("exp_avg", "exp_avg_sq"), reference=_adam)
ADAMW = Rule(buffers=("exp_avg", "exp_avg_sq"), reference=_adamw)
MOMENTUM = Rule(buffers=("momentum_buffer",), reference=_momentum)
