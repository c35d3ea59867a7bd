"""Persistent entropy."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.topology.descriptors.points import masked_points

__all__ = ["persistence_entropy"]


def persistence_entropy(
    points: Float[Tensor, "*b m 2"],
    *,
    mask: Bool[Tensor, "*b m"] | None = None,
) -> Float[Tensor, "*b"]:
    """Shannon entropy of the lengths of the bars as shares of their sum, in nats.

    ``-sum q_i log q_i`` with ``q_i = p_i / sum p``: 0 for one bar, ``log m`` for m bars of equal length. Bars of length
    zero do not count and have no gradient.

    Args:
        points: points (birth, death), finite, shape (\\*b, m, 2).
        mask: true for real points, shape (\\*b, m); None for all. What padding holds does not matter.

    Returns:
        The entropies, shape (\\*b). Without points of positive persistence they are zero.

    Raises:
        InputError: wrong shapes or dtypes, NaN or inf.

    References:
        Rucco et al. 2016, "Characterisation of the idiotypic immune network through persistent entropy".
    """
    births, deaths, mask = masked_points(points, mask)
    length = (deaths - births).abs()
    counts = mask & (length > 0)
    total = torch.where(counts, length, 0).sum(-1, keepdim=True)
    share = torch.where(counts, length / torch.where(total > 0, total, 1), 1)  # one has log 0 and no gradient
    return -(torch.where(counts, share, 0) * share.log()).sum(-1)
