"""What matching two images gives."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.matching.keypoints.geometry.pose import Pose
from diffmatch.matching.keypoints.record import Keypoints

__all__ = ["ImageMatches"]


@dataclass(frozen=True, eq=False)
class ImageMatches:
    """Matched points of two images, best first, and the geometry that they agree with.

    Points are positions of keypoints in pixels of the original images; no two matches are within a pixel of each other
    in either image. Where nothing was found the tensors are empty and the geometry is None.

    Attributes:
        points_a: shape (n, 2).
        points_b: shape (n, 2).
        scores: between 0 and 1, shape (n,).
        verified: agrees with the geometry of the two cameras, shape (n,).
        guided: was found under the geometry, not before it; shape (n,).
        inliers: agrees with the homography, shape (n,).
        homography: maps pixels of A to B, last entry 1, shape (3, 3), float64.
        fundamental: x_b^T F x_a = 0, of unit norm, shape (3, 3), float64.
        pose: where camera B stands, if the intrinsics are known.
        planar: the homography explains the matches as well as the fundamental matrix.
        raw_points_a: matches before any geometry, shape (r, 2).
        raw_points_b: shape (r, 2).
        raw_scores: between 0 and 1, shape (r,).
        keypoints_a: all that were looked at in A, in pixels of the original image.
        keypoints_b: the same of B.
        stages: what was tried, in order, such as ("upright", "network", "views").
        seconds: spent on each part.
    """

    points_a: Float[Tensor, "n 2"]
    points_b: Float[Tensor, "n 2"]
    scores: Float[Tensor, " n"]
    verified: Bool[Tensor, " n"]
    guided: Bool[Tensor, " n"]
    inliers: Bool[Tensor, " n"]
    homography: Float[Tensor, "3 3"] | None
    fundamental: Float[Tensor, "3 3"] | None
    pose: Pose | None
    planar: bool
    raw_points_a: Float[Tensor, "r 2"]
    raw_points_b: Float[Tensor, "r 2"]
    raw_scores: Float[Tensor, " r"]
    keypoints_a: Keypoints
    keypoints_b: Keypoints
    stages: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Matches that are verified."""
        return int(torch.count_nonzero(self.verified))
