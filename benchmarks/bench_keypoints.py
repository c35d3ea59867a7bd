"""Keypoint matching against OpenCV's SIFT with ratio test and MAGSAC, and the adaptive graph by size.

Pairs are painted textures under known homographies: one that plain SIFT matches, and one from the side that needs
affine views. Detection is in the time; the corner error in pixels (capped at 100) and the number of matches within 3
pixels of the truth stand beside it.
"""

import sys
from typing import Any

import numpy as np
import torch

from diffmatch.cli.demos.match import painted_texture, slanted_view
from diffmatch.matching.keypoints import Keypoints, adaptive_graph, match_images

OURS = "diffmatch"
MILD = np.array([[0.9, 0.15, 10.0], [-0.12, 0.95, 30.0], [1e-4, 2e-4, 1.0]])


def run(bench: Any) -> None:
    cv2 = bench.peer("cv2")
    if cv2 is not None:
        for width in bench.sizes([640, 1024], tiny=[200]):
            picture = painted_texture(0, width=width, height=width * 3 // 4)
            shape = (width, picture.shape[0])
            mild = cv2.warpPerspective(picture, MILD, shape, borderMode=cv2.BORDER_REFLECT)
            for name, (other, truth) in {"mild": (mild, MILD), "from the side": slanted_view(picture)}.items():
                contenders = {
                    OURS: lambda: ours(picture, other),
                    "SIFT + ratio + MAGSAC": lambda: plain_sift(cv2, picture, other),
                }
                bench.compare(name, contenders, size=width, quality=lambda found: quality(found, truth, shape))
    for n in bench.sizes([1000, 5000, 15000, 30000], tiny=[100]):
        keypoints = random_keypoints(n, bench.generator())
        bench.compare(
            "adaptive graph",
            {OURS: lambda: adaptive_graph(keypoints, generator=bench.generator())},
            size=n,
            quality=lambda found: {"edges": float(found.graph.edge_count), "kept": float(len(found.kept))},
        )


def ours(picture: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    found = match_images(picture, other)
    homography = None if found.homography is None else found.homography.numpy()
    return found.points_a.numpy(), found.points_b.numpy(), homography


def plain_sift(cv2: Any, picture: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    detector = cv2.SIFT_create(2048)
    (a, left), (b, right) = (
        detector.detectAndCompute(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), None) for p in (picture, other)
    )
    found = [m for m, n in cv2.BFMatcher().knnMatch(left, right, k=2) if m.distance < 0.8 * n.distance]
    points = [
        np.array([k[i].pt for k, i in pairs], np.float32).reshape(-1, 2)
        for pairs in (
            [(a, m.queryIdx) for m in found],
            [(b, m.trainIdx) for m in found],
        )
    ]
    homography = None
    if len(found) >= 4:
        homography, _ = cv2.findHomography(*points, cv2.USAC_MAGSAC, 2.0, maxIters=10000, confidence=0.9999)
    return points[0], points[1], homography


def quality(found: tuple[np.ndarray, np.ndarray, np.ndarray | None], truth: np.ndarray, shape: Any) -> dict[str, float]:
    a, b, homography = found
    w, h = shape[0] - 1, shape[1] - 1
    corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], float)
    error = 100.0
    if homography is not None:
        error = min(error, float(np.linalg.norm(warp(homography, corners) - warp(truth, corners), axis=1).mean()))
    return {"corner error": error, "correct": float((np.linalg.norm(warp(truth, a) - b, axis=1) <= 3).sum())}


def warp(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    mapped = np.c_[points, np.ones(len(points))] @ homography.T
    return mapped[:, :2] / mapped[:, 2:]


def random_keypoints(n: int, generator: torch.Generator) -> Keypoints:
    """At the density of a photograph, with descriptors that resemble each other as SIFT's do."""
    device = generator.device
    side = (n / 0.02) ** 0.5
    common, own = (torch.rand(k, 128, generator=generator, device=device) for k in (1, n))
    descriptors = torch.nn.functional.normalize(common**2 * own, dim=1)
    positions = torch.rand(n, 2, generator=generator, device=device) * side
    return Keypoints.of(positions, descriptors, image_size=(int(side) + 1, int(side) + 1))


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
