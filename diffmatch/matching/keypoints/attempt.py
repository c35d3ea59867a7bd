"""One attempt at two images: matches, the geometry they agree with, and what is found again under it."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from diffmatch.matching.keypoints.descriptor_search import Nearest
from diffmatch.matching.keypoints.guided import guided_by_fundamental, guided_by_homography
from diffmatch.matching.keypoints.nearest import one_to_one
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.verify import Geometry, transfer_distance, verify

__all__ = ["Attempt", "attempt", "keep_close", "keep_verified", "rematch"]


@dataclass(frozen=True, eq=False)
class Attempt:
    """Matches of two records, and what a robust fit says of them.

    Attributes:
        keypoints_a: of image A.
        keypoints_b: of image B.
        pairs: numbers of matched keypoints, shape (n, 2).
        scores: larger is better, shape (n,).
        geometry: of these matches.
        guided: which were found under an earlier geometry, shape (n,).
    """

    keypoints_a: Keypoints
    keypoints_b: Keypoints
    pairs: Int64[Tensor, "n 2"]
    scores: Float[Tensor, " n"]
    geometry: Geometry
    guided: Bool[Tensor, " n"]

    @property
    def verified(self) -> int:
        """How many matches agree with the geometry."""
        return int(self.geometry.inliers.sum())


def attempt(
    a: Keypoints,
    b: Keypoints,
    pairs: Int64[Tensor, "n 2"],
    scores: Float[Tensor, " n"],
    *,
    threshold: float,
    estimator: str,
    seed: int,
    guided: Bool[Tensor, " n"] | None = None,
) -> Attempt:
    """Matches with the geometry that they agree with.

    Args:
        a: keypoints of image A.
        b: keypoints of image B.
        pairs: one-to-one.
        scores: of the pairs.
        threshold: pixels.
        estimator: see :func:`~diffmatch.matching.keypoints.verify.verify`.
        seed: likewise.
        guided: which were found under an earlier geometry.
    """
    points_a, points_b = _points(a, pairs[:, 0]), _points(b, pairs[:, 1])
    geometry = verify(points_a, points_b, threshold=threshold, estimator=estimator, seed=seed)
    return Attempt(
        a, b, pairs, scores, geometry, torch.zeros_like(scores, dtype=torch.bool) if guided is None else guided
    )


def _points(keypoints: Keypoints, rows: Tensor) -> Float64[np.ndarray, "n 2"]:
    return np.asarray(keypoints.positions[rows].detach().cpu().double().numpy())


def rematch(found: Attempt, *, nearest: Nearest | None, threshold: float, estimator: str, seed: int) -> Attempt:
    """The verified matches of an attempt, and those found again under its geometry; all of them verified.

    Args:
        found: the attempt.
        nearest: descriptors of B near those of A, to look along epipolar lines; None leaves that out.
        threshold: pixels.
        estimator: see :func:`~diffmatch.matching.keypoints.verify.verify`.
        seed: likewise.
    """
    return keep_verified(_once(found, nearest, threshold, estimator, seed))


def keep_verified(found: Attempt) -> Attempt:
    """An attempt without the matches that do not agree with its geometry."""
    return _chosen(found, np.flatnonzero(found.geometry.inliers))


def keep_close(found: Attempt, threshold: float) -> Attempt:
    """Of a planar scene the matches within a distance of the homography; what is not planar stays as it is.

    A homography is fitted with some latitude, since scenes are never quite flat; those that it maps well are precise.
    """
    homography = found.geometry.homography
    if homography is None or not found.geometry.planar:
        return found
    points_a, points_b = _points(found.keypoints_a, found.pairs[:, 0]), _points(found.keypoints_b, found.pairs[:, 1])
    return _chosen(found, np.flatnonzero(transfer_distance(homography, points_a, points_b) <= threshold))


def _chosen(found: Attempt, chosen: Int64[np.ndarray, " k"]) -> Attempt:
    """An attempt with some of its matches."""
    rows, g = torch.from_numpy(chosen).to(found.pairs.device), found.geometry
    geometry = Geometry(g.homography, g.fundamental, g.on_homography[chosen], g.on_fundamental[chosen], g.planar)
    return Attempt(
        found.keypoints_a, found.keypoints_b, found.pairs[rows], found.scores[rows], geometry, found.guided[rows]
    )


def _once(found: Attempt, nearest: Nearest | None, threshold: float, estimator: str, seed: int) -> Attempt:
    a, b, geometry = found.keypoints_a, found.keypoints_b, found.geometry
    rows = torch.from_numpy(np.flatnonzero(geometry.inliers)).to(found.pairs.device)
    parts = [(found.pairs[rows], found.scores[rows])]
    if geometry.homography is not None:
        parts.append(
            guided_by_homography(a, b, geometry.homography, radius=(2.0 if geometry.planar else 1.0) * threshold)
        )
    if geometry.fundamental is not None and nearest is not None and not geometry.planar:
        parts.append(guided_by_fundamental(a, b, geometry.fundamental, nearest, radius=0.75 * threshold))
    pairs = torch.cat([part[0] for part in parts])
    scores = torch.cat([part[1] for part in parts])
    guided = torch.ones_like(scores, dtype=torch.bool)
    guided[: len(rows)] = found.guided[rows]
    # What was there before goes first, then what the homography found, then what the epipolar lines did.
    rank = torch.cat([scores.new_full((len(part[1]),), -2.0 * number) for number, part in enumerate(parts)])
    kept = one_to_one(a.positions[pairs[:, 0]], b.positions[pairs[:, 1]], scores + rank)
    again = attempt(
        a, b, pairs[kept], scores[kept], threshold=threshold, estimator=estimator, seed=seed, guided=guided[kept]
    )
    return again if again.verified >= found.verified else found
