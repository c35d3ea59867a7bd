"""Adam with one step size a tensor."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffmatch.optim.elementwise import ElementwiseOptimizer, Rule, Steps, bias_corrections, decay

__all__ = ["AdamUniform"]


def _reference(
    params: list[Tensor], grads: list[Tensor], buffers: list[list[Tensor]], steps: Steps, group: Mapping[str, Any]
) -> None:
    moving = [index for index, p in enumerate(params) if p.numel()]
    params, grads = ([column[i] for i in moving] for column in (params, grads))
    steps = [steps[i] for i in moving]
    means, squares = ([column[i] for i in moving] for column in buffers)
    if not moving:
        return
    b1, b2 = group["betas"]
    decay(params, group)
    torch._foreach_mul_(means, b1)
    torch._foreach_add_(means, grads, alpha=1 - b1)
    torch._foreach_mul_(squares, b2)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - b2)
    scales = torch._foreach_sqrt(torch._foreach_max(squares))
    torch._foreach_div_(scales, [math.sqrt(1 - b2**step) for step in steps])
    torch._foreach_add_(scales, group["eps"])
    torch._foreach_mul_(scales, bias_corrections(b1, steps))
    update = torch._foreach_mul(means, group["lr"])
    torch._foreach_sub_(params, torch._foreach_div(update, scales))


class AdamUniform(ElementwiseOptimizer):
    """Adam whose second moment is the largest of the tensor (Nicolet et al., "Large Steps in Inverse Rendering", 2021).

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        p <- (1 - lr weight_decay) p - lr m / (1 - b1^t) / (sqrt(max(v) / (1 - b2^t)) + eps)

    The step keeps the shape of the gradient, so that a gradient that was made smooth by a filter
    (:mod:`diffmatch.optim.structure`) gives a smooth step; Adam's own division by each entry's size would undo that.

    Args:
        params: tensors or groups.
        lr: learning rate, the largest move of an entry.
        betas: decay of the two moments.
        eps: as in the formula.
        weight_decay: decoupled, relative to ``lr``.
        maximize: ascend.
        seed: of the stochastic rounding of parameters in half precision.

    Raises:
        InputError: a setting is out of range, or a parameter is not real floating point.
    """

    rule = Rule(buffers=("exp_avg", "exp_avg_sq"), reference=_reference)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings, maximize=maximize, seed=seed, fused=False)
