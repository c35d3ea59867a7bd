"""Where the nodes of a grid lie, and how far they may move."""

import math

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing.grid import Grid, deform_nodes, inverted_cells

F64 = torch.float64


def test_nodes_run_with_the_last_axis_fastest(device, dtype, tolerance):
    grid = Grid((2, 3, 1), origin=(0.5, -1.0, 2.0), spacing=(0.5, 0.25, 2.0))
    nodes = grid.nodes(dtype=dtype, device=device)
    assert nodes.shape == (grid.n_nodes, 3) == (24, 3)
    assert nodes.dtype == dtype
    boxed = nodes.reshape(*grid.node_shape, 3)
    wanted = torch.tensor([0.5 + 2 * 0.5, -1 + 3 * 0.25, 2 + 1 * 2.0], dtype=dtype, device=device)
    torch.testing.assert_close(boxed[2, 3, 1], wanted, **tolerance(dtype))
    torch.testing.assert_close(boxed[2, 3, 1], torch.tensor(grid.high, dtype=dtype, device=device), **tolerance(dtype))
    assert (boxed[1:, :, :, 0] > boxed[:-1, :, :, 0]).all()


def test_cube_and_box():
    assert Grid.cube(8) == Grid((8, 8, 8), (-1.0, -1.0, -1.0), (0.25, 0.25, 0.25))
    assert Grid.cube(4, half_width=2.0).high == (2, 2, 2)
    box = Grid.box((1, 2, 4), low=(0.0, 0.0, 0.0), high=(1.0, 1.0, 1.0))
    assert box.spacing == (1, 0.5, 0.25)
    assert (box.node_shape, box.n_nodes, box.n_cells) == ((2, 3, 5), 30, 8)


@pytest.mark.untyped
def test_numbers_of_other_types_are_taken():
    grid = Grid(np.array([2, 3, 4]), np.zeros(3), torch.ones(3).tolist())
    assert grid == Grid((2, 3, 4), (0, 0, 0), (1, 1, 1))
    assert all(type(n) is int for n in grid.shape)
    assert all(type(h) is float for h in grid.spacing)


def test_padded_grid_goes_on():
    grid = Grid((2, 3, 1), origin=(0.5, -1.0, 2.0), spacing=(0.5, 0.25, 2.0))
    outer = grid.padded(2)
    inner = outer.nodes(dtype=F64).reshape(*outer.node_shape, 3)[2:-2, 2:-2, 2:-2]
    torch.testing.assert_close(inner.reshape(-1, 3), grid.nodes(dtype=F64))


def test_cell_index():
    grid = Grid((2, 3, 4))
    cells = torch.arange(24)
    i, j, k = grid.cell_index(cells).unbind(-1)
    assert ((i * 3 + j) * 4 + k).tolist() == cells.tolist()
    assert [int(x.max()) for x in (i, j, k)] == [1, 2, 3]
    assert grid.cell_index(cells.reshape(4, 6)).shape == (4, 6, 3)


def test_nodes_are_shared():
    grid = Grid.cube(3)
    assert grid.nodes() is grid.nodes()
    assert grid.nodes() is not grid.nodes(dtype=F64)


def test_nodes_made_in_inference_mode_can_be_used_by_autograd():
    grid = Grid((3, 2, 5), spacing=(0.1, 0.2, 0.3))
    with torch.inference_mode():
        nodes = grid.nodes()
    assert not nodes.is_inference()
    scale = torch.ones(3, requires_grad=True)
    (grid.nodes() * scale).sum().backward()
    torch.testing.assert_close(scale.grad, nodes.sum(0))


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("shape", lambda: Grid((0, 1, 1))),
        ("shape", lambda: Grid((1000, 1000, 1000))),
        ("shape", lambda: Grid.cube(0)),
        ("shape", lambda: Grid.cube(-3)),
        ("spacing", lambda: Grid((1, 1, 1), spacing=(1.0, 0.0, 1.0))),
        ("spacing", lambda: Grid((1, 1, 1), spacing=(1.0, math.inf, 1.0))),
        ("spacing", lambda: Grid((1, 1, 1), spacing=(1.0, math.nan, 1.0))),
        ("origin", lambda: Grid((1, 1, 1), origin=(math.nan, 0.0, 0.0))),
        ("high", lambda: Grid.box((1, 1, 1), low=(0.0, 0.0, 0.0), high=(1.0, 0.0, 1.0))),
        ("high", lambda: Grid.cube(3, half_width=-1.0)),
    ],
)
def test_bad_values_are_named(argument, make):
    with pytest.raises(InputError, match=rf"^{argument}: want"):
        make()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("shape", lambda: Grid((1, 1))),
        ("shape", lambda: Grid(3)),
        ("shape", lambda: Grid((1.5, 1, 1))),
        ("shape", lambda: Grid(("a", 1, 1))),
        ("shape", lambda: Grid.cube(2.5)),
        ("origin", lambda: Grid((1, 1, 1), origin=(0.0, 0.0))),
        ("spacing", lambda: Grid((1, 1, 1), spacing=None)),
        ("shape", lambda: Grid.box((1, 1), low=(0.0,) * 3, high=(1.0,) * 3)),
        ("low", lambda: Grid.box((1, 1, 1), low=(0.0,), high=(1.0,) * 3)),
        ("high", lambda: Grid.box((1, 1, 1), low=(0.0,) * 3, high=(1.0,) * 2)),
    ],
)
def test_bad_types_are_named(argument, make):
    with pytest.raises(InputError, match=rf"^{argument}: want"):
        make()


def test_zero_deformation_leaves_the_grid_at_rest(device, dtype):
    grid = Grid((2, 3, 4))
    zeros = torch.zeros(grid.n_nodes, 3, dtype=dtype, device=device)
    assert torch.equal(deform_nodes(grid, zeros), grid.nodes(dtype=dtype, device=device))


@pytest.mark.parametrize("max_move", [0.5, 1 / 6])
def test_moves_stay_below_their_bound(max_move):
    grid = Grid((2, 3, 4), spacing=(0.5, 1.0, 2.0))
    ends = torch.tensor([math.inf, -math.inf, 40.0], dtype=F64).expand(grid.n_nodes, 3)
    moved = (deform_nodes(grid, ends, max_move=max_move) - grid.nodes(dtype=F64)) / torch.tensor(grid.spacing)
    wanted = torch.tensor([1, -1, 1], dtype=F64).expand_as(moved) * max_move
    torch.testing.assert_close(moved, wanted, rtol=2e-6, atol=0)
    assert (moved.abs() < max_move).all()


def test_deformation_of_a_batch_and_its_gradient():
    grid = Grid((1, 2, 1), spacing=(1.0, 2.0, 0.5))
    deformation = torch.randn(2, grid.n_nodes, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    both = deform_nodes(grid, deformation)
    assert torch.equal(both[1], deform_nodes(grid, deformation[1]))
    assert torch.autograd.gradcheck(lambda d: deform_nodes(grid, d), deformation.requires_grad_())


@pytest.mark.parametrize("max_move", [0.0, -0.1, 0.51, math.nan])
def test_deformation_bound_is_checked(max_move):
    grid = Grid((1, 1, 1))
    with pytest.raises(InputError, match=r"^max_move: want"):
        deform_nodes(grid, torch.zeros(8, 3), max_move=max_move)


def test_deformation_shape_is_checked():
    grid = Grid((1, 1, 1))
    with pytest.raises(InputError, match=r"^deformation: want shape \(\*b, 8, 3\), got \(9, 3\)"):
        deform_nodes(grid, torch.zeros(9, 3))


@pytest.mark.untyped
def test_deformation_dtype_is_checked():
    with pytest.raises(InputError, match=r"^deformation: want a real floating-point dtype"):
        deform_nodes(Grid((1, 1, 1)), torch.zeros(8, 3, dtype=torch.int64))


def test_inverted_cells_are_found():
    grid = Grid((3, 3, 3))
    rest = grid.nodes(dtype=F64)
    assert inverted_cells(grid, rest).tolist() == []
    mirrored = rest * torch.tensor([-1.0, 1, 1], dtype=F64)
    assert inverted_cells(grid, mirrored).tolist() == list(range(27))
    moved = rest.clone().reshape(4, 4, 4, 3)
    moved[0, 0, 0] += 1.5  # past the opposite corner of the first cell
    assert inverted_cells(grid, moved.reshape(-1, 3)).tolist() == [0]


def test_moves_up_to_a_sixth_of_a_cell_invert_none(generator, device):
    grid = Grid((4, 4, 4))
    for scale in (1.0, 100.0):
        wild = scale * torch.randn(grid.n_nodes, 3, dtype=F64, generator=generator, device=device)
        assert len(inverted_cells(grid, deform_nodes(grid, wild, max_move=1 / 6))) == 0
    assert len(inverted_cells(grid, deform_nodes(grid, wild))) > 0


def test_inverted_cells_checks_its_shape():
    with pytest.raises(InputError, match=r"^positions: want"):
        inverted_cells(Grid((1, 1, 1)), torch.zeros(7, 3))
