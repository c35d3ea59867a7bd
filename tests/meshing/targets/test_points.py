"""Point clouds as targets: planted surfaces, noise, outliers, holes, missing normals."""

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing import PointCloud, PointTarget, fit_mesh, load_target
from diffmatch.meshing.shapes import box, sphere
from diffmatch.meshing.targets import Attributed, Target
from diffmatch.meshing.targets.winding import dipole_tree, winding_numbers

RADIUS, HALF = 0.9, (0.9, 0.7, 0.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ball_points(n=3000, *, noise=0.0, seed=0):
    normals = torch.nn.functional.normalize(torch.randn(n, 3, generator=seeded(seed), dtype=torch.float64), dim=1)
    return RADIUS * normals + noise * torch.randn(n, 3, generator=seeded(seed + 1), dtype=torch.float64), normals


def box_points(n=3000, *, noise=0.0, seed=0):
    half = torch.tensor(HALF, dtype=torch.float64)
    areas = half.prod() / half
    axis = torch.multinomial(areas, n, replacement=True, generator=seeded(seed))
    points = (2 * torch.rand(n, 3, generator=seeded(seed + 1), dtype=torch.float64) - 1) * half
    side = torch.sign(torch.rand(n, generator=seeded(seed + 2), dtype=torch.float64) - 0.5)
    row = torch.arange(n)
    points[row, axis] = side * half[axis]
    normals = torch.zeros(n, 3, dtype=torch.float64)
    normals[row, axis] = side
    return points + noise * torch.randn(n, 3, generator=seeded(seed + 3), dtype=torch.float64), normals


def fitted(cloud, resolution=16):
    return fit_mesh(cloud, resolution=resolution, steps=20, progress=False)


def error(result, field):
    return float(field(result.mesh.sample(5000, seeded()).points).abs().mean())


def ball(points):
    return sphere(points, radius=RADIUS)


def block(points):
    return box(points, half=HALF)


def test_the_field_of_a_ball(device, dtype):
    target = PointTarget(*ball_points())
    assert isinstance(target, Target)
    assert isinstance(target, Attributed)
    own = (2 * torch.rand(400, 3, generator=seeded(4), dtype=torch.float64) - 1) * 1.1
    points = target.normalization.apply(own).to(device, dtype)
    value, gradient = target.value_and_gradient(points)
    assert value.dtype == gradient.dtype == dtype
    assert value.device.type == device.type
    wanted = ball(own) * target.normalization.scale
    near = wanted.abs() < 0.02
    assert near.sum() > 5
    assert (value.cpu().double() - wanted)[near].abs().max() < 2e-3
    assert ((value.cpu() < 0) == (wanted < 0)).all()
    assert (value.cpu().double() - wanted).abs().max() < 0.05
    outward = torch.nn.functional.cosine_similarity(gradient.cpu().double(), own)
    assert (outward[near] > 0.995).all()
    assert (outward[wanted.abs() < 0.1] > 0.9).all()  # farther away, the direction from the nearest point


def test_sdf_is_differentiable_along_its_gradient():
    target = PointTarget(*ball_points())
    points = torch.tensor([[0.8, 0.1, 0.2], [0.0, 0.95, 0.0]], dtype=torch.float64, requires_grad=True)
    values = target.sdf(points)
    values.sum().backward()
    value, gradient = target.value_and_gradient(points.detach())
    torch.testing.assert_close(values.detach(), value)
    torch.testing.assert_close(points.grad, gradient)


def test_closest_points_and_samples_lie_on_the_surface():
    target = PointTarget(*box_points())
    own, normals = target.sample(500, seeded(1), dtype=torch.float64)
    off = block(target.normalization.inverse(own)).abs()
    assert off.mean() < 2e-3
    assert normals.norm(dim=1).sub(1).abs().max() < 1e-9
    found = target.closest(torch.tensor([[0.2, 0.1, 0.55]], dtype=torch.float64))
    assert found.points[0].tolist() == pytest.approx([0.2, 0.1, 0.5], abs=2e-3)
    assert found.normals[0].tolist() == pytest.approx([0, 0, 1], abs=1e-2)
    assert float(found.distance[0]) == pytest.approx(0.05, abs=2e-3)


def test_noise_is_estimated_and_averaged_out():
    noise = 0.015
    points, normals = box_points(6000, noise=noise)
    target = PointTarget(points, normals)
    assert target.noise == pytest.approx(noise, rel=0.25)
    left = block(target.normalization.inverse(target.points)).abs().mean()
    assert left < block(points).abs().mean() / 4
    kept = PointTarget(points, normals, noise=0)
    torch.testing.assert_close(kept.normalization.inverse(kept.points), points[torch.from_numpy(kept.kept)])


def test_outliers_and_repeated_points_are_left_out():
    points, normals = ball_points()
    far = torch.tensor([[0.0, 0, 0], [0.3, 0.2, -0.1], [1.5, 0, 0]], dtype=torch.float64)
    target = PointTarget(torch.cat([points, far, points[:1]]), torch.cat([normals, normals[:3], normals[:1]]))
    assert not target.kept[-4:].any()
    assert target.kept[:-4].mean() > 0.98


def test_normals_of_any_length_and_inward():
    points, normals = ball_points()
    inside = torch.zeros(1, 3, dtype=torch.float64)
    assert PointTarget(points, 7 * normals).sdf(inside) < 0
    assert PointTarget(points, -normals).sdf(inside) < 0


def test_missing_normals_are_estimated_with_a_warning(caplog):
    points, normals = box_points()
    target = PointTarget(points)
    assert "no normals" in caplog.text
    agree = (target.normals * normals[torch.from_numpy(target.kept)]).sum(1)
    assert (agree > 0).double().mean() > 0.99
    assert target.sdf(torch.zeros(1, 3, dtype=torch.float64)) < 0


def test_a_fit_to_noisy_points_with_sharp_edges():
    result = fitted(PointCloud(*box_points(4000, noise=0.01)))
    assert error(result, block) < 3e-3
    assert result.metrics.validity.watertight
    assert result.metrics.validity.euler_characteristic == 2


def test_holes_are_bridged_without_extra_bodies():
    points, normals = ball_points(4000)
    centres = torch.nn.functional.normalize(torch.randn(6, 3, generator=seeded(9), dtype=torch.float64), dim=1) * RADIUS
    diagonal = 2 * RADIUS * 3**0.5
    kept = torch.cdist(points, centres).amin(1) > 0.05 * diagonal / 2
    assert not kept.all()
    result = fitted(PointCloud(points[kept], normals[kept]))
    assert error(result, ball) < 2e-3
    assert result.metrics.validity.bodies == 1
    assert result.metrics.validity.euler_characteristic == 2


def test_attributes_of_points_are_carried():
    points, normals = ball_points()
    result = fitted(PointCloud(points, normals, points / 2 + 0.5))
    wanted = result.mesh.vertices / 2 + 0.5
    assert (result.mesh.vertex_attributes - wanted).abs().mean() < 0.02
    assert PointTarget(points, normals).attributes_at(points) is None


def test_files_become_targets(tmp_path):
    points, normals = ball_points(500)
    np.save(tmp_path / "cloud.npy", np.c_[points, normals])
    assert isinstance(load_target(tmp_path / "cloud.npy"), PointTarget)
    np.save(tmp_path / "bad.npy", np.zeros((5, 4)))
    with pytest.raises(InputError, match=r"target: want points of shape \(n, 3\)"):
        load_target(tmp_path / "bad.npy")


def test_the_winding_number_is_that_of_the_sum_of_dipoles():
    points, normals = (x.numpy() for x in ball_points(2000))
    vectors = normals * (4 * np.pi * RADIUS**2 / len(points))
    order = np.argsort(points[:, 0])
    queries = np.random.default_rng(0).uniform(-1.5, 1.5, (50, 3))
    queries = queries[np.abs(np.linalg.norm(queries, axis=1) - RADIUS) > 0.1]
    found = winding_numbers(dipole_tree(points[order], vectors[order]), queries)
    offset = points[None] - queries[:, None]
    wanted = ((offset * vectors).sum(2) / np.linalg.norm(offset, axis=2) ** 3).sum(1) / (4 * np.pi)
    np.testing.assert_allclose(found, wanted, atol=0.02)


@pytest.mark.parametrize(
    ("points", "normals", "message"),
    [
        (torch.zeros(3, 3), None, "at least 4 points"),
        (torch.full((9, 3), torch.inf), None, "points: want finite"),
        (torch.rand(9, 3), torch.zeros(9, 3), "normals: want vectors that are not zero, got 9 of 9"),
        (torch.zeros(9, 3), torch.ones(9, 3), "in one place, got 1 of 9"),
    ],
)
def test_what_cannot_be_a_surface_is_refused(points, normals, message):
    with pytest.raises(InputError, match=message):
        PointTarget(points, normals)
