"""Lion: the sign of an interpolated momentum."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffmatch.optim.elementwise import ElementwiseOptimizer, Rule, Steps, decay
from diffmatch.optim.kernels import lion_kernel

__all__ = ["LION", "Lion"]


def _coefficients(group: Mapping[str, Any], step: int) -> tuple[float, ...]:
    lr, (b1, b2) = float(group["lr"]), group["betas"]
    return lr, 1 - lr * group["weight_decay"], b1, 1 - b1, b2, 1 - b2, -1.0 if group["maximize"] else 1.0


def _reference(
    params: list[Tensor], grads: list[Tensor], buffers: list[list[Tensor]], steps: Steps, group: Mapping[str, Any]
) -> None:
    (momenta,), (b1, b2) = buffers, group["betas"]
    decay(params, group)
    direction = torch._foreach_mul(momenta, b1)
    torch._foreach_add_(direction, grads, alpha=1 - b1)
    torch._foreach_sign_(direction)
    torch._foreach_mul_(direction, group["lr"])
    torch._foreach_sub_(params, direction)
    torch._foreach_mul_(momenta, b2)
    torch._foreach_add_(momenta, grads, alpha=1 - b2)


LION = Rule(buffers=("exp_avg",), reference=_reference, coefficients=_coefficients, kernel=lion_kernel)


class Lion(ElementwiseOptimizer):
    """Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, Algorithm 2).

        p <- (1 - lr weight_decay) p - lr sign(b1 m + (1 - b1) g),    m <- b2 m + (1 - b2) g

    One buffer, half of AdamW's state. Each entry moves by ``lr`` whatever its gradient, so the step does not shrink
    near a minimum: let the learning rate decay. The authors take a rate 3 to 10 times below AdamW's and a weight decay
    as much above, and ``betas=(0.95, 0.98)`` where training is unstable.

    Args:
        params: tensors or groups.
        lr: learning rate, a number or a 0-dim tensor.
        betas: weight of the old momentum in the direction, and in the new momentum.
        weight_decay: decoupled, relative to ``lr``.
        maximize: ascend.
        sparse: what to do with sparse gradients: ``"refuse"``, ``"densify"`` or ``"rows"`` (update only those rows).
        seed: of the stochastic rounding of parameters in half precision.
        fused: None uses the compiled kernel on the CPU; False uses tensor operations everywhere.

    Raises:
        InputError: a setting is out of range, or a parameter is not real floating point.
    """

    rule = LION

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        maximize: bool = False,
        sparse: str = "refuse",
        seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, settings, maximize=maximize, sparse=sparse, seed=seed, fused=fused)
