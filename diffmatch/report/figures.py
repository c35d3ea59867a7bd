"""Plotly figures of the report: curves over the steps of a fit, and meshes in three dimensions.

Colours of text, grids and backgrounds are left out: the page sets them for light and dark.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from diffmatch.errors import InputError, require
from diffmatch.report.render import parse_color
from diffmatch.report.view import Frame, View

__all__ = ["LINE_COLORS", "MESH_COLORS", "SCALE", "curve_figure", "mesh_figure", "scale_colors"]

MESH_COLORS = ("#6f9fd8", "#d9b382", "#7fb89a", "#c48fb3")
LINE_COLORS = ("#3f7fd0", "#e08a2e", "#2f9e7a", "#b0559a", "#8a8f98", "#c9514a")
SCALE = ("#f2e9d8", "#f5c25f", "#e5763a", "#b3264d", "#4a1258")  # small to large, for values on a surface
_LIGHTING = {
    "ambient": 0.46,
    "diffuse": 0.62,
    "specular": 0.1,
    "roughness": 0.6,
    "fresnel": 0.0,
    "facenormalsepsilon": 0,
    "vertexnormalsepsilon": 0,
}
# plotly.js takes the light in clip space, so it moves with the camera. This is the point (-1.8, 2.6, 1.4) from the eye
# (right, up, backward, in sides of the box): behind the left shoulder, which reverses the signs of x and y.
_LIGHT_POSITION = {"x": 2.36, "y": -4.55, "z": 1.0145}
_CLEAR = "rgba(0,0,0,0)"
_MAX_POINTS = 4000  # of a curve: more than a screen has columns


def curve_figure(
    curves: Mapping[str, Sequence[float]], *, x_title: str = "step", y_title: str = "", log: bool | None = None
) -> Any:
    """Lines over the steps, each thin as recorded and, where it is long, bold as smoothed.

    Args:
        curves: a name and one value a step for each line; NaN leaves a gap.
        x_title: what the steps are.
        y_title: what the values are, with the unit.
        log: logarithmic values; by default where all are positive and span more than a factor of ten.

    Returns:
        A plotly figure.

    Raises:
        InputError: no curve, or an empty one.
        MissingExtraError: plotly is not installed.
    """
    if not curves or any(len(values) == 0 for values in curves.values()):
        raise InputError("curves", "at least one curve with values", "none" if not curves else "an empty curve")
    go = require("plotly.graph_objects", extra="report")
    lines = {name: np.asarray(values, dtype=np.float64) for name, values in curves.items()}
    log = _spans_decades(list(lines.values())) if log is None else log
    figure = go.Figure()
    for index, (name, values) in enumerate(lines.items()):
        color = LINE_COLORS[index % len(LINE_COLORS)]
        x, y = _thinned(values)
        smooth = _smoothed(y, log=log)
        long = len(y) >= 50
        line: dict[str, Any] = {"color": color, "width": 2.2}
        if long:
            faint = {"color": color, "width": 1}
            figure.add_scatter(x=x, y=y, line=faint, opacity=0.35, mode="lines", showlegend=False, hoverinfo="skip")
        figure.add_scatter(x=x, y=smooth if long else y, name=name, line=line, mode="lines")
    figure.update_layout(
        template="none",
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        height=340,
        margin={"l": 64, "r": 16, "t": 16, "b": 48},
        hovermode="x unified",
        modebar={"bgcolor": _CLEAR},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        showlegend=len(lines) > 1,
        xaxis={"title": {"text": x_title}, "zeroline": False},
        yaxis={"title": {"text": y_title}, "zeroline": False, "type": "log" if log else "linear"},
    )
    if log:
        figure.update_yaxes(exponentformat="power", dtick=_decades_between_ticks(list(lines.values())))
    return figure


def _spans_decades(lines: list[Float64[np.ndarray, " _"]]) -> bool:
    values = np.concatenate(lines)
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() > 10 * values.min())


def _decades_between_ticks(lines: list[Float64[np.ndarray, " _"]]) -> int:
    values = np.concatenate(lines)
    values = values[np.isfinite(values) & (values > 0)]
    return max(1, round(float(np.log10(values.max() / values.min())) / 5)) if len(values) else 1


def _thinned(values: Float64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " _"], Float64[np.ndarray, " _"]]:
    """Steps and values, evenly thinned where there are more than the screen shows; the last one stays."""
    keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MAX_POINTS)).astype(np.int64))
    return keep, values[keep]


def _smoothed(values: Float64[np.ndarray, " n"], *, log: bool) -> Float64[np.ndarray, " n"]:
    """Centred running mean over 1/40 of the curve (of the logarithm where the axis is); gaps stay gaps."""
    usable = np.isfinite(values) & (values > 0 if log else True)
    inside = np.log(np.where(usable, values, 1.0)) if log else np.where(usable, values, 0.0)
    radius = max(1, len(values) // 80)
    window = np.ones(2 * radius + 1)
    count = np.convolve(usable, window)[radius : radius + len(values)]
    mean = np.convolve(inside * usable, window)[radius : radius + len(values)] / np.maximum(count, 1)
    return np.where(usable, np.exp(mean) if log else mean, np.nan)


def scale_colors(values: Float64[np.ndarray, " n"], *, limit: float) -> UInt8[np.ndarray, "n 3"]:
    """Colours of values between 0 and ``limit`` on the report's own scale, pale to dark."""
    anchors = np.array([parse_color(color) for color in SCALE], dtype=np.float64)
    at = np.linspace(0.0, 1.0, len(anchors))
    share = np.clip(np.nan_to_num(values) / (limit or 1.0), 0.0, 1.0)
    mixed = np.stack([np.interp(share, at, anchors[:, channel]) for channel in range(3)], axis=1)
    colors: UInt8[np.ndarray, "n 3"] = np.rint(mixed).astype(np.uint8)
    return colors


def mesh_figure(
    vertices: Float64[np.ndarray, "v 3"],
    faces: Int64[np.ndarray, "f 3"],
    *,
    view: View,
    frame: Frame,
    color: str = MESH_COLORS[0],
    values: Float64[np.ndarray, " v"] | None = None,
    limit: float = 1.0,
) -> Any:
    """A mesh as a scene without axes, in the frame's ball, seen as the still picture sees it.

    Args:
        vertices: positions.
        faces: vertex indices.
        view: the camera.
        frame: what is shown; positions are moved and scaled into it, so that single precision is enough for them.
        color: ``"#rrggbb"``.
        values: one number a vertex, coloured from 0 to ``limit`` instead of ``color``.
        limit: the value of the last colour.

    Returns:
        A plotly figure.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    go = require("plotly.graph_objects", extra="report")
    place = ((vertices - np.asarray(frame.center)) / (2 * frame.radius)).astype(np.float32)  # the ball has diameter 1
    corner = faces.astype(np.int32)
    surface: dict[str, Any] = {"color": color}
    if values is not None:
        scale = [[at, color] for at, color in zip(np.linspace(0, 1, len(SCALE)).tolist(), SCALE, strict=True)]
        surface = {"intensity": values.astype(np.float32), "colorscale": scale, "cmin": 0.0, "cmax": limit}
        surface["showscale"] = False  # it would narrow the scene; the page draws its own
    figure = go.Figure()
    figure.add_mesh3d(
        **dict(zip(("x", "y", "z"), place.T, strict=True)),
        **dict(zip(("i", "j", "k"), corner.T, strict=True)),
        **surface,
        flatshading=True,
        hoverinfo="skip",
        lighting=_LIGHTING,
        lightposition=_LIGHT_POSITION,
    )
    axis = {"visible": False, "range": [-0.5, 0.5], "autorange": False}
    eye = (
        view.basis()[2] * view.distance / 2
    )  # plotly's unit is the side of the box, the frame's ball has radius 1/2 in it
    figure.update_layout(
        template="none",
        paper_bgcolor=_CLEAR,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        scene={
            "xaxis": axis,
            "yaxis": axis,
            "zaxis": axis,
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 1},
            "bgcolor": _CLEAR,
            "dragmode": "orbit",
            "camera": {
                "eye": dict(zip(("x", "y", "z"), eye, strict=True)),
                "up": dict(zip(("x", "y", "z"), view.up, strict=True)),
                "center": {"x": 0, "y": 0, "z": 0},
            },
        },
    )
    return figure
