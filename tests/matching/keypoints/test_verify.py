"""Robust fits: what counts as one plane, and that the homography with the most support is found."""

import numpy as np
import pytest

from diffmatch.matching.keypoints.verify import transfer_distance, verify

pytest.importorskip("cv2")

PLANE = np.array([[0.9, 0.1, 20.0], [-0.1, 0.95, 30.0], [1e-4, 0.0, 1.0]])


def warp(homography, points):
    mapped = points @ homography[:, :2].T + homography[:, 2]
    return mapped[:, :2] / mapped[:, 2:]


@pytest.fixture
def random():
    return np.random.default_rng(0)


def in_space(points, depth):
    """A camera that moves sideways: nearer points move more, along the rows."""
    return points + np.stack([60.0 / depth, np.zeros(len(points))], axis=1)


def test_a_plane_with_wrong_matches(random):
    a = random.uniform(0, 500, (300, 2))
    b = warp(PLANE, a) + random.normal(0, 0.5, (300, 2))
    b[:100] = random.uniform(0, 500, (100, 2))
    found = verify(a, b)
    assert found.planar
    assert found.on_homography[100:].mean() > 0.98
    assert found.on_homography[:100].mean() < 0.1
    assert transfer_distance(PLANE, a, warp(found.homography, a)).max() < 0.5


def test_distances_are_measured_half_way_between_the_scales(random):
    a = random.uniform(0, 400, (50, 2))
    zoom = np.diag([0.25, 0.25, 1.0])
    b = warp(zoom, a) + np.array([0.6, 0.8])  # one pixel off in B, four in A
    assert np.allclose(transfer_distance(zoom, a, b), 2.0)
    assert np.allclose(transfer_distance(np.linalg.inv(zoom), b, a), 2.0)
    assert np.isinf(transfer_distance(np.ones((3, 3)), a, b)).all()  # has no inverse


def test_a_view_from_afar_keeps_matches_that_are_a_pixel_off(random):
    a = random.uniform(0, 1000, (300, 2))
    zoom = np.array([[0.2, 0.02, 90.0], [-0.02, 0.2, 70.0], [1e-5, 0.0, 1.0]])
    b = warp(zoom, a) + random.normal(0, 0.5, (300, 2))
    b[:60] = random.uniform(0, 500, (60, 2))
    found = verify(a, b)
    assert found.planar
    assert found.on_homography[60:].mean() > 0.9
    assert found.on_homography[:60].mean() < 0.1
    assert np.linalg.norm(warp(found.homography, a) - warp(zoom, a), axis=1).max() < 0.5


def test_an_uneven_plane_is_one_and_two_planes_are_not(random):
    a = random.uniform(0, 500, (600, 2))
    uneven = in_space(a, 6.0 + 2.0 * np.sin(a[:, 0] / 40))  # some pixels off, along the epipolar lines
    found = verify(a, uneven + random.normal(0, 0.3, a.shape))
    assert found.on_homography.sum() < 0.9 * found.on_fundamental.sum()
    assert found.planar
    steps = in_space(a, np.where(a[:, 0] < 300, 1.5, 6.0))
    found = verify(a, steps + random.normal(0, 0.3, a.shape))
    assert not found.planar
    assert found.inliers.mean() > 0.95


def test_of_a_dominant_plane_and_depth_what_is_between_is_left_out(random):
    a = random.uniform(0, 500, (900, 2))
    shift = np.repeat([10.0, 15.0, 40.0], [690, 60, 150])
    found = verify(a, a + np.stack([shift, 0 * shift], axis=1) + random.normal(0, 0.3, a.shape))
    assert not found.planar
    assert found.on_homography[:690].mean() > 0.98
    assert found.inliers[750:].mean() > 0.98
    assert found.inliers[690:750].mean() < 0.05


def test_no_match_and_chance_give_nothing(random):
    for n in (0, 3, 60):
        found = verify(random.uniform(0, 500, (n, 2)), random.uniform(0, 500, (n, 2)))
        assert not found.found
        assert not found.inliers.any()


@pytest.mark.parametrize("estimator", ["magsac", "ransac"])
def test_equal_seeds_give_equal_fits(random, estimator):
    a = random.uniform(0, 500, (200, 2))
    b = warp(PLANE, a) + random.normal(0, 2.0, (200, 2))
    one, two = (verify(a, b, estimator=estimator, seed=3) for _ in range(2))
    assert np.array_equal(one.homography, two.homography)
