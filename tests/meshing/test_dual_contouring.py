"""Dual contouring of exact fields."""

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing import FieldTarget, Grid, MeshTarget, dual_contouring, marching_cubes, mesh_validity
from diffmatch.meshing.shapes import DEMO_PART_EULER_CHARACTERISTIC, box, demo_part, sphere


def sampled(field, n, dtype=torch.float64):
    grid, target = Grid.cube(n), FieldTarget(field)
    return grid, target.sdf(grid.nodes(dtype=dtype)), target.value_and_gradient


def error(mesh, field):
    return field(mesh.sample(20_000, torch.Generator().manual_seed(0)).points).abs().mean()


def test_a_box_is_exact():
    def field(points):
        return box(points, half=(0.63, 0.52, 0.41))

    grid, sdf, ask = sampled(field, 12)
    mesh = dual_contouring(grid, sdf, ask, regularization=1e-4)
    assert error(mesh, field) < 1e-5
    assert float(mesh.volume) == pytest.approx(8 * 0.63 * 0.52 * 0.41, rel=1e-5)


def test_sharp_edges_are_nearer_than_by_marching_cubes():
    grid, sdf, ask = sampled(demo_part, 40)
    mesh = dual_contouring(grid, sdf, ask)
    assert error(mesh, demo_part) < error(marching_cubes(grid, sdf), demo_part) / 5
    validity = mesh_validity(mesh)
    assert validity.watertight
    assert validity.euler_characteristic == DEMO_PART_EULER_CHARACTERISTIC


def test_vertices_stay_in_the_cells_of_a_wrong_gradient():
    grid, sdf, ask = sampled(lambda points: sphere(points, radius=0.7), 9)

    def noisy(points):
        value, gradient = ask(points)
        return value, gradient + torch.randn(points.shape, generator=torch.Generator().manual_seed(1)).to(gradient)

    mesh = dual_contouring(grid, sdf, noisy)
    assert mesh.vertices.norm(dim=1).sub(0.7).abs().max() < 2 / 9 * 3**0.5
    assert mesh_validity(mesh).watertight


def test_nothing_in_a_field_of_one_sign():
    grid, sdf, ask = sampled(lambda points: sphere(points, radius=0.7) + 5, 4)
    mesh = dual_contouring(grid, sdf, ask)
    assert mesh.vertices.shape == (0, 3)
    assert mesh.faces.shape == (0, 3)


@pytest.mark.untyped
def test_a_field_of_another_grid_is_refused():
    with pytest.raises(InputError, match=r"^sdf: want shape \(3, 3, 3\) or \(27,\)"):
        dual_contouring(Grid.cube(2), torch.zeros(8), lambda points: (points[:, 0], points))


@pytest.mark.parametrize("closed", [True, False])
def test_single_precision_finds_the_same_surface_of_a_mesh(closed):
    trimesh = pytest.importorskip("trimesh")
    part = trimesh.creation.box(extents=(1.3, 1.1, 0.9))
    part.apply_transform(trimesh.transformations.rotation_matrix(0.4, (1, 2, 3)))
    if not closed:
        part.update_faces([i != 0 for i in range(len(part.faces))])
    target = MeshTarget(part)
    grid = Grid.cube(17)
    sdf = target.sdf(grid.nodes(dtype=torch.float64))
    double = dual_contouring(grid, sdf, target.value_and_gradient)
    single = dual_contouring(grid, sdf.float(), target.value_and_gradient)
    assert single.vertices.dtype == torch.float32
    assert torch.equal(single.faces, double.faces) or len(single.faces) == len(double.faces)
    assert (single.vertices - double.vertices).abs().max() < 1e-4
    assert target.sdf(double.sample(5_000, torch.Generator().manual_seed(0)).points).abs().mean() < 2e-4
