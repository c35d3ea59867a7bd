import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.graphs import Graph, from_geometric, from_networkx, to_geometric, to_networkx
from diffmatch.matching.graphs.convert import as_graph

nx = pytest.importorskip("networkx")


def full_graph(directed=False):
    return Graph.from_edges(
        [(0, 1), (2, 1), (2, 2)],
        positions=torch.rand(4, 2, generator=torch.Generator().manual_seed(0)),
        features=torch.eye(4),
        weights=torch.tensor([0.5, 2.0, 3.0]),
        edge_features=torch.tensor([[1.0, 2], [3, 4], [5, 6]]),
        names=["a", "b", "c", "d"],
        directed=directed,
    )


def assert_same(one, two):
    assert (one.node_names, one.directed) == (two.node_names, two.directed)
    assert torch.equal(one.dense(), two.dense())
    for name in ("positions", "features"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name))
    torch.testing.assert_close(one.dense(one.edge_features), two.dense(two.edge_features))


@pytest.mark.parametrize("directed", [False, True])
def test_networkx_and_back(directed):
    graph = full_graph(directed)
    made = to_networkx(graph)
    assert made.is_directed() == directed
    assert made.number_of_edges() == 3
    assert made.edges["a", "b"] == {"weight": 0.5, "features": [1.0, 2.0]}
    assert_same(from_networkx(made, features=["features"], edge_features=["features"]), graph)


def test_attributes_of_networkx_by_name():
    made = nx.Graph()
    made.add_node("u", x=1, y=2, z=3, mass=0.5, kind="ignored")
    made.add_node(7, x=4, y=5, z=6, mass=np.float32(1.5))
    made.add_edge("u", 7, length=2.5)
    graph = from_networkx(made, features=["mass"], weight="length", dtype=torch.float64)
    assert graph.names == ("u", "7")
    assert graph.positions.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert graph.features.tolist() == [[0.5], [1.5]]
    assert graph.weights.tolist() == [2.5, 2.5]
    assert graph.dtype == torch.float64
    assert from_networkx(made).weights is None
    made.add_edge("u", "u", length=1.0)
    made.add_edge(7, 7)
    assert from_networkx(made, weight="length").dense().tolist() == [[1, 2.5], [2.5, 1]]  # 1 where none is given


def test_a_multigraph_is_taken_as_long_as_no_edges_are_parallel():
    made = nx.MultiGraph([(0, 1), (1, 2)])
    assert from_networkx(made).edge_count == 4
    made.add_edge(1, 0)
    with pytest.raises(InputError, match=r"g: want no parallel edges \(merge them first\), got 1 of them"):
        from_networkx(made, argument="g")
    assert from_networkx(nx.MultiDiGraph([(0, 1), (1, 0)])).edge_count == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pos": [0, 1]}, r"want the attribute 'pos' at each, got node b without it"),
        ({"pos": [0, 1], "other": {"pos": [1]}}, r"want as many numbers in pos of each node, got different lengths"),
        ({"x": 0, "y": "left", "other": {"x": 1, "y": 1}}, r"want numbers as 'y', got 'left' at node a"),
        ({"x": 0, "y": float("nan"), "other": {"x": 1, "y": 1}}, r"want finite numbers as 'y', got nan at node a"),
    ],
)
def test_bad_attributes_name_the_node(values, message):
    made = nx.Graph()
    other = values.pop("other", {})
    made.add_node("a", **values)
    made.add_node("b", **other)
    with pytest.raises(InputError, match=f"graph: {message}"):
        from_networkx(made)


def test_bad_weights_name_the_edge():
    made = nx.Graph()
    made.add_edge("a", "b", weight=float("inf"))
    with pytest.raises(InputError, match=r"want finite numbers as 'weight', got inf at edge a-b"):
        from_networkx(made)
    with pytest.raises(InputError, match=r"want the attribute 'kind' at each, got edge a-b without it"):
        from_networkx(nx.Graph([("a", "b")]), edge_features=["kind"])


def test_one_name_for_two_nodes_is_refused():
    with pytest.raises(InputError, match=r"graph.names: want distinct names, got '1' more than once"):
        from_networkx(nx.Graph([(1, "1")]))


@pytest.mark.parametrize("directed", [False, True])
def test_geometric_and_back(directed):
    pytest.importorskip("torch_geometric.data")
    graph = full_graph(directed)
    data = to_geometric(graph)
    assert data.num_nodes == 4
    assert data.pos is graph.positions
    back = from_geometric(data)
    assert back.names is None
    assert (back.directed, back.positions) == (directed, graph.positions)
    assert torch.equal(back.dense(), graph.dense())
    assert torch.equal(back.edge_features, graph.edge_features)


def test_geometric_flat_and_whole_number_attributes():
    data = pytest.importorskip("torch_geometric.data").Data
    made = data(x=torch.tensor([1, 2]), edge_index=torch.tensor([[0, 1], [1, 0]]), edge_attr=torch.tensor([3.0, 4.0]))
    graph = from_geometric(made)
    assert graph.features.tolist() == [[1], [2]]
    assert graph.edge_features.tolist() == [[3], [4]]
    assert graph.directed  # its two directions differ
    with pytest.raises(InputError, match=r"graph: want a graph with edge_index, got none"):
        from_geometric(data(x=torch.zeros(2, 1)))


def test_any_kind_of_graph_is_taken():
    wanted = full_graph()
    matrix = wanted.dense()
    for given in (wanted, to_networkx(wanted), matrix, matrix.numpy()):
        assert torch.equal(as_graph(given).dense(), matrix)
    data = pytest.importorskip("torch_geometric.data").Data
    made = data(edge_index=wanted.edges, edge_weight=wanted.weights, num_nodes=4)
    assert torch.equal(as_graph(made).dense(), matrix)


def test_what_is_no_graph_is_refused_under_the_name_of_the_argument():
    with pytest.raises(InputError, match=r"graph_b: want a Graph, a networkx graph, .*, got str"):
        as_graph("a.graphml", argument="graph_b")
    with pytest.raises(InputError, match=r"graph_a: want an adjacency matrix with finite values, got 1 of 4"):
        as_graph(torch.tensor([[0, torch.nan], [1, 0]]), argument="graph_a")
    with pytest.raises(InputError, match=r"graph_a: want edges between nodes 0 to 0"):
        as_graph(Graph(torch.tensor([[0, 1], [1, 0]]), 1), argument="graph_a")
