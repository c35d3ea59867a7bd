"""Views that a homography predicts: where their keypoints lie, and what is matched with them."""

import dataclasses

import numpy as np
import pytest
import torch

from diffmatch.matching.keypoints.attempt import attempt, keep_close, keep_verified
from diffmatch.matching.keypoints.features import sift_of_gray
from diffmatch.matching.keypoints.geometry import apply_homography, corner_error
from diffmatch.matching.keypoints.nearest import match_nearest
from diffmatch.matching.keypoints.predicted import predicted_keypoints, rematch_predicted

TRUTH = np.array([[0.55, 0.1, 60.0], [-0.05, 0.9, 20.0], [-2e-4, 1e-4, 1.0]])
SETTINGS = {"threshold": 2.0, "estimator": "magsac", "seed": 0}
DETECTOR = {"max_keypoints": 1000, "contrast_threshold": 0.0133}


@pytest.fixture(scope="module")
def grays(cv2, texture, warped):
    picture = texture()
    return [cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in (picture, warped(picture, TRUTH))]


@pytest.fixture(scope="module")
def found(grays):
    a, b = (sift_of_gray(gray, **DETECTOR) for gray in grays)
    pairs, scores = match_nearest(a, b)
    return keep_verified(attempt(a, b, pairs, scores, **SETTINGS))


def error(homography):
    return float(corner_error(torch.from_numpy(homography), torch.from_numpy(TRUTH), size=(400, 300)))


def test_the_view_under_the_identity_has_the_keypoints_of_the_image(grays):
    plain = sift_of_gray(grays[0], **DETECTOR)
    seen = predicted_keypoints(grays[0], np.eye(3), grays[0].shape, **DETECTOR)
    row = torch.cdist(seen.positions.double(), plain.positions.double()).argmin(1)
    assert seen.count > 0.7 * plain.count  # those that reach over the edge are left out
    torch.testing.assert_close(seen.positions, plain.positions[row], atol=1e-3, rtol=0)
    assert set(seen.scale.tolist()) <= set(plain.scale.tolist())


def test_frames_of_a_view_are_mapped_back(grays):
    turn = np.array([[0.0, -1.0, 299.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]) @ np.diag([1.0, 1.0, 0.5])
    seen = predicted_keypoints(grays[0], turn, (800, 600), **DETECTOR)
    plain = sift_of_gray(grays[0], **DETECTOR)
    distance, row = torch.cdist(seen.positions, plain.positions).min(1)
    same = (distance < 0.3) & (seen.scale > 2) & ((seen.scale / plain.scale[row] - 1).abs() < 0.1)
    assert same.sum() > 30
    # The others have several orientations in one place.
    assert ((seen.orientation - plain.orientation[row])[same].cos() > 0.95).float().mean() > 0.5


def test_matches_with_predicted_views_are_more_and_right(grays, found):
    again = rematch_predicted(found, *grays, **DETECTOR, **SETTINGS)
    assert again.verified > 1.2 * found.verified
    assert again.guided.all()
    assert error(again.geometry.homography) < 0.5
    assert torch.equal(again.keypoints_a.positions[: found.keypoints_a.count], found.keypoints_a.positions)
    points_a, points_b = (
        k.positions[again.pairs[:, side]].double() for side, k in enumerate((again.keypoints_a, again.keypoints_b))
    )
    off = (apply_homography(torch.from_numpy(TRUTH), points_a) - points_b).norm(dim=1)
    assert (off < 2).float().mean() > 0.95
    for points in (points_a, points_b):
        assert torch.cdist(points, points).fill_diagonal_(9).min() > 1


def test_a_homography_that_views_do_not_confirm_stays_as_it_was(grays, found):
    wrong = TRUTH + np.array([[0.0, 0.2, 40.0], [0.1, 0.0, -30.0], [0.0, 0.0, 0.0]])
    claimed = dataclasses.replace(found, geometry=dataclasses.replace(found.geometry, homography=wrong))
    assert rematch_predicted(claimed, *grays, **DETECTOR, **SETTINGS) is claimed


def test_a_planar_scene_keeps_what_its_homography_maps_well(found):
    tight = keep_close(found, 0.5)
    assert 0 < tight.verified == len(tight.pairs) < found.verified
    free = dataclasses.replace(found, geometry=dataclasses.replace(found.geometry, planar=False))
    assert keep_close(free, 0.5) is free
