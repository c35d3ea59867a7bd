import math
import time

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing.files import read_mesh
from diffmatch.meshing.interop import as_mesh
from diffmatch.meshing.mesh import Mesh
from diffmatch.meshing.metrics import (
    edge_scores,
    mesh_distances,
    mesh_metrics,
    mesh_quality,
    mesh_validity,
    self_intersecting_faces,
    self_intersection_percent,
)

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("igl")


def ball(subdivisions: int = 3) -> Mesh:
    return as_mesh(trimesh.creation.icosphere(subdivisions))


def cube(side: float = 1.0) -> Mesh:
    return as_mesh(trimesh.creation.box((side,) * 3))


def joined(*meshes: Mesh) -> Mesh:
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        torch.cat([mesh.vertices for mesh in meshes]),
        torch.cat([mesh.faces + int(offset) for mesh, offset in zip(meshes, offsets, strict=True)]),
    )


def test_validity_of_closed_surfaces():
    sphere = mesh_validity(ball())
    assert (sphere.watertight, sphere.consistently_oriented, sphere.genus) == (True, True, 0)
    assert (sphere.euler_characteristic, sphere.bodies, sphere.open_edges) == (2, 1, 0)
    ring = mesh_validity(as_mesh(trimesh.creation.torus(1.0, 0.3)))
    assert (ring.euler_characteristic, ring.genus, ring.watertight) == (0, 1, True)
    both = mesh_validity(joined(ball(), as_mesh(trimesh.creation.torus(5.0, 0.3))))
    assert (both.bodies, both.genus, both.euler_characteristic) == (2, 1, 2)


def test_validity_of_a_surface_with_a_hole():
    mesh = ball()
    opened = mesh_validity(Mesh(mesh.vertices, mesh.faces[1:]))
    assert (opened.open_edges, opened.watertight, opened.genus) == (3, False, None)
    assert (opened.consistently_oriented, opened.nonmanifold_vertices) == (True, 0)
    assert opened.euler_characteristic == 1


def test_validity_sees_a_turned_face():
    mesh = ball()
    faces = mesh.faces.clone()
    faces[5] = faces[5].flip(0)
    turned = mesh_validity(Mesh(mesh.vertices, faces))
    assert (turned.consistently_oriented, turned.watertight, turned.genus) == (False, True, None)


def test_validity_sees_pinched_vertices_and_crowded_edges():
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    one = torch.eye(4, 3, dtype=torch.float64)
    vertices = torch.cat([one, -one[:3]])
    # Two tetrahedra that share vertex 3 alone, then two that share the edge 2-3.
    at_vertex = Mesh(vertices, torch.cat([faces, torch.tensor([4, 5, 6, 3])[faces]]))
    pinched = mesh_validity(at_vertex)
    assert (pinched.nonmanifold_vertices, pinched.nonmanifold_edges, pinched.watertight) == (1, 0, True)
    assert (pinched.bodies, pinched.genus) == (1, None)
    at_edge = mesh_validity(Mesh(vertices[:6], torch.cat([faces, torch.tensor([4, 5, 2, 3])[faces]])))
    assert (at_edge.nonmanifold_edges, at_edge.watertight, at_edge.consistently_oriented) == (1, False, True)


def test_validity_counts_bad_faces_and_ignores_unused_vertices():
    mesh = cube()
    extra = torch.tensor([[0, 0, 1], [0, 1, 2]])
    extra[1] = mesh.faces[3].roll(1)
    vertices = torch.cat([mesh.vertices, torch.full((2, 3), 9.0, dtype=torch.float64)])
    bad = mesh_validity(Mesh(vertices, torch.cat([mesh.faces, extra])))
    assert (bad.degenerate_faces, bad.duplicate_faces, bad.vertices, bad.bodies) == (1, 1, 8, 1)


@pytest.mark.parametrize("name", ["block", "fandisk", "teapot"])
def test_validity_agrees_with_trimesh(data_dir, name):
    mesh = read_mesh(data_dir / "meshes" / f"{name}.obj")
    peer = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    ours = mesh_validity(mesh)
    assert (ours.euler_characteristic, ours.bodies) == (peer.euler_number, peer.body_count)
    assert (ours.watertight, ours.consistently_oriented) == (peer.is_watertight, peer.is_winding_consistent)


def test_validity_is_fast():
    mesh = ball(6)
    assert len(mesh.faces) > 80_000
    seconds = []
    for _ in range(3):
        start = time.process_time()
        mesh_validity(mesh)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0  # 0.2 s when nothing else runs


def test_quality_of_known_triangles():
    root3 = math.sqrt(3)
    equilateral = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.5, root3 / 2, 0]]), torch.tensor([[0, 1, 2]]))
    quality = mesh_quality(equilateral)
    assert quality.min_angle == pytest.approx(60, abs=1e-4)
    assert quality.max_angle == pytest.approx(60, abs=1e-4)
    assert (quality.small_angle_percent, quality.large_aspect_percent) == (0, 0)
    # Right angle with legs 1 and w: inradius (1 + w - h) / 2, so the aspect ratio h / (sqrt(3) (1 + w - h)) crosses 4
    # between w = 0.16 and w = 0.15; the smallest angle atan(w) crosses 10 degrees between 0.18 and 0.17.
    for w, small, slender in [(0.18, 0, 0), (0.17, 100, 0), (0.16, 100, 0), (0.15, 100, 100), (0.0, 100, 100)]:
        right = mesh_quality(Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, w, 0]]), torch.tensor([[0, 1, 2]])))
        assert (right.small_angle_percent, right.large_aspect_percent) == (small, slender)
        assert right.min_angle == pytest.approx(math.degrees(math.atan(w)), abs=1e-4)


def test_self_intersections_are_counted():
    mesh = ball(2)
    assert self_intersection_percent(mesh) == len(self_intersecting_faces(mesh)) == 0
    crossing = joined(mesh, Mesh(mesh.vertices + 0.5, mesh.faces))
    assert 5 < self_intersection_percent(crossing) < 50


def test_a_mesh_is_at_no_distance_from_itself():
    metrics = mesh_metrics(cube(), cube(), samples=2000, edges=True)
    far = metrics.distances
    assert max(far.mean, far.rms, far.hausdorff) < 1e-12
    assert (far.normal_error_percent, far.volume_ratio) == (0, pytest.approx(1))
    assert far.chamfer == pytest.approx(far.chamfer_floor, rel=0.1)
    assert far.f1 == pytest.approx(far.f1_floor, abs=0.02)
    assert (metrics.edges.edge_chamfer, metrics.edges.edge_f1) == (0, 1)


def test_distances_of_nested_balls():
    inner, outer = ball(4), ball(4)
    outer = Mesh(outer.vertices * 1.1, outer.faces)
    far = mesh_distances(outer, inner, samples=5000)
    for value in (far.mean, far.rms, far.hausdorff, far.mean_to_target, far.mean_from_target):
        assert value == pytest.approx(0.1, rel=0.02)
    assert far.volume_ratio == pytest.approx(1.1**3)
    assert far.normal_error_percent == 0
    assert far.chamfer == pytest.approx(2 * 0.01, rel=0.1)
    assert far.f1 == 0


def test_distances_are_one_sided_where_they_should_be():
    # Half of a plate lies on the plate, but the plate is not all near its half.
    plate = Mesh(torch.tensor([[0.0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    half = Mesh(plate.vertices * torch.tensor([0.5, 1, 1]), plate.faces)
    far = mesh_distances(half, plate, samples=20_000)
    assert far.mean_to_target == pytest.approx(0, abs=1e-12)
    assert far.mean_from_target == pytest.approx(0.25, rel=0.03)  # half of it at 1/2 on average
    assert far.hausdorff == pytest.approx(1, rel=0.01)
    assert far.rms == pytest.approx(math.sqrt(1 / 6 / 2), rel=0.03)
    assert math.isnan(far.volume_ratio)


def test_the_box_of_the_target_sets_the_scale():
    small, shifted = Mesh(cube().vertices * 100 + 7, cube().faces), Mesh(cube().vertices * 101 + 7, cube().faces)
    boxed = mesh_metrics(shifted, small, samples=2000)
    assert boxed.scale == pytest.approx(0.018)
    assert boxed.volume == pytest.approx(101**3)
    assert boxed.distances.mean == pytest.approx(0.5 * 0.018, rel=0.05)
    own = mesh_metrics(shifted, small, samples=2000, normalize=False)
    assert own.scale == 1
    assert own.distances.mean == pytest.approx(boxed.distances.mean / 0.018)


def test_sharp_edges():
    assert math.isnan(edge_scores(cube(), ball(4)).edge_f1)
    lost = edge_scores(ball(4), cube())
    assert (lost.edge_chamfer, lost.edge_f1) == (math.inf, 0)
    moved = cube(0.3)
    shifted = edge_scores(Mesh(moved.vertices + torch.tensor([0.01, 0, 0]), moved.faces), moved)
    # Four of twelve edges stay on themselves, the others, bands 0.004 wide to both sides, are about 0.01 off.
    assert shifted.edge_chamfer == pytest.approx(100 * 2 * 8 / 12 * 1e-4, rel=0.3)
    assert shifted.edge_f1 == pytest.approx(1 / 3, abs=0.03)
    # Another sample of the same edges is not as near as the same sample moved.
    assert 0 < shifted.edge_f1_floor < 1
    assert 0 < shifted.edge_chamfer_floor < shifted.edge_chamfer
    assert math.isnan(edge_scores(cube(), ball(4)).edge_f1_floor)


def test_the_same_seed_gives_the_same_figures():
    one, two = (mesh_metrics(ball(2), cube(), samples=500, seed=4).as_dict() for _ in range(2))
    assert one == two
    assert one["mean"] != mesh_metrics(ball(2), cube(), samples=500, seed=5).as_dict()["mean"]


def test_as_dict_is_flat_and_holds_what_was_measured():
    alone = mesh_metrics(cube(), self_intersections=False).as_dict()
    assert alone["watertight"] is True
    assert alone["volume"] == pytest.approx(1)
    assert not {"mean", "edge_f1", "self_intersection_percent"} & set(alone)
    assert {"mean", "hausdorff"} <= set(mesh_metrics(cube(), ball(1), samples=10).as_dict())


def test_an_empty_mesh_is_measured_but_has_no_distances():
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    metrics = mesh_metrics(empty)
    assert (metrics.validity.watertight, metrics.validity.bodies, metrics.validity.euler_characteristic) == (
        False,
        0,
        0,
    )
    assert math.isnan(metrics.quality.min_angle)
    assert metrics.self_intersection_percent == 0
    for pair in [(empty, cube()), (cube(), empty)]:
        with pytest.raises(InputError, match="at least one face to measure distances from"):
            mesh_metrics(*pair)


def test_bad_values_are_named():
    broken = Mesh(cube().vertices * float("inf"), cube().faces)
    with pytest.raises(InputError, match="mesh: want finite vertices, got 8 of 8"):
        mesh_metrics(broken)
    with pytest.raises(InputError, match="samples: want a number of points >= 1, got 0"):
        mesh_metrics(cube(), cube(), samples=0)
