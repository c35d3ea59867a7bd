import json

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.graphs import Graph, read_graph, write_graph

pytest.importorskip("networkx")

GRAPHML = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
  <key id="w" for="edge" attr.name="weight" attr.type="double"/>
  <graph edgedefault="undirected">
    <node id="first"/><node id="second"/>
    <edge source="first" target="second"><data key="w">WEIGHT</data></edge>EDGE
  </graph>
</graphml>
"""
PARALLEL = '<edge source="second" target="first"><data key="w">1</data></edge>'


@pytest.fixture
def graph():
    return Graph.from_points(
        torch.rand(7, 2, generator=torch.Generator().manual_seed(0)),
        features=torch.eye(7)[:, :2],
        names=[f"node {number} é" for number in range(7)],
    )


@pytest.mark.parametrize(
    ("suffix", "features"),
    [
        (".graphml", ("features0", "features1")),
        (".gml", ("features0", "features1")),
        (".json", ("features",)),
        (".npz", ()),
        (".GraphML", ("features0", "features1")),
    ],
)
@pytest.mark.parametrize("directed", [False, True])
def test_what_is_written_is_read_again(graph, tmp_path, suffix, features, directed):
    if directed:
        graph = Graph.from_edges(
            graph.edges[:, ::3],
            positions=graph.positions,
            features=graph.features,
            weights=torch.arange(1.0, 1 + len(range(0, graph.edge_count, 3))),
            names=graph.names,
            directed=True,
        )
    write_graph(tmp_path / f"graph{suffix}", graph)
    assert [path.name for path in tmp_path.iterdir()] == [f"graph{suffix}"]
    read = read_graph(tmp_path / f"graph{suffix}", features=features)
    assert read.names == graph.names
    assert read.directed == directed
    assert torch.equal(read.dense(), graph.dense())
    torch.testing.assert_close(read.positions, graph.positions)
    torch.testing.assert_close(read.features, graph.features)


def test_node_link_files_of_both_generations(tmp_path):
    nodes = [{"id": "a", "pos": [0, 1]}, {"id": "b", "pos": [2, 3]}]
    for key in ("links", "edges"):
        content = {"nodes": nodes, key: [{"source": "a", "target": "b", "weight": 2}]}
        (tmp_path / "graph.json").write_text(json.dumps(content))
        read = read_graph(tmp_path / "graph.json", dtype=torch.float64)
        assert read.names == ("a", "b")
        assert read.dense().tolist() == [[0, 2], [2, 0]]
        assert read.positions.tolist() == [[0, 1], [2, 3]]


def test_gml_without_labels_is_read_by_numbers(tmp_path):
    (tmp_path / "graph.gml").write_text("graph [ node [ id 4 ] node [ id 9 ] edge [ source 4 target 9 ] ]")
    assert read_graph(tmp_path / "graph.gml").names == ("4", "9")


def test_arrays(tmp_path):
    file = tmp_path / "graph.npz"
    np.savez(file, adjacency=np.array([[0, 3], [3, 0]]))
    assert read_graph(file).dense().tolist() == [[0, 3], [3, 0]]
    np.savez(file, positions=np.zeros((5, 2)))
    assert (read_graph(file).node_count, read_graph(file).edge_count) == (5, 0)
    np.savez(file, edges=np.array([[0], [1]], dtype=np.uint8), node_count=3)
    assert (read_graph(file).node_count, read_graph(file).edge_count) == (3, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.graphml", None, r"want a file that exists, got '.*none.graphml'"),
        ("graph.txt", "", r"want a file that ends in .graphml, .gml, .json, .npz"),
        ("graph.graphml", "<graphml>", r"want a graphml file that networkx reads, got .*graph.graphml \("),
        ("graph.graphml", "", r"want a graphml file that networkx reads"),
        (
            "graph.graphml",
            GRAPHML.replace("WEIGHT", "nan").replace("EDGE", ""),
            r"want finite numbers as 'weight', got nan",
        ),
        ("graph.graphml", GRAPHML.replace("WEIGHT", "heavy").replace("EDGE", ""), r"want a graphml file that networkx"),
        ("graph.graphml", GRAPHML.replace("WEIGHT", "1").replace("EDGE", PARALLEL), r"want no parallel edges"),
        ("graph.gml", "graph [ node {", r"want a gml file that networkx reads"),
        ("graph.gml", 'graph [ node [ id 0 label "a" ] node [ id 1 label "a" ] ]', r"want a gml file .* duplicated"),
        ("graph.json", "{", r"want a json file that networkx reads"),
        ("graph.json", "[1]", r'want a json file .*no object with "nodes" and "edges"'),
        ("graph.json", '{"nodes": [1], "edges": []}', r"want a json file that networkx reads"),
        ("graph.npz", "no archive", r"want an npz file"),
    ],
)
def test_bad_files_are_refused_with_the_reason(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"graph_a: {message}"):
        read_graph(tmp_path / name, argument="graph_a")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"edge": [[0], [1]]}, r"array: want one of .*\(did you mean 'edges'"),
        ({"features": [[1.0]]}, r"want an array named edges, adjacency or positions, got features"),
        ({"edges": [[0.0], [1.0]]}, r"want edges as whole numbers of shape \(2, e\), got float64 \(2, 1\)"),
        ({"edges": [[0, 1, 2]]}, r"want edges as whole numbers"),
        ({"edges": [[0], [-1]]}, r"want edges between nodes"),
        ({"edges": [[0], [1]], "weights": [np.nan]}, r"weights: want finite values"),
        ({"edges": [[0], [1]], "weights": ["a"]}, r"weights: want real numbers, got <U1"),
        (
            {"adjacency": [[0, 1], [1, 0]], "weights": [1.0]},
            r"want either adjacency or edges .*, got adjacency and weights",
        ),
        ({"edges": np.array([[None], [None]])}, r"want an npz file of plain arrays"),
        ({"edges": [[0], [1]], "names": ["a", "a"]}, r"names: want distinct names"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "graph.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    with pytest.raises(InputError, match=message):
        read_graph(tmp_path / "graph.npz")


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"positions": np.zeros(3)}, r"positions: want shape"),
        ({"edges": np.array([[0], [1]]), "weights": np.zeros(3)}, r"weights: want shape \(1\), got \(3,\)"),
        ({"adjacency": np.zeros((2, 3))}, r"adjacency: want shape \(n, n\)"),
    ],
)
def test_arrays_of_wrong_shape_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "graph.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_graph(tmp_path / "graph.npz")


def test_attributes_of_an_npz_file_have_no_names(tmp_path, graph):
    write_graph(tmp_path / "graph.npz", graph)
    with pytest.raises(InputError, match=r"features: want no names with an npz file"):
        read_graph(tmp_path / "graph.npz", features=["mass"])


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, graph):
    file = tmp_path / "graph.gml"
    file.write_text("old")
    flat = Graph.from_points(torch.rand(5, 4))
    with pytest.raises(InputError, match=r"graph: want positions of at most three coordinates in this format, got 4"):
        write_graph(file, flat)
    assert file.read_text() == "old"
    write_graph(tmp_path / "graph.json", flat)  # which has lists
    assert read_graph(tmp_path / "graph.json").positions.shape == (5, 4)
    with pytest.raises(InputError, match=r"output: want a file that ends in"):
        write_graph(tmp_path / "graph.csv", graph)
    with pytest.raises(InputError, match=r"output: want a writable folder"):
        write_graph(tmp_path / "no" / "graph.npz", graph)
