"""Which matches agree with one camera geometry: a homography or a fundamental matrix, whichever explains more."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64

from diffmatch.errors import check_choice, require
from diffmatch.matching.keypoints.geometry.homography import homography_dlt
from diffmatch.matching.keypoints.geometry.ransac import ransac

__all__ = ["Geometry", "epipolar_distance", "essential_matrix", "transfer_distance", "verify"]

_CONFIDENCE, _ITERATIONS = 0.9999, 10000
_SAMPLES = {"homography": 4, "fundamental": 8}
_SUPPORT_WIDTHS = (1.0, 2.0)  # of what speaks for a homography, in thresholds: surfaces are seldom quite flat
_START_WIDTHS = (0.25, 0.5, 1.0, 1.5)  # thresholds of MAGSAC++ that the homography is begun from, in thresholds
_LOCAL_SHARE, _LOCAL_WIDTHS, _LOCAL_STARTS = 0.3, (0.5, 1.0), 4  # of the matches around one of them; as above
_REFINED = 3  # of all that it is begun from, those with the most support
_CLEAR = 0.5  # share of the matches whose support says that there is no better homography to look for
_REFIT_WIDTHS = (3.0, 2.0, 1.5, 1.0, 1.0, 1.0)
_FAR = 4.0  # thresholds from the homography at which a match on the fundamental matrix speaks of another plane
_FEW, _BY_CHANCE, _LEAST_PLANAR = 0.1, 0.2, 0.4  # shares, see _is_planar
# Share of the matches on the fundamental matrix that makes a plane dominant: what is then neither on it nor far from it
# says little of the depth, and is in the way of whoever fits the plane again.
_DOMINANT = 0.6
# Matches that agree by chance: what was seen of wrong models, on pairs that did not match, and some more.
_LEAST_H, _CHANCE_H = 12, 1 / 200
_LEAST_F, _CHANCE_F = 20, 1 / 50


@dataclass(frozen=True, eq=False)
class Geometry:
    """What the matches say of the two cameras, and which matches say it.

    Attributes:
        homography: maps pixels of A to pixels of B, shape (3, 3), last entry 1; None where none was found.
        fundamental: x_b^T F x_a = 0 in pixels, shape (3, 3), of norm 1; None where none was found.
        on_homography: which matches agree with the homography, shape (n,).
        on_fundamental: which agree with the fundamental matrix, shape (n,).
        planar: the homography explains the matches as well as the fundamental matrix does.
    """

    homography: Float64[np.ndarray, "3 3"] | None
    fundamental: Float64[np.ndarray, "3 3"] | None
    on_homography: Bool[np.ndarray, " n"]
    on_fundamental: Bool[np.ndarray, " n"]
    planar: bool

    @property
    def inliers(self) -> Bool[np.ndarray, " n"]:
        """Which matches agree: with the homography if the scene is planar, else with either."""
        return self.on_homography if self.planar else self.on_homography | self.on_fundamental

    @property
    def found(self) -> bool:
        """Whether there is any."""
        return self.homography is not None or self.fundamental is not None


def transfer_distance(
    homography: Float64[np.ndarray, "3 3"], points_a: Float64[np.ndarray, "n 2"], points_b: Float64[np.ndarray, "n 2"]
) -> Float64[np.ndarray, " n"]:
    """How far apart a homography puts matched points, in pixels half-way between the scales of the two images.

    The geometric mean of |H p - q| and |p - H^-1 q|: at a zoom of four, an error of one pixel in the small image is one
    of four in the large one, where keypoints are placed that much worse; neither alone is a fair measure.
    """
    try:
        inverse = np.linalg.inv(homography)
    except np.linalg.LinAlgError:
        return np.full(len(points_a), math.inf)
    return np.asarray(np.sqrt(_forward(homography, points_a, points_b) * _forward(inverse, points_b, points_a)))


def _forward(
    homography: Float64[np.ndarray, "3 3"], points_a: Float64[np.ndarray, "n 2"], points_b: Float64[np.ndarray, "n 2"]
) -> Float64[np.ndarray, " n"]:
    """|H p - q|; very large, not infinite, where a point is mapped to infinity."""
    mapped = points_a @ homography[:, :2].T + homography[:, 2]
    depth = np.where(np.abs(mapped[:, 2]) > 1e-12, mapped[:, 2], 1e-12)
    return np.asarray(np.linalg.norm(mapped[:, :2] / depth[:, None] - points_b, axis=1))


def epipolar_distance(
    fundamental: Float64[np.ndarray, "3 3"], points_a: Float64[np.ndarray, "n 2"], points_b: Float64[np.ndarray, "n 2"]
) -> Float64[np.ndarray, " n"]:
    """The larger of the distances to the two epipolar lines, in pixels."""
    lines_b = points_a @ fundamental[:, :2].T + fundamental[:, 2]
    lines_a = points_b @ fundamental[:2] + fundamental[2]
    value = np.abs((points_b * lines_b[:, :2]).sum(1) + lines_b[:, 2])
    norm = np.minimum(np.linalg.norm(lines_a[:, :2], axis=1), np.linalg.norm(lines_b[:, :2], axis=1))
    return np.asarray(value / np.maximum(norm, 1e-12))


def verify(
    points_a: Float64[np.ndarray, "n 2"],
    points_b: Float64[np.ndarray, "n 2"],
    *,
    threshold: float = 2.0,
    estimator: str = "magsac",
    seed: int = 0,
) -> Geometry:
    """Fit a homography and a fundamental matrix robustly and choose between them.

    Args:
        points_a: matched points in A, one at a place.
        points_b: matched points in B.
        threshold: pixels within which a match agrees; half as much again for the homography.
        estimator: "magsac" (MAGSAC++ of OpenCV, Barath et al. 2020) or "ransac" (that of ``geometry``, on tensors).
        seed: of the samples of "ransac", and of where local fits begin; the samples of OpenCV are always the same.

    Returns:
        What was found; a model that so few matches agree with that chance would do counts as not found.

    Raises:
        InputError: an unknown estimator.
        MissingExtraError: OpenCV is wanted and not installed.
    """
    check_choice("estimator", estimator, _ESTIMATORS)
    n = len(points_a)
    homography = _ESTIMATORS[estimator]("homography", points_a, points_b, threshold, seed)
    fundamental = _ESTIMATORS[estimator]("fundamental", points_a, points_b, threshold / 2, seed)
    none = np.zeros(n, bool)
    on_h = none if homography is None else transfer_distance(homography, points_a, points_b) <= 1.5 * threshold
    on_f = none if fundamental is None else epipolar_distance(fundamental, points_a, points_b) <= threshold
    if on_h.sum() < _LEAST_H + n * _CHANCE_H:
        homography, on_h = None, none
    if on_f.sum() < _LEAST_F + n * _CHANCE_F:
        fundamental, on_f = None, none
    if homography is None:
        return Geometry(None, fundamental, on_h, on_f, planar=False)
    away = transfer_distance(homography, points_a, points_b) > _FAR * threshold
    planar = _is_planar(away, on_h, on_f)
    if not planar and on_h.sum() >= _DOMINANT * on_f.sum():
        on_f = on_f & (on_h | away)
    return Geometry(homography, fundamental, on_h, on_f, planar)


def _is_planar(away: np.ndarray, on_h: np.ndarray, on_f: np.ndarray) -> bool:
    """Whether what the fundamental matrix explains beyond the homography is little, or what chance brings.

    A second plane, or depth, leaves many matches on the fundamental matrix and far from the homography, and most of the
    matches that are far from it are then such. Of wrong matches, a matrix whose epipole is free to move picks up some.

    Args:
        away: which matches are far from the homography.
        on_h: which matches agree with the homography.
        on_f: which agree with the fundamental matrix.
    """
    far = int((away & on_f).sum())
    if far <= _FEW * on_f.sum():
        return True
    return bool(far <= _BY_CHANCE * away.sum() and on_h.sum() >= _LEAST_PLANAR * on_f.sum())


def essential_matrix(
    points_a: Float64[np.ndarray, "n 2"], points_b: Float64[np.ndarray, "n 2"], *, threshold: float
) -> Float64[np.ndarray, "3 3"] | None:
    """The essential matrix of matches in normalised coordinates by five points and MAGSAC++ (OpenCV).

    Args:
        points_a: K_a^-1 of the pixels.
        points_b: K_b^-1 of the pixels.
        threshold: in the same unit, one over the focal length for a pixel.

    Returns:
        None where none was found.
    """
    cv2 = require("cv2", extra="images")
    if len(points_a) < 8:
        return None
    found, _ = cv2.findEssentialMat(
        points_a, points_b, np.eye(3), method=cv2.USAC_MAGSAC, prob=_CONFIDENCE, threshold=threshold
    )
    return None if found is None or found.shape[0] < 3 or not np.isfinite(found[:3]).all() else np.asarray(found[:3])


def _magsac(model: str, a: np.ndarray, b: np.ndarray, threshold: float, seed: int) -> np.ndarray | None:
    if len(a) < _SAMPLES[model]:
        return None
    if model == "fundamental":
        cv2 = require("cv2", extra="images")
        found, _ = cv2.findFundamentalMat(a, b, cv2.USAC_MAGSAC, threshold, _CONFIDENCE, _ITERATIONS)
        return None if found is None or found.shape[0] < 3 else _scaled(model, found[:3])
    # One run ends in a local optimum too often where the scene is not quite planar: begin from several.
    starts = [_magsac_homography(a, b, width * threshold) for width in _START_WIDTHS]
    ranked = _by_support(starts, a, b, threshold)
    if ranked and _support(ranked[0], a, b, threshold) < _CLEAR * len(a):
        ranked = _by_support([*ranked, *_local_homographies(a, b, threshold, seed)], a, b, threshold)
    refined = [_refined(a, b, homography, threshold) for homography in ranked[:_REFINED]]
    return next(iter(_by_support(refined, a, b, threshold)), None)


def _local_homographies(a: np.ndarray, b: np.ndarray, threshold: float, seed: int) -> list[np.ndarray | None]:
    """Of the matches around some of them: uneven parts elsewhere have no say in these."""
    size = max(2 * _SAMPLES["homography"], round(_LOCAL_SHARE * len(a)))
    found: list[np.ndarray | None] = []
    for center in np.random.default_rng(seed).integers(len(a), size=_LOCAL_STARTS):
        near = np.argsort(np.square(a - a[center]).sum(axis=1), kind="stable")[:size]
        found += [_magsac_homography(a[near], b[near], width * threshold) for width in _LOCAL_WIDTHS]
    return found


def _by_support(found: Sequence[np.ndarray | None], a: np.ndarray, b: np.ndarray, threshold: float) -> list[np.ndarray]:
    """The homographies that there are, the one with the most support first."""
    known = [homography for homography in found if homography is not None]
    return sorted(known, key=lambda homography: -_support(homography, a, b, threshold))


def _magsac_homography(a: np.ndarray, b: np.ndarray, threshold: float) -> np.ndarray | None:
    cv2 = require("cv2", extra="images")
    found, _ = cv2.findHomography(a, b, cv2.USAC_MAGSAC, threshold, maxIters=_ITERATIONS, confidence=_CONFIDENCE)
    return None if found is None else _scaled("homography", found)


def _refined(a: np.ndarray, b: np.ndarray, homography: np.ndarray, threshold: float) -> np.ndarray:
    """Fitted again to the matches that agree, by weights (1 - r^2 / (k T)^2)^2 with k falling from 3 to 1."""
    points_a, points_b = torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))
    best = homography
    for width in _REFIT_WIDTHS:
        share = (transfer_distance(homography, a, b) / (width * threshold)) ** 2
        weights = np.clip(1 - share, 0, 1) ** 2
        if np.count_nonzero(weights) < 2 * _SAMPLES["homography"]:
            return best
        fitted = _scaled("homography", homography_dlt(points_a, points_b, weights=torch.from_numpy(weights)).numpy())
        if fitted is None:
            return best
        homography = fitted
    return max((best, homography), key=lambda h: _support(h, a, b, threshold))


def _support(homography: np.ndarray, a: np.ndarray, b: np.ndarray, threshold: float) -> float:
    """Sum of max(0, 1 - r^2 / (k T)^2) over the matches (MSAC), the mean of several k."""
    share = (transfer_distance(homography, a, b) / threshold) ** 2
    return float(np.mean([np.clip(1 - share / width**2, 0, 1).sum() for width in _SUPPORT_WIDTHS]))


def _tensor_ransac(model: str, a: np.ndarray, b: np.ndarray, threshold: float, seed: int) -> np.ndarray | None:
    if len(a) < _SAMPLES[model]:
        return None
    generator = torch.Generator().manual_seed(seed)
    points = torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))
    return _scaled(
        model, ransac(*points, model=model, threshold=threshold, samples=2048, generator=generator).model.numpy()
    )


def _scaled(model: str, matrix: np.ndarray) -> np.ndarray | None:
    """A homography with a last entry of one, a fundamental matrix of unit norm."""
    size = matrix[2, 2] if model == "homography" else np.linalg.norm(matrix)
    return np.asarray(matrix / size) if np.isfinite(matrix).all() and abs(size) > 1e-12 else None


_ESTIMATORS = {"magsac": _magsac, "ransac": _tensor_ransac}
