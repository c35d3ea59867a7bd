"""The public FlexiCubes implementation as an oracle: equal where it is right, and ours right where it is not.

Runs where ``DIFFMATCH_FLEXICUBES`` names the folder of a checkout of nv-tlabs/FlexiCubes (``flexicubes.py``,
``tables.py``). It builds its tensors in the default dtype, so double precision is compared under
``torch.set_default_dtype``.
"""

import importlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from diffmatch.meshing.case_tables import case_tables, cell_geometry
from diffmatch.meshing.flexicubes import flexicubes
from diffmatch.meshing.grid import Grid, deform_nodes
from diffmatch.meshing.weights import from_public_order

F64 = torch.float64
SHAPES = [
    (4, 4, 4),
    (5, 3, 2),
    (1, 6, 7),
    (8, 5, 3),
    (7, 1, 4),
    (9, 8, 7),
    (2, 2, 11),
    (3, 10, 6),
    (6, 6, 1),
    (12, 12, 12),
]


@pytest.fixture(scope="module")
def modules():
    """The modules ``flexicubes`` and ``tables`` of the checkout."""
    folder = os.environ.get("DIFFMATCH_FLEXICUBES")
    if not folder:
        pytest.skip("public FlexiCubes: DIFFMATCH_FLEXICUBES is not set")
    if not (Path(folder) / "flexicubes.py").is_file():
        pytest.fail(f"DIFFMATCH_FLEXICUBES is {folder!r}, which has no flexicubes.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("flexicubes"), importlib.import_module("tables")


@pytest.fixture
def double():
    """Double precision as the default dtype, restored afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


def problem(shape, seed, *, dtype=F64):
    """A grid, white noise on it, deformed positions, and weights in the public order."""
    grid, generator = Grid(shape, spacing=(0.5, 1.0, 0.75)), torch.Generator().manual_seed(seed)

    def noise(*size):
        return torch.randn(*size, generator=generator, dtype=dtype)

    return grid, noise(grid.n_nodes), deform_nodes(grid, noise(grid.n_nodes, 3)), noise(grid.n_cells, 21)


def cubes(grid):
    """Nodes of each cell, corner by corner."""
    _, ny, nz = grid.node_shape
    i, j, k = grid.cell_index(torch.arange(grid.n_cells)).unbind(-1)
    low = (i * ny + j) * nz + k
    return low[:, None] + torch.tensor([((c & 1) * ny + (c >> 1 & 1)) * nz + (c >> 2) for c in range(8)])


def public(modules, grid, field, positions, weights=None, **settings):
    """Vertices, faces and the terms of L_dev by the public implementation."""
    extractor = modules[0].FlexiCubes(device="cpu")
    names = {"beta_fx12": slice(0, 12), "alpha_fx8": slice(12, 20), "gamma_f": 20}
    given = {name: weights[:, columns] for name, columns in names.items()} if weights is not None else {}
    return extractor(positions, field, cubes(grid), list(grid.shape), **given, **settings)


def ours(grid, field, positions, weights=None, **settings):
    given = {}
    if weights is not None:
        given = dict(zip(("alpha", "beta", "gamma"), from_public_order(weights), strict=True))
    return flexicubes(grid, field, positions=positions, **given, **settings)


def canonical(faces):
    """Faces as a sorted list, each turned to start at its smallest index."""
    faces = np.asarray(faces)
    first = faces.argmin(1)
    turned = faces[np.arange(len(faces))[:, None], (first[:, None] + np.arange(3)) % 3]
    return sorted(map(tuple, turned.tolist()))


def assert_same_mesh(mesh, vertices, faces, *, tolerance=1e-6):
    """Equal up to the order of vertices and faces and where a face starts."""
    mine, theirs = mesh.vertices.detach().double().numpy(), vertices.detach().double().numpy()
    assert mine.shape == theirs.shape
    assert len(mesh.faces) == len(faces)
    if not len(mine):
        return
    distance, number = cKDTree(mine).query(theirs)
    assert distance.max() < tolerance
    assert len(np.unique(number)) == len(mine)
    assert canonical(number[faces.numpy()]) == canonical(mesh.faces.numpy())


def test_tables_are_the_published_ones(modules):
    _, published = modules
    edge_of = {frozenset(pair): e for e, pair in enumerate(cell_geometry().edge_corners.tolist())}
    pairs = modules[0].FlexiCubes(device="cpu").cube_edges.reshape(12, 2).tolist()
    to_ours = [edge_of[frozenset(pair)] for pair in pairs]
    tables = case_tables()
    for case in range(256):
        theirs = {frozenset(to_ours[e] for e in loop if e >= 0) for loop in published.dmc_table[case]} - {frozenset()}
        start = tables.loop_start[case]
        mine = {frozenset(tables.loop_edges[case, a:b].tolist()) for a, b in itertools.pairwise(start)}
        assert mine - {frozenset()} == theirs
        assert tables.n_loops[case] == published.num_vd_table[case]
        problem_face, (needs_check, *direction, inverted) = tables.problem_face[case], published.check_table[case]
        assert (problem_face >= 0) == (needs_check == 1)
        if problem_face >= 0:
            axis, side = divmod(int(problem_face), 2)
            assert direction == [(2 * side - 1) * (a == axis) for a in range(3)]
            assert inverted == 255 - case


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("training", [False, True], ids=["test", "training"])
@pytest.mark.parametrize("seed", range(24))
def test_white_noise_gives_the_same_mesh(modules, seed, training):
    """Random weights and moved nodes; white noise is full of ambiguous faces and of pairs that have to be repaired."""
    grid, field, positions, weights = problem(SHAPES[seed % len(SHAPES)], seed)
    vertices, faces, deviations = public(modules, grid, field, positions, weights, training=training)
    mesh = ours(grid, field, positions, weights, training=training)
    assert_same_mesh(mesh, vertices, faces)
    assert int(mesh.n_crossings) == len(deviations)
    torch.testing.assert_close(mesh.l_dev, deviations.mean(), rtol=1e-6, atol=1e-9)


def test_the_noise_needs_repairs():
    """Else the comparison would not see them."""
    from diffmatch.meshing.connectivity import connect

    rows = [connect(problem(shape, i)[1].reshape(1, *Grid(shape).node_shape)).row for i, shape in enumerate(SHAPES)]
    assert sum(int((row >= 256).sum()) for row in rows) >= 10


@pytest.mark.parametrize("training", [False, True], ids=["test", "training"])
def test_single_precision_gives_the_same_mesh(modules, training):
    grid, field, positions, weights = problem((9, 8, 10), 101, dtype=torch.float32)
    vertices, faces, deviations = public(modules, grid, field, positions, weights, training=training)
    mesh = ours(grid, field, positions, weights, training=training)
    assert_same_mesh(mesh, vertices, faces, tolerance=1e-4)  # theirs is written as a difference of products
    torch.testing.assert_close(mesh.l_dev, deviations.mean(), rtol=1e-4, atol=1e-6)


def test_without_weights_the_mesh_is_the_same(modules):
    """In training mode: in test mode all diagonals are ties, which fall by how each numbers its edges."""
    grid, field, positions, _ = problem((9, 8, 10), 101, dtype=torch.float32)
    vertices, faces, deviations = public(modules, grid, field, positions, training=True)
    mesh = ours(grid, field, positions, training=True)
    assert_same_mesh(mesh, vertices, faces, tolerance=1e-4)
    torch.testing.assert_close(mesh.l_dev, deviations.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_the_same(modules, seed):
    grid, field, positions, weights = problem((4, 5, 3), 200 + seed)
    inputs = [x.requires_grad_() for x in (field, positions, weights)]
    direction = torch.tensor([0.3, -0.5, 0.8])

    def loss(vertices, l_dev):
        return (vertices @ direction).sin().sum() + vertices.square().sum() + 10 * l_dev

    vertices, _, deviations = public(modules, grid, *inputs, training=True)
    wanted = torch.autograd.grad(loss(vertices, deviations.mean()), inputs)
    mesh = ours(grid, *inputs, training=True)
    found = torch.autograd.grad(loss(mesh.vertices, mesh.l_dev), inputs)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_their_grid_numbers_nodes_and_cells_as_ours(modules):
    shape = (3, 4, 2)
    positions, numbers = modules[0].FlexiCubes(device="cpu").construct_voxel_grid(list(shape))
    grid = Grid.box(shape, low=(-0.5,) * 3, high=(0.5,) * 3)
    torch.testing.assert_close(positions, grid.nodes(), rtol=0, atol=1e-5)
    assert torch.equal(numbers, cubes(grid))


# Where the public implementation is wrong.


def test_with_exact_zeros_ours_is_oriented_and_theirs_is_not(modules):
    """Its cells ask ``s < 0``, its orientation ``s > 0``: quads of edges that begin at an exact zero turn over."""
    grid = Grid((2, 2, 2))
    field = torch.zeros(grid.n_nodes)
    field[13] = -1.0  # the middle node
    _, faces, _ = public(modules, grid, field, grid.nodes(), training=True)
    mesh = ours(grid, field, None, training=True)
    assert has_opposite_edges(mesh.faces)
    assert not has_opposite_edges(faces)
    assert mesh.volume > 0
    nudged = torch.where(field == 0, 1e-6, field)
    vertices, faces, _ = public(modules, grid, nudged, grid.nodes(), training=True)
    assert has_opposite_edges(faces)
    assert_same_mesh(mesh, vertices, faces, tolerance=1e-4)


def has_opposite_edges(faces):
    """Whether each directed edge comes once, and so does its opposite."""
    edges = [(face[i], face[(i + 1) % 3]) for face in faces.tolist() for i in range(3)]
    return len(set(edges)) == len(edges) and {edge[::-1] for edge in edges} == set(edges)


def test_double_precision_needs_no_default_dtype(modules):
    grid, field, positions, weights = problem((4, 5, 3), 300)
    with pytest.raises(RuntimeError, match="must have the same scalar type"):
        public(modules, grid, field, positions, weights)
    mesh = ours(grid, field, positions, weights, training=True)
    single = ours(grid, field.float(), positions.float(), weights.float(), training=True)
    assert mesh.vertices.dtype == F64
    assert_same_mesh(mesh, single.vertices, single.faces, tolerance=1e-4)


def test_an_empty_surface_stays_attached_to_the_graph(modules):
    grid, field, positions, weights = problem((2, 3, 2), 301, dtype=torch.float32)
    field = field.abs().requires_grad_()
    assert not public(modules, grid, field, positions, weights)[0].requires_grad
    mesh = ours(grid, field, positions, weights)
    assert mesh.vertices.requires_grad
    assert mesh.l_dev == 0


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("training", [False, True], ids=["test", "training"])
def test_a_batch_equals_their_items(modules, training):
    grid = problem((4, 3, 5), 0)[0]
    fields, positions, weights = (
        torch.stack(x) for x in zip(*(problem(grid.shape, 400 + b)[1:] for b in range(3)), strict=True)
    )
    parts = ours(grid, fields, positions, weights, training=training).unpack()
    for b, part in enumerate(parts):
        vertices, faces, _ = public(modules, grid, fields[b], positions[b], weights[b], training=training)
        assert_same_mesh(part, vertices, faces)
