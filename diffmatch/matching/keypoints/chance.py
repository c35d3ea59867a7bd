"""Whether a geometry explains more than chance would: a count under it against counts under geometries moved aside.

Few matches among many keypoints agree with some homography or fundamental matrix by chance, and matching again under
it then finds hundreds more that look verified. As many are found if the geometry is moved by some pixels, where a true
one loses nearly all.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float64

from diffmatch.matching.keypoints.attempt import Attempt
from diffmatch.matching.keypoints.descriptor_search import Nearest
from diffmatch.matching.keypoints.guided import guided_by_homography
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.verify import epipolar_distance

__all__ = ["confirmed", "fundamental_contrast", "homography_contrast"]

_ASIDE = 12.0  # thresholds that the homography is moved by
_REACH = 1.5  # thresholds around the mapped place in which a match is looked for
_LEAST = 2.5  # times as many as by chance
_BANDS = (4.0, 24.0)  # radii between which distances from epipolar lines are a matter of chance
_SIMILAR, _SIMILAR_ON_LINES = 0.5, 0.4  # largest distances between descriptors that count


def confirmed(found: Attempt, *, nearest: Nearest | None, threshold: float) -> Attempt:
    """An attempt without the homography or fundamental matrix that chance explains as well.

    Args:
        found: the attempt.
        nearest: descriptors of B near those of A, for the fundamental matrix; without them it is believed.
        threshold: pixels.
    """
    a, b, g = found.keypoints_a, found.keypoints_b, found.geometry
    none = np.zeros(len(found.pairs), bool)
    if g.homography is not None and homography_contrast(a, b, g.homography, threshold=threshold) < _LEAST:
        g = dataclasses.replace(g, homography=None, on_homography=none, planar=False)
    if g.fundamental is not None and nearest is not None:
        contrast = fundamental_contrast(a, b, g.fundamental, nearest, radius=0.75 * threshold)
        if contrast < _LEAST:
            g = dataclasses.replace(g, fundamental=None, on_fundamental=none)
    return dataclasses.replace(found, geometry=g)


def homography_contrast(
    a: Keypoints, b: Keypoints, homography: Float64[np.ndarray, "3 3"], *, threshold: float
) -> float:
    """Matches found under a homography, divided by those under the same moved aside (the mean of four ways, plus one).

    Args:
        a: keypoints of image A.
        b: keypoints of image B.
        homography: maps A to B.
        threshold: pixels.
    """

    def count(x: float, y: float) -> int:
        moved = np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]]) @ homography
        return len(guided_by_homography(a, b, moved, radius=_REACH * threshold, max_distance=_SIMILAR)[0])

    aside = _ASIDE * threshold / math.sqrt(2.0)
    chance = [count(x * aside, y * aside) for x in (-1, 1) for y in (-1, 1)]
    return count(0.0, 0.0) / (sum(chance) / 4 + 1)


def fundamental_contrast(
    a: Keypoints, b: Keypoints, fundamental: Float64[np.ndarray, "3 3"], nearest: Nearest, *, radius: float
) -> float:
    """Nearest descriptors on each other's epipolar lines, divided by those in bands of the same width beside them.

    Args:
        a: keypoints of image A.
        b: keypoints of image B.
        fundamental: x_b^T F x_a = 0.
        nearest: descriptors of B near those of A.
        radius: pixels, half the width of a band.
    """
    rows = np.flatnonzero((nearest.distance[:, 0] <= _SIMILAR_ON_LINES).cpu().numpy())
    columns = nearest.index[:, 0].cpu().numpy()[rows]
    points_a, points_b = (k.positions.cpu().double().numpy() for k in (a, b))
    distance = epipolar_distance(fundamental, points_a[rows], points_b[columns]) / radius
    low, high = _BANDS
    beside = ((distance > low) & (distance <= high)).sum() / (high - low)
    return float((distance <= 1.0).sum() / (beside + 1))
