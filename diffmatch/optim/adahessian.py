"""AdaHessian: Adam with the Hessian's diagonal in place of squared gradients."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffmatch.autodiff.hessian import Curvature
from diffmatch.errors import InputError, check_choice
from diffmatch.optim.elementwise import Rule, Steps, bias_corrections
from diffmatch.optim.second_order import DiagonalOptimizer

__all__ = ["AdaHessian", "spatial_average"]

Block = str | int | tuple[int, ...]


def spatial_average(values: Tensor, block: Block) -> Tensor:
    """Means over neighbouring entries, each repeated over its neighbourhood.

    Args:
        values: any shape.
        block: ``"none"``; ``"conv"``, the mean over all axes from the third on; a number, runs of so many entries of
            the flattened tensor (3 for vertices of shape (v, 3)); or the edges of a block, one an axis. The last run or
            block along an axis may be shorter and is the mean of what it has.

    Raises:
        InputError: edges for another number of axes than the tensor has.
    """
    if block == "none":
        return values
    if block == "conv":
        axes = tuple(range(2, values.ndim))
        return values.mean(axes, keepdim=True).expand_as(values) if axes else values
    if isinstance(block, int):
        return _averaged(values.reshape(-1), 0, block).view(values.shape)
    if isinstance(block, str):
        raise InputError("block", "none, conv, a number or edges", repr(block))
    if len(block) != values.ndim:
        raise InputError("block", f"{values.ndim} edges for a parameter of shape {tuple(values.shape)}", repr(block))
    for axis, edge in enumerate(block):  # edges of means are means over boxes: each axis weights its entries evenly
        values = _averaged(values, axis, edge)
    return values


def _averaged(values: Tensor, axis: int, edge: int) -> Tensor:
    size = values.shape[axis]
    if edge == 1 or size == 0:
        return values
    place = torch.arange(size, device=values.device) // edge
    counts = torch.bincount(place).to(values.dtype)
    shape = [1] * values.ndim
    shape[axis] = -1
    sums = values.new_zeros([len(counts) if i == axis else n for i, n in enumerate(values.shape)])
    means = sums.index_add_(axis, place, values) / counts.view(shape)
    return means.index_select(axis, place)


def _reference(
    params: list[Tensor], grads: list[Tensor], buffers: list[list[Tensor]], steps: Steps, group: Mapping[str, Any]
) -> None:
    (momenta, squares), (b1, b2) = buffers, group["betas"]
    refreshes = [-(-step // group["k"]) for step in steps]
    torch._foreach_mul_(momenta, b1)
    torch._foreach_add_(momenta, grads, alpha=1 - b1)
    denominator = torch._foreach_sqrt(squares)
    torch._foreach_div_(denominator, [math.sqrt(1 - b2**count) for count in refreshes])
    torch._foreach_pow_(denominator, group["power"])
    torch._foreach_add_(denominator, group["eps"])
    update = torch._foreach_div(momenta, bias_corrections(b1, steps))
    torch._foreach_div_(update, denominator)
    if group["weight_decay"]:
        torch._foreach_add_(update, params, alpha=group["weight_decay"])
    torch._foreach_mul_(update, group["lr"])
    torch._foreach_sub_(params, update)


class AdaHessian(DiagonalOptimizer):
    """AdaHessian (Yao et al., "ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning", 2021).

        D = average(|v * H v|),   m <- b1 m + (1 - b1) g,   s <- b2 s + (1 - b2) D^2
        p <- p - lr (m / (1 - b1^t) / ((s / (1 - b2^t))^(power / 2) + eps) + weight_decay p)

    v are random signs. A refresh costs about two gradients, at every step with ``k=1``. On deterministic problems of a
    few hundred steps it rarely beats AdamW or L-BFGS; see the page on optimizers.

    Args:
        params: tensors or groups, any number of axes.
        lr: learning rate, as large as for SGD.
        betas: decay of the two moments.
        eps: as in the formula.
        weight_decay: as in the formula.
        power: 1, or less to rely on the curvature less.
        block: over what entries to average ``|v * H v|``; see :func:`spatial_average`.
        k: steps between two refreshes of s.
        samples: probes of a refresh.
        curvature: whose diagonal; the Hessian of the loss where None.
        maximize: ascend.
        seed: of the probes.

    Raises:
        InputError: a setting is out of range, or a parameter is not real floating point.
    """

    rule = Rule(buffers=("exp_avg", "exp_hessian_sq"), reference=_reference)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.15,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        power: float = 1.0,
        block: Block = "none",
        k: int = 1,
        samples: int = 1,
        curvature: Curvature | None = None,
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "power": power, "block": block}
        super().__init__(
            params,
            {**settings, "k": k},
            k=k,
            samples=samples,
            curvature=curvature,
            maximize=maximize,
            seed=seed,
            fused=False,
        )

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        if not 0 < group["power"] <= 1:
            raise InputError("power", "a number in (0, 1]", repr(group["power"]))
        block = group["block"]
        if isinstance(block, str):
            check_choice("block", block, ("none", "conv"))
        elif min((block,) if isinstance(block, int) else block) < 1:
            raise InputError("block", "edges of at least 1", repr(block))

    def _take_in(self, state: dict[str, Any], estimate: Tensor, group: Mapping[str, Any]) -> None:
        average, b2 = spatial_average(estimate.abs(), group["block"]), group["betas"][1]
        state["exp_hessian_sq"].mul_(b2).addcmul_(average, average, value=1 - b2)
