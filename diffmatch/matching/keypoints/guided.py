"""Matches found again under a geometry that is known: where to look replaces the ratio test."""

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.spatial import cKDTree
from torch import Tensor

from diffmatch.matching.keypoints.descriptor_search import Nearest
from diffmatch.matching.keypoints.nearest import one_to_one
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.verify import epipolar_distance, transfer_distance

__all__ = ["guided_by_fundamental", "guided_by_homography"]

_NEIGHBOURS = 8  # keypoints looked at around a predicted place
Pairs = tuple[Int64[Tensor, "p 2"], Float[Tensor, " p"]]


def guided_by_homography(
    a: Keypoints,
    b: Keypoints,
    homography: Float64[np.ndarray, "3 3"],
    *,
    radius: float = 2.0,
    max_distance: float = 0.65,
) -> Pairs:
    """Of the keypoints near where a homography maps each keypoint, the one with the nearest descriptor.

    Args:
        a: keypoints of image A.
        b: keypoints of image B.
        homography: maps A to B.
        radius: pixels, see :func:`~diffmatch.matching.keypoints.verify.transfer_distance`.
        max_distance: between the descriptors.

    Returns:
        Pairs (p, 2), one-to-one, and scores between 0 and 1, best first.
    """
    points_a, points_b = (k.positions.cpu().double().numpy() for k in (a, b))
    mapped = points_a @ homography[:, :2].T + homography[:, 2]
    ahead = np.abs(mapped[:, 2]) > 1e-9
    places = np.where(ahead[:, None], mapped[:, :2] / np.where(ahead, mapped[:, 2], 1.0)[:, None], 1e9)
    k = min(_NEIGHBOURS, len(points_b))
    _, near = cKDTree(points_b).query(places, k=k)
    rows, columns = np.repeat(np.arange(len(points_a)), k), near.ravel()
    close = transfer_distance(homography, points_a[rows], points_b[columns]) <= radius
    return _best_pairs(a, b, rows[close], columns[close], max_distance)


def guided_by_fundamental(
    a: Keypoints,
    b: Keypoints,
    fundamental: Float64[np.ndarray, "3 3"],
    nearest: Nearest,
    *,
    radius: float = 1.5,
    max_distance: float = 0.5,
) -> Pairs:
    """Of the nearest descriptors of each keypoint, the nearest one close to its epipolar line.

    Args:
        a: keypoints of image A.
        b: keypoints of image B.
        fundamental: x_b^T F x_a = 0.
        nearest: of ``a`` in ``b``.
        radius: pixels, in both images.
        max_distance: between the descriptors.

    Returns:
        Pairs (p, 2), one-to-one, and scores between 0 and 1, best first.
    """
    points_a, points_b = (k.positions.cpu().double().numpy() for k in (a, b))
    index = nearest.index.cpu().numpy()
    rows, columns = np.repeat(np.arange(len(index)), index.shape[1]), index.ravel()
    close = epipolar_distance(fundamental, points_a[rows], points_b[columns]) <= radius
    return _best_pairs(a, b, rows[close], columns[close], max_distance)


def _best_pairs(a: Keypoints, b: Keypoints, rows: np.ndarray, columns: np.ndarray, max_distance: float) -> Pairs:
    """The possible pairs with the nearest descriptors, each place once."""
    pairs = torch.from_numpy(np.stack([rows, columns], axis=1)).to(a.device, torch.int64)
    similar = (a.descriptors[pairs[:, 0]] * b.descriptors[pairs[:, 1]]).sum(dim=1)
    distance = (2 - 2 * similar).clamp_min(0).sqrt()
    good = distance <= max_distance
    pairs, scores = pairs[good], 1 - distance[good]
    kept = one_to_one(a.positions[pairs[:, 0]], b.positions[pairs[:, 1]], scores)
    return pairs[kept], scores[kept]
