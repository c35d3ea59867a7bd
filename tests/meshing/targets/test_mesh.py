import logging
import math

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing.files import read_mesh
from diffmatch.meshing.interop import as_mesh
from diffmatch.meshing.mesh import Mesh
from diffmatch.meshing.shapes import box, union
from diffmatch.meshing.targets import MeshTarget, Target

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("igl")

CUBE = as_mesh(trimesh.creation.box((1.8, 1.8, 1.8)))


def cube_distance(points):
    return box(points, half=(0.9, 0.9, 0.9))


def shifted(mesh: Mesh, *by: float) -> Mesh:
    return Mesh(mesh.vertices + mesh.vertices.new_tensor(by), mesh.faces)


def joined(one: Mesh, two: Mesh) -> Mesh:
    return Mesh(torch.cat([one.vertices, two.vertices]), torch.cat([one.faces, two.faces + len(one.vertices)]))


def band(height: float, *, n: int = 64) -> Mesh:
    """A cylinder of radius 1/2 without its ends."""
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    ring = torch.stack([angle.cos() / 2, angle.sin() / 2, torch.zeros_like(angle)], 1)
    rise = torch.tensor([0, 0, height], dtype=torch.float64)
    i = torch.arange(n)
    j = (i + 1) % n
    faces = torch.cat([torch.stack([i, j, j + n], 1), torch.stack([i, j + n, i + n], 1)])
    return Mesh(torch.cat([ring, ring + rise]), faces)


def points_in_domain(n: int, dtype=torch.float64) -> torch.Tensor:
    return (2 * torch.rand(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 1).to(dtype)


def test_distances_of_a_cube(device, dtype, tolerance):
    target = MeshTarget(CUBE)
    assert isinstance(target, Target)
    assert target.closed
    points = points_in_domain(500, dtype).to(device)
    values = target.sdf(points)
    assert (values.dtype, values.device.type) == (dtype, device.type)
    torch.testing.assert_close(values, cube_distance(points), **tolerance(dtype))


def test_the_box_and_the_scale():
    mesh = Mesh(CUBE.vertices * torch.tensor([10, 5, 2.5]) + 100, CUBE.faces)
    target = MeshTarget(mesh)
    assert target.normalization.center == pytest.approx((100, 100, 100))
    torch.testing.assert_close(target.bounds, torch.tensor([[-0.9, -0.45, -0.225], [0.9, 0.45, 0.225]]).double())
    assert target.sdf(torch.zeros(1, 3)).item() == pytest.approx(-0.225)
    torch.testing.assert_close(target.normalization.inverse(target.mesh.vertices), mesh.vertices)


def test_gradients_are_unit_and_true():
    target = MeshTarget(CUBE)
    points = points_in_domain(100)
    values, gradient = target.value_and_gradient(points)
    torch.testing.assert_close(values, target.sdf(points))
    torch.testing.assert_close(gradient.norm(dim=1), torch.ones(100, dtype=torch.float64))
    assert torch.autograd.gradcheck(target.sdf, points[:20].requires_grad_())
    on_face = torch.tensor([[0.9, 0.2, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(target.value_and_gradient(on_face)[1], torch.tensor([[1.0, 0, 0]]).double())


def test_closest_points():
    target = MeshTarget(CUBE)
    points = points_in_domain(300)
    near = target.closest(points)
    torch.testing.assert_close(near.distance, cube_distance(points).abs())
    torch.testing.assert_close((points - near.points).norm(dim=1), near.distance)
    assert cube_distance(near.points).abs().max() < 1e-12
    assert set(near.normals.abs().sum(1).tolist()) == {1.0}
    assert ((near.points * near.normals).sum(1) - 0.9).abs().max() < 1e-12


def test_no_points_and_bad_points():
    target = MeshTarget(CUBE)
    assert target.sdf(torch.zeros(0, 3)).shape == (0,)
    assert target.closest(torch.zeros(0, 3)).points.shape == (0, 3)
    with pytest.raises(InputError, match="points: want finite points, got 1 of 2"):
        target.sdf(torch.tensor([[0.0, 0, 0], [float("nan"), 0, 0]]))


def test_samples_lie_on_the_surface_and_are_reproducible():
    target = MeshTarget(CUBE)
    points, normals = target.sample(3000, torch.Generator().manual_seed(0), dtype=torch.float64)
    assert cube_distance(points).abs().max() < 1e-12
    torch.testing.assert_close((points * normals).sum(1), torch.full((3000,), 0.9, dtype=torch.float64))
    axis = normals.abs().argmax(1).bincount()
    assert ((axis - 1000).abs() < 120).all()
    again, _ = target.sample(3000, torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(points, again)
    assert target.sample(5)[0].dtype == torch.float32


def test_feature_edges_of_a_cube():
    target = MeshTarget(CUBE)
    segments = target.feature_edges()
    assert segments.shape == (12, 2, 3)  # not the diagonals of its faces
    assert target.feature_edges(91).shape == (0, 2, 3)
    points = target.sample_features(1200, torch.Generator().manual_seed(0), dtype=torch.float64)
    assert ((points.abs() - 0.9).abs() < 1e-12).sum(1).ge(2).all()
    spread = points.std(0)
    torch.testing.assert_close(spread, spread.mean().expand(3), rtol=0.05, atol=0)
    assert MeshTarget(trimesh.creation.icosphere(3)).sample_features(10).shape == (0, 3)
    with pytest.raises(InputError, match="angle_degrees: want an angle between 0 and 180"):
        target.feature_edges(0)


@pytest.mark.parametrize("mesh", [CUBE, Mesh(CUBE.vertices, CUBE.faces[CUBE.face_normals[:, 2] < 0.5])])
def test_inside_out_is_turned_with_a_warning(mesh, caplog):
    with caplog.at_level(logging.WARNING):
        target = MeshTarget(Mesh(mesh.vertices, mesh.faces.flip(1)))
    assert "inside out" in caplog.text
    assert target.mesh.volume > 0
    points = points_in_domain(200)
    torch.testing.assert_close(target.sdf(points), cube_distance(points))


def test_disagreeing_faces_are_turned(caplog):
    mesh = as_mesh(trimesh.creation.icosphere(3))
    faces = mesh.faces.clone()
    faces[::3] = faces[::3].flip(1)
    with caplog.at_level(logging.WARNING):
        target = MeshTarget(Mesh(mesh.vertices, faces))
    assert "disagree" in caplog.text
    assert target.closed
    points = points_in_domain(300)
    torch.testing.assert_close(target.sdf(points), MeshTarget(mesh).sdf(points))


def test_split_vertices_are_merged():
    corners = CUBE.corners
    target = MeshTarget(Mesh(corners.reshape(-1, 3), torch.arange(3 * len(corners)).reshape(-1, 3)))
    assert target.closed
    assert len(target.mesh.vertices) == 8


def test_a_missing_side_is_closed_by_a_flat_cap(caplog):
    side = CUBE.face_normals[:, 2] > 0.5
    with caplog.at_level(logging.WARNING):
        target = MeshTarget(Mesh(CUBE.vertices, CUBE.faces[~side]))
    assert "1 hole was closed" in caplog.text
    assert not target.closed
    points = points_in_domain(500)
    torch.testing.assert_close(target.sdf(points), cube_distance(points))
    assert target.feature_edges().shape == (12, 2, 3)


def test_overlapping_parts_are_one_solid():
    # Boxes of sides 1 x 1 x 1 from -0.9 to 0.1 and from -0.1 to 0.9 along x; the walls inside are no surface.
    unit = as_mesh(trimesh.creation.box((1, 1, 1)))
    target = MeshTarget(joined(shifted(unit, -0.4, 0, 0), shifted(unit, 0.4, 0, 0)))
    assert target.normalization.scale == pytest.approx(1)

    def exact_outside(points):
        return union(*(box(points, half=(0.5, 0.5, 0.5), center=(x, 0, 0)) for x in (-0.4, 0.4)))

    points = points_in_domain(1000)
    truth = box(points, half=(0.9, 0.5, 0.5))
    torch.testing.assert_close(target.sdf(points), truth, rtol=0, atol=1e-9)
    samples, normals = target.sample(2000, torch.Generator().manual_seed(0), dtype=torch.float64)
    assert exact_outside(samples).abs().max() < 1e-9
    assert (box(samples, half=(0.9, 0.5, 0.5)).abs() < 1e-9).all()
    # Two ends of area 1 against four sides of 1.8, on which the overlap of 0.2 counts twice.
    assert (normals[:, 0].abs() > 0.5).double().mean() == pytest.approx(2 / (2 + 4 * 2.0), abs=0.03)
    segments = target.feature_edges()
    assert (box(segments.reshape(-1, 3), half=(0.9, 0.5, 0.5)).abs() < 1e-9).all()


def test_a_part_that_sticks_out_of_another():
    # The bar's middle is buried, in triangles that reach out of the cube on both sides.
    bar = as_mesh(trimesh.creation.box((1.8, 0.3, 0.3)))
    block = as_mesh(trimesh.creation.box((0.8, 0.8, 0.8)))
    target = MeshTarget(joined(block, bar))
    samples, _ = target.sample(4000, torch.Generator().manual_seed(0), dtype=torch.float64)
    bodies = (box(samples, half=(0.4, 0.4, 0.4)), box(samples, half=(0.9, 0.15, 0.15)))
    buried = union(*bodies) < -0.02
    assert buried.double().mean() < 0.02
    assert target.sdf(torch.zeros(1, 3)).item() == pytest.approx(-0.4, abs=0.1)


def test_a_cavity_stays_empty():
    inner = as_mesh(trimesh.creation.box((0.6, 0.6, 0.6)))
    target = MeshTarget(joined(CUBE, Mesh(inner.vertices, inner.faces.flip(1))))
    assert target.sdf(torch.zeros(1, 3)).item() == pytest.approx(0.3)
    assert target.sdf(torch.tensor([[0.5, 0, 0]])).item() == pytest.approx(-0.2)


def test_an_open_cylinder_is_a_solid_one(caplog):
    with caplog.at_level(logging.WARNING):
        target = MeshTarget(band(1.0))
    assert "2 holes were closed by flat caps" in caplog.text
    assert target.mesh.volume.item() == pytest.approx(1.8**3 * math.pi / 4, rel=0.01)
    points = torch.tensor([[0.0, 0, 0], [0, 0, 1.0], [0.5, 0, 0.85]])
    assert target.sdf(points).tolist() == pytest.approx([-0.9, 0.1, -0.05], abs=0.01)


@pytest.mark.parametrize(
    "sheet",
    [
        Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]])),
        band(0.1),
        Mesh(CUBE.vertices, CUBE.faces[CUBE.face_normals[:, 0] > 0.5]),
    ],
    ids=["square", "shallow band", "one side of a cube"],
)
def test_sheets_are_refused(sheet):
    with pytest.raises(InputError, match=r"bounds a solid, up to holes, got open sheets .* or give a signed-distance"):
        MeshTarget(sheet)


def test_a_surface_of_no_volume_is_refused():
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    both = torch.tensor([[0, 1, 2], [0, 2, 3], [2, 1, 0], [3, 2, 0]])
    with pytest.raises(InputError, match="target: want a mesh that bounds a solid, got"):
        MeshTarget(Mesh(square, both))


def test_loose_triangles_are_filled_by_their_winding_number(caplog):
    mesh = as_mesh(trimesh.creation.icosphere(3))
    noise = 2e-3 * torch.randn(len(mesh.faces), 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loose = Mesh((mesh.corners + noise).reshape(-1, 3), torch.arange(3 * len(mesh.faces)).reshape(-1, 3))
    with caplog.at_level(logging.WARNING):
        target = MeshTarget(loose)
    assert "winding number" in caplog.text
    assert not target.closed
    points = points_in_domain(2000)
    points = points[(points.norm(dim=1) - 0.9).abs() > 0.03]
    torch.testing.assert_close(target.sdf(points), points.norm(dim=1) - 0.9, rtol=0, atol=0.02)


def test_bad_meshes_are_named():
    for mesh, message in [
        (Mesh(CUBE.vertices, CUBE.faces[:0]), "target: want a mesh with faces, got none"),
        (Mesh(CUBE.vertices, torch.zeros(2, 3).long()), "got only collapsed ones"),
        (Mesh(CUBE.vertices * float("nan"), CUBE.faces), "target: want finite vertices, got 8 of 8"),
        (Mesh(CUBE.vertices, CUBE.faces + 1), "face indices from 0 to 7, got 8"),
    ]:
        with pytest.raises(InputError, match=message):
            MeshTarget(mesh)


@pytest.mark.parametrize(
    ("name", "euler", "volume"),
    [("block", -4, 0.786), ("spot", 2, 0.826), ("stanford-bunny", 2, 1.167), ("rocker-arm", 0, 0.248)],
)
def test_research_meshes(data_dir, name, euler, volume):
    target = MeshTarget(read_mesh(data_dir / "meshes" / f"{name}.obj"))
    peer = trimesh.Trimesh(target.mesh.vertices.numpy(), target.mesh.faces.numpy(), process=False)
    assert peer.is_watertight
    assert peer.euler_number == euler
    points = points_in_domain(10_000)
    values = target.sdf(points)
    assert 8 * (values < 0).double().mean() == pytest.approx(volume, abs=0.08)
    # A signed distance changes no faster than the way between two points, also through the caps.
    step = 0.05 * points.flip(0)
    assert ((target.sdf(points + step) - values).abs() <= step.norm(dim=1) + 1e-9).all()


def test_teapot_is_one_solid_of_its_parts(data_dir):
    target = MeshTarget(read_mesh(data_dir / "meshes" / "teapot.obj"))
    # Below the lid, in the middle of the body, in the handle's hole, above the lid's knob.
    where = torch.tensor([[-0.061, 0.2, 0.0], [-0.061, 0.0, 0.0], [-0.72, 0.0, 0.0], [-0.061, 0.6, 0.0]])
    assert (target.sdf(where) < 0).tolist() == [True, True, False, False]
    points, normals = target.sample(2000, torch.Generator().manual_seed(0), dtype=torch.float64)
    sides = torch.stack([target.sdf(points - 1e-4 * normals), target.sdf(points + 1e-4 * normals)])
    assert ((sides[0] < 0) & (sides[1] > 0)).double().mean() > 0.98
