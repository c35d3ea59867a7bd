"""Graphs and meshes: against the reduction of all boundaries, closed forms and gudhi; gradients; odd inputs."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.topology import Persistence, cubical_persistence, graph_persistence, mesh_persistence

TETRAHEDRON = torch.tensor([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]])


def torus(n: int, m: int) -> torch.Tensor:
    i, j = torch.meshgrid(torch.arange(n), torch.arange(m), indexing="ij")
    a, b, c, d = (((i + x) % n * m + (j + y) % m).reshape(-1) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)))
    return torch.cat((torch.stack((a, b, c), 1), torch.stack((a, c, d), 1)))


def reduction(values: np.ndarray, cells: list[tuple[int, ...]], n_degrees: int) -> list[tuple[list, list]]:
    """Sorted finite bars of positive length and essential births, from the boundary matrix."""
    cells = sorted(cells, key=lambda cell: (max(values[i] for i in cell), len(cell)))
    place = {cell: i for i, cell in enumerate(cells)}
    value = [max(values[i] for i in cell) for cell in cells]
    columns, unpaired = {}, set()
    finite = [[] for _ in range(n_degrees)]
    for i, cell in enumerate(cells):
        column = {place[side] for side in combinations(cell, len(cell) - 1)} if len(cell) > 1 else set()
        while column and max(column) in columns:
            column ^= columns[max(column)]
        if not column:
            unpaired.add(i)
            continue
        birth = max(column)
        columns[birth] = column
        unpaired.remove(birth)
        if value[birth] < value[i]:
            finite[len(cells[birth]) - 1].append([value[birth], value[i]])
    essential = [sorted(value[i] for i in unpaired if len(cells[i]) == k + 1) for k in range(n_degrees)]
    return [(sorted(bars), births) for bars, births in zip(finite, essential, strict=True)]


def readable(found: Persistence) -> list[tuple[list, list]]:
    return [(sorted(d.points().tolist()), sorted(d.essential_births.tolist())) for d in found]


def random_values(rng: np.random.Generator, n: int, tied: bool) -> np.ndarray:
    return rng.integers(0, 4, n).astype(float) if tied else rng.standard_normal(n)


@given(st.integers(1, 10), st.floats(0, 1), st.booleans(), st.integers(0, 2**32 - 1))
def test_graph_bars_are_those_of_the_boundary_reduction(n, density, tied, seed):
    rng = np.random.default_rng(seed)
    values = random_values(rng, n, tied)
    edges = [pair for pair in combinations(range(n), 2) if rng.random() < density]
    tensor = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).flip(1)
    wanted = reduction(values, [(i,) for i in range(n)] + edges, 2)
    assert readable(graph_persistence(torch.from_numpy(values), tensor)) == wanted
    upper = graph_persistence(torch.from_numpy(-values), tensor, superlevel=True)
    negated = [(sorted([-b, -d] for b, d in bars), sorted(-b for b in births)) for bars, births in wanted]
    assert readable(upper) == negated


@given(st.integers(3, 9), st.integers(0, 25), st.booleans(), st.integers(0, 2**32 - 1))
def test_mesh_bars_are_those_of_the_boundary_reduction(n, n_faces, tied, seed):
    rng = np.random.default_rng(seed)
    values = random_values(rng, n, tied)
    faces = {tuple(int(i) for i in rng.choice(n, 3, replace=False)) for _ in range(n_faces)}
    faces = {tuple(sorted(face)): face for face in faces}
    edges = {edge for face in faces for edge in combinations(face, 2)}
    wanted = reduction(values, [(i,) for i in range(n)] + [*edges] + [*faces], 3)
    tensor = torch.tensor([*faces.values()], dtype=torch.int64).reshape(-1, 3)
    found = mesh_persistence(torch.from_numpy(values), tensor)
    assert readable(found) == wanted
    assert readable(mesh_persistence(torch.from_numpy(values), tensor, degrees=[0]))[0] == wanted[0]
    flat = torch.from_numpy(values)
    for diagram in found:
        assert torch.equal(flat[diagram.birth_index], diagram.births)
        assert torch.equal(flat[diagram.death_index], diagram.deaths)
        assert torch.equal(flat[diagram.essential_index], diagram.essential_births)


def test_closed_forms():
    cycle = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    found = graph_persistence(torch.tensor([0.0, 2.0, 1.0, 3.0]), cycle)
    assert readable(found) == [([[1.0, 2.0]], [0.0]), ([], [3.0])]
    height = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert readable(mesh_persistence(height, TETRAHEDRON)) == [([], [0.0]), ([], []), ([], [3.0])]
    faces = torus(12, 9)
    angle = torch.arange(12 * 9) // 9 * (2 * math.pi / 12)
    found = mesh_persistence(torch.cos(angle.double()), faces)
    assert [len(d.essential_births) for d in found] == [1, 2, 1]
    doubled = graph_persistence(torch.tensor([0.0, 1.0]), torch.tensor([[0, 1], [1, 0], [1, 1]]))
    assert readable(doubled) == [([], [0.0]), ([], [1.0, 1.0])]


def test_a_grid_of_triangles_has_the_components_of_its_graph(generator):
    field = torch.randn(9, 7, generator=generator, dtype=torch.float64)
    number = torch.arange(63).reshape(9, 7)
    edges = torch.cat(
        (
            torch.stack((number[1:], number[:-1]), -1).reshape(-1, 2),
            torch.stack((number[:, 1:], number[:, :-1]), -1).reshape(-1, 2),
        )
    )
    graph, grid = graph_persistence(field.reshape(-1), edges), cubical_persistence(field)
    for name in ("birth_index", "death_index", "essential_index"):
        assert torch.equal(getattr(graph[0], name), getattr(grid[0], name))
    # Each of the 48 squares would fill one of the cycles of the graph.
    assert len(graph[1].essential_births) == 48


def test_equals_gudhi(generator):
    gudhi = pytest.importorskip("gudhi")
    faces = torus(30, 20)
    values = torch.randn(600, generator=generator, dtype=torch.float64)
    tree = gudhi.SimplexTree()
    for face in faces.tolist():
        tree.insert(face, -math.inf)
    for i, x in enumerate(values.tolist()):
        tree.assign_filtration([i], x)
    tree.make_filtration_non_decreasing()
    tree.compute_persistence(persistence_dim_max=True)
    for diagram in mesh_persistence(values, faces):
        theirs = tree.persistence_intervals_in_dimension(diagram.degree).reshape(-1, 2)
        finite = theirs[np.isfinite(theirs[:, 1])]
        ours = diagram.points().numpy()
        np.testing.assert_array_equal(ours[np.lexsort(ours.T)], finite[np.lexsort(finite.T)])
        essential = np.sort(theirs[np.isinf(theirs[:, 1]), 0])
        np.testing.assert_array_equal(np.sort(diagram.essential_births.numpy()), essential)


def test_gradients(generator):
    values = torch.randperm(24, generator=generator).double().div(24).requires_grad_()

    def sums(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = mesh_persistence(x, torus(6, 4))
        return tuple(e.sum() for d in found for e in (d.births**2, d.deaths**3, d.essential_births.sin()))

    assert torch.autograd.gradcheck(sums, values)
    assert torch.autograd.gradgradcheck(sums, values)


def test_odd_inputs():
    nothing = graph_persistence(torch.zeros(0), torch.zeros(0, 2, dtype=torch.int64))
    assert readable(nothing) == [([], []), ([], [])]
    lone = mesh_persistence(torch.tensor([5.0]), torch.zeros(0, 3, dtype=torch.int32))
    assert readable(lone) == [([], [5.0]), ([], []), ([], [])]
    constant = mesh_persistence(torch.ones(4), TETRAHEDRON)
    assert readable(constant) == [([], [1.0]), ([], []), ([], [1.0])]
    path = torch.tensor([[0, 1], [1, 2]])
    masked = graph_persistence(torch.tensor([0.0, math.inf, 1.0]), path)
    assert readable(masked) == [([], [0.0, 1.0]), ([], [])]


@pytest.mark.untyped
def test_refusals():
    values, edges = torch.zeros(4), torch.tensor([[0, 1]])
    cases = [
        (graph_persistence, (values, TETRAHEDRON), {}, r"edges: want shape \(e, 2\)"),
        (graph_persistence, (values, edges.float()), {}, "edges: want integers of 32 or 64 bits"),
        (graph_persistence, (values, edges + 3), {}, "edges: want indices from 0 to 3, got 3 to 4"),
        (graph_persistence, (values, edges - 1), {}, "edges: want indices from 0 to 3, got -1 to 0"),
        (graph_persistence, (values, edges), {"degrees": [2]}, "degrees: want integers from 0 to 1"),
        (graph_persistence, (values[None], edges), {}, r"values: want shape \(n\)"),
        (graph_persistence, (values.long(), edges), {}, "values: want a real floating-point dtype"),
        (graph_persistence, (values * math.nan, edges), {}, "values: want no NaN, got 4 of 4"),
        (graph_persistence, (values, edges), {"min_persistence": math.nan}, "min_persistence: want a number >= 0"),
        (mesh_persistence, (values, edges), {}, r"faces: want shape \(f, 3\)"),
        (
            mesh_persistence,
            (values, torch.tensor([[0, 1, 1]])),
            {},
            "faces: want three different vertices a face, got 1",
        ),
        (mesh_persistence, (values, TETRAHEDRON[[0, 1, 0]]), {}, "faces: want each face once, got 1"),
    ]
    for function, args, options, message in cases:
        with pytest.raises(InputError, match=message):
            function(*args, **options)
