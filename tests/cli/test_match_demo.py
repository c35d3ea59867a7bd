"""The demo's match job: a view whose homography is known, and files and figures for it."""

import json

import numpy as np
import pytest
import torch

from diffmatch.cli.demos import match
from diffmatch.cli.demos.settings import DemoSettings
from diffmatch.matching.keypoints import detect_sift, read_matches
from diffmatch.report import Report

cv2 = pytest.importorskip("cv2")
pytest.importorskip("plotly")


def test_the_view_is_that_of_its_homography():
    picture = match.painted_texture(0, width=160, height=120)
    assert np.array_equal(picture, match.painted_texture(0, width=160, height=120))
    other, homography = match.slanted_view(picture)
    assert homography[2, 2] == 1
    middle = homography @ [80, 60, 1]
    assert np.allclose(middle[:2] / middle[2], [80, 60], atol=1)
    again = cv2.warpPerspective(picture, homography, (160, 120), borderValue=(90, 90, 90))
    assert np.abs(0.8 * again - other).mean() < 6
    assert detect_sift(picture).count > 50


@pytest.mark.slow
def test_the_job_matches_and_writes(tmp_path):
    report = Report("demo")
    metrics = match.run(report, DemoSettings(tmp_path, "cpu", 0, None, progress=False))
    values = {metric.name: metric.value for metric in metrics}
    assert values["matches"] > 100
    assert values["corner error"] < 2
    read = read_matches(tmp_path / "matches.npz")
    assert len(read["points_a"]) == values["matches"]
    assert torch.from_numpy(read["homography"]).shape == (3, 3)
    assert json.loads((tmp_path / "matches.json").read_text())["pairs"][0]["matches"] == values["matches"]
