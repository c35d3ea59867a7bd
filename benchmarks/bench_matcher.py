"""The learned matcher against the ratio test and kornia's AdaLAM: time, precision and right matches by keypoints.

All get the same RootSIFT keypoints. The pairs are the public homography pairs where ``DIFFMATCH_DATA`` names the folder
of the research images, each with the view of the smallest change; otherwise two views of a picture that is made. Right
is within 3 pixels of where the homography says. Where OpenCV is missing, keypoints are planted.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffmatch.matching.keypoints.matcher import match_keypoints
from diffmatch.matching.keypoints.record import Keypoints

OURS = "diffmatch"
RATIO = "mutual ratio 0.85"
ADALAM = "kornia AdaLAM"
RIGHT = 3.0
"""Pixels."""

Pair = tuple[Keypoints, Keypoints, Tensor]


def run(bench: Any) -> None:
    """One line a size and contender; the quality is a mean over the pairs."""
    kornia = bench.peer("kornia.feature")
    cv2 = bench.peer("cv2")
    for count in bench.sizes((512, 1024, 2048), tiny=(96,)):
        pairs = load(bench, count, detector=cv2 is not None)
        contenders = {
            OURS: lambda: [match(a, b) for a, b, _ in pairs],
            RATIO: lambda: [ratio_test(a, b) for a, b, _ in pairs],
            ADALAM: (lambda: [adalam(kornia, a, b) for a, b, _ in pairs]) if kornia else None,
        }
        for row in bench.compare("match", contenders, size=count, quality=lambda found: score(found, pairs)):
            row.quality["ms a pair"] = row.median * 1e3 / len(pairs)


def load(bench: Any, count: int, *, detector: bool) -> list[Pair]:
    """Keypoints of both images, and the homography between them."""
    data = os.environ.get("DIFFMATCH_DATA")
    if not detector:
        return [planted(count, bench.generator())]
    if data and not bench.tiny:
        return public_pairs(Path(data) / "images" / "test", count)
    from diffmatch.matching.keypoints.scenes import Scenes, SceneSettings

    long = round(18 * math.sqrt(count))
    settings = SceneSettings(views=2, max_keypoints=count, long_side=(long, long + 1), max_tilt=30.0, seed=1)
    scenes, pairs = Scenes.made(6, size=(long, round(0.75 * long)), settings=settings), []
    for number in range(6):
        a, b = scenes.scene(number)
        if len(a.homographies) == 1:
            pairs.append((a.keypoints, b.keypoints, (b.homographies @ torch.linalg.inv(a.homographies))[0]))
    return pairs


def public_pairs(folder: Path, count: int) -> list[Pair]:
    """The first pair of each sequence of the public homography pairs."""
    from diffmatch.matching.keypoints.features import detect_sift

    chosen: dict[str, Any] = {}
    for record in json.loads((folder / "homography_pairs.json").read_text()):
        chosen.setdefault(record["a"], record)
    return [
        (
            detect_sift(folder / record["a"], max_keypoints=count),
            detect_sift(folder / record["b"], max_keypoints=count),
            torch.tensor(record["H"], dtype=torch.float64),
        )
        for record in chosen.values()
    ]


def planted(count: int, generator: torch.Generator) -> Pair:
    """The same keypoints twice, with noise."""
    positions = 1000 * torch.rand(count, 2, generator=generator)
    descriptors = normalize(torch.rand(count, 128, generator=generator) ** 4, dim=-1)
    noisy = normalize(descriptors + 0.1 * torch.rand(count, 128, generator=generator), dim=-1)
    a, b = (Keypoints.of(positions, rows, image_size=(1000, 1000), kind="rootsift") for rows in (descriptors, noisy))
    return a, b, torch.eye(3, dtype=torch.float64)


@torch.no_grad()
def match(a: Keypoints, b: Keypoints) -> Tensor:
    return match_keypoints(a, b)[0]


def ratio_test(a: Keypoints, b: Keypoints, ratio: float = 0.85) -> Tensor:
    """Mutual nearest neighbours that are clearly nearer than the second."""
    similarity = a.descriptors @ b.descriptors.T
    best = similarity.topk(2, 1)
    nearest, second = (2 - 2 * best.values).clamp(min=0).sqrt().unbind(1)
    rows, columns = torch.arange(len(similarity)), best.indices[:, 0]
    good = (similarity.argmax(0)[columns] == rows) & (nearest < ratio * second)
    return torch.stack((rows, columns), -1)[good]


@torch.no_grad()
def adalam(kornia: Any, a: Keypoints, b: Keypoints) -> Tensor:
    shapes = [
        kornia.laf_from_center_scale_ori(
            x.positions[None], x.scale[None, :, None, None], x.orientation[None, :, None].rad2deg()
        )
        for x in (a, b)
    ]
    sizes = [tuple(reversed(x.image_size.tolist())) for x in (a, b)]
    _, pairs = kornia.match_adalam(a.descriptors, b.descriptors, *shapes, hw1=sizes[0], hw2=sizes[1])
    return pairs


def score(found: list[Tensor], pairs: list[Pair]) -> dict[str, float]:
    """Mean precision (0 where nothing was found) and number of right matches."""
    shares, right = [], 0.0
    for matches, (a, b, homography) in zip(found, pairs, strict=True):
        points = torch.nn.functional.pad(a.positions[matches[:, 0]].double(), (0, 1), value=1.0) @ homography.T
        off = (points[:, :2] / points[:, 2:] - b.positions[matches[:, 1]]).norm(dim=-1)
        good = int((off <= RIGHT).sum())
        shares.append(100.0 * good / max(1, len(matches)))
        right += good
    return {"precision %": sum(shares) / len(shares), "right a pair": right / len(pairs)}


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
