"""AdamW with moments in a few columns of a fixed cosine basis, for large matrices."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_choice
from diffmatch.optim.adam import ADAMW, adam_update
from diffmatch.optim.block_codes import dequantize, quantize
from diffmatch.optim.elementwise import ElementwiseOptimizer, Work, decay

__all__ = ["DCTAdamW", "dct"]

_LARGEST_BASIS = 512
"""Side from which the transform goes through an FFT, rather than a product with the basis."""


class DCTAdamW(ElementwiseOptimizer):
    """AdamW in the frequencies of a cosine transform that a matrix's gradients have most of (Modoranu et al., 2025).

    The gradient of a matrix, of shape (n, m) with its shorter side k, is expanded along that side in the orthonormal
    DCT-II. The ``rank`` frequencies with the largest sum of magnitudes are kept, and AdamW runs on their coefficients.
    When the choice changes, the moments of a frequency that stays go along with it, and those of a new one start from
    zero. The state takes ``8 rank / k`` bytes an entry, and ``4 rank`` bytes for the frequencies, against AdamW's 8.

    Tensors of more axes count as matrices of the first axis by the rest. Vectors, and matrices with a side of at most
    ``rank``, go by plain AdamW. For large dense weights under memory pressure: what lies outside the chosen
    frequencies is lost, so that fields and vertices, whose gradients are not of low rank, converge much worse.

    Args:
        params: tensors or groups.
        lr: learning rate, a number or a 0-dim tensor.
        rank: number of frequencies; None takes a quarter of the shorter side of each matrix.
        gap: steps between two choices of frequencies.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, relative to ``lr``.
        error_feedback: whether what was left out is added to the next gradient: ``"none"``, ``"full"`` (a buffer of
            the matrix's size) or ``"8bit"`` (a quarter of that).
        maximize: ascend.
        seed: of the stochastic rounding of parameters in half precision.

    Raises:
        InputError: a setting is out of range, or a parameter is not real floating point.
    """

    rule = ADAMW

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        rank: int | None = None,
        gap: int = 1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        error_feedback: str = "none",
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        choice = {"rank": rank, "gap": gap, "error_feedback": error_feedback}
        super().__init__(params, {**settings, **choice}, maximize=maximize, seed=seed)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        check_choice("error_feedback", group["error_feedback"], ("none", "full", "8bit"))
        check_choice("sparse", group["sparse"], ("refuse", "densify"))
        for argument in ("rank", "gap"):
            value = group[argument]
            if not (argument == "rank" and value is None) and (not isinstance(value, int) or value < 1):
                raise InputError(argument, "a whole number >= 1", repr(value))

    def _init_state(self, state: dict[str, Any], param: Tensor, group: Mapping[str, Any]) -> None:
        rows, columns = _sides(param)
        rank = group["rank"] or max(1, columns // 4)
        if param.ndim < 2 or columns <= rank:
            super()._init_state(state, param, group)
            return
        dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
        state["step"] = 0
        state["frequencies"] = torch.arange(rank, dtype=torch.int32, device=param.device)
        state["low_rank_avg"] = torch.zeros(rows, rank, dtype=dtype, device=param.device)
        state["low_rank_avg_sq"] = torch.zeros_like(state["low_rank_avg"])
        if group["error_feedback"] == "full":
            state["error"] = torch.zeros(rows, columns, dtype=dtype, device=param.device)
        elif group["error_feedback"] == "8bit":
            zeros = torch.zeros(rows * columns, device=param.device)
            state["error"], state["error_scale"] = quantize(zeros, signed=True)

    def _add_dense(self, work: Work, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if "frequencies" in state:
            _step_matrix(param, -grad if group["maximize"] else grad, state, group)
        else:
            super()._add_dense(work, param, grad, state, group)


def dct(x: Float[Tensor, "*b k"]) -> Float[Tensor, "*b k"]:
    """Orthonormal DCT-II along the last axis.

    Small sides by a product with the basis, large ones by an FFT of the same length (Makhoul, 1980).

    Args:
        x: shape (\\*b, k).
    """
    k = x.shape[-1]
    if k <= _LARGEST_BASIS:
        return x @ _basis(k, x.dtype, x.device).mT
    folded = torch.cat((x[..., ::2], x[..., 1::2].flip(-1)), -1)
    frequency = torch.arange(k, dtype=x.dtype, device=x.device)
    turn = torch.polar(torch.full_like(frequency, math.sqrt(2 / k)), -math.pi / (2 * k) * frequency)
    turn[0] = turn[0] * math.sqrt(0.5)
    spectrum: Tensor = torch.fft.fft(folded) * turn
    return spectrum.real


def _cosines(frequencies: Int[Tensor, " r"], k: int, dtype: torch.dtype) -> Float[Tensor, "r k"]:
    """Rows of the orthonormal DCT-II basis of length k."""
    place = torch.arange(k, dtype=torch.float64, device=frequencies.device) + 0.5
    rows = math.sqrt(2 / k) * torch.cos(math.pi / k * frequencies.double()[:, None] * place)
    return torch.where(frequencies[:, None] == 0, math.sqrt(1 / k), rows).to(dtype)


@lru_cache(maxsize=32)
def _basis(k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _cosines(torch.arange(k, device=device), k, dtype)


def _sides(param: Tensor) -> tuple[int, int]:
    """The longer and the shorter side of a tensor as a matrix of its first axis by the rest."""
    first = param.shape[0] if param.ndim else 1
    rest = param.numel() // max(1, first)
    return max(first, rest), min(first, rest)


def _step_matrix(param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """One step on one matrix, in place."""
    matrix = grad.reshape(len(grad), -1)
    lying = matrix.shape[0] < matrix.shape[1]
    wanted = matrix.mT if lying else matrix  # (long, short)
    if "error" in state:
        wanted = wanted + _error(state, wanted)
    spectrum = dct(wanted)
    if state["step"] == 1 or state["step"] % group["gap"] == 0:
        _choose(spectrum, state)
    frequencies = state["frequencies"].long()
    coefficients, rows = spectrum[:, frequencies], _cosines(frequencies, wanted.shape[1], wanted.dtype)
    if "error" in state:
        _keep_error(state, wanted - coefficients @ rows)
    decay([param], group)
    moments = [[state["low_rank_avg"]], [state["low_rank_avg_sq"]]]
    (update,) = adam_update([coefficients], moments, [state["step"]], group)
    full = update @ rows
    param.sub_((full.mT if lying else full).reshape(param.shape) * group["lr"])


def _choose(spectrum: Tensor, state: dict[str, Any]) -> None:
    """Take the strongest frequencies, ascending; moments of those that stay move to their new column.

    Both bases are rows of one orthogonal matrix, so that this is the projection of the old moments on the new basis.
    """
    old = state["frequencies"]
    new = spectrum.abs().sum(0).topk(len(old)).indices.sort().values.to(old.dtype)
    same = new[:, None] == old[None, :]  # (new, old)
    source, stays = same.int().argmax(1), same.any(1)
    for name in ("low_rank_avg", "low_rank_avg_sq"):
        state[name] = state[name][:, source] * stays
    state["frequencies"] = new


def _error(state: Mapping[str, Any], like: Tensor) -> Tensor:
    """What the last steps left out."""
    error: Tensor = state["error"]
    if error.dtype == torch.uint8:
        error = dequantize(error, state["error_scale"], signed=True).reshape(like.shape)
    return error.to(like.dtype)


def _keep_error(state: dict[str, Any], error: Tensor) -> None:
    if state["error"].dtype == torch.uint8:
        state["error"], state["error_scale"] = quantize(error, signed=True)
    else:
        state["error"] = error
