import re
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from diffmatch.matching.graphs import Graph
from diffmatch.report import Report
from diffmatch.report.graph_match import SCORE_COLORS, add_graph_match, graph_match_metrics, match_figure, match_svg
from diffmatch.report.graph_match import score_color as color_of

pytest.importorskip("plotly")


def matched(assignment, scores):
    partner = torch.tensor(assignment, dtype=torch.int64)
    rows = (partner >= 0).nonzero().flatten()
    matches = torch.stack([rows, partner[rows]], dim=1)
    return SimpleNamespace(assignment=partner, scores=torch.tensor(scores), matches=matches, value=torch.tensor(2.5))


@pytest.fixture
def points():
    """Two graphs with positions, and a match of two of their three nodes."""
    a = Graph.from_points(torch.tensor([[0.0, 0], [1, 0], [0, 1]]), names=["one", "<two>", "three"])
    b = Graph.from_points(torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]]), names=["p", "q", "r", "s"])
    return matched([1, -1, 2], [0.25, 0.0, 1.0]), a, b


def test_the_key_figures_count_matches_only(points):
    figures = {row.name: (row.value, row.unit) for row in graph_match_metrics(*points)}
    assert figures["matches"] == (2, "of 3")
    assert figures["mean score"][0] == 0.625
    assert figures["lowest score"][0] == 0.25
    assert figures["objective"][0] == 2.5
    nothing = graph_match_metrics(matched([-1], [0.0]), Graph.from_edges([], node_count=1), points[1])
    assert [row.value for row in nothing[:3]] == [0, None, None]


def lines(trace):
    """Ends of the segments of a trace, shape (k, 2 ends, 2)."""
    ends = np.stack([np.asarray(trace.x), np.asarray(trace.y)], axis=1).reshape(-1, 3, 2)
    assert np.isnan(ends[:, 2].astype(float)).all()
    return ends[:, :2].astype(float)


def test_lines_join_the_matched_nodes_in_the_colour_of_their_score(points):
    figure = match_figure(*points)
    found = [trace for trace in figure.data if trace.name == "matches"]
    assert [trace.showlegend for trace in found] == [False, True]
    weak, strong = (lines(trace)[0] for trace in found)
    assert found[0].line.color == color_of(0.25 + 0.5 / 12)
    # The left drawing fills the unit box about its centre, the right one begins a gap beside it.
    np.testing.assert_allclose(weak, [[-0.5, -0.5], [1.85, -0.5]])
    np.testing.assert_allclose(strong, [[-0.5, 0.5], [0.85, 0.5]])


def test_nodes_say_who_they_are_and_whom_they_match(points):
    figure = match_figure(*points, names=("left & old", "right"))
    by_name = {trace.name: trace for trace in figure.data}
    nodes = by_name["nodes of left &amp; old"]
    assert list(nodes.text) == ["one ↔ q<br>score 0.250", "three ↔ r<br>score 1.000"]
    assert list(nodes.marker.color) == [0.25, 1.0]
    assert list(by_name["left &amp; old, no match"].text) == ["&lt;two&gt;: no match"]
    assert list(by_name["right, no match"].text) == ["p: no match", "s: no match"]
    assert len(lines(by_name["edges of right"])) == points[2].edge_count // 2


def test_colours_go_from_the_first_to_the_last():
    assert [color_of(score) for score in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [SCORE_COLORS[k] for k in (0, 0, 1, 2, 2)]


def test_graphs_without_positions_are_laid_out_alike():
    a = Graph.from_edges([(0, 1), (1, 2), (2, 3), (3, 0), (3, 4), (4, 5)])
    order = [3, 0, 5, 1, 4, 2]
    b = a.subgraph(order)
    figure = match_figure(matched([order.index(i) for i in range(6)], [1.0] * 6), a, b)
    (trace,) = (trace for trace in figure.data if trace.name == "matches")
    shift = lines(trace)[:, 1] - lines(trace)[:, 0]
    np.testing.assert_allclose(shift, np.broadcast_to(shift.mean(0), shift.shape), atol=0.02)


@pytest.mark.parametrize("d", [1, 3])
def test_positions_with_one_or_three_coordinates_are_drawn(d):
    graph = Graph.from_points(torch.rand(8, d, generator=torch.Generator().manual_seed(0)))
    figure = match_figure(matched(list(range(8)), [1.0] * 8), graph, graph)
    (trace,) = (trace for trace in figure.data if trace.name == "matches")
    shift = lines(trace)[:, 1] - lines(trace)[:, 0]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-9)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_graphs_without_edges_matches_or_nodes_are_drawn(n):
    graph = Graph.from_edges([], node_count=n)
    match_figure(matched([-1] * n, [0.0] * n), graph, graph)
    ElementTree.fromstring(match_svg(matched([-1] * n, [0.0] * n), graph, graph))


def test_the_still_picture_holds_the_same(points):
    picture = ElementTree.fromstring(match_svg(*points, width=400))
    shapes = [re.sub(r"\{.*\}", "", child.tag) for child in picture]
    edges = points[1].edge_count // 2 + points[2].edge_count // 2
    assert shapes == ["line"] * (edges + 2) + ["circle"] * 7
    circles = [child for child in picture if child.tag.endswith("circle")]
    assert [circle[0].text for circle in circles] == ["one", "<two>", "three", "p", "q", "r", "s"]
    assert [circle.get("fill") for circle in circles[:3]] == [color_of(0.25), "none", color_of(1.0)]
    places = np.array([[float(circle.get(axis)) for axis in ("cx", "cy")] for circle in circles])
    assert places.min() >= 12
    assert places[:, 0].max() == 400 - 12
    assert places[:, 1].max() <= float(picture.get("height")) - 12
    assert places[2, 1] < places[0, 1]  # y is up


def test_the_report_shows_figures_drawing_and_the_weakest_matches(points):
    report = Report("Graphs")
    add_graph_match(report, *points, names=("<A>", "B"))
    text = report.html()
    assert text.count('type="application/json"') == 1
    assert "with 2 matches between them" in text
    assert "All matches, weakest first" in text
    assert text.index("<td>q</td>") < text.index("<td>r</td>")
    assert "node of &lt;A&gt;" in text
    assert "no positions" not in text


def test_long_lists_are_cut_and_huge_graphs_not_drawn():
    small, huge = (Graph(torch.zeros(2, 0, dtype=torch.int64), n) for n in (40, 1001))
    report = Report("Graphs")
    add_graph_match(report, matched(list(range(40)), [0.5] * 40), small, small)
    assert "The 12 weakest of 40 matches" in report.html()
    assert "The graphs have no positions" in report.html()
    report = Report("Graphs")
    add_graph_match(report, matched([-1] * 1001, [0.0] * 1001), huge, huge)
    assert "Not drawn: a graph with 1\u202f001 nodes" in report.html()
    assert 'type="application/json"' not in report.html()
