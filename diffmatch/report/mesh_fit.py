"""What a report shows of a mesh and of its fit."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from diffmatch.errors import MissingExtraError, require
from diffmatch.report.report import Report
from diffmatch.report.values import Metric
from diffmatch.report.view import Axis, MeshLike, mesh_arrays

__all__ = ["add_mesh_fit", "key_mesh_metrics", "list_mesh_metrics", "up_axis"]

_Y_UP = (".obj", ".glb", ".gltf", ".off")  # what exporters of these formats mostly do


class _Row(NamedTuple):
    name: str
    unit: str
    meaning: str


_BOX = "box"  # the unit of lengths; the caption of the table says what it is
_ROWS = {
    "mean": _Row("mean distance", _BOX, "from a point of either surface to the other surface, both ways"),
    "rms": _Row("rms distance", _BOX, "the same, root mean square: larger errors count more"),
    "hausdorff": _Row("largest distance", _BOX, "of all sampled points, both ways"),
    "mean_to_target": _Row("mean distance to the target", _BOX, "from the mesh: surface that should not be there"),
    "mean_from_target": _Row("mean distance from the target", _BOX, "from the target: surface that is missing"),
    "normal_error_percent": _Row("wrong normals", "%", "nearest pairs whose normals differ by more than 5°"),
    "chamfer": _Row("Chamfer distance", "box²", "mean squared distances between point samples, both ways summed"),
    "chamfer_floor": _Row("Chamfer distance, floor", "box²", "between two samples of the target: less is noise"),
    "f1": _Row("F1", "", "share of samples within 0.003 of the other surface's samples, both ways; best is 1"),
    "f1_floor": _Row("F1, ceiling", "", "between two samples of the target: more is noise"),
    "volume_ratio": _Row("volume ratio", "", "volume of the mesh over the target's"),
    "edge_chamfer": _Row("sharp edges, Chamfer (100 times)", "box²", "distance between the sharp edges of both"),
    "edge_chamfer_floor": _Row(
        "sharp edges, Chamfer, floor", "box²", "between two samples of the target: less is noise"
    ),
    "edge_f1": _Row("sharp edges, F1", "", "share of sharp edges in the right place; best is 1"),
    "edge_f1_floor": _Row("sharp edges, F1, ceiling", "", "between two samples of the target: more is noise"),
    "watertight": _Row("watertight", "", "each edge has exactly two triangles"),
    "open_edges": _Row("open edges", "", "edges with one triangle"),
    "nonmanifold_edges": _Row("non-manifold edges", "", "edges with more than two triangles"),
    "nonmanifold_vertices": _Row("non-manifold vertices", "", "vertices where separate fans of triangles meet"),
    "consistently_oriented": _Row("consistently oriented", "", "neighbouring triangles agree on which side is outside"),
    "euler_characteristic": _Row("Euler characteristic", "", "vertices - edges + triangles"),
    "bodies": _Row("bodies", "", "connected pieces"),
    "genus": _Row("genus", "", "through holes (handles), all bodies together"),
    "self_intersection_percent": _Row("self-intersecting", "%", "triangles that cut another one"),
    "vertices": _Row("vertices", "", ""),
    "faces": _Row("triangles", "", ""),
    "degenerate_faces": _Row("degenerate triangles", "", "without area, or naming a vertex twice"),
    "duplicate_faces": _Row("duplicate triangles", "", "with the same three vertices as an earlier one"),
    "min_angle": _Row("smallest angle", "°", "of any triangle; 60° is best"),
    "max_angle": _Row("largest angle", "°", "of any triangle; 60° is best"),
    "small_angle_percent": _Row("thin triangles", "%", "smallest angle below 10°"),
    "large_aspect_percent": _Row("long triangles", "%", "aspect ratio above 4; 1 is equilateral"),
    "volume": _Row("volume", "cubed unit of the file", "enclosed, in the mesh's own coordinates"),
}
_HEADLINE = ("mean", "normal_error_percent", "watertight", "genus", "faces", "min_angle")
_KEY = (
    "mean",
    "hausdorff",
    "normal_error_percent",
    "volume_ratio",
    "watertight",
    "nonmanifold_edges",
    "bodies",
    "genus",
    "self_intersection_percent",
    "vertices",
    "faces",
    "small_angle_percent",
)


def _figures(metrics: Any) -> dict[str, Any]:
    return dict(metrics.as_dict() if hasattr(metrics, "as_dict") else metrics)


def list_mesh_metrics(metrics: Any) -> list[Metric]:
    """All measured quantities in reading order, with units and meanings.

    Args:
        metrics: `diffmatch.meshing.MeshMetrics`, or its ``as_dict``.

    Returns:
        One entry a quantity that was measured; quantities without a description here keep their own name.
    """
    figures = _figures(metrics)
    known = [Metric(row.name, figures[key], row.unit, row.meaning) for key, row in _ROWS.items() if key in figures]
    hidden = ("samples", "scale")  # how it was measured, not what
    return known + [Metric(key, value) for key, value in figures.items() if key not in _ROWS and key not in hidden]


def key_mesh_metrics(metrics: Any, *, headline: bool = False) -> list[Metric]:
    """The dozen quantities that say most; with ``headline`` half of them."""
    figures = _figures(metrics)
    return [
        Metric(_ROWS[key].name, figures[key], _ROWS[key].unit, _ROWS[key].meaning)
        for key in (_HEADLINE if headline else _KEY)
        if key in figures
    ]


def up_axis(path: str | Path) -> Axis:
    """The axis that is usually up in files of this kind: y for .obj, .glb and .off, else z."""
    return "y" if Path(path).suffix.lower() in _Y_UP else "z"


def add_mesh_fit(report: Report, fit: Any, *, name: str = "target", up: Axis = "z") -> None:
    """Add a fitted mesh: key figures, the mesh beside its target and coloured by its error, all figures, the losses.

    Args:
        report: what to add to.
        fit: the result of `diffmatch.meshing.fit_mesh`: ``mesh``, ``metrics``, ``history``, ``target_mesh``.
        name: what the target is called.
        up: the axis that is up in the pictures.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    history = fit.history
    if fit.metrics is not None:
        report.add_headline(key_mesh_metrics(fit.metrics, headline=True))
    _add_pictures(report, fit, name, up)
    caption = "Lengths are in the target's box, whose longest side is 1.8."
    if fit.metrics is not None:
        report.add_metrics(key_mesh_metrics(fit.metrics), caption=caption)
        every = list_mesh_metrics(fit.metrics)
        report.add_metrics(every, caption=caption, folded=f"All {len(every)} figures")
    if history.loss:
        report.add_curves(
            history, caption=f"{history.steps} steps in {history.seconds:.1f} s: {history.message or history.status}."
        )


def _add_pictures(report: Report, fit: Any, name: str, up: Axis) -> None:
    target = fit.target_mesh
    if target is None:
        report.add_meshes({"fit": fit.mesh}, up=up)
        return
    error = _distances(fit.mesh, target)
    if error is None:
        report.add_meshes({"fit": fit.mesh, name: target}, up=up)
        return
    label = "error" if name != "error" else "error of the fit"
    scale = getattr(fit.metrics, "scale", 1.0)
    report.add_meshes(
        {"fit": fit.mesh, name: target, label: fit.mesh},
        up=up,
        values={label: error * scale},
        values_title="distance to the target (box)" if scale != 1.0 else "distance to the target",
    )


def _distances(mesh: MeshLike, target: MeshLike) -> Float64[np.ndarray, " v"] | None:
    """Distance of each vertex to the target's surface; None without libigl."""
    try:
        igl = require("igl", extra="mesh")
    except MissingExtraError:
        return None
    points, _ = mesh_arrays(mesh)
    squared = igl.point_mesh_squared_distance(points, *mesh_arrays(target))[0]
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))
