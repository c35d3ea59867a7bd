"""Matches by descriptors alone: nearest neighbours, the ratio test, one-to-one."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.sparse import coo_array
from scipy.spatial import cKDTree
from torch import Tensor

from diffmatch.errors import InputError, check_positive
from diffmatch.matching.keypoints.descriptor_search import Nearest, nearest_descriptors
from diffmatch.matching.keypoints.record import Keypoints

__all__ = ["check_alike", "match_nearest", "one_to_one"]


def check_alike(a: Keypoints, b: Keypoints) -> None:
    """Check that the descriptors of two records can be compared.

    Raises:
        InputError: batches, another kind, another length, another device.
    """
    for name, keypoints in (("keypoints_a", a), ("keypoints_b", b)):
        if keypoints.mask.ndim != 1:
            raise InputError(name, "keypoints of one image, without batch axes", f"mask {tuple(keypoints.mask.shape)}")
    ours, theirs = (f"kind {k.kind!r} with {k.descriptors.shape[-1]} numbers on {k.device}" for k in (a, b))
    if ours != theirs:
        raise InputError("keypoints_b", f"descriptors as in keypoints_a, of {ours}", theirs)


def match_nearest(
    a: Keypoints, b: Keypoints, *, ratio: float = 0.85, apart: float = 8.0, nearest: Nearest | None = None
) -> tuple[Int64[Tensor, "p 2"], Float[Tensor, " p"]]:
    """Mutual nearest neighbours that pass the ratio test (Lowe 2004) and are one-to-one.

    The second-best descriptor is the best one at another place (Mishkin et al. 2015): neighbours within ``apart``
    pixels are the same point seen at another orientation, scale or view.

    Args:
        a: keypoints of one image.
        b: keypoints of another image.
        ratio: largest quotient of the two smallest distances.
        apart: what counts as another place, in pixels.
        nearest: from :func:`nearest_descriptors`, where they are known already.

    Returns:
        Pairs of keypoint numbers, shape (p, 2), and scores between 0 and 1 (one minus the quotient), best first.

    Raises:
        InputError: the descriptors are of different kinds.
    """
    check_positive("ratio", ratio)
    check_positive("apart", apart, allow_zero=True)
    check_alike(a, b)
    if not (a.mask.any() and b.mask.any()):
        return torch.zeros(0, 2, dtype=torch.int64, device=a.device), a.descriptors.new_zeros(0)
    near = nearest_descriptors(a, b, k=6) if nearest is None else nearest
    first = near.index[:, 0]
    places = b.positions[near.index]
    elsewhere = (places - places[:, :1]).norm(dim=-1) > apart
    elsewhere[:, -1] = True  # all are in one place: the last one bounds the distance of the next from below
    second = near.distance.gather(1, elsewhere.to(torch.int8).argmax(dim=1, keepdim=True))[:, 0]
    quotient = near.distance[:, 0] / second.clamp_min(1e-9)
    if near.index.shape[1] == 1:
        quotient = near.distance[:, 0] / 2  # nothing to compare with: as if the next were opposite
    returns = (a.positions[near.back[first]] - a.positions).norm(dim=-1) <= 1.0
    rows = (a.mask & b.mask[first] & returns & (quotient < ratio)).nonzero()[:, 0]
    pairs = torch.stack([rows, first[rows]], dim=1)
    scores = 1 - quotient[rows]
    kept = one_to_one(a.positions[pairs[:, 0]], b.positions[pairs[:, 1]], scores)
    return pairs[kept], scores[kept]


def one_to_one(
    points_a: Float[Tensor, "p 2"], points_b: Float[Tensor, "p 2"], scores: Float[Tensor, " p"], *, radius: float = 1.0
) -> Int64[Tensor, " q"]:
    """Which matches stay when each place is used once: greedy, best first.

    A match goes if a better one that stays lies within ``radius`` of it in either image. Works on the CPU.

    Args:
        points_a: matched points in one image.
        points_b: and in the other.
        scores: better ones are larger.
        radius: pixels.

    Returns:
        Numbers of the matches that stay, best first.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    clashes = [_close_pairs(points[order], radius) for points in (points_a, points_b)]
    kept = _greedy(len(order), np.concatenate(clashes))
    return order[torch.from_numpy(kept).to(order.device)]


def _close_pairs(points: Tensor, radius: float) -> np.ndarray:
    if not len(points):
        return np.zeros((0, 2), np.int64)
    return np.asarray(cKDTree(points.detach().cpu().double().numpy()).query_pairs(radius, output_type="ndarray"))


def _greedy(n: int, clashes: np.ndarray) -> np.ndarray:
    """Mask of the lexicographically first set without clashes: in rounds, all whose better neighbours are decided."""
    low, high = clashes.min(axis=1, initial=n), clashes.max(axis=1, initial=0)
    better = coo_array((np.ones(len(low), np.int32), (high, low)), shape=(n, n)).tocsr()
    alive, kept = np.ones(n, bool), np.zeros(n, bool)
    while alive.any():
        chosen = alive & (better @ alive.astype(np.int32) == 0)
        kept |= chosen
        alive &= ~chosen & ((better @ chosen.astype(np.int32)) == 0)
    return kept
