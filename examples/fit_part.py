"""From a field to a mesh: a machine part, fitted on a coarse grid, beside marching cubes on the same grid.

Run ``python examples/fit_part.py [FOLDER]``; half a minute on two cores.
"""

import sys
from pathlib import Path

import numpy as np

from diffmatch.meshing import Grid, Mesh, fit_mesh, marching_cubes, mesh_metrics, write_mesh
from diffmatch.meshing.shapes import demo_part
from diffmatch.report import Frame, Report, View, add_mesh_fit, encode_png, render_mesh

SHOWN = ("faces", "watertight", "genus", "mean", "normal_error_percent", "small_angle_percent")


def main(folder: str | Path = "out", *, resolution: int = 48, steps: int = 100, width: int = 800) -> None:
    """Write ``part.glb``, ``part.html`` and ``part.png`` into a folder.

    Args:
        folder: made if needed.
        resolution: cells of the grid a side.
        steps: steps of the fit.
        width: of each of the two pictures in ``part.png``, in pixels.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # A field is any function from points (n, 3) to values (n,) that is negative inside. The path of a mesh file or of
    # a volume would do as well. The fit moves the vertices onto the surface, edges and corners included.
    result = fit_mesh(demo_part, resolution=resolution, steps=steps)
    write_mesh(folder / "part.glb", result.mesh)

    # Marching cubes puts its vertices on the edges of the same grid, so it cuts off what lies between them.
    grid = Grid.cube(resolution)
    cubes = marching_cubes(grid, demo_part(grid.nodes()))

    # `result.metrics` measured the fit against `result.target_mesh`; the same measures for the other mesh.
    measured = {"marching cubes": mesh_metrics(cubes, result.target_mesh), "fit": result.metrics}
    print(f"{'':22}" + "".join(f"{name:>16}" for name in measured))
    for key in SHOWN:
        print(f"{key:22}" + "".join(f"{m.as_dict()[key]:16.4g}" for m in measured.values()))

    report = Report("A machine part", summary=f"Fitted on {resolution} cells a side.")
    add_mesh_fit(report, result)
    report.write(folder / "part.html")
    (folder / "part.png").write_bytes(encode_png(side_by_side([cubes, result.mesh], width)))
    print(f"wrote {folder}/part.glb, part.html, part.png")


def side_by_side(meshes: list[Mesh], width: int) -> np.ndarray:
    """Pictures of meshes, all from one camera, so that only the meshes differ."""
    points = meshes[0].vertices.double().numpy()
    frame = Frame.around(points)
    view = View.standard("z").fitted(points, frame)
    size = {"width": width, "height": width * 3 // 4}
    return np.concatenate([render_mesh(mesh, view=view, frame=frame, **size) for mesh in meshes], axis=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
