"""Tensors in eight bits: a code an entry, and a scale a block of entries.

The 256 values that a code stands for are those of the dynamic map (Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", 2022): every decade has half as many as the next larger one, so that the relative error grows slowly
over seven decades below the largest entry of a block.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from diffmatch.errors import InputError

__all__ = ["BLOCKS", "Codebook", "codebook", "dequantize", "quantize"]

BLOCKS = tuple(2**k for k in range(6, 13))
"""Sizes of blocks that are offered."""

_DECADES = 7


@dataclass(frozen=True, eq=False)  # the hash of an object that exists once is its identity
class Codebook:
    """The values of the 256 codes, ascending, and what it takes to find the nearest.

    Attributes:
        values: shape (256,), float32.
        boundaries: shape (256,), float32: the least value that belongs to the next code; infinite for the last.
    """

    values: np.ndarray
    boundaries: np.ndarray

    @cached_property
    def steps(self) -> np.ndarray:
        """For numbers by the upper half of their ordered bits, what with the lower half gives their code << 16.

        Shape (65536,), uint32. No more than one boundary lies among numbers with the same upper half, so that the code
        of the least, and the distance of that boundary to the end, are enough: where the lower half reaches it, the sum
        carries into the next code.
        """
        upper = np.arange(2**16, dtype=np.uint32) << 16
        least, largest = self._codes(upper), self._codes(upper | 0xFFFF)
        boundary = ordered_bits(self.boundaries[least]) & 0xFFFF
        return (least << 16) + np.where(largest > least, 2**16 - boundary, 0).astype(np.uint32)

    def _codes(self, bits: np.ndarray) -> np.ndarray:
        """Codes of the numbers with these ordered bits, uint32; that of NaN is the last."""
        numbers = np.where(bits >> 31, bits ^ 0x7FFFFFFF, bits).astype(np.uint32).view(np.float32)
        return np.searchsorted(self.boundaries[:-1], np.nan_to_num(numbers, nan=2.0), side="right").astype(np.uint32)

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """What a kernel reads: values, steps."""
        return self.values, self.steps

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Values and boundaries (all but the last) as tensors of a device, copied there once."""
        return _tensors(self, device)


@lru_cache(maxsize=16)
def _tensors(book: Codebook, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(book.values).to(device), torch.from_numpy(book.boundaries[:-1]).to(device)


@lru_cache(maxsize=2)
def codebook(*, signed: bool) -> Codebook:
    """The dynamic map of eight bits: values in (-1, 1], or in [0, 1].

    In the unsigned one, meant for second moments, no positive value is taken for 0: a root of 0 in the denominator of
    an update, where the numerator is not 0, would let it explode.

    Args:
        signed: for values of both signs.
    """
    parts = []
    for decade in range(_DECADES):
        edges = torch.linspace(0.1, 1, (2**decade if signed else 2 ** (decade + 1)) + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2
        parts.append(10 ** (decade - _DECADES + 1) * middles)
    positive = torch.cat(parts)
    values = torch.cat((positive, *([-positive] if signed else []), torch.tensor([0.0, 1.0]))).sort().values.numpy()
    boundaries = np.append(_not_below((values[:-1].astype(np.float64) + values[1:]) / 2), np.float32(np.inf))
    if not signed:
        boundaries[0] = np.nextafter(np.float32(0), np.float32(1))
    return Codebook(values, boundaries)


def quantize(
    x: Float[Tensor, "*shape"], *, signed: bool, block: int = 256
) -> tuple[UInt8[Tensor, " n"], Float32[Tensor, " blocks"]]:
    """Codes of a tensor's entries in memory order, and the largest magnitude of each block.

    An entry gets the code whose value times the scale is nearest, the larger of two that are equally near. The error
    is at most 0.71 % of the block's largest magnitude (signed; half of that unsigned), and relative to the entry at
    most 6.2 % for entries above a tenth of it, 11 % in the decade below, 18 % in the next. Entries below some 1e-7 of
    it become 0 or, unsigned, the least positive value.

    Args:
        x: any shape; computed in float32.
        signed: whether entries may be negative.
        block: entries that share a scale; the last block may have fewer.

    Returns:
        Codes, shape (n,), and scales, shape (ceil(n / block),).

    Raises:
        InputError: the block is not one of the sizes 64, 128, ..., 4096.
    """
    check_block(block)
    _, boundaries = codebook(signed=signed).on(x.device)
    flat = x.detach().reshape(-1).float()
    n_blocks = -(-flat.numel() // block)
    padded = torch.nn.functional.pad(flat, (0, n_blocks * block - flat.numel())).reshape(n_blocks, block)
    scales = padded.abs().amax(1) if n_blocks else flat.new_zeros(0)
    ratio = padded / torch.where(scales == 0, 1.0, scales)[:, None]
    codes = torch.bucketize(ratio, boundaries, right=True, out_int32=True)
    return codes.to(torch.uint8).reshape(-1)[: flat.numel()].contiguous(), scales


def dequantize(
    codes: UInt8[Tensor, " n"], scales: Float32[Tensor, " blocks"], *, signed: bool, block: int = 256
) -> Float32[Tensor, " n"]:
    """The values that codes and scales stand for, the inverse of :func:`quantize`.

    Args:
        codes: shape (n,).
        scales: shape (ceil(n / block),).
        signed: as in :func:`quantize`.
        block: as in :func:`quantize`.
    """
    values, _ = codebook(signed=signed).on(codes.device)
    scale = scales.repeat_interleave(block)[: codes.numel()]
    return values[codes.int()] * scale


def check_block(block: int) -> None:
    """Check the size of a block.

    Raises:
        InputError: it is not offered.
    """
    if block not in BLOCKS:
        raise InputError("block", f"one of {', '.join(map(str, BLOCKS))}", repr(block))


def ordered_bits(numbers: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers as uint32 which, read as int32, ascend as the numbers do."""
    bits = numbers.astype(np.float32).view(np.uint32)
    return np.where(bits >> 31, bits ^ np.uint32(0x7FFFFFFF), bits)


def _not_below(exact: np.ndarray) -> np.ndarray:
    """The least float32 values that are not below these, so that comparisons decide as exact ones would."""
    rounded = exact.astype(np.float32)
    return np.where(rounded < exact, np.nextafter(rounded, np.float32(np.inf)), rounded)
