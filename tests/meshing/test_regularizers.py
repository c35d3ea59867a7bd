"""Regularising terms, against loops and closed forms."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn.functional import binary_cross_entropy_with_logits

from diffmatch.errors import InputError
from diffmatch.meshing.flexicubes import flexicubes
from diffmatch.meshing.grid import Grid
from diffmatch.meshing.mesh import Mesh
from diffmatch.meshing.regularizers import (
    edge_length_deviation,
    normal_consistency,
    sign_change_loss,
    weight_magnitude,
)
from diffmatch.meshing.shapes import sphere

F64 = torch.float64

CUBE = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=F64)
CUBE_SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
CUBE_FACES = torch.tensor([face for a, b, c, d in CUBE_SIDES for face in ((a, b, c), (a, c, d))])
TETRAHEDRON = Mesh(
    torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=F64),
    torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]]),
)
EMPTY = Mesh(torch.zeros(0, 3, dtype=F64), torch.zeros(0, 3, dtype=torch.int64))


def sign_change_by_loop(field):
    """Cross entropies edge by edge, as published."""
    terms = []
    for index in itertools.product(*(range(n) for n in field.shape)):
        for axis in range(1, 4):
            other = list(index)
            other[axis] += 1
            if other[axis] == field.shape[axis]:
                continue
            a, b = field[index], field[tuple(other)]
            if (a < 0) != (b < 0):
                outside = [(~(x < 0)).to(field.dtype) for x in (a, b)]
                terms.append(
                    binary_cross_entropy_with_logits(a, outside[1]) + binary_cross_entropy_with_logits(b, outside[0])
                )
    return torch.stack(terms).mean() if terms else torch.zeros((), dtype=field.dtype)


@given(shape=st.tuples(*[st.integers(1, 3)] * 3), batch=st.integers(1, 2), seed=st.integers(0, 2**20))
def test_sign_change_loss_equals_a_loop(shape, batch, seed):
    grid, generator = Grid(shape), torch.Generator().manual_seed(seed)
    field = 3 * torch.randn(batch, *grid.node_shape, generator=generator, dtype=F64)
    field[torch.rand(field.shape, generator=generator) < 0.1] = 0
    field.requires_grad_()
    found, wanted = sign_change_loss(grid, field), sign_change_by_loop(field)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    if wanted.requires_grad:
        ours, theirs = (torch.autograd.grad(x, field)[0] for x in (found, wanted))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_sign_change_loss_of_one_edge():
    """Both ends 0.1 from zero: 2 log(1 + exp(0.1)); the more they disagree the more it costs."""
    grid = Grid((1, 1, 1))
    losses = []
    for size in (0.1, 1.0, 10.0):
        field = torch.full(grid.node_shape, size, dtype=F64)
        field[0, 0, 0] = -size
        losses.append(float(sign_change_loss(grid, field)))
    assert losses == pytest.approx([2 * math.log1p(math.exp(size)) for size in (0.1, 1.0, 10.0)], rel=1e-12)


def test_sign_change_loss_takes_flat_fields_and_batches(generator):
    grid = Grid((2, 3, 4))
    field = torch.randn(2, 3, *grid.node_shape, generator=generator)
    assert torch.equal(sign_change_loss(grid, field.flatten(2)), sign_change_loss(grid, field))


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0, -0.0, torch.nan, torch.inf])
def test_sign_change_loss_without_a_sign_change_is_zero(value):
    grid = Grid((2, 1, 3))
    field = torch.full(grid.node_shape, value, requires_grad=True)
    loss = sign_change_loss(grid, field)
    assert loss == 0
    loss.backward()
    assert not field.grad.any()


def test_sign_change_loss_ignores_what_is_not_finite_elsewhere(generator):
    grid = Grid((4, 4, 4))
    field = sphere(grid.nodes() - grid.nodes().mean(0), radius=0.5).reshape(grid.node_shape)
    spoiled = field.clone()
    spoiled[0, 0, 0], spoiled[4, 4, 4] = torch.nan, torch.inf
    assert torch.equal(sign_change_loss(grid, spoiled), sign_change_loss(grid, field))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_sign_change_loss_of_half_precision_is_summed_in_single(half, generator):
    grid = Grid((6, 6, 6))
    field = torch.randn(grid.node_shape, generator=generator).to(half)
    loss = sign_change_loss(grid, field)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, sign_change_loss(grid, field.float()))


def test_sign_change_loss_gradcheck():
    grid = Grid((2, 2, 1))
    field = torch.randn(grid.node_shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    field = (field + 0.1 * torch.where(field < 0, -1, 1)).requires_grad_()
    assert float(sign_change_loss(grid, field.detach())) > 0
    assert gradcheck(lambda x: sign_change_loss(grid, x), field)


@pytest.mark.parametrize("shape", [(2, 3, 4), (59,), ()])
def test_sign_change_loss_checks_the_shape(shape):
    with pytest.raises(InputError, match=r"^sdf: want shape \(\*b, 3, 4, 5\)"):
        sign_change_loss(Grid((2, 3, 4)), torch.ones(shape))


@pytest.mark.untyped
def test_sign_change_loss_checks_the_dtype():
    with pytest.raises(InputError, match=r"^sdf: want a real floating-point dtype"):
        sign_change_loss(Grid((2, 3, 4)), torch.ones(60, dtype=torch.int64))


def test_weight_magnitude_is_the_mean():
    alpha, beta = torch.tensor([[1.0, -2.0]]), torch.tensor([-3.0, 0.0, 0.0])
    assert float(weight_magnitude(alpha)) == 1.5
    assert float(weight_magnitude(alpha, beta)) == pytest.approx(6 / 5)
    assert float(weight_magnitude(torch.zeros(0))) == 0
    assert gradcheck(weight_magnitude, [torch.tensor([1.0, -2.0], dtype=F64, requires_grad=True)])


def test_weight_magnitude_of_nothing_is_refused():
    with pytest.raises(InputError, match=r"^weights: want at least one tensor, got none"):
        weight_magnitude()


def test_edge_length_deviation_of_known_meshes():
    assert float(edge_length_deviation(TETRAHEDRON)) == pytest.approx(0, abs=1e-12)
    # 36 sides of triangles: 24 of length 1, 12 of length sqrt 2.
    mean = (2 + math.sqrt(2)) / 3
    wanted = (2 * (mean - 1) + (math.sqrt(2) - mean)) / 3
    assert float(edge_length_deviation(Mesh(CUBE, CUBE_FACES))) == pytest.approx(wanted)
    assert float(edge_length_deviation(Mesh(3 * CUBE, CUBE_FACES))) == pytest.approx(3 * wanted)


def test_normal_consistency_of_known_meshes():
    # The cube has 12 right angles and 6 diagonals between triangles of one side.
    assert float(normal_consistency(Mesh(CUBE, CUBE_FACES))) == pytest.approx(12 / 18)
    # Outward normals of a regular tetrahedron enclose arccos(-1/3).
    assert float(normal_consistency(TETRAHEDRON)) == pytest.approx(4 / 3)
    flat = Mesh(CUBE * torch.tensor([1.0, 1.0, 0.0], dtype=F64), torch.tensor([[0, 4, 6], [0, 6, 2]]))
    assert float(normal_consistency(flat)) == pytest.approx(0, abs=1e-12)


def test_normal_consistency_leaves_out_sides_of_more_than_two_faces():
    fin = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]])
    assert float(normal_consistency(Mesh(CUBE, fin))) == 0


def test_smoother_meshes_are_more_consistent():
    values = []
    for resolution in (8, 16, 32):
        grid = Grid.cube(resolution)
        values.append(float(normal_consistency(flexicubes(grid, sphere(grid.nodes(), radius=0.7)))))
    assert values[0] > 2 * values[1] > 4 * values[2]


@pytest.mark.parametrize("term", [edge_length_deviation, normal_consistency])
def test_mesh_terms_gradcheck(term, generator):
    vertices = CUBE + 0.1 * torch.randn(8, 3, generator=generator, dtype=F64)
    assert gradcheck(lambda x: term(Mesh(x, CUBE_FACES)), vertices.requires_grad_())


@pytest.mark.parametrize("term", [edge_length_deviation, normal_consistency])
def test_mesh_terms_of_empty_and_degenerate_meshes(term):
    assert float(term(EMPTY)) == 0
    vertices = torch.zeros(8, 3, requires_grad=True)
    loss = term(Mesh(vertices, CUBE_FACES))
    assert bool(loss.isfinite())
    loss.backward()
    assert bool(vertices.grad.isfinite().all())
    empty = torch.zeros(0, 3, requires_grad=True)
    term(Mesh(empty, torch.zeros(0, 3, dtype=torch.int64))).backward()
    assert empty.grad.shape == (0, 3)
