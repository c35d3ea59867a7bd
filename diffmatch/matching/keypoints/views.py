"""Affine views of an image, so that SIFT sees what a camera elsewhere would have seen (ASIFT, Morel and Yu 2009)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from diffmatch.errors import require
from diffmatch.matching.keypoints.features import CONTRAST, sift_of_gray
from diffmatch.matching.keypoints.record import Keypoints

__all__ = ["View", "affine_view", "join_keypoints", "view_keypoints", "views_of_tilt"]

_BLUR = 0.8  # of the antialiasing filter, in pixels of the view (Morel and Yu 2009)
_TURN = math.radians(72.0)  # step of the direction at tilt 1
_BORDER = 3.0  # standard deviations that a keypoint stays away from the edge of the image


@dataclass(frozen=True)
class View:
    """A camera that was moved: the image turned by ``angle`` (radians), then squeezed along x by ``tilt``."""

    tilt: float
    angle: float


def views_of_tilt(tilt: float) -> list[View]:
    """The directions of one tilt, half a turn in steps of 72 degrees / tilt; the image itself for tilt 1."""
    if tilt <= 1:
        return [View(1.0, 0.0)]
    count = math.ceil(math.pi / (_TURN / tilt) - 1e-9)
    return [View(tilt, math.pi * k / count) for k in range(count)]


def affine_view(
    gray: UInt8[np.ndarray, "h w"], view: View
) -> tuple[UInt8[np.ndarray, "hv wv"], Float64[np.ndarray, "2 3"]]:
    """The view of an image, and the affine map from its pixels to those of the view.

    Args:
        gray: grey values.
        view: which.

    Returns:
        Grey values and the map. Outside the image the view repeats the image's edge.
    """
    cv2 = require("cv2", extra="images")
    h, w = gray.shape
    cos, sin = math.cos(view.angle), math.sin(view.angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    corners = np.array([[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], float) @ turn.T
    low, high = np.floor(corners.min(0)), np.ceil(corners.max(0))
    turning = np.concatenate([turn, -low[:, None]], axis=1)
    size = (int(high[0] - low[0]) + 1, int(high[1] - low[1]) + 1)
    turned = cv2.warpAffine(gray, turning, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if view.tilt > 1:
        blur = _BLUR * math.sqrt(view.tilt**2 - 1)
        turned = cv2.GaussianBlur(turned, (0, 0), sigmaX=blur, sigmaY=0.01)
        squeeze = np.array([[1 / view.tilt, 0, 0], [0, 1.0, 0]])
        width = max(1, int((size[0] - 1) / view.tilt) + 1)
        turned = cv2.warpAffine(
            turned, squeeze, (width, size[1]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        turning = np.diag([1 / view.tilt, 1.0]) @ turning
    return np.asarray(turned), turning


def view_keypoints(
    gray: UInt8[np.ndarray, "h w"], view: View, *, max_keypoints: int, contrast_threshold: float = CONTRAST
) -> Keypoints:
    """SIFT keypoints of a view, in the pixels of the image.

    Args:
        gray: grey values of the image.
        view: which.
        max_keypoints: how many are kept.
        contrast_threshold: of the detector.

    Returns:
        Keypoints whose scale is that of a disc of equal area in the image; those that reach over its edge are left out.
    """
    seen, to_view = affine_view(gray, view)
    found = sift_of_gray(seen, max_keypoints=max_keypoints, contrast_threshold=contrast_threshold)
    inverse = torch.from_numpy(np.linalg.inv(to_view[:, :2])).float()
    positions = (found.positions - torch.from_numpy(to_view[:, 2]).float()) @ inverse.T
    direction = torch.stack([found.orientation.cos(), found.orientation.sin()], dim=-1) @ inverse.T
    # Half the extent of the disc, seen in the image, along x and y.
    reach = _BORDER * found.scale[:, None] * inverse.norm(dim=1)
    h, w = gray.shape
    inside = ((positions >= reach) & (positions <= torch.tensor([w - 1.0, h - 1.0]) - reach)).all(dim=1)
    return Keypoints.of(
        positions,
        found.descriptors,
        image_size=(w, h),
        scale=found.scale * math.sqrt(view.tilt),
        orientation=torch.atan2(direction[:, 1], direction[:, 0]),
        score=found.score,
        kind=found.kind,
    ).select(inside)


def join_keypoints(parts: Sequence[Keypoints]) -> Keypoints:
    """The keypoints of several views of one image as one record, in the order given."""
    first = parts[0]
    return Keypoints(
        torch.cat([p.positions for p in parts]),
        torch.cat([p.scale for p in parts]),
        torch.cat([p.orientation for p in parts]),
        torch.cat([p.score for p in parts]),
        torch.cat([p.descriptors for p in parts]),
        torch.cat([p.mask for p in parts]),
        first.image_size,
        kind=first.kind,
    )
