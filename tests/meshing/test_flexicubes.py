"""FlexiCubes as users call it: closed surfaces for any field, known shapes, batches, dtypes, and every refusal."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from diffmatch.errors import InputError
from diffmatch.meshing.flexicubes import FlexiMesh, flexicubes
from diffmatch.meshing.grid import Grid, deform_nodes
from diffmatch.meshing.shapes import sphere, torus

F64 = torch.float64
shapes = st.tuples(*[st.integers(1, 6)] * 3)


def weights_for(grid, generator, *, batch=(), dtype=torch.float32):
    """Random weights and deformed positions, as keyword arguments."""

    def noise(*size):
        return torch.randn(*batch, *size, generator=generator, dtype=dtype)

    return {
        "positions": deform_nodes(grid, noise(grid.n_nodes, 3)),
        "alpha": noise(grid.n_cells, 8),
        "beta": noise(grid.n_cells, 12),
        "gamma": noise(grid.n_cells),
    }


def white_noise(shape, seed, *, batch=(), odd=0.05):
    """A grid, and a random field on it with some exact zeros, negative zeros, NaN and infinities."""
    grid, generator = Grid(shape, spacing=(0.5, 1.0, 0.75)), torch.Generator().manual_seed(seed)
    field = torch.randn(*batch, *grid.node_shape, generator=generator)
    for value in (0.0, -0.0, torch.nan, torch.inf, -torch.inf):
        field[torch.rand(field.shape, generator=generator) < odd] = value
    return grid, field, generator


def open_edges(mesh):
    """Directed edges without their opposite; fails if a directed edge comes twice."""
    edges = torch.stack((mesh.faces, mesh.faces.roll(-1, 1)), -1).reshape(-1, 2)
    key = edges[:, 0] * len(mesh.vertices) + edges[:, 1]
    assert len(key.unique()) == len(key), "a directed edge belongs to two faces"
    opposite = edges[:, 1] * len(mesh.vertices) + edges[:, 0]
    return edges[~torch.isin(opposite, key)]


def euler_characteristic(mesh):
    return len(mesh.faces.unique()) - len(mesh.edges) + len(mesh.faces)


# Any field.


@given(shape=shapes, seed=st.integers(0, 2**20), training=st.booleans(), batch=st.sampled_from([(), (2,)]))
def test_white_noise_is_closed_inside_the_domain(shape, seed, training, batch):
    grid, field, generator = white_noise(shape, seed, batch=batch)
    mesh = flexicubes(grid, field, training=training, **weights_for(grid, generator, batch=batch))
    assert bool(mesh.vertices.isfinite().all())
    assert mesh.faces.unique().numel() == 0 or mesh.faces.max() < len(mesh.vertices)
    ends = open_edges(mesh)
    assert bool((ends < len(mesh.deviation)).all())  # around a quad centre nothing is open
    # An open edge stands for a cell face that touches the boundary: its two cells agree in two indices, one at an end.
    index = grid.cell_index(mesh.vertex_cell[ends] % grid.n_cells)  # (e, 2 ends, 3)
    same = index[:, 0] == index[:, 1]
    at_end = (index[:, 0] == 0) | (index[:, 0] == torch.tensor(grid.shape) - 1)
    assert bool((same.sum(1) == 2).all())
    assert bool((same & at_end).any(1).all())


@given(
    shape=shapes,
    seed=st.integers(0, 2**20),
    training=st.booleans(),
    odd=st.sampled_from([0.0, 0.05]),
    plain=st.booleans(),
)
def test_white_noise_with_the_boundary_closed_is_watertight(shape, seed, training, odd, plain):
    trimesh = pytest.importorskip("trimesh")
    grid, field, generator = white_noise(shape, seed, odd=odd)
    weights = {} if plain else weights_for(grid, generator)
    mesh = flexicubes(grid, field, boundary="close", training=training, **weights)
    assert len(open_edges(mesh)) == 0
    if not bool((field < 0).any()):
        assert len(mesh.faces) == 0
        return
    solid = trimesh.Trimesh(mesh.vertices.double().numpy(), mesh.faces.numpy(), process=False)
    assert solid.is_watertight
    assert solid.is_winding_consistent
    assert solid.volume > 0
    assert mesh.volume > 0


@given(shape=shapes, seed=st.integers(0, 2**20))
def test_dual_vertices_lie_in_their_cells(shape, seed):
    grid, field, generator = white_noise(shape, seed)
    weights = weights_for(grid, generator) | {"positions": None}
    mesh = flexicubes(grid, field, **weights)
    low = torch.tensor(grid.origin) + grid.cell_index(mesh.vertex_cell) * torch.tensor(grid.spacing)
    assert bool((mesh.vertices >= low - 1e-5).all())
    assert bool((mesh.vertices <= low + torch.tensor(grid.spacing) + 1e-5).all())


@given(seed=st.integers(0, 2**20))
def test_axes_are_treated_alike(seed):
    """Turning field and grid turns the mesh."""
    grid, field, _ = white_noise((3, 4, 5), seed)
    turned = Grid(grid.shape[1:] + grid.shape[:1], grid.origin, grid.spacing[1:] + grid.spacing[:1])
    first, second = flexicubes(grid, field, training=True), flexicubes(turned, field.permute(1, 2, 0), training=True)
    points, images = first.vertices.roll(-1, 1), second.vertices
    assert len(points) == len(images)
    if len(points):
        distance = torch.cdist(points.double(), images.double())
        assert float(distance.amin(1).max()) < 1e-5
        assert float(distance.amin(0).max()) < 1e-5
    torch.testing.assert_close(first.l_dev, second.l_dev, rtol=1e-4, atol=1e-6)


@given(seed=st.integers(0, 2**20))
def test_positive_factors_do_not_matter(seed):
    grid, field, generator = white_noise((3, 2, 4), seed)
    weights = weights_for(grid, generator)
    first, second = flexicubes(grid, field, **weights), flexicubes(grid, 4 * field, **weights)
    assert torch.equal(first.vertices, second.vertices)
    assert torch.equal(first.faces, second.faces)


# Known shapes.


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("body", "characteristic", "area", "volume"),
    [
        (lambda x: sphere(x, radius=0.7), 2, 4 * math.pi * 0.7**2, 4 / 3 * math.pi * 0.7**3),
        (lambda x: torus(x, radius=0.6, tube=0.25), 0, 4 * math.pi**2 * 0.6 * 0.25, 2 * math.pi**2 * 0.6 * 0.25**2),
    ],
    ids=["sphere", "torus"],
)
def test_smooth_bodies_converge(body, characteristic, area, volume, training):
    errors = []
    for resolution in (12, 24, 48):
        grid = Grid.cube(resolution)
        mesh = flexicubes(grid, body(grid.nodes()), training=training)
        assert len(open_edges(mesh)) == 0
        assert euler_characteristic(mesh) == characteristic
        found = mesh.face_areas.sum(), mesh.volume
        errors.append([abs(float(x) / y - 1) for x, y in zip(found, (area, volume), strict=True)])
    for coarse, fine in itertools.pairwise(errors):
        assert all(f < c / 2.5 for c, f in zip(coarse, fine, strict=True))  # second order: a quarter at each halving
    assert max(errors[-1]) < 1.5e-2  # chords lie inside: of a thin tube of six cells more is missing


def test_normals_point_out():
    grid = Grid.cube(16)
    mesh = flexicubes(grid, sphere(grid.nodes(), radius=0.6))
    assert bool(((mesh.face_normals * mesh.corners.mean(1)).sum(1) > 0).all())


def test_quads_are_those_of_the_faces():
    grid, field, generator = white_noise((4, 3, 5), 0)
    weights = weights_for(grid, generator)
    plain, fan = flexicubes(grid, field, **weights), flexicubes(grid, field, training=True, **weights)
    assert torch.equal(plain.quads, fan.quads)
    assert torch.equal(plain.vertices, fan.vertices[: len(plain.vertices)])
    for quad, (first, second) in zip(plain.quads.tolist(), plain.faces.reshape(-1, 2, 3).tolist(), strict=True):
        sides = {(quad[i], quad[(i + 1) % 4]) for i in range(4)}
        halves = {(f[i], f[(i + 1) % 3]) for f in (first, second) for i in range(3)}
        assert sides <= halves
        assert len(halves) == 6
    centre = fan.faces.reshape(-1, 4, 3)[:, :, 2]
    assert (centre == len(plain.vertices) + torch.arange(len(fan.quads))[:, None]).all()
    assert torch.equal(fan.faces.reshape(-1, 4, 3)[:, :, 0], fan.quads)


def test_gamma_chooses_the_diagonal():
    """One crossing edge, four cells: the diagonal joins the two cells with large gamma."""
    grid = Grid((1, 2, 2))
    field = torch.ones(grid.node_shape)
    field[0, 1, 1] = -1
    for strong in ((0, 3), (1, 2)):
        gamma = torch.zeros(4)
        gamma[list(strong)] = 1
        mesh = flexicubes(grid, field, gamma=gamma)
        assert mesh.quads.shape == (1, 4)
        shared = set(mesh.faces[0].tolist()) & set(mesh.faces[1].tolist())
        assert {int(mesh.vertex_cell[v]) for v in shared} == set(strong)
        ring = flexicubes(grid, field, gamma=20 * gamma, training=True)
        middle = torch.stack([ring.vertices[v] for v in shared]).mean(0)
        torch.testing.assert_close(ring.vertices[4], middle, rtol=0, atol=0.05)


def test_quad_edges_are_crossed():
    grid, field, _ = white_noise((3, 4, 2), 1, odd=0)
    mesh = flexicubes(grid, field)
    node, axis = mesh.quad_edge // 3, mesh.quad_edge % 3
    _, ny, nz = grid.node_shape
    ends = field.flatten()[node] < 0, field.flatten()[node + torch.tensor([ny * nz, nz, 1])[axis]] < 0
    assert bool((ends[0] ^ ends[1]).all())
    assert len(mesh.quad_edge.unique()) == len(mesh.quad_edge)


def test_attributes_are_interpolated_like_positions(generator):
    grid, field, _ = white_noise((4, 3, 3), 2)
    weights = weights_for(grid, torch.Generator().manual_seed(0))
    matrix, shift = torch.randn(3, 5, generator=generator), torch.randn(5, generator=generator)
    attributes = weights["positions"] @ matrix + shift
    for boundary in ("open", "close"):
        mesh = flexicubes(grid, field, attributes=attributes, training=True, boundary=boundary, **weights)
        bare = flexicubes(grid, field, training=True, boundary=boundary, **weights)
        torch.testing.assert_close(mesh.vertices, bare.vertices)
        inside = torch.ones(len(mesh.vertices), dtype=torch.bool)
        if boundary == "close":  # behind the boundary the attributes are continued as constants
            index = mesh.grid.cell_index(mesh.vertex_cell)
            inner = ((index > 0) & (index < torch.tensor(mesh.grid.shape) - 1)).all(1)
            inside = torch.cat((inner, inner[mesh.quads].all(1)))
        wanted = mesh.vertices @ matrix + shift
        torch.testing.assert_close(mesh.vertex_attributes[inside], wanted[inside], rtol=1e-4, atol=1e-4)


def test_l_dev_vanishes_where_crossings_are_equally_far():
    grid = Grid((2, 2, 2))
    field = torch.ones(grid.node_shape)
    field[1, 1, 1] = -1
    mesh = flexicubes(grid, field)
    assert mesh.n_crossings == 24
    assert float(mesh.l_dev) < 1e-6
    moved = flexicubes(grid, field, beta=torch.linspace(-2, 2, 96).reshape(8, 12))
    assert float(moved.l_dev) > 0.01


# Special values.


@pytest.mark.parametrize("boundary", ["open", "close", "error"])
@pytest.mark.parametrize("value", [1.0, 0.0, -0.0, torch.nan, torch.inf])
def test_fields_without_inside_are_empty(value, boundary):
    grid = Grid((2, 3, 1))
    field = torch.full(grid.node_shape, value, requires_grad=True)
    mesh = flexicubes(grid, field, boundary=boundary, training=True)
    assert (mesh.vertices.shape, mesh.faces.shape, mesh.quads.shape) == ((0, 3), (0, 3), (0, 4))
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (torch.float32, torch.int64)
    assert mesh.l_dev == 0
    (grad,) = torch.autograd.grad(mesh.vertices.sum() + mesh.l_dev, field)
    assert not grad.any()
    assert [len(part.vertices) for part in mesh.unpack()] == [0]


def test_a_full_field_is_empty_unless_it_is_closed():
    grid = Grid((3, 2, 4), spacing=(1.0, 0.5, 0.25))
    field = torch.full(grid.node_shape, -0.25, requires_grad=True)
    assert len(flexicubes(grid, field).faces) == 0
    with pytest.raises(InputError, match=r"^sdf: want a surface that stays inside the grid"):
        flexicubes(grid, field, boundary="error")
    mesh = flexicubes(grid, field, boundary="close")
    assert len(open_edges(mesh)) == 0
    assert euler_characteristic(mesh) == 2
    assert mesh.grid == grid.padded()
    # Outside the grid the field is the cell size, 1: the surface stands 0.2 cells outside the nodes.
    span = mesh.vertices.amax(0) - mesh.vertices.amin(0)
    wanted = (torch.tensor(grid.shape) + 0.4) * torch.tensor(grid.spacing)
    torch.testing.assert_close(span, wanted, rtol=0, atol=1e-5)
    (grad,) = torch.autograd.grad(mesh.volume, field)
    assert bool((grad[0] < 0).all())
    assert not grad[1:-1, 1:-1, 1:-1].any()


def test_closing_leaves_the_inside_as_it_was():
    grid, _, generator = white_noise((5, 5, 5), 3)
    weights = weights_for(grid, generator)
    field = sphere(grid.nodes(), radius=1.1, center=grid.nodes().mean(0).tolist())
    assert not bool((field.reshape(grid.node_shape)[[0, -1]] < 0).any())
    mesh = flexicubes(grid, field, boundary="open", **weights)
    for boundary in ("close", "error"):
        again = flexicubes(grid, field, boundary=boundary, **weights)
        assert again.grid == grid
        assert torch.equal(again.vertices, mesh.vertices)
        assert torch.equal(again.faces, mesh.faces)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", [0, -1])
def test_each_side_of_the_boundary_is_seen(axis, end):
    grid = Grid((2, 3, 4))
    field = torch.ones(grid.node_shape)
    field.select(axis, end)[1, 1] = -1
    with pytest.raises(InputError, match=r"^sdf: "):
        flexicubes(grid, field, boundary="error")
    assert len(open_edges(flexicubes(grid, field))) > 0
    assert len(open_edges(flexicubes(grid, field, boundary="close"))) == 0


def test_closing_moves_the_outer_layer_along():
    grid, field, _ = white_noise((3, 3, 3), 4)
    shift = torch.tensor([0.3, -0.2, 0.1])
    mesh = flexicubes(grid, field, boundary="close")
    moved = flexicubes(grid, field, boundary="close", positions=grid.nodes() + shift)
    torch.testing.assert_close(moved.vertices, mesh.vertices + shift, rtol=1e-5, atol=1e-5)


def test_exact_zeros_are_outside():
    """Lattice spheres through nodes: those of both signs of zero are outside, and normals still point out."""
    grid = Grid.box((8, 8, 8), low=(-4.0,) * 3, high=(4.0,) * 3)
    field = grid.nodes().square().sum(1) - 9
    assert int((field == 0).sum()) > 0
    for zeros in (0.0, -0.0):
        exact = torch.where(field == 0, zeros, field)
        mesh = flexicubes(grid, exact)
        nudged = flexicubes(grid, torch.where(field == 0, 1e-6, field))
        assert torch.equal(mesh.faces, nudged.faces)
        torch.testing.assert_close(mesh.vertices, nudged.vertices, rtol=0, atol=1e-5)
        assert len(open_edges(mesh)) == 0
        assert float(mesh.volume) > 0.5 * 4 / 3 * math.pi * 27


def test_edges_with_an_infinite_or_nan_end_are_cut_in_the_middle():
    grid = Grid((2, 2, 2))
    for inside, outside in ((-1.0, torch.nan), (-1.0, torch.inf), (-torch.inf, 1.0), (-torch.inf, torch.inf)):
        field = torch.full(grid.node_shape, outside)
        field[1, 1, 1] = inside
        field.requires_grad_()
        mesh = flexicubes(grid, field, training=True)
        middle = flexicubes(grid, torch.where(field.detach() < 0, -1.0, 1.0), training=True)
        assert torch.equal(mesh.vertices, middle.vertices)
        (grad,) = torch.autograd.grad(mesh.vertices.square().sum() + mesh.l_dev, field)
        assert not grad.any()


# Gradients.


@pytest.mark.parametrize("boundary", ["open", "close"])
@pytest.mark.parametrize("training", [False, True])
def test_gradcheck_through_everything(training, boundary):
    grid, generator = Grid((2, 1, 2)), torch.Generator().manual_seed(1)
    field = torch.randn(grid.node_shape, generator=generator, dtype=F64)
    field = field + 0.2 * torch.where(field < 0, -1, 1)
    weights = weights_for(grid, generator, dtype=F64)
    attributes = torch.randn(grid.n_nodes, 2, generator=generator, dtype=F64)
    names = ["positions", "alpha", "beta", "gamma"]

    def function(sdf, attributes, *values):
        given = dict(zip(names, values, strict=True))
        mesh = flexicubes(grid, sdf, attributes=attributes, training=training, boundary=boundary, **given)
        return mesh.vertices, mesh.vertex_attributes, mesh.deviation, mesh.l_dev

    inputs = [x.requires_grad_() for x in (field, attributes, *(weights[name] for name in names))]
    assert len(flexicubes(grid, field).quads) > 0
    assert gradcheck(function, inputs, fast_mode=not training or boundary == "close")


def test_gradcheck_of_a_batch_with_shared_weights():
    grid, generator = Grid((2, 1, 2)), torch.Generator().manual_seed(1)
    field = torch.randn(2, *grid.node_shape, generator=generator, dtype=F64)
    field = field + 0.2 * torch.where(field < 0, -1, 1)
    positions, alpha, beta, gamma = weights_for(grid, generator, dtype=F64).values()
    gamma = torch.stack((gamma, -gamma))

    def function(sdf, positions, alpha, beta, gamma):
        mesh = flexicubes(grid, sdf, positions=positions, alpha=alpha, beta=beta, gamma=gamma, training=True)
        return mesh.vertices, mesh.l_dev

    assert gradcheck(function, [x.requires_grad_() for x in (field, positions, alpha, beta, gamma)])


def test_gradient_goes_only_where_it_is_asked_for():
    grid, field, generator = white_noise((3, 3, 3), 5)
    weights = weights_for(grid, generator)
    weights["beta"].requires_grad_()
    mesh = flexicubes(grid, field, **weights)
    mesh.vertices.square().sum().backward()
    assert weights["beta"].grad.abs().sum() > 0
    assert all(weights[name].grad is None for name in ("positions", "alpha", "gamma"))


def test_without_inputs_that_need_it_there_is_no_graph():
    grid, field, _ = white_noise((3, 3, 3), 6)
    mesh = flexicubes(grid, field)
    assert not mesh.vertices.requires_grad
    with torch.no_grad():
        assert not flexicubes(grid, field.requires_grad_()).vertices.requires_grad


def test_works_in_inference_mode_and_after_it():
    grid = Grid((5, 3, 4), spacing=(0.3, 0.3, 0.3))
    field = sphere(grid.nodes(), radius=0.5, center=grid.nodes().mean(0).tolist())
    with torch.inference_mode():
        first = flexicubes(grid, field)
    again = flexicubes(grid, field.requires_grad_(), training=True)
    assert torch.equal(first.vertices, again.vertices[: len(first.vertices)])
    again.vertices.sum().backward()
    assert field.grad.any()


# Batches.


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("boundary", ["open", "close"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_equals_its_items(training, boundary, shared):
    grid, field, generator = white_noise((4, 3, 2), 7, batch=(3,), odd=0.02)
    field[1] = 1.0  # an empty one in the middle
    weights = weights_for(grid, generator, batch=() if shared else (3,))
    weights["attributes"] = torch.randn(*(() if shared else (3,)), grid.n_nodes, 2, generator=generator)
    inputs = [field.requires_grad_()]
    inputs += [x.requires_grad_() for name, x in weights.items() if training or name != "gamma"]
    mesh = flexicubes(grid, field, training=training, boundary=boundary, **weights)
    parts = mesh.unpack()
    assert len(parts) == 3
    items = []
    for b, part in enumerate(parts):
        own = {name: x if shared else x[b] for name, x in weights.items()}
        # Closing pads the whole batch or nothing; an empty item has nothing to close.
        item = flexicubes(grid, field[b], training=training, boundary=boundary, **own)
        torch.testing.assert_close(part.vertices, item.vertices, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(part.vertex_attributes, item.vertex_attributes, rtol=1e-6, atol=1e-6)
        assert torch.equal(part.faces, item.faces)
        items.append(item)
    assert [len(item.deviation) for item in items] == mesh.vertex_offsets.diff().tolist()
    assert [len(item.quads) for item in items] == mesh.quad_offsets.diff().tolist()
    assert int(mesh.n_crossings) == sum(int(item.n_crossings) for item in items)

    def loss(extracted):
        return sum((m.vertices.square().sum() + m.vertex_attributes.square().sum()) for m in extracted)

    together = torch.autograd.grad(loss([mesh]) + mesh.deviation.sum(), inputs)
    apart = torch.autograd.grad(loss(items) + sum(item.deviation.sum() for item in items), inputs)
    for ours, wanted in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)


def test_cells_of_a_batch_are_numbered_on():
    grid, field, _ = white_noise((3, 2, 2), 8, batch=(2, 2))
    mesh = flexicubes(grid, field)
    assert mesh.vertex_offsets.shape == (5,)
    for b in range(4):
        cells = mesh.vertex_cell[mesh.vertex_offsets[b] : mesh.vertex_offsets[b + 1]]
        assert bool((cells // grid.n_cells == b).all())
        edges = mesh.quad_edge[mesh.quad_offsets[b] : mesh.quad_offsets[b + 1]]
        assert bool((edges // (3 * grid.n_nodes) == b).all())


def test_flat_fields_and_several_batch_axes():
    grid, field, _ = white_noise((3, 2, 4), 9, batch=(2, 3))
    boxed, flat = flexicubes(grid, field), flexicubes(grid, field.flatten(2))
    assert torch.equal(boxed.vertices, flat.vertices)
    assert len(boxed.unpack()) == 6


@pytest.mark.parametrize("boundary", ["open", "close", "error"])
def test_a_batch_of_none(boundary):
    grid = Grid((2, 2, 2))
    mesh = flexicubes(grid, torch.zeros(0, *grid.node_shape), boundary=boundary, training=True)
    assert mesh.unpack() == []
    assert float(mesh.l_dev) == 0


def test_a_batch_closes_where_one_item_has_to():
    grid = Grid((4, 4, 4), spacing=(0.5, 0.5, 0.5))
    inner = sphere(grid.nodes(), radius=0.4)
    mesh = flexicubes(grid, torch.stack((inner, -torch.ones_like(inner))), boundary="close")
    assert [len(open_edges(part)) for part in mesh.unpack()] == [0, 0]
    assert mesh.grid == grid.padded()


# Dtypes, layouts, contexts.


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(half):
    grid, field, generator = white_noise((4, 3, 5), 10)
    weights = {name: x.to(half).requires_grad_() for name, x in weights_for(grid, generator).items()}
    field = field.to(half).requires_grad_()
    mesh = flexicubes(grid, field, training=True, **weights)
    wanted = flexicubes(grid, field.float(), training=True, **{name: x.float() for name, x in weights.items()})
    assert mesh.vertices.dtype == mesh.l_dev.dtype == torch.float32
    assert torch.equal(mesh.vertices, wanted.vertices)
    assert torch.equal(mesh.faces, wanted.faces)
    mesh.vertices.square().sum().backward()
    assert field.grad.dtype == weights["alpha"].grad.dtype == half


def test_double_precision_stays_double():
    grid, field, generator = white_noise((4, 3, 5), 11)
    weights = weights_for(grid, generator)
    single, double = flexicubes(grid, field, **weights), flexicubes(grid, field.double(), **weights)
    assert double.vertices.dtype == double.l_dev.dtype == F64
    assert torch.equal(single.faces, double.faces)
    torch.testing.assert_close(single.vertices, double.vertices.float(), rtol=1e-5, atol=1e-5)


def test_autocast_does_not_round():
    grid, field, generator = white_noise((4, 3, 5), 12)
    weights = weights_for(grid, generator)
    wanted = flexicubes(grid, field, training=True, **weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = flexicubes(grid, field, training=True, **weights)
    assert found.vertices.dtype == torch.float32
    assert torch.equal(found.vertices, wanted.vertices)
    assert torch.equal(found.deviation, wanted.deviation)


def test_memory_layout_does_not_matter():
    grid, field, generator = white_noise((4, 3, 5), 13)
    weights = weights_for(grid, generator)
    wanted = flexicubes(grid, field, training=True, **weights)
    turned = {name: x.mT.contiguous().mT if x.ndim > 1 else x for name, x in weights.items()}
    assert not turned["alpha"].is_contiguous()
    found = flexicubes(grid, field.permute(2, 0, 1).contiguous().permute(1, 2, 0), training=True, **turned)
    assert torch.equal(found.vertices, wanted.vertices)
    assert torch.equal(found.faces, wanted.faces)


def test_outputs_live_on_the_device_of_the_field(device):
    grid = Grid.cube(6)
    mesh = flexicubes(grid, sphere(grid.nodes(device=device), radius=0.5), training=True)
    for name in ("vertices", "faces", "quads", "quad_edge", "vertex_cell", "deviation", "vertex_offsets"):
        assert getattr(mesh, name).device.type == device.type


def test_the_result_is_a_mesh_that_moves_and_detaches():
    grid = Grid.cube(6)
    mesh = flexicubes(grid, sphere(grid.nodes(), radius=0.5).requires_grad_())
    assert not mesh.detach().deviation.requires_grad
    assert isinstance(mesh.detach(), FlexiMesh)
    assert mesh.to(dtype=F64).deviation.dtype == F64


# Refusals.

GRID = Grid((2, 3, 4))
FIELD = torch.ones(GRID.node_shape)


@pytest.mark.parametrize(
    ("argument", "wanted", "arguments"),
    [
        ("sdf", r"shape \(\*b, 3, 4, 5\) or \(\*b, 60\)", {"sdf": torch.ones(3, 4, 4)}),
        ("sdf", r"shape", {"sdf": torch.ones(59)}),
        ("sdf", r"shape", {"sdf": torch.ones(())}),
        ("boundary", r"one of close, error, open", {"boundary": "closed"}),
        ("weight_scale", r"a number in \(0, 1\)", {"weight_scale": 1.0}),
        ("weight_scale", r"a number in \(0, 1\)", {"weight_scale": 0.0}),
        ("weight_scale", r"a number in \(0, 1\)", {"weight_scale": math.nan}),
        ("positions", r"shape \(60, 3\)", {"positions": torch.ones(59, 3)}),
        ("alpha", r"shape \(24, 8\)", {"alpha": torch.ones(23, 8)}),
        ("beta", r"shape \(24, 12\)", {"beta": torch.ones(2, 24, 12)}),
        ("gamma", r"shape \(24,\)", {"gamma": torch.ones(24, 1)}),
        ("attributes", r"shape \(\*b, 60, d\)", {"attributes": torch.ones(59, 2)}),
        ("attributes", r"shape \(60, 2\)", {"attributes": torch.ones(3, 60, 2)}),
        ("alpha", r"shape \(24, 8\) or \(2, 24, 8\)", {"sdf": torch.ones(2, 60), "alpha": torch.ones(3, 24, 8)}),
        ("gamma", r"device cpu, got meta", {"gamma": torch.ones(24, device="meta")}),
    ],
    ids=str,
)
def test_bad_values_are_named(argument, wanted, arguments):
    with pytest.raises(InputError, match=rf"^{argument}: want {wanted}"):
        flexicubes(GRID, **({"sdf": FIELD} | arguments))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "wanted", "arguments"),
    [
        ("sdf", r"a tensor, got list", {"sdf": FIELD.tolist()}),
        ("sdf", r"a real floating-point dtype", {"sdf": FIELD.long()}),
        ("sdf", r"a real floating-point dtype", {"sdf": FIELD.to(torch.complex64)}),
        ("alpha", r"a tensor, got list", {"alpha": [1.0]}),
        ("positions", r"a real floating-point dtype", {"positions": torch.ones(60, 3, dtype=torch.int64)}),
        ("attributes", r"a tensor", {"attributes": [1.0]}),
        ("attributes", r"shape", {"attributes": torch.ones(60)}),
        ("attributes", r"a real floating-point dtype", {"attributes": torch.ones(60, 2, dtype=torch.bool)}),
        ("alpha", r"shape \(24, 8\)", {"alpha": torch.ones(24, 7)}),
        ("beta", r"shape \(24, 12\)", {"beta": torch.ones(24, 8)}),
        ("positions", r"shape \(60, 3\)", {"positions": torch.ones(60, 2)}),
    ],
    ids=str,
)
def test_bad_types_are_named(argument, wanted, arguments):
    with pytest.raises(InputError, match=rf"^{argument}: want {wanted}"):
        flexicubes(GRID, **({"sdf": FIELD} | arguments))


def test_batches_that_would_overflow_edge_numbers_are_refused():
    grid = Grid.cube(99)
    field = torch.ones(1).expand(800, grid.n_nodes)  # no memory behind it
    with pytest.raises(InputError, match=r"^sdf: want at most 715,827,882 nodes in a batch, got 800,000,000"):
        flexicubes(grid, field)


@pytest.mark.parametrize("boundary", ["open", "close"])
@pytest.mark.parametrize("listed", ["surface", "some", "none"])
def test_weights_of_listed_cells_equal_those_of_all(listed, boundary):
    generator = torch.Generator().manual_seed(3)
    grid = Grid((4, 3, 5))
    field = torch.randn(2, *grid.node_shape, generator=generator, dtype=torch.float64)
    surface = flexicubes(grid, field).connectivity.cell.long()
    cells = {"surface": surface, "some": torch.arange(0, 2 * grid.n_cells, 3), "none": surface[:0]}[listed]
    rows = [
        torch.randn(len(cells), *shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((8,), (12,), ())
    ]
    full = [torch.zeros(2 * grid.n_cells, *w.shape[1:], dtype=w.dtype).index_put((cells,), w) for w in rows]
    alpha, beta, gamma = (w.reshape(2, grid.n_cells, *w.shape[1:]) for w in full)
    settings = {"boundary": boundary, "training": True}
    wanted = flexicubes(grid, field, alpha=alpha, beta=beta, gamma=gamma, **settings)
    alpha, beta, gamma = rows
    found = flexicubes(grid, field, alpha=alpha, beta=beta, gamma=gamma, weight_cells=cells, **settings)
    torch.testing.assert_close(found.vertices, wanted.vertices)
    assert torch.equal(found.faces, wanted.faces)
    for ours, theirs in zip(*(torch.autograd.grad(m.vertices.cos().sum(), rows) for m in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("boundary", ["open", "close"])
def test_connectivity_serves_again_while_no_sign_changes(boundary):
    generator = torch.Generator().manual_seed(4)
    grid = Grid((4, 5, 3))
    field = torch.randn(grid.node_shape, generator=generator)
    first = flexicubes(grid, field, boundary=boundary)
    scaled = field * torch.rand(grid.node_shape, generator=generator).add(0.5)
    wanted = flexicubes(grid, scaled, boundary=boundary)
    found = flexicubes(grid, scaled, boundary=boundary, connectivity=first.connectivity)
    assert torch.equal(found.vertices, wanted.vertices)
    assert torch.equal(found.faces, wanted.faces)


@pytest.mark.untyped
def test_weights_and_connectivity_that_do_not_fit_are_refused():
    grid = Grid((2, 2, 2))
    field = grid.nodes().sum(1)
    with pytest.raises(InputError, match=r"^alpha: want shape \(3, 8\), got \(2, 8\)"):
        flexicubes(grid, field, alpha=torch.zeros(2, 8), weight_cells=torch.arange(3))
    with pytest.raises(InputError, match=r"^weight_cells: want shape \(w\)"):
        flexicubes(grid, field, alpha=torch.zeros(3, 8), weight_cells=torch.zeros(3, 1, dtype=torch.int64))
    other = flexicubes(Grid((2, 2, 3)), Grid((2, 2, 3)).nodes().sum(1)).connectivity
    with pytest.raises(InputError, match=r"^connectivity: want that of a grid of \(2, 2, 2\) cells"):
        flexicubes(grid, field, connectivity=other)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("training", [False, True])
def test_values_may_be_given_at_the_nodes_of_a_kept_surface(training, batch, generator, device):
    grid = Grid.cube(5)
    full = {"sdf": torch.randn(*batch, *grid.node_shape, generator=generator, dtype=F64)}
    full |= weights_for(grid, generator, batch=batch, dtype=F64)
    full["attributes"] = torch.randn(*batch, grid.n_nodes, 2, generator=generator, dtype=F64)
    full = {name: value.to(device).requires_grad_() for name, value in full.items()}
    sdf = full.pop("sdf")
    first = flexicubes(grid, sdf, training=training, **full)
    nodes = first.connectivity.nodes
    rows = {name: value.detach().clone() for name, value in full.items()}
    rows |= {name: rows[name].flatten(0, -2)[nodes] for name in ("positions", "attributes")}
    rows = {"sdf": sdf.detach().flatten()[nodes], **rows}
    rows = {name: value.requires_grad_() for name, value in rows.items()}
    held = dict(rows)
    again = flexicubes(grid, held.pop("sdf"), training=training, connectivity=first.connectivity, **held)
    assert torch.equal(again.vertices, first.vertices)
    assert torch.equal(again.faces, first.faces)
    assert torch.equal(again.vertex_attributes, first.vertex_attributes)
    sums = [(m.vertices.square().sum() + m.vertex_attributes.sum() + m.l_dev) for m in (first, again)]
    wanted = torch.autograd.grad(sums[0], [sdf, *full.values()])
    found = torch.autograd.grad(sums[1], list(rows.values()), allow_unused=not training)
    for name, ours, theirs in zip(rows, found, wanted, strict=True):
        if name in ("sdf", "positions", "attributes"):
            width = theirs.shape[-1:] if name != "sdf" else ()
            theirs = theirs.reshape(-1, *width)[nodes]
        torch.testing.assert_close(ours if ours is not None else torch.zeros_like(theirs), theirs, msg=name)


def test_values_at_the_nodes_of_a_surface_that_do_not_fit_are_refused(device):
    grid = Grid.cube(4)
    field = sphere(grid.nodes(device=device), radius=0.5)
    kept = flexicubes(grid, field).connectivity
    with pytest.raises(InputError, match="boundary"):
        flexicubes(grid, field[kept.nodes], connectivity=kept, boundary="close")
    with pytest.raises(InputError, match="positions"):
        flexicubes(grid, field[kept.nodes], connectivity=kept, positions=grid.nodes(device=device))
    with pytest.raises(InputError, match="connectivity"):
        flexicubes(grid, torch.stack((field, field)), connectivity=kept)
    assert flexicubes(grid, field[kept.nodes], connectivity=kept).vertices.shape == (kept.n_vertices, 3)
