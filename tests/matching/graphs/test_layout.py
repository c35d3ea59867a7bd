import numpy as np
import torch

from diffmatch.matching.graphs import Graph
from diffmatch.matching.graphs.layout import graph_layout


def test_a_path_is_laid_out_straight_with_steps_of_one():
    places = graph_layout(Graph.from_edges([(i, i + 1) for i in range(5)]))
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.testing.assert_allclose(distance, abs(np.subtract.outer(range(6), range(6))), atol=0.02)


def test_a_ring_is_laid_out_round():
    places = graph_layout(Graph.from_edges([(i, (i + 1) % 12) for i in range(12)]))
    radius = np.linalg.norm(places, axis=1)
    assert radius.std() < 0.02 * radius.mean()


def test_a_start_is_improved_and_not_forgotten():
    graph = Graph.from_edges([(i, (i + 1) % 8) for i in range(8)])
    places = graph_layout(graph)
    turned = places @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    again = graph_layout(graph, start=turned)
    np.testing.assert_allclose(again, turned, atol=0.05)


def test_parts_that_are_not_joined_and_small_graphs_have_places():
    for graph in (
        Graph.from_edges([(0, 1), (2, 3)], node_count=6),
        Graph(torch.zeros(2, 0, dtype=torch.int64), 3),
        Graph.from_edges([(0, 0)]),
        Graph.from_edges([]),
    ):
        places = graph_layout(graph)
        assert places.shape == (graph.node_count, 2)
        distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(len(places))
        assert np.isfinite(places).all()
        assert distance.min(initial=1.0) > 0.3
