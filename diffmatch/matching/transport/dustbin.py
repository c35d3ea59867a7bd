"""Matching with dustbins: nodes that have no partner go to a bin of their own side."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_shape
from diffmatch.matching.transport.arguments import (
    Mask,
    flat_init,
    flat_strength,
    masked_cost,
    real_counts,
    working_dtype,
)
from diffmatch.matching.transport.costs import DenseCost
from diffmatch.matching.transport.partial import augmented_cost
from diffmatch.matching.transport.problem import Problem
from diffmatch.matching.transport.result import TransportResult
from diffmatch.matching.transport.solve import entropic_transport

__all__ = ["sinkhorn_dustbin"]


def sinkhorn_dustbin(
    scores: Float[Tensor, "*b m n"],
    bin_score: float | Tensor,
    *,
    eps: float | Tensor = 1.0,
    mask: Mask = None,
    init: tuple[Tensor, Tensor] | TransportResult | None = None,
    tol: float | None = None,
    max_steps: int = 10_000,
    method: str = "auto",
    adjoint: str = "implicit",
    check: bool | None = None,
) -> TransportResult:
    """Soft matching of m and n nodes, each to one partner or to the dustbin of the other side.

    The scores get one more row and column that hold `bin_score`; nodes have mass 1, and each bin takes as many as there
    are nodes on the other side (Sarlin, DeTone, Malisiewicz, Rabinovich 2020, "SuperGlue", section 3.2). The cost of
    the result is minus the score.

    Args:
        scores: scores, higher is better, shape (\\*b, m, n).
        bin_score: score of staying without a partner: a number or a tensor that broadcasts to the batch axes.
        eps: entropic strength (temperature), in the unit of the scores.
        mask: real rows and columns; the bins count real nodes only.
        init: potentials or a result to start from.
        tol: L1 marginal error to reach, relative to the m + n nodes.
        max_steps: largest number of steps.
        method: ``"sweeps"``, ``"newton"`` or ``"auto"``.
        adjoint: ``"implicit"``, ``"unroll"`` or ``"value"``.
        check: look for NaN; by default on the CPU only.

    Returns:
        The result, with a plan (\\*b, m + 1, n + 1) whose last row and column are the bins.

    Raises:
        InputError: shapes that do not fit, or NaN.
    """
    check_shape("scores", scores, ("m", "n"), batch=True)
    check_floating("scores", scores)
    check = scores.device.type == "cpu" if check is None else check
    *lead, m, n = scores.shape
    batch, dtype = torch.Size(lead), scores.dtype
    cost = -masked_cost(scores, mask, check=False).to(working_dtype(dtype)).reshape(math.prod(batch), m, n)
    if check and bool(cost.isnan().any() | (cost == -torch.inf).any()):
        raise InputError("scores", "no NaN and no +inf", f"{int((~torch.isfinite(cost)).sum())} of them")
    a, b = real_counts(mask, batch=batch, sizes=(m, n), like=cost)
    bins = torch.as_tensor(bin_score, dtype=cost.dtype, device=cost.device)
    try:
        bins = -bins.expand(batch).reshape(math.prod(batch))
    except RuntimeError:
        raise InputError("bin_score", f"a number or shape {tuple(batch)}", str(tuple(bins.shape))) from None
    strength = flat_strength(eps, batch=batch, like=cost, check=check)
    problem = Problem(
        torch.cat((a, b.sum(-1, keepdim=True)), -1),
        torch.cat((b, a.sum(-1, keepdim=True)), -1),
        strength,
        torch.zeros_like(strength),
        torch.zeros_like(strength),
    )
    return entropic_transport(
        DenseCost(augmented_cost(cost, bins[:, None], bins[:, None], bins)),
        problem,
        batch=batch,
        penalised=False,
        init=flat_init(init, batch=batch, size=n + 1, like=cost),
        tol=tol,
        max_steps=max_steps,
        method=method,
        adjoint=adjoint,
        dtype=dtype,
    )
