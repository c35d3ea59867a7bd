"""Noise for estimators that perturb costs."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import check_positive

__all__ = ["Noise", "gumbel", "normal", "sum_of_gamma"]

Noise = Callable[[tuple[int, ...], Tensor, torch.Generator | None], Tensor]
"""``noise(shape, like, generator)``: draws with the dtype and device of ``like``."""


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
    """Standard normal draws."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def gumbel(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
    """Standard Gumbel draws, -log E with E exponential."""
    draws = torch.empty(shape, dtype=like.dtype, device=like.device).exponential_(generator=generator)
    return -draws.clamp_min(torch.finfo(like.dtype).tiny).log()


def sum_of_gamma(k: int, *, terms: int = 10) -> Noise:
    """Noise of which k draws add up to a Gumbel variable (Niepert et al. 2021, theorem 1).

    For problems whose solutions have k ones, such as a permutation of k things.

    Args:
        k: number of ones in a solution.
        terms: terms of the series.
    """
    check_positive("k", k)

    def draw(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        concentration = torch.full(shape, 1.0 / k, dtype=like.dtype, device=like.device)
        total = torch.zeros_like(concentration)
        for i in range(1, terms + 1):
            total += torch._standard_gamma(concentration, generator) * (k / i)
        return (total - torch.tensor(float(terms)).log().item()) / k

    return draw
