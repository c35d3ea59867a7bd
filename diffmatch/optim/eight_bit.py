"""Optimizers whose states take one byte an entry: one mechanism around the rules of Adam, AdamW, Lion and momentum.

Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022. In a step the states of a block are decoded, the
exact rule is applied in float32, the parameter moves by the states as they are, and then they are encoded again.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.optim import kernels
from diffmatch.optim.adam import ADAM, ADAMW, MOMENTUM
from diffmatch.optim.block_codes import check_block, codebook, dequantize, quantize
from diffmatch.optim.elementwise import Batch, ElementwiseOptimizer, Work, check_memory
from diffmatch.optim.lion import LION
from diffmatch.optim.threads import run_in_parts

__all__ = ["Adam8bit", "AdamW8bit", "Lion8bit", "SGD8bit"]

_LEAST_PART = 2**14
"""Entries below which a further thread does not pay."""


class EightBitOptimizer(ElementwiseOptimizer):
    """Elementwise optimizer whose buffers are codes and scales.

    Parameters of fewer than ``min_8bit_size`` entries, those of groups with ``state_bits=32`` and those whose gradients
    come as rows (``sparse="rows"``) keep float32 states. Embeddings do better with them. Sizes need not be multiples of
    the block.

    The state of a parameter is its number of steps and for each buffer the codes, uint8, in memory order, and beside
    them ``<buffer>_scale``, float32, one a block.
    """

    kind: ClassVar[int]
    """Number of the rule in :func:`diffmatch.optim.kernels.eight_bit_kernel`."""
    decoupled: ClassVar[bool] = True
    """Whether weight decay acts on the parameters, rather than through the gradient."""

    def __init__(
        self,
        params: Any,
        defaults: Mapping[str, Any],
        *,
        block: int,
        min_8bit_size: int,
        state_bits: int,
        **shared: Any,
    ) -> None:
        storage = {"block": block, "min_8bit_size": min_8bit_size, "state_bits": state_bits}
        super().__init__(params, {**defaults, **storage}, **shared)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        check_block(group["block"])
        if group["state_bits"] not in (8, 32):
            raise InputError("state_bits", "8 or 32", repr(group["state_bits"]))

    def _init_state(self, state: dict[str, Any], param: Tensor, group: Mapping[str, Any]) -> None:
        small = param.numel() < group["min_8bit_size"]
        if small or group["state_bits"] == 32 or group["sparse"] == "rows":
            super()._init_state(state, param, group)
            return
        state["step"] = 0
        for name in self.rule.buffers:
            zeros = torch.zeros(param.numel(), device=param.device)
            state[name], state[f"{name}_scale"] = quantize(zeros, signed=_signed(name), block=group["block"])

    def _add_dense(self, work: Work, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if state[self.rule.buffers[0]].dtype != torch.uint8:
            super()._add_dense(work, param, grad, state, group)
            return
        fused = group["fused"] is not False and param.is_cpu and param.dtype == torch.float32
        if fused and param.is_contiguous():
            buffers = tuple([state[key] for name in self.rule.buffers for key in (name, f"{name}_scale")])
            work.fused.setdefault(torch.uint8, Batch()).add(param, grad.contiguous(), buffers, group, state["step"])
        else:
            self._add_decoded(work, param, grad, state, group)

    def _add_decoded(
        self, work: Work, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Decode the states, step as if they were kept in full, and encode them at the end."""
        block, decoded = group["block"], {}
        for name in self.rule.buffers:
            flat = dequantize(state[name], state[f"{name}_scale"], signed=_signed(name), block=block)
            decoded[name] = flat.to(param.dtype).reshape(param.shape)
        super()._add_dense(work, param, grad, {"step": state["step"], **decoded}, {**group, "fused": False})

        def encode() -> None:
            for name, values in decoded.items():
                codes, scales = quantize(values, signed=_signed(name), block=block)
                state[name].copy_(codes)
                state[f"{name}_scale"].copy_(scales)

        work.finish.append(encode)

    def _run_fused(self, batch: Batch, dtype: torch.dtype) -> None:
        if dtype != torch.uint8:
            super()._run_fused(batch, dtype)
            return
        sizes = [p.numel() for p in batch.params]
        blocks = [group["block"] for group in batch.groups]
        counts = [-(-size // block) for size, block in zip(sizes, blocks, strict=True)]
        columns = [batch.params, batch.grads, *map(list, zip(*batch.buffers, strict=True))]
        check_memory(batch.grads, sizes, torch.float32)
        for codes, scales in zip(columns[2::2], columns[3::2], strict=True):
            check_memory(codes, sizes, torch.uint8)
            check_memory(scales, counts, torch.float32)
        addresses = np.array([[t.data_ptr() for t in column] for column in columns], np.int64)
        starts = np.concatenate(([0], np.cumsum(counts)))
        coefficients, rows = batch.coefficients(self._coefficients, np.dtype(np.float32))
        run_in_parts(
            kernels.eight_bit_kernel,
            *(self.kind, addresses, starts, rows, coefficients, np.array(sizes), np.array(blocks)),
            *(codebook(signed=True).arrays, codebook(signed=False).arrays),
            total=int(starts[-1]),
            least=max(1, _LEAST_PART // min(blocks)),
        )

    def _coefficients(self, group: Mapping[str, Any], step: int) -> tuple[float, ...]:
        """See :func:`diffmatch.optim.kernels.eight_bit_kernel`."""
        lr, weight_decay, sign = float(group["lr"]), group["weight_decay"], -1.0 if group["maximize"] else 1.0
        factor, l2 = (1 - lr * weight_decay, 0.0) if self.decoupled else (1.0, weight_decay)
        if self.kind == kernels.MOMENTUM:
            return lr, factor, l2, group["momentum"], 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, sign
        b1, b2 = group["betas"]
        corrections = 1 / (1 - b1**step), (1 - b2**step) ** -0.5
        return lr, factor, l2, b1, 1 - b1, b2, 1 - b2, group.get("eps", 0.0), *corrections, sign


class AdamW8bit(EightBitOptimizer):
    """AdamW with both moments in eight bits: 2.03 bytes of state an entry instead of 8.

    Args:
        params: tensors or groups.
        lr: learning rate, a number or a 0-dim tensor.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, relative to ``lr``.
        block: entries that share a scale: 64, 128, ..., 4096.
        min_8bit_size: parameters with fewer entries keep float32 states.
        state_bits: 32 keeps float32 states in all of a group.
        maximize: ascend.
        sparse: what to do with sparse gradients: ``"refuse"``, ``"densify"`` or ``"rows"`` (update only those rows;
            all states of the group are float32).
        seed: of the stochastic rounding of parameters in half precision.
        fused: None uses the compiled kernel on the CPU (float32 arithmetic); False uses tensor operations everywhere.

    Raises:
        InputError: a setting is out of range, or a parameter is not real floating point.
    """

    rule = ADAMW
    kind = kernels.ADAM

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        block: int = 256,
        min_8bit_size: int = 4096,
        state_bits: int = 8,
        maximize: bool = False,
        sparse: str = "refuse",
        seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        storage = {"block": block, "min_8bit_size": min_8bit_size, "state_bits": state_bits}
        super().__init__(params, settings, maximize=maximize, sparse=sparse, seed=seed, fused=fused, **storage)


class Adam8bit(AdamW8bit):
    """Adam with both moments in eight bits: :class:`AdamW8bit`, but weight decay is a part of the gradient.

    Args:
        params: tensors or groups.
        lr: learning rate, a number or a 0-dim tensor.
        weight_decay: factor of the parameters in the gradient.
        betas: as for :class:`AdamW8bit`, like all that follows.
        eps: see there.
        block: see there.
        min_8bit_size: see there.
        state_bits: see there.
        maximize: see there.
        sparse: see there.
        seed: see there.
        fused: see there.

    Raises:
        InputError: a setting is out of range, or a parameter is not real floating point.
    """

    rule = ADAM
    decoupled = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        block: int = 256,
        min_8bit_size: int = 4096,
        state_bits: int = 8,
        maximize: bool = False,
        sparse: str = "refuse",
        seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            block=block,
            min_8bit_size=min_8bit_size,
            state_bits=state_bits,
            maximize=maximize,
            sparse=sparse,
            seed=seed,
            fused=fused,
        )


class Lion8bit(EightBitOptimizer):
    """Lion with its momentum in eight bits: 1.02 bytes of state an entry; see :class:`diffmatch.optim.Lion`.

    Where an interpolated momentum is smaller than the spacing of the codes, its sign may differ: visible close to a
    minimum only.

    Args:
        params: tensors or groups.
        lr: learning rate, a number or a 0-dim tensor.
        betas: weight of the old momentum in the direction, and in the new momentum.
        weight_decay: decoupled, relative to ``lr``.
        block: entries that share a scale: 64, 128, ..., 4096.
        min_8bit_size: parameters with fewer entries keep float32 states.
        state_bits: 32 keeps float32 states in all of a group.
        maximize: ascend.
        sparse: what to do with sparse gradients: ``"refuse"``, ``"densify"`` or ``"rows"`` (update only those rows;
            all states of the group are float32).
        seed: of the stochastic rounding of parameters in half precision.
        fused: None uses the compiled kernel on the CPU (float32 arithmetic); False uses tensor operations everywhere.

    Raises:
        InputError: a setting is out of range, or a parameter is not real floating point.
    """

    rule = LION
    kind = kernels.LION

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        block: int = 256,
        min_8bit_size: int = 4096,
        state_bits: int = 8,
        maximize: bool = False,
        sparse: str = "refuse",
        seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        storage = {"block": block, "min_8bit_size": min_8bit_size, "state_bits": state_bits}
        super().__init__(params, settings, maximize=maximize, sparse=sparse, seed=seed, fused=fused, **storage)


class SGD8bit(EightBitOptimizer):
    """Gradient descent with momentum, ``m <- momentum m + g``, ``p <- p - lr m``, the momentum in eight bits.

    Args:
        params: tensors or groups.
        lr: learning rate, a number or a 0-dim tensor.
        momentum: factor of the old momentum, in [0, 1).
        weight_decay: factor of the parameters in the gradient.
        block: entries that share a scale: 64, 128, ..., 4096.
        min_8bit_size: parameters with fewer entries keep float32 states.
        state_bits: 32 keeps float32 states in all of a group.
        maximize: ascend.
        sparse: what to do with sparse gradients: ``"refuse"``, ``"densify"`` or ``"rows"`` (update only those rows;
            all states of the group are float32).
        seed: of the stochastic rounding of parameters in half precision.
        fused: None uses the compiled kernel on the CPU (float32 arithmetic); False uses tensor operations everywhere.

    Raises:
        InputError: a setting is out of range, or a parameter is not real floating point.
    """

    rule = MOMENTUM
    kind = kernels.MOMENTUM
    decoupled = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        block: int = 256,
        min_8bit_size: int = 4096,
        state_bits: int = 8,
        maximize: bool = False,
        sparse: str = "refuse",
        seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        storage = {"block": block, "min_8bit_size": min_8bit_size, "state_bits": state_bits}
        super().__init__(params, settings, maximize=maximize, sparse=sparse, seed=seed, fused=fused, **storage)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        if not 0 <= group["momentum"] < 1:
            raise InputError("momentum", "a number in [0, 1)", repr(group["momentum"]))


def _signed(buffer: str) -> bool:
    """Second moments have no sign."""
    return buffer != "exp_avg_sq"
