"""Stochastic rounding to half precision."""

import torch
from torch import Tensor

__all__ = ["round_stochastically"]

_MASK_64 = 2**64 - 1


def round_stochastically(wide: Tensor, *, into: Tensor, stream: tuple[int, ...]) -> None:
    """Round to one of the two nearest values of a half-precision dtype, so that the mean is the value itself.

    Steps below half the spacing of the dtype are lost by rounding to nearest; this way they arrive on the mean.

    Args:
        wide: float32 values.
        into: where they go, bfloat16 or float16, same shape.
        stream: numbers that the random bits are a function of.
    """
    generator = torch.Generator(wide.device).manual_seed(_mixed(stream))
    if into.dtype == torch.bfloat16:
        into.copy_(_dither(wide, 16, generator))
        return
    # Below the normal range the spacing of float16 is constant, 2^-24; above, 13 bits of the float32 are dropped.
    noise = torch.rand(wide.shape, generator=generator, device=wide.device)
    small = torch.floor(wide * 2.0**24 + noise) * 2.0**-24
    into.copy_(torch.where(wide.abs() < 2.0**-14, small, _dither(wide, 13, generator)))


def _dither(wide: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """Add a random number to the bits that are dropped, and drop them; infinities and NaN stay."""
    noise = torch.randint(2**bits, wide.shape, generator=generator, device=wide.device, dtype=torch.int32)
    rounded = ((wide.contiguous().view(torch.int32) + noise) & -(2**bits)).view(torch.float32)
    return torch.where(wide.isfinite(), rounded, wide)


def _mixed(stream: tuple[int, ...]) -> int:
    """One seed of several numbers (the finaliser of splitmix64, once a number)."""
    seed = 0
    for number in stream:
        seed = (seed + number + 0x9E3779B97F4A7C15) & _MASK_64
        seed = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 & _MASK_64
        seed = (seed ^ seed >> 27) * 0x94D049BB133111EB & _MASK_64
        seed ^= seed >> 31
    return seed
