"""The table and the pictures of the guide to meshes: ``python benchmarks/mesh_gallery.py --out docs``.

Every shape is fitted at 64 cells and drawn as the target, by marching cubes from the same samples, by the fit, and the
fit coloured by its distance to the target. Files take part where ``DIFFMATCH_DATA`` names the folder that holds
``meshes``. With ``--points``, fits to 20 000 points with noise are measured as well. Shapes that are named are made
anew, the others keep the figures of an earlier run, which stand in ``mesh-gallery.json`` beside the pictures; the
tables replace what stands between the markers in ``meshing.md``.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noise_floor import placement_floor

from diffmatch.meshing import (
    FieldTarget,
    Grid,
    Mesh,
    MeshTarget,
    PointCloud,
    Target,
    dual_contouring,
    fit_mesh,
    load_target,
    marching_cubes,
    mesh_metrics,
)
from diffmatch.meshing.shapes import demo_part
from diffmatch.report import Frame, View, encode_png, render_mesh
from diffmatch.report.view import Axis

PART = "demo part"
FILES = ("block", "fandisk", "rocker-arm", "spot", "cheburashka")
Y_UP = ("spot", "cheburashka")
N_POINTS, NOISE = 20_000, 0.005  # of the diagonal of the box
WORST = 2e-3  # distance of the last colour, in the box
COLORS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])  # dark to light


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the gallery of fitted meshes.")
    parser.add_argument("shapes", nargs="*", help=f"of: {PART}, {', '.join(FILES)} (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder of meshing.md, such as docs")
    parser.add_argument("--points", action="store_true", help="fit 20 000 points with noise instead of the mesh")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args(arguments)
    for name in options.shapes or [PART, *FILES]:
        target = find(name)
        if target is None:
            sys.stdout.write(f"{name}: skipped, DIFFMATCH_DATA does not hold it\n")
            continue
        if options.points:
            row = {"points": points_row(target, options.resolution, options.steps)}
        else:
            row, picture = mesh_row(target, options.resolution, options.steps, up="y" if name in Y_UP else "z")
            (options.out / picture_name(name)).write_bytes(encode_png(picture))
        write_tables(options.out / "meshing.md", remembered(options.out / "mesh-gallery.json", name, row))
        sys.stdout.write(f"{name}: done\n")
    return 0


def remembered(path: Path, name: str, row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of all shapes, after those of one were written into the file."""
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows[name] = rows.get(name, {}) | row
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def find(name: str) -> Target | None:
    if name == PART:
        return FieldTarget(demo_part)
    path = Path(os.environ.get("DIFFMATCH_DATA", "")) / "meshes" / f"{name}.obj"
    return load_target(path) if path.is_file() else None


def true_surface(target: Target, n: int) -> Mesh:
    """The target's surface in the box; of a field, by dual contouring on a grid three times as fine."""
    if isinstance(target, MeshTarget):
        return target.surface
    grid = Grid.cube(3 * n)
    return dual_contouring(grid, target.sdf(grid.nodes()), target.value_and_gradient)


def mesh_row(target: Target, n: int, steps: int | None, *, up: Axis) -> tuple[dict[str, Any], np.ndarray]:
    """What was measured of marching cubes and of the fit, and the picture of both."""
    truth = true_surface(target, n)
    grid = Grid.cube(n)
    plain = marching_cubes(grid, target.sdf(grid.nodes(dtype=torch.float64)))
    start, start_cpu = time.perf_counter(), time.process_time()
    result = fit_mesh(target, resolution=n, steps=steps, progress=False)
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    fitted = Mesh(target.normalization.apply(result.mesh.vertices.double()), result.mesh.faces)
    picture = panels(target, truth, plain, fitted, up=up)
    measured = {name: figures(mesh, truth) for name, mesh in (("marching_cubes", plain), ("fit", fitted))}
    wanted = figures(target.mesh, None) if isinstance(target, MeshTarget) else measured["marching_cubes"]
    topology = {name: wanted[name] for name in ("euler_characteristic", "bodies")}
    return {**measured, "target": topology, "wall": wall, "cpu": cpu, "threads": torch.get_num_threads()}, picture


def points_row(target: Target, n: int, steps: int | None) -> dict[str, Any]:
    """What was measured of a fit to points with noise."""
    truth = true_surface(target, n)
    generator = torch.Generator().manual_seed(0)
    samples = truth.sample(N_POINTS, generator)
    low, high = target.bounds
    level = NOISE * float((high - low).norm())
    noise = level * torch.randn(N_POINTS, 3, generator=generator, dtype=torch.float64)
    cloud = PointCloud(samples.points.double() + noise, truth.face_normals[samples.faces].double())
    start = time.process_time()
    result = fit_mesh(cloud, resolution=n, steps=steps, progress=False)
    cpu = time.process_time() - start
    floor = placement_floor(target.mesh if isinstance(target, MeshTarget) else truth, N_POINTS, level)
    return figures(result.mesh, truth) | {"cpu": cpu, "floor": floor}


def figures(mesh: Mesh, truth: Mesh | None) -> dict[str, Any]:
    """The measures of a mesh in the box that have a column."""
    found = mesh_metrics(mesh, truth, edges=truth is not None, normalize=False).as_dict()
    names = ("mean", "normal_error_percent", "watertight", "euler_characteristic", "bodies")
    edges = ("edge_chamfer", "edge_chamfer_floor", "edge_f1", "edge_f1_floor")
    quality = ("self_intersection_percent", "small_angle_percent")
    return {name: found[name] for name in (*names, *edges, *quality) if name in found}


def panels(target: Target, truth: Mesh, plain: Mesh, fitted: Mesh, *, up: Axis, size: int = 224) -> np.ndarray:
    """Target, marching cubes, fit, and the fit coloured by its distance to the target, side by side."""
    vertices = truth.vertices.double().numpy()
    frame = Frame.around(vertices)
    middles = fitted.vertices[fitted.faces].mean(1)
    distance = (
        target.closest(middles).distance.numpy()
        if isinstance(target, MeshTarget)
        else target.sdf(middles).abs().detach().numpy()
    )
    place = np.clip(distance / WORST, 0, 1) * (len(COLORS) - 1)
    lower = np.minimum(place.astype(int), len(COLORS) - 2)
    blend = (place - lower)[:, None]
    colors = np.rint((1 - blend) * COLORS[lower] + blend * COLORS[lower + 1]).astype(np.uint8)
    view = View.standard(up).fitted(vertices, frame, aspect=1.0)
    drawn = [
        render_mesh(mesh, width=size, height=size, view=view, frame=frame, color=color)
        for mesh, color in ((truth, "#9aa7b5"), (plain, "#6f9fd8"), (fitted, "#6f9fd8"), (fitted, colors))
    ]
    return (np.concatenate(drawn, axis=1) // 6 * 6 + 3).astype(np.uint8)  # fewer shades: a third of the bytes


def picture_name(name: str) -> str:
    return f"mesh-{name.replace(' ', '-')}.png"


def write_tables(page: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Put the tables and pictures between the markers of the page."""
    text = page.read_text(encoding="utf-8")
    ordered = {name: rows[name] for name in (PART, *FILES) if name in rows}
    for marker, lines in (("gallery", gallery(ordered)), ("points", points_table(ordered))):
        start, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = "\n".join([before + start, *lines, end + after])
    page.write_text(text, encoding="utf-8")


def gallery(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown of fits to meshes: one table, and a picture a shape."""
    rows = {name: row for name, row in rows.items() if "fit" in row}
    head = [
        "shape",
        "",
        "mean, 1e-3",
        "normals > 5°, %",
        "edges, Chamfer (floor)",
        "edges, F1 (floor)",
        "Euler (wanted)",
    ]
    head += ["bodies", "self-intersecting, %", "angle < 10°, %", "time, s"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, row in rows.items():
        for key, words in (("marching_cubes", "marching cubes"), ("fit", "fit")):
            found = row[key]
            edges = [beside_floor(found, name) for name in ("edge_chamfer", "edge_f1")]
            cells = [name if key == "marching_cubes" else "", words, number(1e3 * found["mean"])]
            cells += [number(found["normal_error_percent"]), *edges]
            cells += [
                f"{found['euler_characteristic']} ({row['target']['euler_characteristic']})",
                str(found["bodies"]),
            ]
            cells += [number(found["self_intersection_percent"]), number(found["small_angle_percent"])]
            cells += [f"{row['cpu']:.0f}" if key == "fit" else ""]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Target, marching cubes, fit, and the fit coloured by its distance to the target, yellow at 2e-3:"]
    for name in rows:
        lines += ["", f"![{name}: target, marching cubes, fit, distance]({picture_name(name)})"]
    return lines


def points_table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown of fits to points with noise beside those to the mesh itself."""
    head = ["shape", "from the points", "floor", "from the mesh itself", "ratio", "Euler (wanted)", "bodies", "time, s"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, row in rows.items():
        if "points" in row and "fit" in row:
            points, mesh = row["points"], row["fit"]
            cells = [name, *(f"{1e3 * x:.3f}" for x in (points["mean"], points["floor"], mesh["mean"]))]
            cells += [f"{points['mean'] / mesh['mean']:.1f}", euler(points, row["target"]), str(points["bodies"])]
            lines.append("| " + " | ".join([*cells, f"{points['cpu']:.0f}"]) + " |")
    return lines


def euler(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    return f"{found['euler_characteristic']} ({wanted['euler_characteristic']})"


def beside_floor(found: dict[str, Any], name: str) -> str:
    """A figure, and in brackets what another sample of the target itself reaches."""
    value, floor = number(found.get(name)), number(found.get(f"{name}_floor"))
    return f"{value} ({floor})" if value and floor else value


def number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
