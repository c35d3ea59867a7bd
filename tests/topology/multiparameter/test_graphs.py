"""Signed measures of graphs and meshes: counting at every pair of levels, slices, gradients, edges of the domain."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.topology import mesh_persistence
from diffmatch.topology.multiparameter import graph_signed_measure, mesh_signed_measure

OCTAHEDRON = torch.tensor([[a, b, c] for a in (0, 1) for b in (2, 3) for c in (4, 5)])
MESHES = {
    "octahedron": (OCTAHEDRON, 6),
    "two of them": (torch.cat((OCTAHEDRON, OCTAHEDRON + 6)), 12),
    "with a hole, and a point": (OCTAHEDRON[:5], 7),
    "with fins": (torch.cat((OCTAHEDRON, torch.tensor([[0, 2, 6], [0, 2, 7]]))), 8),
    "no faces": (OCTAHEDRON[:0], 2),
}


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 9), st.sampled_from([0, 1, None]), st.booleans())
def test_graphs_are_counted(brute_force, seed, n, m, degree, ties):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(0, 3, (2, n)).astype(float) if ties else rng.random((2, n)))
    edges = torch.from_numpy(rng.integers(0, n, (m, 2)))  # parallel edges and self-loops among them
    cells = [((u, v), values[:, [u, v]].amax(1).tolist()) for u, v in edges.tolist()]
    measure = graph_signed_measure(values, edges, degree=degree)
    first, second = values[0].unique(), values[1].unique()
    assert torch.equal(measure.at(first, second), brute_force(values.T.tolist(), cells, first, second, degree))


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("levels", [None, 4])
def test_meshes_agree_with_persistence_of_every_slice(name, levels):
    faces, n = MESHES[name]
    values = torch.rand(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    measures = {d: mesh_signed_measure(values, faces, degree=d, levels=levels) for d in (0, 1, 2, None)}
    euler = measures[None].points
    first, second = euler[:, 0].unique(), euler[:, 1].unique()
    for j, t in enumerate(second):
        slice_ = mesh_persistence(torch.where(values[1] <= t, values[0], torch.inf), faces)
        for i, s in enumerate(first):
            betti = slice_.betti(float(s) + 1e-12)
            expected = dict(enumerate(betti)) | {None: betti[0] - betti[1] + betti[2]}
            assert {d: int(m.at(first, second)[i, j]) for d, m in measures.items()} == expected


@pytest.mark.parametrize("degree", [0, 1, 2, None])
def test_gradcheck(degree):
    values = torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()

    def loss(x):
        return mesh_signed_measure(x, OCTAHEDRON, degree=degree).integrate(lambda p: p[:, 0].exp() * p[:, 1].sin())

    assert torch.autograd.gradcheck(loss, (values,))


def test_gradients_of_a_graph_go_to_its_critical_vertices():
    values = torch.tensor([[0.0, 3.0, 1.0], [0.0, 5.0, 2.0]], requires_grad=True)
    measure = graph_signed_measure(values, torch.tensor([[0, 1], [1, 2]]))
    measure.integrate(lambda p: p[:, 0] + 10 * p[:, 1]).backward()
    assert values.grad.tolist() == [[1, -1, 1], [10, -10, 10]]


def test_empty_graphs_and_vertices_that_never_appear():
    no_edges = torch.zeros(0, 2, dtype=torch.int64)
    for degree in (0, 1, None):
        assert len(graph_signed_measure(torch.zeros(2, 0), no_edges, degree=degree)) == 0
    isolated = graph_signed_measure(torch.tensor([[1.0, torch.inf, 2], [0, 0, torch.inf]]), no_edges)
    assert isolated.points.tolist() == [[1, 0]]
    never = mesh_signed_measure(torch.full((2, 6), torch.inf), OCTAHEDRON, degree=1)
    assert len(never) == 0
    constant = mesh_signed_measure(torch.zeros(2, 6), OCTAHEDRON, degree=2)
    assert (constant.points.tolist(), constant.weights.tolist()) == ([[0, 0]], [1])


@pytest.mark.untyped
def test_messages():
    values, edges = torch.zeros(2, 3), torch.tensor([[0, 1]])
    with pytest.raises(InputError, match="values"):
        graph_signed_measure(torch.zeros(3, 3), edges)
    with pytest.raises(InputError, match="edges: want indices from 0 to 2, got 0 to 3"):
        graph_signed_measure(values, torch.tensor([[0, 3]]))
    with pytest.raises(InputError, match="edges"):
        graph_signed_measure(values, torch.tensor([[0.0, 1.0]]))
    with pytest.raises(InputError, match="degree"):
        graph_signed_measure(values, edges, degree=2)
    for faces in ([[0, 1, 1]], [[0, 1, 2], [2, 0, 1]]):
        with pytest.raises(InputError, match="faces"):
            mesh_signed_measure(values, torch.tensor(faces))
    values[0, 1] = torch.nan
    with pytest.raises(InputError, match="values"):
        graph_signed_measure(values, edges)
