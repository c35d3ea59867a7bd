"""The demo's match: a texture that the package paints, and the same seen from the side."""

import math
from typing import TYPE_CHECKING

import numpy as np

from diffmatch.cli.demos.settings import DemoSettings
from diffmatch.cli.outcome import write_json

if TYPE_CHECKING:
    from diffmatch.report import Metric, Report

__all__ = ["painted_texture", "run", "slanted_view"]


def painted_texture(seed: int, *, width: int = 480, height: int = 360) -> np.ndarray:
    """Discs and boxes of many sizes and colours, smoothed; RGB, (height, width, 3), uint8."""
    from diffmatch.errors import require

    cv2 = require("cv2", extra="images")
    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128, np.uint8)
    for size in (80, 40, 20, 10):
        for _ in range(height * width // (5 * size * size)):
            at = random.integers(0, (width, height))
            color = random.integers(0, 256, 3).tolist()
            if random.random() < 0.5:
                cv2.circle(picture, at.tolist(), int(random.integers(2, size // 2)), color, -1, cv2.LINE_AA)
            else:
                far = at + random.integers(2, size, 2)
                cv2.rectangle(picture, at.tolist(), far.tolist(), color, -1)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.8))


def slanted_view(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture as a wall seen from the side, darker and with noise, and the homography to it."""
    from diffmatch.errors import require

    cv2 = require("cv2", extra="images")
    height, width = picture.shape[:2]
    turn = math.radians(74.0)
    rotation = np.array([[math.cos(turn), 0, math.sin(turn)], [0, 1, 0], [-math.sin(turn), 0, math.cos(turn)]])
    camera = np.array([[1.2 * width, 0, width / 2], [0, 1.2 * width, height / 2], [0, 0, 1]])
    # The wall stands at distance 1 from both cameras: H = K (R + t n^T) K^-1.
    shift = np.array([-math.sin(turn), 0.0, 1 - math.cos(turn)])
    homography = camera @ (rotation + np.outer(shift, [0, 0, 1])) @ np.linalg.inv(camera)
    seen = cv2.warpPerspective(picture, homography, (width, height), flags=cv2.INTER_AREA, borderValue=(90, 90, 90))
    noise = np.random.default_rng(1).normal(0, 4, seen.shape)
    return np.clip(0.8 * seen + noise, 0, 255).astype(np.uint8), homography / homography[2, 2]


def run(report: "Report", settings: DemoSettings) -> "list[Metric]":
    """Match the two pictures: matches.npz, and what was measured in matches.json."""
    import torch

    from diffmatch.cli.match import describe_matches
    from diffmatch.matching.keypoints import match_images, write_matches
    from diffmatch.matching.keypoints.geometry import corner_error
    from diffmatch.matching.keypoints.pairs import ImagePair
    from diffmatch.report import Metric
    from diffmatch.report.keypoint_match import add_keypoint_match, keypoint_match_metrics

    picture = painted_texture(settings.seed)
    other, truth = slanted_view(picture)
    matches = match_images(picture, other, seed=settings.seed, device=settings.device)
    write_matches(settings.folder / "matches.npz", matches)
    pair = ImagePair(settings.folder / "painted texture", settings.folder / "slanted view", "demo")
    described = describe_matches([pair], [matches], {}, settings={"seed": settings.seed, "device": settings.device})
    write_json(settings.folder / "matches.json", described)
    report.add_section("Match: a wall and the same wall from the side")
    report.add_text(
        "A painted texture and its view from 74 degrees to the side: upright keypoints hardly match there, "
        "so that affine views of both pictures are added."
    )
    add_keypoint_match(report, matches, picture, other, names=("painted texture", "slanted view"))
    size = (picture.shape[1], picture.shape[0])
    error = (
        None
        if matches.homography is None
        else float(corner_error(matches.homography, torch.from_numpy(truth), size=size))
    )
    off = Metric("corner error", error, "px", "of the homography, against the one that the view was made with")
    return [*keypoint_match_metrics(matches), off]
