"""What a report shows of persistent homology: diagrams, barcodes, Betti curves, and the places on the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from diffmatch.errors import require
from diffmatch.report.figures import LINE_COLORS, SCALE
from diffmatch.report.report import Report
from diffmatch.report.values import Metric

if TYPE_CHECKING:
    from diffmatch.matching.graphs import Graph
    from diffmatch.topology import Diagram, Persistence
    from diffmatch.topology.multiparameter import SignedMeasure

__all__ = ["TopologyData", "add_certificate", "add_measures", "add_persistence", "persistence_metrics"]

_CLASSES = {0: "components", 1: "loops", 2: "cavities"}
_MOST_BARS = 200  # of a degree, in the barcode
_MOST_MARKED = 12  # bars of a degree whose places are drawn
_MOST_NODES = 48  # of a volume along each side, for the drawing
_MOST_LEVELS = 120  # of a Hilbert function along each axis
_CLEAR = "rgba(0,0,0,0)"
_GREY = "#9aa3b2"
_LAYOUT: dict[str, Any] = {
    "template": "none",
    "paper_bgcolor": _CLEAR,
    "plot_bgcolor": _CLEAR,
    "height": 420,
    "margin": {"l": 64, "r": 16, "t": 24, "b": 48},
    "modebar": {"bgcolor": _CLEAR},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
}


@dataclass(frozen=True, eq=False)
class TopologyData:
    """What was filtered.

    Attributes:
        kind: ``field``, ``points``, ``graph`` or ``mesh``.
        values: of the pixels of a field, (nx, ny) or (nx, ny, nz); of the vertices of a graph or a mesh, (n,).
        points: positions of points, nodes or vertices, (n, d).
        edges: of a graph, each once, (e, 2).
        faces: of a mesh, (f, 3).
        graph: the graph as it was read, for its layout.
    """

    kind: str
    values: Tensor | None = None
    points: Tensor | None = None
    edges: Tensor | None = None
    faces: Tensor | None = None
    graph: "Graph | None" = None

    def to(self, device: str) -> "TopologyData":
        """The same data with its tensors on a device."""
        names = ("values", "points", "edges", "faces")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})


def persistence_metrics(persistence: "Persistence") -> list[Metric]:
    """Numbers and lengths of the bars of each degree."""
    metrics = []
    for diagram in persistence:
        name = _class_name(diagram.degree)
        length = _array(diagram.persistence)
        endless = len(diagram.essential_births)
        metrics += [
            Metric(f"{name}: bars", len(diagram), f"and {endless} endless", "classes that begin and end"),
            Metric(f"{name}: longest", float(length.max()) if len(length) else None, "", "the longest of these bars"),
            Metric(f"{name}: total", float(length.sum()), "", "the sum of their lengths"),
        ]
    return metrics


def add_persistence(report: Report, persistence: "Persistence", data: TopologyData) -> None:
    """Add the key figures, the diagram, the barcode, Betti curves, and the data with its critical points.

    Args:
        report: what to add to.
        persistence: the diagrams.
        data: what they are of.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    report.add_metrics(persistence_metrics(persistence))
    report.add_figure(
        _diagram_figure(persistence),
        alt="Persistence diagram: births and deaths of all bars.",
        caption="Each point is a bar; far from the diagonal is long. Endless ones stand on the dotted line.",
    )
    places = _data_figure(persistence, data)
    if places is not None:
        report.add_figure(
            places,
            alt="The data with the critical points of the longest bars.",
            caption=f"Where the {_MOST_MARKED} longest bars of each degree begin (filled) and end (open).",
        )
    report.add_figure(
        _barcode_figure(persistence),
        alt="Barcode: a line from birth to death for each bar.",
        caption=f"At most {_MOST_BARS} bars of each degree, the longest first.",
    )
    report.add_figure(
        _curve_figure(persistence),
        alt="Betti curves: the number of bars alive at each level.",
        caption="How many classes of each degree there are at each level.",
    )


def add_measures(report: Report, measures: "Sequence[SignedMeasure]") -> None:
    """Add the Hilbert function and the signed measure of two parameters, for each degree.

    Args:
        report: what to add to.
        measures: one a degree.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    for measure in measures:
        name = _CLASSES.get(-1 if measure.degree is None else measure.degree, "Euler characteristic")
        report.add_figure(
            _hilbert_figure(measure),
            alt=f"Hilbert function of the {name} over two parameters, and its signed measure.",
            caption=f"Number of {name} by both levels; it rises at the filled points and falls at the open ones.",
        )


def add_certificate(report: Report, topology: Mapping[str, Any]) -> None:
    """Add whether a mesh has the topology that its field was given.

    Args:
        report: what to add to.
        topology: as the command line writes it beside a mesh.
    """
    report.add_section("Certificate of the topology")
    if topology["agree"]:
        report.add_text("The mesh agrees with the field it was made of.")
    else:
        report.add_text("The mesh DISAGREES with the field it was made of.")
    for doubt in topology["doubts"]:
        report.add_text(f"Note: {doubt}.")
    moves = ", ".join(topology["moves"]) or "none"
    report.add_metrics(
        [
            Metric("asked for", _numbers(topology["asked"]), "", "pieces, tunnels, cavities"),
            Metric("before", _numbers(topology["before"]), "", "of the target's field on the grid"),
            Metric("moves", moves, "", f"changed the sign of {topology['changed_nodes']} nodes"),
            Metric("of the field", _numbers(topology["betti"]), "", "connected through faces of pixels"),
            Metric(
                "of the field, by corners", _numbers(topology["betti_top_cells"]), "", "connected through corners too"
            ),
            Metric("Euler characteristic", topology["mesh_euler"], f"of {topology['expected_euler']}", "of the mesh"),
            Metric("components", topology["mesh_components"], f"of {topology['expected_components']}", "of the mesh"),
        ]
    )


def _numbers(values: Sequence[int | None]) -> str:
    return ", ".join("any" if value is None else str(value) for value in values)


def _class_name(degree: int) -> str:
    return _CLASSES.get(degree, f"degree {degree}")


def _array(tensor: Tensor) -> Float64[np.ndarray, "*shape"]:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)


def _color(degree: int) -> str:
    return LINE_COLORS[degree % len(LINE_COLORS)]


def _range(persistence: "Persistence") -> tuple[float, float]:
    """The levels that are shown: all finite ends, and some room."""
    parts = [
        _array(part) for diagram in persistence for part in (diagram.births, diagram.deaths, diagram.essential_births)
    ]
    ends = np.concatenate([part[np.isfinite(part)] for part in parts])
    low, high = (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 1.0)
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room


def _diagram_figure(persistence: "Persistence") -> Any:
    low, high = _range(persistence)
    endless = low if persistence.superlevel else high
    figure = require("plotly.graph_objects", extra="report").Figure()
    for level, line in ((None, {"color": _GREY, "width": 1}), (endless, {"color": _GREY, "width": 1, "dash": "dot"})):
        y = [low, high] if level is None else [level, level]
        figure.add_scatter(x=[low, high], y=y, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    for diagram in persistence:
        births = np.concatenate((_array(diagram.births), _array(diagram.essential_births)))
        deaths = np.concatenate((_array(diagram.deaths), np.full(len(diagram.essential_births), endless)))
        marker = {"color": _color(diagram.degree), "size": 7, "opacity": 0.75}
        figure.add_scatter(x=births, y=deaths, mode="markers", marker=marker, name=_class_name(diagram.degree))
    figure.update_layout(
        **_LAYOUT, xaxis_title="birth", yaxis_title="death", yaxis_scaleanchor="x", hovermode="closest"
    )
    return figure


def _barcode_figure(persistence: "Persistence") -> Any:
    low, high = _range(persistence)
    figure = require("plotly.graph_objects", extra="report").Figure()
    row = 0
    for diagram in persistence:
        order = np.argsort(-_array(diagram.persistence), kind="stable")
        endless = _array(diagram.essential_births)
        births = np.concatenate((endless, _array(diagram.births)[order]))[:_MOST_BARS]
        deaths = np.concatenate(
            (np.full(len(endless), low if persistence.superlevel else high), _array(diagram.deaths)[order])
        )[:_MOST_BARS]
        rows = row + np.arange(len(births))
        gaps = np.full(len(births), np.nan)
        x, y = np.stack((births, deaths, gaps), 1).ravel(), np.stack((rows, rows, gaps), 1).ravel()
        line = {"color": _color(diagram.degree), "width": 2}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, name=_class_name(diagram.degree))
        row += len(births) + 2
    figure.update_layout(**_LAYOUT, xaxis_title="level", yaxis={"visible": False, "autorange": "reversed"})
    return figure


def _curve_figure(persistence: "Persistence") -> Any:
    low, high = _range(persistence)
    figure = require("plotly.graph_objects", extra="report").Figure()
    for diagram in persistence:
        levels, counts = _betti_curve(diagram, persistence.superlevel, low, high)
        line = {"color": _color(diagram.degree), "width": 2, "shape": "hv"}
        figure.add_scatter(x=levels, y=counts, mode="lines", line=line, name=_class_name(diagram.degree))
    figure.update_layout(**_LAYOUT, xaxis_title="level", yaxis_title="Betti number")
    return figure


def _betti_curve(
    diagram: "Diagram", superlevel: bool, low: float, high: float
) -> tuple[Float64[np.ndarray, " s"], Int64[np.ndarray, " s"]]:
    """Steps of the number of bars alive, from low to high levels."""
    begin = np.concatenate((_array(diagram.births), _array(diagram.essential_births)))
    end = np.concatenate(
        (_array(diagram.deaths), np.full(len(diagram.essential_births), -np.inf if superlevel else np.inf))
    )
    first, last = (end, begin) if superlevel else (begin, end)
    levels = np.unique(np.concatenate(([low, high], first, last)).clip(low, high))
    counts = np.searchsorted(np.sort(first), levels, side="right") - np.searchsorted(
        np.sort(last), levels, side="right"
    )
    return levels, counts.astype(np.int64)


def _hilbert_figure(measure: "SignedMeasure") -> Any:
    import torch

    points, weights = _array(measure.points), measure.weights.cpu().numpy()
    seen = np.isfinite(points).all(axis=1)
    points, weights = points[seen], weights[seen]
    low, high = (points.min(0), points.max(0)) if len(points) else (np.zeros(2), np.ones(2))
    first, second = (np.linspace(low[axis], high[axis], _MOST_LEVELS) for axis in range(2))
    like = measure.points.detach()
    heights = measure.at(torch.from_numpy(first).to(like), torch.from_numpy(second).to(like)).cpu().numpy()
    figure = require("plotly.graph_objects", extra="report").Figure()
    scale = [[at, color] for at, color in zip(np.linspace(0, 1, len(SCALE)).tolist(), SCALE, strict=True)]
    figure.add_heatmap(x=first, y=second, z=heights.T, colorscale=scale, colorbar={"title": "number", "thickness": 12})
    for sign, color, symbol in ((1, "#2e86ab", "circle"), (-1, "#d1495b", "circle-open")):
        some = sign * weights > 0
        marker = {"color": color, "symbol": symbol, "size": 4 + 2 * np.sqrt(np.minimum(np.abs(weights[some]), 9))}
        name = "rises" if sign > 0 else "falls"
        figure.add_scatter(x=points[some, 0], y=points[some, 1], mode="markers", marker=marker, name=name)
    figure.update_layout(**_LAYOUT, xaxis_title="first parameter", yaxis_title="second parameter", hovermode="closest")
    return figure


def _data_figure(persistence: "Persistence", data: TopologyData) -> Any:
    """The data and the places of births and deaths; None for what has no picture."""
    go = require("plotly.graph_objects", extra="report")
    figure = go.Figure()
    flat = True
    if data.kind == "field" and data.values is not None:
        flat = data.values.ndim == 2
        positions = _draw_image(figure, data.values) if flat else _draw_volume(figure, data.values, persistence)
    elif data.kind == "mesh" and data.points is not None and data.faces is not None:
        positions, flat = _array(data.points), False
        _draw_surface(figure, positions, data.faces.cpu().numpy(), data.values)
    elif data.kind == "graph":
        positions = _draw_graph(figure, data)
        flat = positions.shape[1] == 2
    elif data.points is not None and data.points.shape[1] in (2, 3):
        positions = _array(data.points)
        flat = positions.shape[1] == 2
        marker = {"color": _GREY, "size": 5 if flat else 2}
        _scatter(figure, positions, mode="markers", marker=marker, name="points", hoverinfo="skip")
    else:
        return None
    for diagram in persistence:
        _mark(figure, diagram, positions)
    layout = {**_LAYOUT, "height": 520, "hovermode": "closest"}
    if flat:
        image = data.kind == "field"
        layout |= {"xaxis": {"visible": image}, "yaxis": {"visible": image, "scaleanchor": "x"}}
        if image:
            layout["yaxis"]["autorange"] = "reversed"
    else:
        hidden = {"visible": False}
        layout["scene"] = {"aspectmode": "data", "xaxis": hidden, "yaxis": hidden, "zaxis": hidden}
    figure.update_layout(**layout)
    return figure


def _scatter(figure: Any, places: Float64[np.ndarray, "n d"], **options: Any) -> None:
    names = ("x", "y", "z")[: places.shape[1]]
    add = figure.add_scatter if places.shape[1] == 2 else figure.add_scatter3d
    add(**dict(zip(names, places.T, strict=True)), **options)


def _draw_image(figure: Any, values: Tensor) -> Float64[np.ndarray, "n 2"]:
    """The image with its first axis downward; positions of its pixels, by flat index."""
    array = _array(values)
    figure.add_heatmap(z=array, colorscale="Greys", showscale=False)
    rows, columns = np.indices(array.shape).reshape(2, -1)
    return np.stack((columns, rows), axis=1).astype(np.float64)


def _draw_volume(figure: Any, values: Tensor, persistence: "Persistence") -> Float64[np.ndarray, "n 3"]:
    """A level set of the volume, thinned where it is large; positions of its pixels, by flat index."""
    from diffmatch.meshing import Grid, marching_cubes

    array = _array(values)
    steps = [max(1, -(-size // _MOST_NODES)) for size in array.shape]
    thin = values.detach().cpu().double()[:: steps[0], :: steps[1], :: steps[2]]
    level = _shown_level(persistence)
    sign = -1.0 if persistence.superlevel else 1.0
    if min(thin.shape) > 1 and bool(thin.isfinite().all()):
        nx, ny, nz = ((size - 1) for size in thin.shape)
        high = (nx * float(steps[0]), ny * float(steps[1]), nz * float(steps[2]))
        surface = marching_cubes(Grid.box((nx, ny, nz), low=(0.0, 0.0, 0.0), high=high), sign * (thin - level))
        if len(surface.faces):
            _draw_surface(figure, _array(surface.vertices), surface.faces.numpy(), None, opacity=0.35)
    return np.indices(array.shape).reshape(3, -1).T.astype(np.float64)


def _shown_level(persistence: "Persistence") -> float:
    """Zero where most of the longest bars of a degree are alive there, else the middle of the longest bar."""
    longest = [d for d in persistence if len(d)]
    if not longest:
        return 0.0
    bar = max(longest, key=lambda diagram: (diagram.degree > 0, float(diagram.persistence.max())))
    at = int(bar.persistence.argmax())
    ends = sorted((float(bar.births[at]), float(bar.deaths[at])))
    return 0.0 if ends[0] < 0 <= ends[1] else sum(ends) / 2


def _draw_surface(
    figure: Any,
    vertices: Float64[np.ndarray, "v 3"],
    faces: Int64[np.ndarray, "f 3"],
    values: Tensor | None,
    *,
    opacity: float = 0.7,
) -> None:
    paint: dict[str, Any] = (
        {"color": "#c9ced8"} if values is None else {"intensity": _array(values), "colorscale": "Greys"}
    )
    figure.add_mesh3d(
        **dict(zip(("x", "y", "z"), vertices.T, strict=True)),
        **dict(zip(("i", "j", "k"), faces.T, strict=True)),
        **paint,
        showscale=False,
        opacity=opacity,
        hoverinfo="skip",
    )


def _draw_graph(figure: Any, data: TopologyData) -> Float64[np.ndarray, "n d"]:
    """The edges, and the nodes coloured by value; positions of the nodes."""
    from diffmatch.matching.graphs.layout import graph_layout

    assert data.edges is not None
    assert data.values is not None
    drawable = data.points is not None and data.points.shape[1] in (2, 3)
    if drawable and data.points is not None:
        places = _array(data.points)
    else:
        assert data.graph is not None
        places = np.asarray(graph_layout(data.graph))
    ends = places[data.edges.cpu().numpy()]
    lines = np.concatenate((ends, np.full((len(ends), 1, places.shape[1]), np.nan)), axis=1).reshape(
        -1, places.shape[1]
    )
    _scatter(figure, lines, mode="lines", line={"color": _GREY, "width": 1}, showlegend=False, hoverinfo="skip")
    marker = {"color": _array(data.values), "colorscale": "Greys", "size": 9 if places.shape[1] == 2 else 4}
    marker["line"] = {"color": _GREY, "width": 1}
    _scatter(figure, places, mode="markers", marker=marker, name="nodes", hoverinfo="skip")
    return places


def _mark(figure: Any, diagram: "Diagram", positions: Float64[np.ndarray, "n d"]) -> None:
    """The places where the longest bars begin and end: a vertex, or the middle of a critical simplex and its sides."""
    order = np.argsort(-_array(diagram.persistence), kind="stable")[:_MOST_MARKED]
    name, color = _class_name(diagram.degree), _color(diagram.degree)
    births = np.concatenate(
        (diagram.birth_index.cpu().numpy()[order], diagram.essential_index.cpu().numpy()[:_MOST_MARKED])
    )
    deaths = diagram.death_index.cpu().numpy()[order]
    plane = positions.shape[1] == 2
    for index, words, symbol in ((births, "begin", "circle"), (deaths, "end", "circle-open")):
        if not len(index):
            continue
        corners = index.reshape(len(index), -1)
        marker = {"color": color, "symbol": symbol, "size": 11 if plane else 5, "line": {"width": 2, "color": color}}
        middles = np.stack([positions[row[row >= 0]].mean(axis=0) for row in corners])
        _scatter(figure, middles, mode="markers", marker=marker, name=f"{name} {words}")
        if index.ndim == 2 and words == "end":
            sides = [_outline(positions[row[row >= 0]]) for row in corners]
            line = {"color": color, "width": 1.5}
            _scatter(figure, np.concatenate(sides), mode="lines", line=line, showlegend=False, hoverinfo="skip")


def _outline(corners: Float64[np.ndarray, "c d"]) -> Float64[np.ndarray, "m d"]:
    """All sides of a simplex as one line with gaps."""
    gap = np.full(corners.shape[1], np.nan)
    parts = [np.stack((a, b, gap)) for at, a in enumerate(corners) for b in corners[at + 1 :]]
    return np.concatenate(parts) if parts else np.empty((0, corners.shape[1]))
