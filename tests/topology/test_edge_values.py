"""Graphs with values of edges: against subdivided graphs, Rips filtrations and gudhi; gradients; odd inputs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.topology import graph_persistence, rips_persistence


def readable(found):
    return [(sorted(d.points().tolist()), sorted(d.essential_births.tolist())) for d in found]


def graph(seed, n, n_edges, tied):
    """A graph with parallel edges and edges from a vertex to itself, in both functions."""
    rng = np.random.default_rng(seed)
    draw = (lambda k: rng.integers(0, 4, k).astype(float)) if tied else rng.standard_normal
    values, edge_values = torch.from_numpy(draw(n)), torch.from_numpy(draw(n_edges))
    return values, torch.from_numpy(rng.integers(0, n, (n_edges, 2))), edge_values


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(0, 14), st.booleans(), st.booleans())
def test_an_edge_is_a_vertex_in_its_middle(seed, n, n_edges, tied, superlevel):
    values, edges, edge_values = graph(seed, n, n_edges, tied)
    last = values[edges].amin(1) if superlevel else values[edges].amax(1)
    middle = torch.minimum(edge_values, last) if superlevel else torch.maximum(edge_values, last)
    number = n + torch.arange(n_edges)
    halves = torch.cat([torch.stack((edges[:, side], number), 1) for side in (0, 1)])
    wanted = graph_persistence(torch.cat((values, middle)), halves, superlevel=superlevel)
    found = graph_persistence(values, edges, edge_values=edge_values, superlevel=superlevel)
    assert readable(found) == readable(wanted)
    flat = torch.cat((values, edge_values))
    for diagram in found:
        assert torch.equal(flat[diagram.birth_index], diagram.births)
        assert torch.equal(flat[diagram.death_index], diagram.deaths)
        assert torch.equal(flat[diagram.essential_index], diagram.essential_births)


def test_a_rips_filtration_is_a_graph_of_distances(generator):
    points = torch.rand(30, 2, generator=generator, dtype=torch.float64)
    edges = torch.triu_indices(30, 30, 1).T
    lengths = (points[edges[:, 0]] - points[edges[:, 1]]).norm(dim=1)
    found = graph_persistence(torch.zeros(30, dtype=torch.float64), edges, edge_values=lengths, degrees=(0,))
    torch.testing.assert_close(found[0].deaths, rips_persistence(points, degrees=(0,))[0].deaths)


def test_equals_gudhi():
    gudhi = pytest.importorskip("gudhi")
    values, _, _ = graph(3, 40, 0, False)
    edges = torch.triu_indices(40, 40, 1).T[::4]
    edge_values = torch.from_numpy(np.random.default_rng(4).standard_normal(len(edges)))
    tree = gudhi.SimplexTree()
    for i, x in enumerate(values.tolist()):
        tree.insert([i], x)
    for (i, j), x in zip(edges.tolist(), edge_values.tolist(), strict=True):
        tree.insert([i, j], max(x, float(values[i]), float(values[j])))
    tree.compute_persistence(persistence_dim_max=True)
    for diagram in graph_persistence(values, edges, edge_values=edge_values):
        theirs = tree.persistence_intervals_in_dimension(diagram.degree).reshape(-1, 2)
        finite = theirs[np.isfinite(theirs[:, 1])]
        ours = diagram.points().numpy()
        np.testing.assert_array_equal(ours[np.lexsort(ours.T)], finite[np.lexsort(finite.T)])
        essential = np.sort(theirs[np.isinf(theirs[:, 1]), 0])
        np.testing.assert_array_equal(np.sort(diagram.essential_births.numpy()), essential)


def test_gradients():
    values, edges, edge_values = (x.requires_grad_() if x.is_floating_point() else x for x in graph(5, 9, 20, False))

    def sums(x, y):
        found = graph_persistence(x, edges, edge_values=y)
        return tuple(e.sum() for d in found for e in (d.births**2, d.deaths**3, d.essential_births.sin()))

    assert torch.autograd.gradcheck(sums, (values, edge_values))


def test_odd_inputs():
    nothing = graph_persistence(torch.zeros(0), torch.zeros(0, 2, dtype=torch.int64), edge_values=torch.zeros(0))
    assert readable(nothing) == [([], []), ([], [])]
    path = torch.tensor([[0, 1], [1, 2]])
    apart = graph_persistence(torch.zeros(3), path, edge_values=torch.tensor([1.0, math.inf]))
    assert readable(apart) == [([[0.0, 1.0]], [0.0, 0.0]), ([], [])]
    early = graph_persistence(torch.tensor([0.0, 2.0, 1.0]), path, edge_values=torch.tensor([-1.0, 3.0]))
    assert readable(early) == [([[1.0, 3.0]], [0.0]), ([], [])]
    assert early[0].death_index.tolist() == [3 + 1]


@pytest.mark.untyped
def test_refusals():
    values, edges = torch.zeros(4), torch.tensor([[0, 1]])
    cases = [
        (torch.zeros(2), r"edge_values: want shape \(1\)"),
        (torch.zeros(1, dtype=torch.float64), "edge_values: want the dtype of the values"),
        (torch.tensor([math.nan]), "edge_values: want no NaN"),
        (torch.tensor([-math.inf]), "edge_values: want no -inf"),
    ]
    for edge_values, message in cases:
        with pytest.raises(InputError, match=message):
            graph_persistence(values, edges, edge_values=edge_values)
