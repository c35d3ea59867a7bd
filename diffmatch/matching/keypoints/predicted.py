"""Each image as the other camera sees it under a homography that was found, and matches with that view."""

import math

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from diffmatch.errors import require
from diffmatch.matching.keypoints.attempt import Attempt, attempt, keep_verified
from diffmatch.matching.keypoints.features import CONTRAST, sift_of_gray
from diffmatch.matching.keypoints.guided import guided_by_homography
from diffmatch.matching.keypoints.nearest import one_to_one
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.views import join_keypoints

__all__ = ["predicted_keypoints", "rematch_predicted"]

_ROUNDS = 6
_STILL = 0.5  # pixels that the corners move in a round after which the homography counts as settled
_REACH = 1.5  # thresholds around the predicted place in which a match is looked for
_LEAST = 0.75  # share of the matches that a round has to find again
_BLUR = 0.5  # of the antialiasing filter, in pixels of a view that shrinks the image
_BORDER = 3.0  # standard deviations that a keypoint stays away from the edge of the image


def rematch_predicted(
    found: Attempt,
    gray_a: UInt8[np.ndarray, "ha wa"],
    gray_b: UInt8[np.ndarray, "hb wb"],
    *,
    max_keypoints: int,
    contrast_threshold: float = CONTRAST,
    threshold: float,
    estimator: str,
    seed: int,
) -> Attempt:
    """Matches with the views that a homography predicts, which then gives better views, for up to six rounds.

    The keypoints of A meet those of B as A sees it, and the other way round: seen alike, the same points are found at
    the same places, so that matches are more, more precise and further apart than between affine views.

    Args:
        found: has a homography.
        gray_a: the image that the keypoints of A were found in.
        gray_b: that of B.
        max_keypoints: of each view.
        contrast_threshold: of the detector.
        threshold: pixels.
        estimator: see :func:`~diffmatch.matching.keypoints.verify.verify`.
        seed: likewise.

    Returns:
        All of its matches are verified; its keypoints are those of ``found``, followed by those of the views. ``found``
        itself where the views find less than three quarters as many matches.
    """
    best, a, b = found, found.keypoints_a, found.keypoints_b
    for _ in range(_ROUNDS):
        homography = best.geometry.homography
        if homography is None:
            return best
        inverse = np.linalg.inv(homography)
        views = [
            predicted_keypoints(
                seen, matrix, frame.shape, max_keypoints=max_keypoints, contrast_threshold=contrast_threshold
            )
            for seen, matrix, frame in ((gray_a, homography, gray_b), (gray_b, inverse, gray_a))
        ]
        in_b, scores_b = guided_by_homography(views[0], b, homography, radius=_REACH * threshold)
        in_a, scores_a = guided_by_homography(a, views[1], homography, radius=_REACH * threshold)
        all_a, all_b = join_keypoints([a, views[0]]), join_keypoints([b, views[1]])
        pairs = torch.cat([in_a + torch.tensor([0, b.count]), in_b + torch.tensor([a.count, 0])])
        scores = torch.cat([scores_a, scores_b])
        kept = one_to_one(all_a.positions[pairs[:, 0]], all_b.positions[pairs[:, 1]], scores)
        guided = torch.ones(len(kept), dtype=torch.bool)
        again = attempt(
            all_a, all_b, pairs[kept], scores[kept], threshold=threshold, estimator=estimator, seed=seed, guided=guided
        )
        if not again.geometry.planar or again.verified < _LEAST * best.verified:
            return best
        best = keep_verified(again)
        if _moved(homography, best.geometry.homography, gray_a.shape) < _STILL:
            return best
    return best


def predicted_keypoints(
    gray: UInt8[np.ndarray, "h w"],
    homography: Float64[np.ndarray, "3 3"],
    shape: tuple[int, ...],
    *,
    max_keypoints: int,
    contrast_threshold: float = CONTRAST,
) -> Keypoints:
    """SIFT keypoints of an image seen through a homography, in the pixels of the image.

    Args:
        gray: grey values of the image.
        homography: maps its pixels to those of the view.
        shape: height and width of the view.
        max_keypoints: how many are kept.
        contrast_threshold: of the detector.

    Returns:
        Keypoints whose scale is that of a disc of equal area in the image; those that reach over its edge are left out.
    """
    cv2 = require("cv2", extra="images")
    h, w = gray.shape
    shrink = math.sqrt(abs(np.linalg.det(_jacobian(homography, np.array([[(w - 1) / 2, (h - 1) / 2]]))[0])))
    if shrink < 1:
        gray = cv2.GaussianBlur(gray, (0, 0), _BLUR * math.sqrt(1 / max(shrink, 0.01) ** 2 - 1) + 1e-3)
    seen = cv2.warpPerspective(gray, homography, shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    found = sift_of_gray(np.asarray(seen), max_keypoints=max_keypoints, contrast_threshold=contrast_threshold)
    back = np.linalg.inv(homography)
    places = found.positions.double().numpy()
    mapped = places @ back[:, :2].T + back[:, 2]
    # What lies behind the camera has the other sign than the middle of the image, which maps into its middle.
    ahead = mapped[:, 2] * (back[2] @ homography @ np.array([(w - 1) / 2, (h - 1) / 2, 1.0])) > 0
    mapped[~ahead, 2] = 1.0
    positions = mapped[:, :2] / mapped[:, 2:]
    jacobian = _jacobian(back, places[ahead])
    chosen = found.select(torch.from_numpy(ahead))
    positions, angle, size = positions[ahead], chosen.orientation.numpy(), chosen.scale.numpy()
    direction = (jacobian @ np.stack([np.cos(angle), np.sin(angle)], axis=-1)[..., None])[..., 0]
    reach = _BORDER * size[:, None] * np.linalg.norm(jacobian, axis=2)
    inside = ((positions >= reach) & (positions <= np.array([w - 1.0, h - 1.0]) - reach)).all(axis=1)
    return Keypoints.of(
        torch.from_numpy(positions).float(),
        chosen.descriptors,
        image_size=(w, h),
        scale=torch.from_numpy(size * np.sqrt(np.abs(np.linalg.det(jacobian)))).float(),
        orientation=torch.from_numpy(np.arctan2(direction[:, 1], direction[:, 0])).float(),
        score=chosen.score,
        kind=chosen.kind,
    ).select(torch.from_numpy(inside))


def _jacobian(
    homography: Float64[np.ndarray, "3 3"], points: Float64[np.ndarray, "n 2"]
) -> Float64[np.ndarray, "n 2 2"]:
    """Derivative of the mapped points by the points."""
    mapped = points @ homography[:, :2].T + homography[:, 2]
    depth = np.where(np.abs(mapped[:, 2:]) < 1e-12, 1e-12, mapped[:, 2:])
    places = mapped[:, :2] / depth
    return np.asarray((homography[:2, :2] - places[:, :, None] * homography[2, :2]) / depth[..., None])


def _moved(before: np.ndarray, after: np.ndarray | None, shape: tuple[int, ...]) -> float:
    """Mean distance between the corners of an image mapped by two homographies."""
    if after is None:
        return math.inf
    h, w = shape[0] - 1.0, shape[1] - 1.0
    corners = np.array([[0, 0, 1], [w, 0, 1], [w, h, 1], [0, h, 1]])
    first, second = (corners @ matrix.T for matrix in (before, after))
    return float(np.linalg.norm(first[:, :2] / first[:, 2:] - second[:, :2] / second[:, 2:], axis=1).mean())
