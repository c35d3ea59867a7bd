"""What a search found, in pixels of the original images."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.matching.keypoints.attempt import Attempt
from diffmatch.matching.keypoints.geometry.pose import Pose, normalize_by_intrinsics, pose_from_essential
from diffmatch.matching.keypoints.images import Image
from diffmatch.matching.keypoints.nearest import one_to_one
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.result import ImageMatches
from diffmatch.matching.keypoints.search import Search
from diffmatch.matching.keypoints.verify import essential_matrix

__all__ = ["Intrinsics", "image_matches"]

Intrinsics = tuple[Tensor, Tensor]


def image_matches(
    final: Attempt,
    raw: Attempt,
    images: Sequence[Image] | None,
    search: Search,
    intrinsics: Intrinsics | None,
    keep: str,
) -> ImageMatches:
    """Everything in pixels of the original images."""
    pairs, scores, guided = final.pairs, final.scores, final.guided
    verified, inliers = np.ones(len(pairs), bool), final.geometry.on_homography
    if keep == "all":
        a, b = final.keypoints_a, final.keypoints_b  # those of raw come first in them
        # Raw matches that are among the final ones already clash with them, and go.
        every, strength = torch.cat([pairs, raw.pairs]), torch.cat([scores + 2, raw.scores])
        kept = one_to_one(a.positions[every[:, 0]], b.positions[every[:, 1]], strength)
        pairs, scores = every[kept], torch.cat([scores, raw.scores])[kept]
        pad = np.zeros(len(raw.pairs), bool)
        verified, inliers = np.r_[verified, pad][kept.numpy()], np.r_[inliers, pad][kept.numpy()]
        guided = torch.cat([guided, torch.from_numpy(pad)])[kept]
    keypoints = [final.keypoints_a, final.keypoints_b]
    homography, fundamental = (
        None if m is None else torch.from_numpy(m) for m in (final.geometry.homography, final.geometry.fundamental)
    )
    if images is not None:
        keypoints = [_in_original(k, image) for k, image in zip(keypoints, images, strict=True)]
        scaling_a, scaling_b = (_scaling(image) for image in images)
        if homography is not None:
            homography = torch.linalg.solve(scaling_b, homography @ scaling_a)
            homography = homography / homography[2, 2]
        if fundamental is not None:
            fundamental = scaling_b.T @ fundamental @ scaling_a
            fundamental = fundamental / fundamental.norm()
    order = torch.argsort(scores, descending=True, stable=True)
    points_a, points_b = (k.positions[pairs[order, side]] for side, k in enumerate(keypoints))
    verified_rows = torch.from_numpy(verified)[order]
    pose = None
    if intrinsics is not None:
        pose = _pose(points_a, points_b, verified_rows, intrinsics, search.settings.threshold / 2)
        search.clock.lap("pose")
    return ImageMatches(
        points_a,
        points_b,
        scores[order],
        verified_rows,
        guided[order],
        torch.from_numpy(np.asarray(inliers))[order],
        homography,
        fundamental,
        pose,
        final.geometry.planar,
        keypoints[0].positions[raw.pairs[:, 0]],
        keypoints[1].positions[raw.pairs[:, 1]],
        raw.scores,
        keypoints[0],
        keypoints[1],
        tuple(search.stages),
        dict(search.clock.seconds),
    )


def _in_original(keypoints: Keypoints, image: Image) -> Keypoints:
    return dataclasses.replace(
        keypoints,
        positions=image.to_original(keypoints.positions),
        scale=keypoints.scale / (image.scale[0] * image.scale[1]) ** 0.5,
        image_size=torch.tensor(image.original_size),
    )


def _scaling(image: Image) -> Float[Tensor, "3 3"]:
    """Maps pixels of the original image to those that were matched: p' = s p + s / 2 - 1 / 2."""
    x, y = image.scale
    rows = [[x, 0.0, x / 2 - 0.5], [0.0, y, y / 2 - 0.5], [0.0, 0.0, 1.0]]
    return torch.tensor(rows, dtype=torch.float64)


def _pose(
    points_a: Tensor, points_b: Tensor, verified: Tensor, intrinsics: Intrinsics, threshold: float
) -> Pose | None:
    """Where camera B stands, from the verified matches."""
    cameras = [matrix.detach().cpu().double() for matrix in intrinsics]
    rays = [normalize_by_intrinsics(p.double(), k) for p, k in zip((points_a, points_b), cameras, strict=True)]
    focal = sum(float(k[0, 0] + k[1, 1]) for k in cameras) / 4
    essential = essential_matrix(*(r[verified].numpy() for r in rays), threshold=threshold / focal)
    return None if essential is None else pose_from_essential(torch.from_numpy(essential), *rays, mask=verified)
