import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.graphs import Graph
from diffmatch.matching.graphs.graph import check_graph


def test_an_edge_given_once_stands_in_both_directions_with_its_values():
    graph = Graph.from_edges(
        [(2, 0), (1, 1), (0, 1)], weights=torch.tensor([5.0, 6.0, 7.0]), edge_features=torch.tensor([[1.0], [2], [3]])
    )
    assert graph.edges.tolist() == [[0, 0, 1, 1, 2], [1, 2, 0, 1, 0]]
    assert graph.weights.tolist() == [7, 5, 7, 6, 5]
    assert graph.edge_features.flatten().tolist() == [3, 1, 3, 2, 1]
    assert (graph.node_count, graph.directed) == (3, False)


def test_a_directed_graph_keeps_its_edges():
    graph = Graph.from_edges(torch.tensor([[2, 0], [0, 1]]), directed=True)
    assert graph.edges.tolist() == [[2, 0], [0, 1]]
    assert graph.directed


def test_nodes_without_edges_count():
    assert Graph.from_edges([(0, 1)], names=["a", "b", "c"]).node_count == 3
    assert Graph.from_edges([(0, 1)], node_count=4).node_count == 4
    assert Graph.from_edges([]).node_count == 0


def test_the_dense_matrix_is_the_adjacency_that_the_graph_was_made_of():
    upper = torch.rand(7, 7, generator=torch.Generator().manual_seed(0)).triu() * (
        torch.arange(49).reshape(7, 7) % 3 > 0
    )
    for matrix, directed in ((upper + upper.T, False), (upper, True)):
        graph = Graph.from_adjacency(matrix)
        assert torch.equal(graph.dense(), matrix)
        assert torch.equal(graph.adjacent(), matrix != 0)
        assert graph.directed == directed
        check_graph(graph)


def test_a_matrix_of_zeros_and_ones_has_no_weights():
    graph = Graph.from_adjacency(torch.tensor([[0, 1], [1, 0]]))
    assert graph.weights is None
    assert graph.dense().tolist() == [[0, 1], [1, 0]]


def test_gradients_reach_the_adjacency_and_the_positions():
    matrix = torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda m: Graph.from_adjacency(m * torch.tensor([[0, 1], [1, 0]])).dense() ** 2, matrix
    )
    points = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: Graph.from_points(p).lengths(), points)
    together = torch.zeros(2, 2, requires_grad=True)
    Graph.from_points(together).lengths().sum().backward()
    assert torch.equal(together.grad, torch.zeros(2, 2))


def test_lengths_are_distances():
    graph = Graph.from_points(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert graph.lengths().tolist() == [5, 5]


def test_a_subgraph_keeps_what_belongs_to_its_nodes():
    graph = Graph.from_edges(
        [(0, 1), (1, 2), (2, 3)], weights=torch.tensor([1.0, 2, 3]), features=torch.eye(4), names=list("abcd")
    )
    part = graph.subgraph([3, 2, 0])
    assert part.names == ("d", "c", "a")
    assert part.dense().tolist() == [[0, 3, 0], [3, 0, 0], [0, 0, 0]]
    assert part.features.argmax(1).tolist() == [3, 2, 0]
    check_graph(part)
    order = [2, 0, 3, 1]
    assert torch.equal(graph.subgraph(order).dense(), graph.dense()[order][:, order])


def test_precision_and_place(device):
    graph = Graph.from_points(torch.rand(5, 2), features=torch.rand(5, 1)).to(device=device, dtype=torch.float64)
    assert graph.dtype == graph.positions.dtype == graph.dense().dtype == torch.float64
    assert graph.device.type == device.type
    assert Graph.from_edges([(0, 1)]).dtype == torch.float32
    assert graph.node_names == ("0", "1", "2", "3", "4")


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": torch.zeros(3, 2, dtype=torch.int64)}, r"edges: want shape \(2, e\)"),
        ({"edges": torch.zeros(2, 2)}, r"edges: want int64 indices, got torch.float32"),
        ({"node_count": -1}, r"node_count: want a number >= 0"),
        ({"positions": torch.zeros(2, 2)}, r"positions: want shape \(3, d\), got \(2, 2\)"),
        ({"weights": torch.zeros(1)}, r"weights: want shape \(2\)"),
        ({"features": torch.zeros(3, 2, dtype=torch.int64)}, r"features: want a real floating-point dtype"),
        ({"names": ("a", "b")}, r"names: want one for each of 3 nodes, got 2"),
    ],
)
def test_shapes_and_types_are_checked_at_once(options, message):
    good = {"edges": torch.tensor([[0, 1], [1, 0]]), "node_count": 3}
    Graph(**good)
    with pytest.raises(InputError, match=message):
        Graph(**{**good, **options})


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (Graph(torch.tensor([[0, 3], [3, 0]]), 3), r"g: want edges between nodes 0 to 2, got nodes 0 to 3"),
        (Graph(torch.tensor([[0], [0]]), 0), r"g: want no edges, as there are no nodes"),
        (Graph(torch.tensor([[0, 0, 1], [1, 1, 0]]), 2), r"g: want no two edges with the same ends"),
        (Graph(torch.tensor([[0], [1]]), 2), r"g: want both directions of each edge, or directed=True"),
        (
            Graph(torch.zeros(2, 0, dtype=torch.int64), 1, features=torch.tensor([[torch.inf]])),
            r"g.features: want finite",
        ),
        (
            Graph(torch.zeros(2, 0, dtype=torch.int64), 2, names=("a", "a")),
            r"g.names: want distinct names, got 'a' more",
        ),
    ],
)
def test_values_are_checked_where_data_enters(graph, message):
    with pytest.raises(InputError, match=message):
        check_graph(graph, argument="g")


def test_what_makes_no_graph_is_refused():
    with pytest.raises(InputError, match=r"weights: want one value an edge, or directed=True"):
        Graph.from_edges([(0, 1), (1, 0)], weights=torch.tensor([1.0, 2.0]))
    assert Graph.from_edges([(0, 1), (1, 0)], weights=torch.tensor([2.0, 2.0])).weights.tolist() == [2, 2]
    with pytest.raises(InputError, match=r"edges: want no two edges"):
        Graph.from_edges([(0, 1), (0, 1)])
    with pytest.raises(InputError, match=r"adjacency: want finite values"):
        Graph.from_adjacency(torch.full((2, 2), torch.nan))
    with pytest.raises(InputError, match=r"graph: want a graph with positions"):
        Graph.from_edges([(0, 1)]).lengths()
    for nodes, message in (([0, 2], "numbers from 0 to 1"), ([0, 0], "each node at most once")):
        with pytest.raises(InputError, match=message):
            Graph.from_edges([(0, 1)]).subgraph(nodes)


@pytest.mark.untyped
def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(InputError, match=r"adjacency: want shape \(n, n\), got \(2, 3\)"):
        Graph.from_adjacency(torch.zeros(2, 3))
