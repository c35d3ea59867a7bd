"""Noise in point clouds: planted planes, spheres and edges."""

import numpy as np
import pytest
import torch

from diffmatch.meshing import PointTarget
from diffmatch.meshing.shapes import sphere
from diffmatch.meshing.targets.denoising import denoised, noise_level, residual_noise

NOISE = 0.012


def plane(n, *, seed=0):
    """Points of a square, their normals, and positions with noise."""
    rng = np.random.default_rng(seed)
    points = np.c_[rng.uniform(-1, 1, (n, 2)), np.zeros(n)]
    return points, np.tile([0.0, 0.0, 1.0], (n, 1)), points + NOISE * rng.standard_normal((n, 3))


def ball(n, *, seed=0):
    rng = np.random.default_rng(seed)
    normals = rng.standard_normal((n, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return 0.8 * normals, normals, 0.8 * normals + NOISE * rng.standard_normal((n, 3))


def wedge(n, *, seed=0):
    """Two squares at a right angle, the floor and a wall."""
    rng = np.random.default_rng(seed)
    on_wall = rng.random(n) < 0.5
    a, b, zero = rng.uniform(0, 1, n), rng.uniform(-1, 1, n), np.zeros(n)
    points = np.where(on_wall[:, None], np.c_[zero, b, a], np.c_[a, b, zero])
    normals = np.where(on_wall[:, None], [1.0, 0, 0], [0.0, 0, 1])
    return points, normals, points + NOISE * rng.standard_normal((n, 3))


def heights(points, truth, normals):
    return ((points - truth) * normals).sum(1)


def test_a_plane_is_found_as_well_as_a_mean_finds_it():
    truth, normals, noisy = plane(3000)
    moved = denoised(noisy, normals, NOISE)
    left = heights(moved, truth, normals)
    assert left.std() < 0.02 * NOISE  # one offset for all: the chords are exact
    assert abs(left.mean() - heights(noisy, truth, normals).mean()) < 0.01 * NOISE
    assert abs(left.mean()) < 4 * NOISE / np.sqrt(3000)


def test_edges_stay_sharp():
    truth, normals, noisy = wedge(4000)
    left = np.abs(heights(denoised(noisy, normals, NOISE), truth, normals))
    at_edge = truth[:, [0, 2]].max(1) < 3 * NOISE
    assert at_edge.sum() > 50
    assert left.mean() < 0.1 * NOISE
    assert left[at_edge].mean() < 0.1 * NOISE


def test_a_ball_and_neighbours_taken_from_a_first_result():
    _, normals, noisy = ball(8000)
    once = denoised(noisy, normals, NOISE)
    twice = denoised(noisy, normals, NOISE, guide=once)
    errors = [np.abs(np.linalg.norm(x, axis=1) - 0.8).mean() for x in (noisy, once, twice)]
    assert errors[1] < errors[0] / 10
    assert errors[2] < 1.1 * errors[1]
    assert abs(np.linalg.norm(twice, axis=1).mean() - 0.8) < 0.05 * NOISE  # neither shrunk nor swollen


def test_few_wrong_normals_do_little_harm():
    truth, normals, noisy = plane(3000)
    rng = np.random.default_rng(1)
    wrong = rng.random(3000) < 0.03
    tilted = normals + np.where(wrong[:, None], 0.35 * rng.standard_normal((3000, 3)), 0)
    tilted /= np.linalg.norm(tilted, axis=1, keepdims=True)
    assert np.abs(heights(denoised(noisy, tilted, NOISE), truth, normals))[~wrong].mean() < 0.12 * NOISE


def test_the_unit_of_length_does_not_matter():
    _, normals, noisy = ball(1500)
    np.testing.assert_allclose(denoised(1e3 * noisy, normals, 1e3 * NOISE), 1e3 * denoised(noisy, normals, NOISE))


@pytest.mark.parametrize("shape", [plane, ball, wedge])
def test_the_noise_is_estimated(shape):
    _, normals, noisy = shape(6000)
    level = noise_level(noisy, normals)
    assert level == pytest.approx(NOISE, rel=0.25)
    assert residual_noise(noisy, denoised(noisy, normals, level), normals) == pytest.approx(NOISE, rel=0.08)


def test_points_without_noise_or_without_neighbours_stay():
    truth, normals, _ = ball(2000)
    target = PointTarget(torch.from_numpy(truth), torch.from_numpy(normals))
    assert target.noise < 1e-3
    torch.testing.assert_close(target.normalization.inverse(target.points), torch.from_numpy(truth))
    axes = np.eye(3)
    assert np.array_equal(denoised(axes, axes, 0.1), axes)


def test_the_noise_of_a_target_is_what_was_planted():
    _, normals, noisy = ball(6000)
    target = PointTarget(torch.from_numpy(noisy), torch.from_numpy(normals))
    assert target.noise == pytest.approx(NOISE, rel=0.08)
    left = sphere(target.normalization.inverse(target.points), radius=0.8).abs().mean()
    assert left < 0.1 * NOISE
