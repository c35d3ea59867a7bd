"""What a report shows of matched images."""

import re

import numpy as np
import pytest

from diffmatch.matching.keypoints import match_images, read_image
from diffmatch.report import Report
from diffmatch.report.keypoint_match import add_keypoint_match, keypoint_match_metrics, matches_svg

cv2 = pytest.importorskip("cv2")
pytest.importorskip("plotly")


@pytest.fixture(scope="module")
def picture():
    noise = np.random.default_rng(0).integers(0, 256, (200, 240), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX)


@pytest.fixture(scope="module")
def matches(picture):
    return match_images(picture, picture[15:, 10:], network="never", views="never")


def test_lines_join_the_matched_points(picture, matches):
    images = read_image(picture), read_image(picture[15:, 10:])
    svg = matches_svg(matches, *images)
    lines = re.findall(r'<path d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)" stroke="#[0-9a-f]{6}"/>', svg)
    assert len(lines) == min(matches.count, 300)
    scale = 1100 / (240 + 230)
    step = np.array(lines, float)
    assert np.allclose(np.median(step[:, 2] - step[:, 0]), (240 - 10) * scale, atol=1)
    assert np.allclose(np.median(step[:, 3] - step[:, 1]), -15 * scale, atol=1)
    assert svg.count("data:image/jpeg;base64,") == 2


def test_figures_and_drawings(picture, matches, tmp_path):
    report = Report("t")
    add_keypoint_match(report, matches, picture, picture[15:, 10:], names=("one", "two"))
    page = report.html()
    assert page.count("data:image/svg+xml") == 2
    assert "one, left, and two, right" in page
    metrics = {metric.name: metric.value for metric in keypoint_match_metrics(matches)}
    assert metrics["matches"] == matches.count > 0
    assert metrics["geometry"] == "homography"


def test_nothing_matched_is_shown_too(picture):
    blank = np.zeros((50, 60), np.uint8)
    matches = match_images(picture, blank, network="never", views="never")
    report = Report("t")
    add_keypoint_match(report, matches, picture, blank)
    assert "0 of 0 verified matches" in report.html()
    assert {m.name: m.value for m in keypoint_match_metrics(matches)}["geometry"] == "none"
