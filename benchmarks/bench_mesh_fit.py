"""From a target to a mesh: `fit_mesh` against direct extraction from the same samples, by cells a side.

All contenders begin with the target and sample it at the nodes of the same grid; that is part of their time, and so is
that `fit_mesh` measures its result. Marching cubes (ours and scikit-image's) see the samples only; dual contouring also
asks the target for values and gradients elsewhere, which one that is known exactly can answer. How good each mesh is
stands beside its time, in a box of longest side 1.8: the mean distance, and the shares of nearest pairs whose normals
are more than 5 degrees apart, of triangles with an angle below 10 degrees, and of triangles that intersect others.
block.obj (at the largest size) and fandisk.obj (at the smallest) take part where ``DIFFMATCH_DATA`` names the folder
that holds ``meshes``.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmatch.meshing import (
    FieldTarget,
    Grid,
    Mesh,
    MeshFit,
    MeshTarget,
    Target,
    dual_contouring,
    fit_mesh,
    load_target,
    marching_cubes,
    mesh_metrics,
)
from diffmatch.meshing.shapes import demo_part

OURS = "diffmatch"
FILES = {"block.obj": -1, "fandisk.obj": 0}  # and which of the sizes: a fit at 64 cells takes eight times 20 seconds


def run(bench: Any) -> None:
    """The part that the package makes at all sizes, each file at one."""
    skimage = bench.peer("skimage")
    sizes = bench.sizes((32, 64), tiny=(8,))
    part = FieldTarget(demo_part)
    truth = contour(part, Grid.cube(24 if bench.tiny else 192), torch.device("cpu"))
    for n in sizes:
        compare(bench, "demo part", part, truth, n, skimage)
    for name, place in FILES.items():
        target = find(bench, name)
        if target is not None:
            compare(bench, name, target, placed(target, target.surface), sizes[place], skimage)


def find(bench: Any, name: str) -> MeshTarget | None:
    """A file of the research data, or a note that it was skipped."""
    path = Path(os.environ.get("DIFFMATCH_DATA", "")) / "meshes" / name
    if not path.is_file():
        bench.skipped.append(name)
        return None
    target = load_target(path)
    assert isinstance(target, MeshTarget)
    return target


def compare(bench: Any, task: str, target: Target, truth: Mesh, n: int, skimage: Any) -> None:
    grid, device = Grid.cube(n), bench.device

    def samples() -> Tensor:
        return target.sdf(grid.nodes(device=device))

    def fitted() -> MeshFit:
        return fit_mesh(target, resolution=n, steps=3 if bench.tiny else None, device=device, progress=False)

    def cubes() -> Mesh:
        return placed(target, marching_cubes(grid, samples()))

    def theirs() -> Mesh:
        field = samples().reshape(grid.node_shape).cpu().numpy()
        vertices, faces, *_ = skimage.measure.marching_cubes(field, 0.0, spacing=grid.spacing)
        vertices = torch.from_numpy(vertices.copy()) + torch.tensor(grid.origin)
        return placed(target, Mesh(vertices, torch.from_numpy(faces.copy()).long()))

    def quality(result: Mesh | MeshFit) -> dict[str, float]:
        mesh = result.mesh if isinstance(result, MeshFit) else result
        figures = mesh_metrics(mesh, truth).as_dict()
        reached = {
            "faces": figures["faces"],
            "watertight": figures["watertight"],
            "Euler": figures["euler_characteristic"],
            "mean distance": figures["mean"],
            "normals > 5°, %": figures["normal_error_percent"],
            "angle < 10°, %": figures["small_angle_percent"],
            "self-intersecting, %": figures["self_intersection_percent"],
        }
        return reached | ({"fit alone, s": result.history.seconds} if isinstance(result, MeshFit) else {})

    contenders = {
        OURS: fitted,
        f"{OURS}, marching cubes": cubes,
        f"{OURS}, dual contouring": lambda: contour(target, grid, device),
        "scikit-image, marching cubes": theirs if skimage else None,
    }
    bench.compare(task, contenders, size=n, quality=quality)


def contour(target: Target, grid: Grid, device: torch.device) -> Mesh:
    return placed(target, dual_contouring(grid, target.sdf(grid.nodes(device=device)), target.value_and_gradient))


def placed(target: Target, mesh: Mesh) -> Mesh:
    """A mesh of the box in the target's own coordinates, where `fit_mesh` returns its own."""
    return Mesh(target.normalization.inverse(mesh.vertices.double()), mesh.faces)


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
