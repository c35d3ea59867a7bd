import pytest
import torch

from diffmatch.meshing import Mesh, MeshTarget, load_target
from diffmatch.meshing.shapes import sphere
from diffmatch.meshing.surface_error import one_point_a_face, surface_errors

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("igl")


def ball(points):
    return sphere(points, radius=0.5)


def ball_of_triangles():
    return MeshTarget(trimesh.creation.icosphere(5, radius=0.5))  # comes into the box with radius 0.9


@pytest.mark.parametrize(("target", "radius"), [(load_target(ball), 0.5), (ball_of_triangles(), 0.9)])
def test_errors_of_points_beside_a_ball(target, radius, generator):
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator, dtype=torch.float64), dim=1)
    points = (radius + 0.02) * directions
    distance, turn = surface_errors(target, points, -directions, cell=0.1)
    assert torch.allclose(distance, torch.full_like(distance, 0.04), rtol=0.05)
    assert torch.allclose(turn, torch.full_like(turn, 4.0), rtol=1e-3)


def test_errors_fall_along_their_gradients():
    points = torch.tensor([[0.6, 0.1, 0.0]], requires_grad=True)
    normals = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
    distance, turn = surface_errors(load_target(ball), points, normals, cell=0.1)
    (distance + turn).sum().backward()
    assert (points.grad * points.detach()).sum() > 0  # a step down leads to the ball
    assert normals.grad[0, 0] < 0  # and turns the normal outwards


def test_a_field_without_a_gradient_gives_finite_errors():
    target = load_target(lambda points: torch.zeros_like(points[:, 0]))
    distance, turn = surface_errors(target, torch.zeros(2, 3), torch.eye(3)[:2], cell=0.1)
    assert distance.tolist() == [0, 0]
    assert turn.tolist() == [1, 1]


def test_one_point_in_each_face_uniform_within_it(generator):
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    mesh = Mesh(corners.requires_grad_(), torch.tensor([[0, 1, 2]]).expand(20_000, 3))
    points = one_point_a_face(mesh, generator)
    assert points.shape == (20_000, 3)
    x, y, _ = points.detach().T
    assert bool(((x >= 0) & (y >= 0) & (x + y <= 1)).all())
    assert x.mean() == pytest.approx(1 / 3, abs=0.01)
    assert ((x < 0.5) & (y < 0.5) & (x + y > 0.5)).double().mean() == pytest.approx(1 / 4, abs=0.02)
    points.sum().backward()
    assert torch.isfinite(corners.grad).all()
