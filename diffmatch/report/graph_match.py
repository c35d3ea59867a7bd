"""What a report shows of two graphs and the matches between them.

A match is anything with ``assignment``, the partner in the second graph of each node of the first (-1 for none),
``scores``, between 0 and 1 for each node of the first, ``matches``, the matched pairs of node numbers, and ``value``,
the objective.
"""

import html
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from diffmatch.errors import require
from diffmatch.matching.graphs import Graph
from diffmatch.matching.graphs.layout import graph_layout
from diffmatch.report.report import Report
from diffmatch.report.values import Metric, format_value

__all__ = ["add_graph_match", "graph_match_metrics", "match_figure", "match_svg"]

SCORE_COLORS = ("#d1495b", "#edae49", "#2e86ab")  # scores 0, 1/2 and 1
_EDGE_COLOR, _ALONE_COLOR = "#9aa3b2", "#8a8f98"
_BANDS = 12  # shades that lines are drawn in
_MAX_DRAWN = 1000  # nodes of a graph
_LISTED = 12  # matches in the table
_GAP = 0.35  # between the drawings, in their width
_CLEAR = "rgba(0,0,0,0)"


def graph_match_metrics(match: Any, graph_a: Graph, graph_b: Graph) -> list[Metric]:
    """The key figures of a matching.

    Args:
        match: has ``assignment`` (n,), ``scores`` (n,), ``matches`` (k, 2) and ``value``.
        graph_a: the first graph.
        graph_b: the second graph.
    """
    scores = _array(match.scores)[_array(match.assignment) >= 0]
    count = len(scores)
    return [
        Metric("matches", count, f"of {min(graph_a.node_count, graph_b.node_count)}", "nodes that found a partner"),
        Metric(
            "mean score",
            float(scores.mean()) if count else None,
            "",
            "how well the edges of matched nodes agree: 1 is perfect, 0 not at all",
        ),
        Metric("lowest score", float(scores.min()) if count else None, "", "of the match that agrees least"),
        Metric("objective", float(match.value), "", "what the solver maximised: agreement over all pairs of matches"),
    ]


def add_graph_match(
    report: Report, match: Any, graph_a: Graph, graph_b: Graph, *, names: tuple[str, str] = ("A", "B")
) -> None:
    """Add a matching: its key figures, both graphs with the matches between them, and the weakest matches.

    Args:
        report: what to add to.
        match: has ``assignment`` (n,), ``scores`` (n,), ``matches`` (k, 2) and ``value``.
        graph_a: the first graph, drawn on the left.
        graph_b: the second graph, drawn on the right.
        names: what the graphs are called.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    report.add_headline(graph_match_metrics(match, graph_a, graph_b))
    largest = max(graph_a.node_count, graph_b.node_count)
    if largest > _MAX_DRAWN:
        report.add_text(f"Not drawn: a graph with {format_value(largest)} nodes; the limit is {_MAX_DRAWN}.")
    elif largest:
        drawing = _Drawing.of(match, graph_a, graph_b)
        alt = f"The graphs {names[0]}, left, and {names[1]}, right, with {len(drawing.pairs)} matches between them."
        places = (
            "" if drawing.placed else " The graphs have no positions: they are laid out by the steps between nodes."
        )
        caption = "Lines join matched nodes, coloured by score. Hover for names, click on the legend to hide a part."
        report.add_figure(_plotly(drawing, names), alt=alt, caption=caption + places)
    _add_weakest(report, match, graph_a, graph_b, names)


def match_figure(match: Any, graph_a: Graph, graph_b: Graph, *, names: tuple[str, str] = ("A", "B")) -> Any:
    """Both graphs beside each other and the matches between them as a plotly figure.

    Nodes are drawn where their positions are (the first two principal axes of those with more coordinates), or else
    laid out by the number of steps between them, the second graph like the first one.

    Args:
        match: has ``assignment`` (n,), ``scores`` (n,), ``matches`` (k, 2) and ``value``.
        graph_a: the first graph, drawn on the left.
        graph_b: the second graph, drawn on the right.
        names: what the graphs are called.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    return _plotly(_Drawing.of(match, graph_a, graph_b), names)


def match_svg(match: Any, graph_a: Graph, graph_b: Graph, *, width: int = 960) -> str:
    """The same drawing as :func:`match_figure`, as a still picture.

    Args:
        match: has ``assignment`` (n,), ``scores`` (n,), ``matches`` (k, 2) and ``value``.
        graph_a: the first graph, drawn on the left.
        graph_b: the second graph, drawn on the right.
        width: in pixels.

    Returns:
        An SVG document on a clear background.
    """
    drawing = _Drawing.of(match, graph_a, graph_b)
    margin = 12.0
    low, size = drawing.box()
    scale = (width - 2 * margin) / size[0]
    height = round(size[1] * scale + 2 * margin)

    def at(places: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        moved = (places - low) * scale + margin
        return np.asarray(np.stack([moved[:, 0], height - moved[:, 1]], axis=1))

    sides = [at(places) for places in drawing.places]
    lines = []
    for places, edges in zip(sides, drawing.edges, strict=True):
        lines += [_svg_line(places[i], places[j], _EDGE_COLOR, 1.2, 0.8) for i, j in edges]
    for (i, a), score in zip(drawing.pairs, drawing.scores, strict=True):
        lines.append(_svg_line(sides[0][i], sides[1][a], score_color(score), 1.6, 0.75))
    for side, (places, labels) in enumerate(zip(sides, drawing.labels, strict=True)):
        paints = [score_color(s) if s >= 0 else None for s in drawing.node_scores(side)]
        for (x, y), label, paint in zip(places, labels, paints, strict=True):
            fill = f'fill="{paint}"' if paint else f'fill="none" stroke="{_ALONE_COLOR}" stroke-width="1.5"'
            lines.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {fill}><title>{html.escape(label)}</title></circle>'
            )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    return "\n".join([head, *lines, "</svg>", ""])


def score_color(score: float) -> str:
    """The colour of a score between 0 and 1, as ``#rrggbb``."""
    anchors = np.array([[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in SCORE_COLORS], dtype=np.float64)
    share = float(np.clip(score, 0.0, 1.0))
    mixed = [
        round(float(np.interp(share, np.linspace(0, 1, len(anchors)), anchors[:, channel]))) for channel in range(3)
    ]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


@dataclass(frozen=True)
class _Drawing:
    """Two graphs in one plane, the first one left, each in a box of height and width at most one."""

    places: tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, "m 2"]]
    edges: tuple[Int64[np.ndarray, "e 2"], Int64[np.ndarray, "f 2"]]
    labels: tuple[tuple[str, ...], tuple[str, ...]]
    pairs: Int64[np.ndarray, "k 2"]
    scores: Float64[np.ndarray, " k"]
    placed: bool

    @staticmethod
    def of(match: Any, graph_a: Graph, graph_b: Graph) -> "_Drawing":
        pairs = _array(match.matches).astype(np.int64)
        scores = _array(match.scores).astype(np.float64)[pairs[:, 0]]
        placed = graph_a.positions is not None and graph_b.positions is not None
        left, right = _positions(graph_a, graph_b) if placed else _laid_out(graph_a, graph_b, pairs)
        left, right = _boxed(left), _boxed(right)
        right[:, 0] += left[:, 0].max(initial=0.0) - right[:, 0].min(initial=0.0) + _GAP
        edges_a, edges_b = (_drawn_edges(graph) for graph in (graph_a, graph_b))
        return _Drawing(
            (left, right), (edges_a, edges_b), (graph_a.node_names, graph_b.node_names), pairs, scores, placed
        )

    def box(self) -> tuple[Float64[np.ndarray, " 2"], Float64[np.ndarray, " 2"]]:
        """Lower corner and size."""
        everything = np.concatenate([*self.places, np.zeros((0, 2))])
        if not len(everything):
            return np.zeros(2), np.ones(2)
        low = everything.min(0)
        return low, np.maximum(everything.max(0) - low, 0.05)

    def node_scores(self, side: int) -> Float64[np.ndarray, " n"]:
        """Score of the match of each node of a graph, -1 where it has none."""
        found = np.full(len(self.labels[side]), -1.0)
        found[self.pairs[:, side]] = self.scores
        return found

    def hover(self, side: int) -> list[str]:
        """What a node says of itself."""
        own, other = self.labels[side], self.labels[1 - side]
        text = [f"{html.escape(name)}: no match" for name in own]
        for pair, score in zip(self.pairs, self.scores, strict=True):
            one, two = html.escape(own[pair[side]]), html.escape(other[pair[1 - side]])
            text[pair[side]] = f"{one} ↔ {two}<br>score {score:.3f}"
        return text


def _plotly(drawing: _Drawing, names: tuple[str, str]) -> Any:
    go = require("plotly.graph_objects", extra="report")
    figure = go.Figure()
    for places, edges, name in zip(drawing.places, drawing.edges, names, strict=True):
        x, y = _segments(places, edges, places)
        line = {"color": _EDGE_COLOR, "width": 1}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", name=f"edges of {_plain(name)}")
    _add_match_lines(figure, drawing)
    for side, name in enumerate(names):
        _add_nodes(figure, drawing, side, name)
    low, size = drawing.box()
    margin = 0.04 * size.max()
    figure.update_layout(
        template="none",
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        height=520,
        margin={"l": 8, "r": 8, "t": 30, "b": 8},
        hovermode="closest",
        modebar={"bgcolor": _CLEAR},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        xaxis={"visible": False, "range": [low[0] - margin, low[0] + size[0] + margin]},
        yaxis={"visible": False, "scaleanchor": "x", "range": [low[1] - margin, low[1] + size[1] + margin]},
    )
    return figure


def _add_match_lines(figure: Any, drawing: _Drawing) -> None:
    """Lines in a few shades, since a line has one colour; the most reliable ones last, above the others."""
    band = np.minimum((np.clip(drawing.scores, 0.0, 1.0) * _BANDS).astype(np.int64), _BANDS - 1)
    width = 1.6 if len(drawing.pairs) <= 80 else 0.9
    for shade in np.unique(band):
        x, y = _segments(drawing.places[0], drawing.pairs[band == shade], drawing.places[1])
        line = {"color": score_color((shade + 0.5) / _BANDS), "width": width}
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line=line,
            opacity=0.75,
            hoverinfo="skip",
            name="matches",
            legendgroup="matches",
            showlegend=bool(shade == band.max()),
        )


def _add_nodes(figure: Any, drawing: _Drawing, side: int, name: str) -> None:
    scores, places = drawing.node_scores(side), drawing.places[side]
    scale = [[at, color] for at, color in zip((0.0, 0.5, 1.0), SCORE_COLORS, strict=True)]
    matched, text = scores >= 0, np.array(drawing.hover(side), dtype=object)
    size = 10 if len(scores) <= 150 else 6
    shown = {"mode": "markers", "hovertemplate": "%{text}<extra></extra>", "legendgroup": f"nodes {side}"}
    marker: dict[str, Any] = {"size": size, "color": scores[matched], "colorscale": scale, "cmin": 0.0, "cmax": 1.0}
    if side == 1:
        marker |= {"showscale": True, "colorbar": {"title": {"text": "score"}, "thickness": 12, "outlinewidth": 0}}
    _scatter(figure, places, matched, text, marker, name=f"nodes of {_plain(name)}", **shown)
    alone = {"size": size, "symbol": "circle-open", "color": _ALONE_COLOR, "line": {"width": 1.5}}
    _scatter(figure, places, ~matched, text, alone, name=f"{_plain(name)}, no match", **shown)


def _scatter(
    figure: Any,
    places: Float64[np.ndarray, "n 2"],
    chosen: Bool[np.ndarray, " n"],
    text: np.ndarray,
    marker: dict[str, Any],
    **options: Any,
) -> None:
    if chosen.any():
        figure.add_scatter(x=places[chosen, 0], y=places[chosen, 1], text=text[chosen], marker=marker, **options)


def _add_weakest(report: Report, match: Any, graph_a: Graph, graph_b: Graph, names: tuple[str, str]) -> None:
    pairs = _array(match.matches)
    scores = _array(match.scores)[pairs[:, 0]]
    order = np.argsort(scores, kind="stable")[:_LISTED]
    rows = [(graph_a.node_names[pairs[k, 0]], graph_b.node_names[pairs[k, 1]], float(scores[k])) for k in order]
    if rows:
        few = (
            f"The {len(rows)} weakest of {len(pairs)} matches"
            if len(rows) < len(pairs)
            else "All matches, weakest first"
        )
        report.add_table((f"node of {names[0]}", f"node of {names[1]}", "score"), rows, caption=few)


def _positions(graph_a: Graph, graph_b: Graph) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, "m 2"]]:
    """Positions in the plane: of more coordinates the principal axes, of one coordinate a line."""
    left, right = (_array(graph.positions).astype(np.float64) for graph in (graph_a, graph_b))
    if left.shape[1] > 2 and left.shape[1] == right.shape[1] and len(left):
        axes = np.linalg.svd(left - left.mean(0), full_matrices=True)[2][:2]
        left, right = left @ axes.T, right @ axes.T
    return _plane(left), _plane(right)


def _plane(places: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n 2"]:
    return np.asarray(np.pad(places, ((0, 0), (0, max(0, 2 - places.shape[1]))))[:, :2])


def _laid_out(
    graph_a: Graph, graph_b: Graph, pairs: Int64[np.ndarray, "k 2"]
) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, "m 2"]]:
    """Layouts by steps, the second one begun from the places of the matches, so that equal parts look equal."""
    left = graph_layout(graph_a)
    if not len(pairs):
        return left, graph_layout(graph_b)
    angle = 2 * np.pi * np.arange(graph_b.node_count) * 0.381966  # those without a match begin on a circle
    start = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (1.0 + np.abs(left).max())
    start[pairs[:, 1]] = left[pairs[:, 0]]
    right = graph_layout(graph_b, start=start)
    return left, _turned(right, right[pairs[:, 1]], left[pairs[:, 0]])


def _turned(
    places: Float64[np.ndarray, "m 2"], ours: Float64[np.ndarray, "k 2"], theirs: Float64[np.ndarray, "k 2"]
) -> Float64[np.ndarray, "m 2"]:
    """Places rotated or mirrored so that some of them lie as near as they can to others (orthogonal Procrustes)."""
    u, _, vt = np.linalg.svd((ours - ours.mean(0)).T @ (theirs - theirs.mean(0)))
    return np.asarray(places @ (u @ vt))


def _boxed(places: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
    if not len(places):
        return places.copy()
    centre = (places.max(0) + places.min(0)) / 2
    extent = float((places.max(0) - places.min(0)).max())
    return np.asarray((places - centre) / (extent or 1.0))


def _drawn_edges(graph: Graph) -> Int64[np.ndarray, "e 2"]:
    """Each pair of joined nodes once."""
    ends = np.sort(_array(graph.edges).T, axis=1)
    return np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)


def _segments(
    start: Float64[np.ndarray, "n 2"], pairs: Int64[np.ndarray, "k 2"], end: Float64[np.ndarray, "m 2"]
) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """Lines as one list of points, with NaN between them."""
    stops = np.stack([start[pairs[:, 0]], end[pairs[:, 1]], np.full((len(pairs), 2), np.nan)], axis=1)
    return stops[..., 0].ravel(), stops[..., 1].ravel()


def _svg_line(start: np.ndarray, end: np.ndarray, color: str, width: float, opacity: float) -> str:
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
        f'stroke="{color}" stroke-width="{width}" stroke-opacity="{opacity}"/>'
    )


def _plain(name: str) -> str:
    """plotly reads markup in names."""
    return html.escape(name)


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)
