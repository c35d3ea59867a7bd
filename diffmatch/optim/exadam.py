"""EXAdam: Adam with bias corrections that look at both moments, and the gradient added to the first."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffmatch.errors import check_positive
from diffmatch.optim.elementwise import ElementwiseOptimizer, Rule, Steps, bias_corrections, decay
from diffmatch.optim.kernels import exadam_kernel

__all__ = ["EXAdam"]


def _coefficients(group: Mapping[str, Any], step: int) -> tuple[float, ...]:
    lr, (b1, b2) = float(group["lr"]), group["betas"]
    powers = b1**step, b2**step
    scales = (1 / (1 - power) for power in powers)
    sign = -1.0 if group["maximize"] else 1.0
    return (
        *(lr, 1 - lr * group["weight_decay"], b1, 1 - b1, b2, 1 - b2, group["eps"]),
        *(*powers, *scales, group["clip"], sign),
    )


def _reference(
    params: list[Tensor], grads: list[Tensor], buffers: list[list[Tensor]], steps: Steps, group: Mapping[str, Any]
) -> None:
    (moments_1, moments_2), (b1, b2), eps = buffers, group["betas"], group["eps"]
    corrections_1, corrections_2 = bias_corrections(b1, steps), bias_corrections(b2, steps)
    decay(params, group)
    torch._foreach_mul_(moments_1, b1)
    torch._foreach_add_(moments_1, grads, alpha=1 - b1)
    torch._foreach_mul_(moments_2, b2)
    torch._foreach_addcmul_(moments_2, grads, grads, value=1 - b2)
    update = torch._foreach_add(moments_1, grads)
    torch._foreach_mul_(update, _factor(moments_2, eps, b2, steps))
    torch._foreach_div_(update, corrections_1)
    denominator = torch._foreach_mul(moments_2, _factor(torch._foreach_mul(moments_1, moments_1), eps, b1, steps))
    torch._foreach_div_(denominator, corrections_2)
    torch._foreach_sqrt_(denominator)
    torch._foreach_add_(denominator, eps)
    torch._foreach_div_(update, denominator)
    if math.isfinite(group["clip"]):
        torch._foreach_clamp_max_(update, group["clip"])
        torch._foreach_clamp_min_(update, -group["clip"])
    torch._foreach_mul_(update, group["lr"])
    torch._foreach_sub_(params, update)


def _factor(squares: list[Tensor] | tuple[Tensor, ...], eps: float, beta: float, steps: Steps) -> tuple[Tensor, ...]:
    """``1 + beta**step * s / (s + eps)``."""
    factor = torch._foreach_div(squares, torch._foreach_add(squares, eps))
    powers: list[Any] = [beta**step for step in steps]  # numbers or tensors
    torch._foreach_mul_(factor, powers)
    torch._foreach_add_(factor, 1)
    return factor


class EXAdam(ElementwiseOptimizer):
    """EXAdam (Adly, "EXAdam: The Power of Adaptive Cross-Moments", 2024; second version, without growing rates).

        m <- b1 m + (1 - b1) g,               v <- b2 v + (1 - b2) g^2
        d1 = 1 + b2^t v / (v + eps),          d2 = 1 + b1^t m^2 / (m^2 + eps)
        p <- (1 - lr weight_decay) p - lr (m + g) d1 / (1 - b1^t) / (sqrt(v d2 / (1 - b2^t)) + eps)

    The gradient beside m is divided by ``1 - b1^t`` as well, so the first steps are long: about 16 ``lr`` an entry at
    t = 1. Take a rate 3 to 10 times below Adam's, a warm-up, or ``clip=2``.

    Args:
        params: tensors or groups.
        lr: learning rate, a number or a 0-dim tensor.
        betas: decay of the two moments.
        eps: as in the formula.
        weight_decay: decoupled, relative to ``lr``.
        clip: largest step of an entry, in units of ``lr``.
        maximize: ascend.
        sparse: what to do with sparse gradients: ``"refuse"``, ``"densify"`` or ``"rows"`` (update only those rows).
        seed: of the stochastic rounding of parameters in half precision.
        fused: None uses the compiled kernel on the CPU; False uses tensor operations everywhere.

    Raises:
        InputError: a setting is out of range, or a parameter is not real floating point.
    """

    rule = Rule(
        buffers=("exp_avg", "exp_avg_sq"), reference=_reference, coefficients=_coefficients, kernel=exadam_kernel
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float = math.inf,
        maximize: bool = False,
        sparse: str = "refuse",
        seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "clip": clip}
        super().__init__(params, settings, maximize=maximize, sparse=sparse, seed=seed, fused=fused)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        if group["clip"] != math.inf:
            check_positive("clip", group["clip"])
