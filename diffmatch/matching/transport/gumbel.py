"""Samples of soft permutations by Gumbel noise."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_positive, check_shape
from diffmatch.matching.transport.result import TransportResult
from diffmatch.matching.transport.sinkhorn import sinkhorn

__all__ = ["gumbel_sinkhorn"]


def gumbel_sinkhorn(
    scores: Float[Tensor, "*b n n"],
    *,
    temperature: float | Tensor,
    noise: float = 1.0,
    samples: int | None = None,
    generator: torch.Generator | None = None,
    tol: float | None = None,
    max_steps: int = 10_000,
    adjoint: str = "implicit",
) -> TransportResult:
    """Doubly stochastic samples ``Sinkhorn((scores + noise * gamma) / temperature)``, gamma of the Gumbel distribution.

    As the temperature falls they tend to permutations, of which the scores make the good ones likely (Mena, Belanger,
    Linderman, Snoek 2018). Rows and columns of the plan sum to 1.

    Args:
        scores: scores, higher is better, shape (\\*b, n, n).
        temperature: entropic strength in the unit of the scores; 1 down to about 0.05 over a training.
        noise: factor of the noise; 0 for none, as when a trained model is applied.
        samples: draw this many for each element, along a new first axis; None for one without that axis.
        generator: where the noise comes from, on the device of the scores.
        tol: L1 marginal error to reach, relative to n.
        max_steps: largest number of steps.
        adjoint: ``"implicit"``, ``"unroll"`` or ``"value"``.

    Raises:
        InputError: scores that are not square, or what `sinkhorn` raises.
    """
    check_shape("scores", scores, ("n", "n"), batch=True)
    check_floating("scores", scores)
    check_positive("noise", noise, allow_zero=True)
    if scores.shape[-1] != scores.shape[-2]:
        raise InputError("scores", "as many rows as columns", str(tuple(scores.shape)))
    if samples is not None:
        if samples < 0:
            raise InputError("samples", "a number >= 0", repr(samples))
        scores = scores.expand(samples, *scores.shape)
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    uniform = torch.rand(scores.shape, generator=generator, dtype=dtype, device=scores.device)
    gamma = -(-uniform.clamp(1e-20, 1 - 1e-7).log()).log()
    cost = -(scores + noise * gamma.to(scores.dtype))
    ones = gamma.new_ones(scores.shape[-1])
    return sinkhorn(cost, ones, ones, eps=temperature, tol=tol, max_steps=max_steps, adjoint=adjoint)
