"""Attributes carried to other meshes, and through files."""

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing import Mesh, fit_mesh, read_mesh, transfer_attributes, write_mesh

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("igl")


def painted(scale=1.0, offset=0.0, columns=3):
    """A ball whose attributes are linear in the positions."""
    ball = trimesh.creation.icosphere(3, radius=0.5)
    vertices = torch.as_tensor(ball.vertices.copy())
    matrix = torch.rand(3, columns, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 0.5
    values = offset + scale * vertices @ matrix
    return Mesh(vertices, torch.as_tensor(ball.faces.copy()).long(), vertex_attributes=values), matrix


def test_linear_attributes_are_met_exactly_on_the_surface():
    mesh, matrix = painted(columns=2)
    points = mesh.sample(500, torch.Generator().manual_seed(0)).points
    torch.testing.assert_close(transfer_attributes(mesh, points), points @ matrix)


def test_slivers_mix_along_their_longest_side():
    vertices = torch.tensor([[0, 0, 0], [2, 0, 0], [1, 0, 0.0]], dtype=torch.float64)
    values = torch.tensor([[0.0], [2.0], [50.0]])
    mesh = Mesh(vertices, torch.tensor([[2, 0, 1]]), vertex_attributes=values)
    found = transfer_attributes(mesh, torch.tensor([[0.5, 1, 0], [1.5, 0, 0]]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[0.5], [1.5]]))


def test_attributes_stay_within_those_of_the_target():
    mesh, _ = painted()
    far = 3 * torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    found = transfer_attributes(mesh, far)
    assert (found >= mesh.vertex_attributes.amin(0) - 1e-12).all()
    assert (found <= mesh.vertex_attributes.amax(0) + 1e-12).all()


def test_without_attributes_or_with_bad_points():
    mesh, _ = painted()
    with pytest.raises(InputError, match="source: want"):
        transfer_attributes(Mesh(mesh.vertices, mesh.faces), mesh.vertices)
    with pytest.raises(InputError, match="points: want finite"):
        transfer_attributes(mesh, torch.full((1, 3), torch.nan))
    assert transfer_attributes(mesh, torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("suffix", [".glb", ".ply"])
@pytest.mark.parametrize(
    ("columns", "scale", "offset", "tolerance"), [(3, 0.5, 0.5, 0.01), (2, 100.0, -3.0, 1.0), (5, 10.0, 0.0, 0.1)]
)
def test_round_trip_from_file_to_file(tmp_path, suffix, columns, scale, offset, tolerance):
    mesh, matrix = painted(scale, offset, columns)
    write_mesh(tmp_path / f"in{suffix}", mesh)
    result = fit_mesh(tmp_path / f"in{suffix}", resolution=12, steps=4, progress=False)
    write_mesh(tmp_path / f"out{suffix}", result.mesh)
    back = read_mesh(tmp_path / f"out{suffix}")
    found = back.vertex_attributes[:, :columns]  # glb has four colours
    wanted = offset + scale * back.vertices @ matrix
    assert (found - wanted).abs().mean() < tolerance


def test_attributes_are_left_behind_on_request():
    mesh, _ = painted()
    result = fit_mesh(mesh, resolution=8, steps=2, attributes=False, progress=False)
    assert result.mesh.vertex_attributes is None
