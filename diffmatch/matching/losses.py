"""Losses and scores of matchings whose truth is known.

A *plan* holds entries in [0, 1], how much row i is matched with column j; a *target* is a matrix of zeros and ones with
at most one 1 in each row and column. Rows without one are not known or have no partner. What a mask leaves out does not
matter, NaN included.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_positive, check_shape

__all__ = [
    "MatchingScores",
    "dustbin_cross_entropy",
    "hamming_loss",
    "info_nce",
    "matching_cross_entropy",
    "matching_scores",
    "permutation_loss",
]

Mask = tuple[Tensor | None, Tensor | None] | None
"""Which rows and which columns are real, bool; None for all of them."""


def permutation_loss(
    plan: Float[Tensor, "*b n m"], target: Float[Tensor, "*b n m"], *, mask: Mask = None
) -> Float[Tensor, "*b"]:
    """Binary cross-entropy of all entries in the rows that have a partner, for each such row (Wang et al. 2019).

    ``-sum [Y log X + (1 - Y) log(1 - X)] / rows with a partner``; entries are held 1e-7 away from 0 and 1.

    Args:
        plan: soft matching X, shape (\\*b, n, m).
        target: true matching Y.
        mask: real rows and columns.

    Returns:
        The loss of each problem, shape (\\*b,); zero where no row has a partner.
    """
    plan, target, allowed = _masked(plan, target, mask)
    x = plan.float() if plan.dtype.itemsize < 4 else plan
    x = x.clamp(1e-7, 1 - 1e-7)
    rows = target.sum(-1, keepdim=True) > 0
    entropy = -(target * x.log() + (1 - target) * torch.log1p(-x))
    loss = torch.where(rows & allowed, entropy, 0).sum((-1, -2)) / rows.sum((-1, -2)).clamp_min(1)
    return loss.to(plan.dtype)


def hamming_loss(
    plan: Float[Tensor, "*b n m"], target: Float[Tensor, "*b n m"], *, mask: Mask = None
) -> Float[Tensor, "*b"]:
    """Entries that differ, ``sum [Y (1 - X) + (1 - Y) X]``, for each true pair.

    Linear in the plan: the loss for estimators that differentiate hard solutions (Rolinek et al. 2020).

    Args:
        plan: hard or soft matching X, shape (\\*b, n, m).
        target: true matching Y.
        mask: real rows and columns.

    Returns:
        The loss of each problem, shape (\\*b,); twice the share of wrong pairs where all rows are matched.
    """
    plan, target, _ = _masked(plan, target, mask)
    differing = target * (1 - plan) + (1 - target) * plan
    return differing.sum((-1, -2)) / target.sum((-1, -2)).clamp_min(1)


def matching_cross_entropy(
    log_plan: Float[Tensor, "*b n m"], target: Float[Tensor, "*b n m"], *, mask: Mask = None
) -> Float[Tensor, "*b"]:
    """Mean of ``-log X`` over the true pairs.

    Args:
        log_plan: logarithm of a soft matching, shape (\\*b, n, m); for entropic transport ``(f + g - cost) / eps``.
        target: true matching Y.
        mask: real rows and columns.

    Returns:
        The loss of each problem, shape (\\*b,); zero without a true pair, infinite if one has no mass.
    """
    log_plan, target, _ = _masked(log_plan, target, mask)
    terms = torch.where(target > 0, -log_plan * target, 0)
    return terms.sum((-1, -2)) / target.sum((-1, -2)).clamp_min(1)


def dustbin_cross_entropy(
    log_plan: Float[Tensor, "*b n1 m1"], target: Float[Tensor, "*b n m"], *, mask: Mask = None
) -> Float[Tensor, "*b"]:
    """Cross-entropy of a plan with a bin on each side, where rows and columns without a partner belong into the bins.

    The sum of three means: ``-log X`` over the true pairs, over the rows without a partner in the last column, and over
    the columns without a partner in the last row (Sarlin et al. 2020, equation 11, with means in place of sums).

    Args:
        log_plan: logarithm of the plan with its bins, shape (\\*b, n + 1, m + 1).
        target: true matching without bins, shape (\\*b, n, m).
        mask: real rows and columns, without bins.

    Returns:
        The loss of each problem, shape (\\*b,).
    """
    n, m = target.shape[-2:]
    check_shape("log_plan", log_plan, (n + 1, m + 1), batch=True)
    pairs = matching_cross_entropy(log_plan[..., :n, :m], target, mask=mask)
    _, target, _ = _masked(target, target, mask)
    mask_a, mask_b = mask if mask is not None else (None, None)
    alone_a = target.sum(-1) == 0 if mask_a is None else (target.sum(-1) == 0) & mask_a
    alone_b = target.sum(-2) == 0 if mask_b is None else (target.sum(-2) == 0) & mask_b

    def mean(logarithm: Tensor, alone: Tensor) -> Tensor:
        return torch.where(alone, -logarithm, 0).sum(-1) / alone.sum(-1).clamp_min(1)

    return pairs + mean(log_plan[..., :n, m], alone_a) + mean(log_plan[..., n, :m], alone_b)


def info_nce(
    embeddings_a: Float[Tensor, "*b n d"], embeddings_b: Float[Tensor, "*b n d"], *, temperature: float = 0.07
) -> Float[Tensor, "*b"]:
    """Contrastive loss of two sets of embeddings whose rows belong together (van den Oord et al. 2018), both ways.

    Args:
        embeddings_a: shape (\\*b, n, d); normalised here.
        embeddings_b: their partners, row by row.
        temperature: divides the cosine similarities.

    Returns:
        The mean cross-entropy of finding the partner, shape (\\*b,).
    """
    check_positive("temperature", temperature)
    check_shape("embeddings_b", embeddings_b, tuple(embeddings_a.shape))
    a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (embeddings_a, embeddings_b))
    logits = a @ b.mT / temperature
    both = logits.log_softmax(-1) + logits.log_softmax(-2)
    return -both.diagonal(dim1=-2, dim2=-1).mean(-1) / 2


@dataclass(frozen=True)
class MatchingScores:
    """How well matchings agree with the truth; each score has shape (\\*b,) and is 1 where nothing could be wrong.

    Attributes:
        accuracy: share of the true pairs that were found (recall).
        precision: share of the found pairs that are true.
        f1: harmonic mean of the two.
    """

    accuracy: Float[Tensor, "*b"]
    precision: Float[Tensor, "*b"]
    f1: Float[Tensor, "*b"]


def matching_scores(
    assignment: Int[Tensor, "*b n"], target: Int[Tensor, "*b n"], *, known: Bool[Tensor, "*b n"] | None = None
) -> MatchingScores:
    """Accuracy, precision and F1 of assignments.

    Args:
        assignment: column of each row, -1 for none, shape (\\*b, n).
        target: true column of each row, -1 for none.
        known: rows that count; None for all. Padding and rows whose partner is not known are left out by it.
    """
    check_shape("target", target, tuple(assignment.shape))
    found, true = assignment >= 0, target >= 0
    if known is not None:
        found, true = found & known, true & known
    hits = (found & true & (assignment == target)).sum(-1)
    n_found, n_true = found.sum(-1), true.sum(-1)

    def share(part: Tensor, whole: Tensor) -> Tensor:
        return torch.where(whole > 0, part / whole.clamp_min(1), 1.0)

    return MatchingScores(share(hits, n_true), share(hits, n_found), share(2 * hits, n_found + n_true))


def _masked(plan: Tensor, target: Tensor, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
    """Plan and target with zeros in the padding, and where the pairs are real."""
    if plan.shape != target.shape:
        raise InputError("target", f"the shape of the plan, {tuple(plan.shape)}", str(tuple(target.shape)))
    target = target.to(plan.dtype)
    allowed = torch.ones(plan.shape[-2:], dtype=torch.bool, device=plan.device)
    for side, axis in zip(mask or (), (-1, -2), strict=False):
        if side is not None:
            allowed = allowed & side.unsqueeze(axis)
    if mask is None:
        return plan, target, allowed
    return torch.where(allowed, plan, 0), torch.where(allowed, target, 0), allowed
