"""`diffmatch graph` from files to files."""

import json
import math

import numpy as np
import pytest
import torch

from diffmatch.cli import main
from diffmatch.matching.graphs import Graph, read_graph, write_graph

SHUFFLE = torch.tensor([3, 0, 4, 1, 2, 5])


@pytest.fixture
def points():
    return torch.tensor([[0.0, 0.0], [1.0, 0.1], [2.3, -0.2], [0.4, 1.1], [1.7, 1.5], [0.9, 2.6]])


@pytest.fixture
def files(tmp_path, points):
    """A graph, and the same one turned by 30 degrees with its nodes in another order."""
    turn = torch.tensor([[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]])
    paths = tmp_path / "a.npz", tmp_path / "b.npz"
    write_graph(paths[0], Graph.from_points(points, names=list("abcdef")))
    write_graph(paths[1], Graph.from_points((points @ turn.T)[SHUFFLE], names=[f"node {i}" for i in SHUFFLE.tolist()]))
    return [str(path) for path in paths]


def refused(capsys, words):
    """The message of a command that ends with code 2."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("diffmatch: error: ")
    assert error.count("\n") == 1
    return error.removeprefix("diffmatch: error: ").strip()


def test_a_turned_graph_is_found_by_name(files, tmp_path, capsys):
    out = tmp_path / "pairs.json"
    assert main(["graph", *files, "-o", str(out), "--device", "cpu"]) == 0
    content = json.loads(out.read_text())
    assert {row["first"]: row["second"] for row in content["matches"]} == {
        letter: f"node {i}" for i, letter in enumerate("abcdef")
    }
    assert all(row["score"] > 0.9 for row in content["matches"])
    assert SHUFFLE[content["assignment"]].tolist() == list(range(6))
    measured = json.loads((tmp_path / "pairs.metrics.json").read_text())
    assert measured["metrics"]["matches"] == 6
    assert [graph["nodes"] for graph in measured["graphs"]] == [6, 6]
    assert f"{out}: 6 matches by " in capsys.readouterr().out


def test_arrays_and_a_report_on_request(files, tmp_path, capsys):
    pytest.importorskip("plotly")
    out, page = tmp_path / "pairs.npz", tmp_path / "pairs.html"
    assert main(["graph", *files, "-o", str(out), "--report", str(page), "--quiet", "--device", "cpu"]) == 0
    with np.load(out) as arrays:
        assert SHUFFLE[arrays["assignment"]].tolist() == list(range(6))
        assert arrays["matches"].shape == (6, 2)
        assert arrays["scores"].shape == (6,)
    text = page.read_text(encoding="utf-8")
    assert "a.npz matched with b.npz" in text
    assert f"diffmatch graph {files[0]} {files[1]} -o {out} --solver auto --edges auto" in text
    assert capsys.readouterr().out == ""


def test_edges_are_made_of_positions_on_request(files, tmp_path, points):
    bare = tmp_path / "points.npz"
    np.savez(bare, positions=points.numpy())
    for edges in ("auto", "complete", "knn"):
        out = tmp_path / f"{edges}.json"
        assert main(["graph", str(bare), files[1], "-o", str(out), "--edges", edges, "-q", "--device", "cpu"]) == 0
        assert SHUFFLE[json.loads(out.read_text())["assignment"]].tolist() == list(range(6))
        edge_counts = [graph["edges"] for graph in json.loads(out.with_suffix(".metrics.json").read_text())["graphs"]]
        assert edge_counts[0] == {"auto": read_graph(files[0]).edge_count}.get(edges, 30)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--solver", "magic"], "solver: want "),
        (["--edges", "radius"], "edges: want "),
        (["--optimizer", "adam"], "optimizer: want none"),
        (["--restarts", "0"], "restarts: want "),
    ],
)
def test_options_that_cannot_be_met(files, tmp_path, capsys, words, message):
    out = tmp_path / "pairs.json"
    assert refused(capsys, ["graph", *files, "-o", str(out), "--device", "cpu", *words]).startswith(message)
    assert not out.exists()


def test_files_that_cannot_be_used(files, tmp_path, capsys):
    out = str(tmp_path / "pairs.json")
    assert "a file that exists" in refused(capsys, ["graph", files[0], str(tmp_path / "none.gml"), "-o", out])
    assert refused(capsys, ["graph", *files, "-o", str(tmp_path / "pairs.txt")]).startswith("output: want a file that")
    assert "another file than that of first" in refused(capsys, ["graph", *files, "-o", files[0]])
    lone = tmp_path / "lone.npz"
    np.savez(lone, edges=np.array([[0], [1]]))
    assert "positions for --edges knn" in refused(capsys, ["graph", str(lone), files[1], "-o", out, "--edges", "knn"])
