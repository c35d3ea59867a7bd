"""Marching cubes from the tables: closed for any field, right on known shapes, differentiable."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from diffmatch.errors import InputError
from diffmatch.meshing.grid import Grid
from diffmatch.meshing.marching_cubes import marching_cubes
from diffmatch.meshing.shapes import sphere, torus

F64 = torch.float64


def white_noise(shape, seed, *, odd=0.05):
    grid, generator = Grid(shape, spacing=(0.5, 1.0, 0.75)), torch.Generator().manual_seed(seed)
    field = torch.randn(*grid.node_shape, generator=generator)
    for value in (0.0, -0.0, torch.nan, torch.inf, -torch.inf):
        field[torch.rand(field.shape, generator=generator) < odd] = value
    return grid, field


def open_edges(mesh):
    """Directed edges without their opposite; fails if a directed edge comes twice."""
    edges = torch.stack((mesh.faces, mesh.faces.roll(-1, 1)), -1).reshape(-1, 2)
    key = edges[:, 0] * len(mesh.vertices) + edges[:, 1]
    assert len(key.unique()) == len(key), "a directed edge belongs to two faces"
    return edges[~torch.isin(edges[:, 1] * len(mesh.vertices) + edges[:, 0], key)]


@given(shape=st.tuples(*[st.integers(1, 6)] * 3), seed=st.integers(0, 2**20))
def test_white_noise_is_closed_inside_the_domain(shape, seed):
    grid, field = white_noise(shape, seed)
    mesh = marching_cubes(grid, field)
    crossings = sum(int(((field < 0).diff(dim=axis)).sum()) for axis in range(3))
    assert len(mesh.vertices) == crossings
    assert mesh.faces.unique().numel() == crossings  # each crossing edge lies on some cell
    low, high = torch.tensor(grid.origin), torch.tensor(grid.high)
    assert bool(((mesh.vertices >= low - 1e-6) & (mesh.vertices <= high + 1e-6)).all())
    ends = mesh.vertices[open_edges(mesh)]  # (e, 2, 3)
    on_side = ((ends - low).abs() < 1e-6) | ((ends - high).abs() < 1e-6)
    assert bool(on_side.all(1).any(1).all())


@given(shape=st.tuples(*[st.integers(1, 5)] * 3), seed=st.integers(0, 2**20))
def test_white_noise_surrounded_by_outside_is_watertight(shape, seed):
    trimesh = pytest.importorskip("trimesh")
    grid, field = white_noise(shape, seed, odd=0)
    field = torch.nn.functional.pad(field, (1,) * 6, value=1.0)
    mesh = marching_cubes(grid.padded(), field)
    solid = trimesh.Trimesh(mesh.vertices.double().numpy(), mesh.faces.numpy(), process=False)
    assert solid.is_watertight
    assert solid.is_winding_consistent
    assert solid.volume > 0


@pytest.mark.parametrize(
    ("body", "characteristic", "volume"),
    [
        (lambda x: sphere(x, radius=0.7), 2, 4 / 3 * math.pi * 0.7**3),
        (lambda x: torus(x, radius=0.6, tube=0.25), 0, 2 * math.pi**2 * 0.6 * 0.25**2),
    ],
    ids=["sphere", "torus"],
)
def test_smooth_bodies_converge(body, characteristic, volume):
    errors = []
    for resolution in (12, 24, 48):
        grid = Grid.cube(resolution)
        mesh = marching_cubes(grid, body(grid.nodes()))
        assert len(open_edges(mesh)) == 0
        assert len(mesh.vertices) - len(mesh.edges) + len(mesh.faces) == characteristic
        assert float(body(mesh.vertices).abs().max()) < 0.6 / resolution
        errors.append(abs(float(mesh.volume) / volume - 1))
    assert all(fine < coarse / 2.5 for coarse, fine in itertools.pairwise(errors))
    assert errors[-1] < 1e-2


def test_a_plane_is_met_exactly():
    grid = Grid((4, 3, 5), spacing=(0.5, 1.0, 0.75))
    normal, shift = torch.tensor([0.3, -0.5, 0.8], dtype=F64), 0.2
    mesh = marching_cubes(grid, grid.nodes(dtype=F64) @ normal - shift)
    assert len(mesh.faces) > 0
    torch.testing.assert_close(mesh.vertices @ normal, torch.full((len(mesh.vertices),), shift, dtype=F64))
    facing = mesh.face_normals[mesh.face_areas > 1e-9] @ normal
    torch.testing.assert_close(facing, normal.norm().expand_as(facing))


def test_vertices_agree_with_another_implementation():
    measure = pytest.importorskip("skimage.measure")
    grid = Grid.box((9, 8, 7), low=(0.0, 0.0, 0.0), high=(9.0, 8.0, 7.0))
    field = torch.randn(grid.node_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    theirs, *_ = measure.marching_cubes(field.numpy(), 0.0)
    ours = marching_cubes(grid, field).vertices
    # Theirs has further vertices inside cells, which its interior test asks for.
    distance = torch.cdist(ours.double(), torch.tensor(theirs.copy()).double()).amin(1)
    assert float(distance.max()) < 1e-4


def test_gradcheck(generator):
    grid = Grid((2, 2, 1))
    field = torch.randn(grid.node_shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    field = field + 0.2 * torch.where(field < 0, -1, 1)
    moved = grid.nodes(dtype=F64) + 0.1 * torch.randn(grid.n_nodes, 3, generator=generator, dtype=F64)
    assert len(marching_cubes(grid, field).faces) > 4
    inputs = field.requires_grad_(), moved.requires_grad_()
    assert gradcheck(lambda sdf, x: marching_cubes(grid, sdf, positions=x).vertices, inputs)


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0, -0.0, torch.nan, torch.inf, -torch.inf])
def test_fields_of_one_sign_are_empty(value):
    grid = Grid((2, 3, 1))
    field = torch.full(grid.node_shape, value, requires_grad=True)
    mesh = marching_cubes(grid, field)
    assert (mesh.vertices.shape, mesh.faces.shape) == ((0, 3), (0, 3))
    (grad,) = torch.autograd.grad(mesh.vertices.sum(), field)
    assert not grad.any()


@pytest.mark.parametrize(("inside", "outside"), [(-1.0, torch.nan), (-1.0, torch.inf), (-torch.inf, 1.0)])
def test_edges_with_an_infinite_or_nan_end_are_cut_in_the_middle(inside, outside):
    grid = Grid((2, 2, 2))
    field = torch.full(grid.node_shape, outside)
    field[1, 1, 1] = inside
    mesh = marching_cubes(grid, field.requires_grad_())
    assert torch.equal(mesh.vertices.detach().sum(1).abs(), torch.full((6,), 0.5))
    (grad,) = torch.autograd.grad(mesh.vertices.square().sum(), field)
    assert not grad.any()


def test_exact_zeros_are_outside():
    grid = Grid.box((8, 8, 8), low=(-4.0,) * 3, high=(4.0,) * 3)
    field = grid.nodes().square().sum(1) - 9
    mesh = marching_cubes(grid, field)
    assert len(open_edges(mesh)) == 0
    assert float(mesh.volume) > 0.8 * 4 / 3 * math.pi * 27


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(given, device):
    grid = Grid.cube(6)
    field = sphere(grid.nodes(dtype=F64, device=device), radius=0.6).to(given)
    mesh = marching_cubes(grid, field, positions=grid.nodes(device=device).to(given))
    assert mesh.vertices.dtype == (F64 if given == F64 else torch.float32)
    assert mesh.vertices.device == field.device
    assert len(open_edges(mesh)) == 0


def test_flat_fields_and_strided_fields():
    grid, field = white_noise((3, 2, 4), 0)
    wanted = marching_cubes(grid, field)
    for same in (field.flatten(), field.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        found = marching_cubes(grid, same)
        assert torch.equal(found.vertices, wanted.vertices)
        assert torch.equal(found.faces, wanted.faces)


GRID = Grid((2, 3, 4))


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("sdf", {"sdf": torch.ones(3, 4, 4)}),
        ("sdf", {"sdf": torch.ones(2, 3, 4, 5)}),
        ("positions", {"positions": torch.ones(59, 3)}),
        ("positions", {"positions": torch.ones(60, 3, device="meta")}),
    ],
)
def test_bad_values_are_named(argument, arguments):
    with pytest.raises(InputError, match=rf"^{argument}: want"):
        marching_cubes(GRID, **({"sdf": torch.ones(60)} | arguments))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("sdf", {"sdf": [1.0]}),
        ("sdf", {"sdf": torch.ones(60, dtype=torch.int64)}),
        ("positions", {"positions": [1.0]}),
        ("positions", {"positions": torch.ones(60, 3, dtype=torch.int64)}),
    ],
)
def test_bad_types_are_named(argument, arguments):
    with pytest.raises(InputError, match=rf"^{argument}: want"):
        marching_cubes(GRID, **({"sdf": torch.ones(60)} | arguments))
