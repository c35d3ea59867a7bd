"""Graphs of all kinds matched with shuffled copies of themselves, and what is said about the matches."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmatch.autodiff import BlackBox
from diffmatch.errors import InputError
from diffmatch.matching.assignment.result import one_hot
from diffmatch.matching.graph_matching import match_graphs
from diffmatch.matching.graphs import Graph, to_networkx
from diffmatch.matching.quadratic import EdgeAffinity, match_affinity


def points_graph(n, generator, **options):
    return Graph.from_points(torch.rand(n, 2, generator=generator), **options)


def shuffled(graph, generator):
    order = torch.randperm(graph.node_count, generator=generator)
    return graph.subgraph(order), order.argsort()


@pytest.mark.parametrize("edges", ["delaunay", "knn", "complete"])
def test_moved_points_are_found_with_full_scores(edges, generator):
    a = points_graph(20, generator, edges=edges)
    b, truth = shuffled(a, generator)
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    b = dataclasses.replace(b, positions=3 * b.positions @ turn + 5)
    match = match_graphs(a, b)
    assert torch.equal(match.assignment, truth)
    assert (match.scores > 0.99).all()
    assert torch.equal(match.matches, torch.stack([torch.arange(20), truth], 1))
    assert match.solver == "rrwm"
    assert match.graph_a is a
    assert float(match.value) == pytest.approx(20 * 19 + 3 * a.edge_count, rel=0.01)


def test_strangers_have_low_scores(generator):
    common = torch.rand(18, 2, generator=generator)
    a, b = (Graph.from_points(torch.cat([common, torch.rand(4, 2, generator=generator)])) for _ in range(2))
    match = match_graphs(a, b, restarts=4, generator=generator)
    assert torch.equal(match.assignment[:18], torch.arange(18))
    assert float(match.scores[:18].min()) > float(match.scores[18:].max())


def test_the_smaller_graph_is_matched_whole(generator):
    a = points_graph(16, generator, edges="complete")
    chosen = torch.randperm(16, generator=generator)[:11]
    match = match_graphs(a, a.subgraph(chosen), restarts=4, generator=generator)
    assert int((match.assignment >= 0).sum()) == 11
    assert (match.scores[match.assignment < 0] == 0).all()
    back = match_graphs(a.subgraph(chosen), a, restarts=4, generator=generator)
    assert int((back.assignment >= 0).sum()) == 11


def test_weights_are_matched_where_there_are_no_positions(generator):
    weights = torch.rand(15, 15, generator=generator)
    a = Graph.from_adjacency((weights + weights.T) * (1 - torch.eye(15)))
    b, truth = shuffled(a, generator)
    match = match_graphs(a, b)
    assert torch.equal(match.assignment, truth)
    assert float(match.value) == pytest.approx(a.edge_count, rel=0.01)


def test_directed_edges_are_matched_by_direction(generator):
    adjacency = (torch.rand(12, 12, generator=generator) < 0.3) & ~torch.eye(12, dtype=torch.bool)
    a = Graph.from_adjacency(adjacency)
    b, truth = shuffled(a, generator)
    match = match_graphs(a, b, solver="frank_wolfe", restarts=30, generator=generator)
    assert torch.equal(match.assignment, truth)
    assert float(match.value) == a.edge_count
    assert (match.scores == 1).all()


def test_features_of_nodes_and_edges_tell_equal_structures_apart(generator):
    ring = [(k, (k + 1) % 8) for k in range(8)]
    a = Graph.from_edges(ring, features=torch.rand(8, 3, generator=generator))
    b, truth = shuffled(a, generator)
    assert torch.equal(match_graphs(a, b).assignment, truth)
    a = Graph.from_edges(ring, edge_features=torch.rand(8, 2, generator=generator))
    b, truth = shuffled(a, generator)
    match = match_graphs(a, b, restarts=8, generator=generator)
    assert torch.equal(match.assignment, truth)
    assert (match.scores > 0.99).all()


def test_all_kinds_of_graphs_come_in(generator):
    points = torch.rand(10, 2, generator=generator)
    graph = Graph.from_points(points)
    pytest.importorskip("networkx")
    kinds = [graph, points, points.numpy(), to_networkx(graph)]
    for kind in kinds:
        assert match_graphs(kind, graph).assignment.tolist() == list(range(10))
    weights = torch.rand(6, 6, generator=generator)
    assert match_graphs(weights, weights.numpy()).assignment.tolist() == list(range(6))


@given(st.integers(0, 10_000), st.integers(3, 12))
@settings(max_examples=6)
def test_renumbering_a_graph_renumbers_the_matches(seed, n):
    generator = torch.Generator().manual_seed(seed)
    a, b = (points_graph(n, generator).to(dtype=torch.float64) for _ in range(2))
    other, _ = shuffled(b, generator)
    plain, moved = match_graphs(a, b, polish=False), match_graphs(a, other, polish=False)
    assert float(plain.value) == pytest.approx(float(moved.value), rel=1e-6)
    torch.testing.assert_close(moved.scores.sum(), plain.scores.sum(), rtol=1e-5, atol=1e-5)


def test_graphs_without_nodes_or_edges():
    empty, alone = Graph.from_edges([]), Graph.from_edges([], node_count=3)
    assert match_graphs(empty, alone).assignment.shape == (0,)
    assert match_graphs(alone, empty).assignment.tolist() == [-1] * 3
    match = match_graphs(alone, alone)
    assert sorted(match.assignment.tolist()) == [0, 1, 2]
    assert match.scores.tolist() == [0.0] * 3
    one_place = torch.ones(5, 2)
    assert sorted(match_graphs(one_place, one_place).assignment.tolist()) == list(range(5))


def test_results_lie_where_the_graphs_are(device, generator):
    points = torch.rand(6, 2, generator=generator, device=device, dtype=torch.float64)
    match = match_graphs(points, points, restarts=2, generator=generator)
    assert match.assignment.device.type == device.type
    assert match.plan.dtype == match.scores.dtype == torch.float64


def test_estimators_of_gradients_take_the_solver(generator):
    """A step against the estimated gradient of a wrong match makes the right one more attractive."""
    ends = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    edge = torch.ones(4, 4, dtype=torch.float64)
    vertex = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=torch.float64, requires_grad=True)

    def solve(vertex):
        affinity = EdgeAffinity(ends, ends, edge, vertex)
        return one_hot(match_affinity(affinity, restarts=2).assignment, 3, dtype=vertex.dtype)

    plan = BlackBox(5.0)(solve, vertex, maximize=True)
    loss = (plan * (1 - torch.eye(3))).sum()
    (slope,) = torch.autograd.grad(loss, vertex)
    assert float(loss.detach()) == 2
    assert float(slope[0, 0]) < 0 < float(slope[0, 2])


@pytest.mark.data
def test_landmarks_of_a_turning_hotel_are_found(data_dir):
    tracks = torch.from_numpy(np.load(data_dir / "graph_matching/cmu_tracks.npz")["hotel"])
    generator = torch.Generator().manual_seed(0)
    right = []
    for first in range(0, 11, 5):
        order = torch.randperm(30, generator=generator)
        match = match_graphs(tracks[first], tracks[first + 90][order])
        right.append(order[match.assignment] == torch.arange(30))
    assert float(torch.stack(right).float().mean()) >= 0.85


def test_what_does_not_fit_is_refused(generator):
    graph = points_graph(4, generator)
    with pytest.raises(InputError, match="graph_b: want"):
        match_graphs(graph, "a graph")
    with pytest.raises(InputError, match="width: want a number > 0"):
        match_graphs(graph, graph, width=-1.0)
    with pytest.raises(InputError, match=r"graph_b\.features: want 2 columns"):
        match_graphs(
            dataclasses.replace(graph, features=torch.rand(4, 2)), dataclasses.replace(graph, features=torch.rand(4, 3))
        )
