"""Geometries that chance explains as well are not believed; true ones are."""

import dataclasses

import numpy as np
import pytest
import torch

from diffmatch.matching.keypoints import Keypoints
from diffmatch.matching.keypoints.attempt import attempt
from diffmatch.matching.keypoints.chance import confirmed, fundamental_contrast, homography_contrast
from diffmatch.matching.keypoints.descriptor_search import nearest_descriptors
from diffmatch.matching.keypoints.nearest import match_nearest

TRUTH = np.array([[0.9, 0.1, 20.0], [-0.1, 0.95, 30.0], [0.0, 0.0, 1.0]])
WRONG = np.array([[0.5, 0.3, 90.0], [-0.2, 0.7, 60.0], [1e-4, 0.0, 1.0]])
AXIS = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # rows match rows: x moves freely


def crowd(n, generator, *, spread=0.32):
    """Keypoints so many and so alike that under any geometry some pairs look right."""
    positions = torch.rand(n, 2, generator=generator) * 300
    common = torch.rand(1, 16, generator=generator) + 0.5
    descriptors = common + spread * torch.randn(n, 16, generator=generator)
    return Keypoints.of(positions, torch.nn.functional.normalize(descriptors, dim=1), image_size=(400, 400))


@pytest.fixture
def images(generator):
    """Keypoints, and the same under the true homography with half as many others among them."""
    a, other = crowd(1500, generator), crowd(700, generator)
    mapped = a.positions.double().numpy() @ TRUTH[:, :2].T + TRUTH[:, 2]
    seen = torch.from_numpy(mapped[:, :2]).float()
    noise = 0.01 * torch.randn(a.descriptors.shape, generator=generator)
    descriptors = torch.nn.functional.normalize(torch.cat([a.descriptors + noise, other.descriptors]), dim=1)
    return a, Keypoints.of(torch.cat([seen, other.positions]), descriptors, image_size=(400, 400))


def test_the_truth_stands_out_and_what_is_wrong_does_not(images):
    assert homography_contrast(*images, TRUTH, threshold=2.0) > 3
    assert homography_contrast(*images, WRONG, threshold=2.0) < 1.5


def test_epipolar_lines_stand_out_where_they_are_true(generator):
    a = crowd(800, generator)
    moved = a.positions + torch.rand(800, 1, generator=generator) * torch.tensor([60.0, 0.0])
    noise = 0.05 * torch.randn(a.descriptors.shape, generator=generator)
    b = Keypoints.of(moved, torch.nn.functional.normalize(a.descriptors + noise, dim=1), image_size=(400, 400))
    near = nearest_descriptors(a, b, k=8)
    assert fundamental_contrast(a, b, AXIS, near, radius=1.5) > 3
    assert fundamental_contrast(a, b, AXIS @ np.diag([1.0, 1.0, 0.5]), near, radius=1.5) < 1.5


def test_a_wrong_homography_is_dropped_and_a_true_one_kept(images):
    near = nearest_descriptors(*images, k=8)
    pairs, scores = match_nearest(*images)
    found = attempt(*images, pairs, scores, threshold=2.0, estimator="magsac", seed=0)
    same = confirmed(found, nearest=near, threshold=2.0)
    assert np.array_equal(same.geometry.homography, found.geometry.homography)
    claimed = dataclasses.replace(found, geometry=dataclasses.replace(found.geometry, homography=WRONG))
    refused = confirmed(claimed, nearest=None, threshold=2.0).geometry
    assert refused.homography is None
    assert not refused.on_homography.any()
    assert not refused.planar
