from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.report import Frame, View
from diffmatch.report.view import mesh_arrays


@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_the_basis_is_a_rotation_and_keeps_up_upward(up):
    basis = View.standard(up).basis()
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(basis) == pytest.approx(1.0)
    assert basis[1] @ np.eye(3)["xyz".index(up)] > 0.8


def test_the_three_standard_views_show_a_turned_mesh_alike():
    """Turning the axes x -> y -> z -> x turns the view with them, up to the side it looks from."""
    for up in "xyz":
        axis = np.eye(3)["xyz".index(up)]
        right, upward, backward = View.standard(up).basis() @ axis
        assert right == pytest.approx(0.0, abs=1e-12)
        assert (upward, backward) == pytest.approx((0.926, 0.378), abs=1e-3)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 4 / 3, 3.0])
def test_fitted_brings_the_outermost_point_to_the_margin(aspect):
    points = np.random.default_rng(1).normal(size=(200, 3)) * (3.0, 1.0, 0.5) + 100.0
    frame = Frame.around(points)
    view = View().fitted(points, frame, aspect=aspect, margin=0.1)
    x, y, z = view.basis() @ ((points - frame.center) / frame.radius).T
    slope = np.tan(np.radians(view.field_of_view) / 2)
    reach = np.maximum(np.abs(x) / max(aspect, 1.0), np.abs(y) * min(aspect, 1.0)) / (view.distance - z) / slope
    assert reach.max() == pytest.approx(0.9)


def test_a_frame_holds_all_vertices():
    points = np.random.default_rng(2).normal(size=(50, 3))
    frame = Frame.around(points)
    distance = np.linalg.norm(points - frame.center, axis=1)
    assert distance.max() == pytest.approx(frame.radius)
    assert Frame.around(np.ones((3, 3))).radius == 1.0  # a point still has a frame


def test_tensors_and_arrays_are_read_alike():
    vertices, faces = torch.rand(4, 3, requires_grad=True), torch.tensor([[0, 1, 2], [1, 2, 3]], dtype=torch.int32)
    first = mesh_arrays(SimpleNamespace(vertices=vertices, faces=faces))
    second = mesh_arrays(SimpleNamespace(vertices=vertices.detach().numpy(), faces=faces.numpy()))
    assert first[0].dtype == np.float64
    assert first[1].dtype == np.int64
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (np.zeros((4, 2)), [[0, 1, 2]], r"mesh.vertices: want shape \(v, 3\), got \(4, 2\)"),
        (np.zeros((4, 3)), np.zeros((0, 3)), r"mesh.faces: want shape \(f, 3\) with f > 0"),
        (np.zeros((4, 3)), [[0, 1, 4]], r"mesh.faces: want indices in 0..3, got 0..4"),
        (np.zeros((4, 3)), [[-1, 1, 2]], r"mesh.faces: want indices in 0..3, got -1..2"),
        (np.full((4, 3), np.nan), [[0, 1, 2]], r"mesh.vertices: want finite coordinates, got 12 NaN or infinite"),
    ],
)
def test_broken_meshes_are_refused(vertices, faces, message):
    with pytest.raises(InputError, match=message):
        mesh_arrays(SimpleNamespace(vertices=vertices, faces=np.asarray(faces)))


@pytest.mark.untyped
def test_a_view_along_its_up_axis_is_refused():
    with pytest.raises(InputError, match=r"view.eye: want a direction across up"):
        View(eye=(0.0, 0.0, 2.0)).basis()
    with pytest.raises(InputError, match=r"up: want one of x, y, z"):
        View.standard("w")
