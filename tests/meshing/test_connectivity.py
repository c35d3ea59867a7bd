"""Connectivity of the dual surface: against loops over cells and edges, and the compiled form against the tensors."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.meshing import kernels
from diffmatch.meshing.case_tables import case_tables, cell_geometry
from diffmatch.meshing.connectivity import case_ids, connect

TABLES, GEOMETRY = case_tables(), cell_geometry()


@st.composite
def noise(draw, most=4):
    """White noise on a batch of grids with odd numbers of cells, some nodes exactly 0, -0 or NaN."""
    batch = draw(st.integers(1, 3))
    shape = [draw(st.integers(1, most)) + 1 for _ in range(3)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    field = torch.randn(batch, *shape, generator=generator)
    for value in (0.0, -0.0, float("nan")):
        field[torch.rand(field.shape, generator=generator) < 0.05] = value
    return field


def case_of(field, b, i, j, k):
    corners = GEOMETRY.corner_offset.tolist()
    return sum(1 << c for c, (x, y, z) in enumerate(corners) if field[b, i + x, j + y, k + z] < 0)


def cells_of(field):
    """Number and index of each cell."""
    batch, *nodes = field.shape
    return enumerate(itertools.product(range(batch), *(range(n - 1) for n in nodes)))


def rows_by_loop(field):
    """Row of the tables of each surface cell, by the definition of the repair."""
    nx, ny, nz = (n - 1 for n in field.shape[1:])
    rows = {}
    for number, (b, *index) in cells_of(field):
        case = case_of(field, b, *index)
        if case in (0, 255):
            continue
        face = int(TABLES.problem_face[case])
        flip = False
        if face >= 0:
            beyond = list(index)
            beyond[face // 2] += 2 * (face % 2) - 1
            inside = all(0 <= x < n for x, n in zip(beyond, (nx, ny, nz), strict=True))
            flip = inside and TABLES.problem_face[case_of(field, b, *beyond)] == face ^ 1
        rows[number] = case + 256 * flip
    return rows


def quads_by_loop(field, rows):
    """Quad of each crossing edge with four cells around it, found from the loops that the cells have on the edge."""
    shape = [n - 1 for n in field.shape[1:]]
    start = dict(
        zip(rows, itertools.accumulate((int(TABLES.n_loops[r]) for r in rows.values()), initial=0), strict=False)
    )
    stride = (shape[1] * shape[2], shape[2], 1)
    quads = {}
    nodes = itertools.product(*(range(n) for n in field.shape))
    for node, (b, *low) in enumerate(nodes):
        for axis in range(3):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            high = list(low)
            high[axis] += 1
            if high[axis] > shape[axis] or not (0 < low[u] < shape[u] and 0 < low[v] < shape[v]):
                continue
            ends = field[b, *low] < 0, field[b, *high] < 0
            if ends[0] == ends[1]:
                continue
            ring = []
            for du, dv in ((0, 0), (-1, 0), (-1, -1), (0, -1)):
                index = list(low)
                index[u] += du
                index[v] += dv
                cell = b * shape[0] * stride[0] + sum(i * s for i, s in zip(index, stride, strict=True))
                ring.append(start[cell] + int(TABLES.edge_loop[rows[cell], 4 * axis - du - 2 * dv]))
            quads[3 * node + axis] = ring if ends[0] else ring[::-1]
    return quads


@given(field=noise())
def test_case_ids_equal_a_loop(field):
    wanted = [case_of(field, *index) for _, index in cells_of(field)]
    assert case_ids(field < 0).flatten().tolist() == wanted


@given(field=noise(most=3))
def test_connectivity_equals_a_loop(field):
    rows = rows_by_loop(field)
    connectivity = connect(field)
    assert connectivity.cell.tolist() == list(rows)
    assert connectivity.row.tolist() == list(rows.values())
    assert connectivity.vertex_start.diff().tolist() == [int(TABLES.n_loops[row]) for row in rows.values()]
    quads = quads_by_loop(field, rows)
    assert connectivity.quad_edge.tolist() == list(quads)
    assert connectivity.quads.tolist() == list(quads.values())


@given(field=noise())
def test_nodes_are_those_at_the_corners_of_surface_cells(field):
    connectivity = connect(field)
    _, y, z = field.shape[1:]
    step = torch.tensor(GEOMETRY.corner_offset).long() @ torch.tensor([y * z, z, 1])
    corners = connectivity.node[:, None] + step
    assert torch.equal(connectivity.nodes, corners.unique())
    place = torch.cat((connectivity.columns, connectivity.columns + 1), 1)
    assert torch.equal(connectivity.nodes[place], corners)


@given(field=noise())
def test_compiled_form_gives_the_same(field):
    ours, reference = kernels.connect(field), connect(field)
    assert ours.shape == reference.shape
    assert ours.n_vertices == reference.n_vertices
    assert ours.n_items == reference.n_items == len(field)
    for name in ("cell", "row", "vertex_start", "quads", "quad_edge", "vertex_slot", "node", "nodes", "columns"):
        assert getattr(ours, name).tolist() == getattr(reference, name).tolist()
    for name in ("quads", "quad_edge", "nodes"):
        assert getattr(ours, name).dtype == getattr(reference, name).dtype == torch.int64


@given(field=noise(most=3))
def test_incidences_are_the_crossing_edges_of_each_vertex(field):
    connectivity = connect(field)
    rows = connectivity.incidences
    flat = field.flatten()
    assert ((flat[rows.node] < 0).sum(1) == 1).all()  # exactly one end of each edge is inside
    assert (rows.vertex.diff() >= 0).all()
    assert torch.equal(torch.bincount(rows.vertex, minlength=connectivity.n_vertices), rows.count)
    assert bool(((rows.count >= 3) & (rows.count <= 7)).all())
    assert torch.equal(connectivity.vertex_slot[rows.vertex], rows.slot)
    assert rows.corner.tolist() == [GEOMETRY.edge_corners[edge].tolist() for edge in rows.edge.tolist()]
    _, y, z = field.shape[1:]
    offset = torch.tensor(GEOMETRY.corner_offset)[rows.corner].long() @ torch.tensor([y * z, z, 1])
    assert torch.equal(connectivity.node[rows.slot, None] + offset, rows.node)


def test_adjacent_problem_cells_are_repaired_together():
    """Found by trial: a pair that shares its problem face. Without the repair four quads would meet in one edge."""
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(1, 12, 12, 12, generator=generator)
    repaired = connect(field).row >= 256
    assert int(repaired.sum()) > 0
    assert int(repaired.sum()) % 2 == 0


def test_empty_and_full_fields_have_no_surface():
    for value in (1.0, -1.0, 0.0, -0.0, float("nan")):
        for make in (connect, kernels.connect):
            connectivity = make(torch.full((2, 3, 4, 5), value))
            assert connectivity.n_vertices == len(connectivity.cell) == len(connectivity.quads) == 0
            assert connectivity.quads.shape == (0, 4)
            assert connectivity.vertex_start.tolist() == [0]


def test_empty_batch():
    for make in (connect, kernels.connect):
        assert make(torch.zeros(0, 3, 3, 3)).n_vertices == 0
