"""A loss of your own: a ring under surface tension draws itself together into a ball.

Area is to be small and the volume to stay. The answer is known, a ball, but the ring has a hole and the ball has none:
on its way the surface closes it, which a mesh with fixed faces could not.
Run ``python examples/optimize_field.py [FOLDER]``; some ten seconds.
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from diffmatch import fit
from diffmatch.fitting import FitState, History
from diffmatch.meshing import Grid, Mesh, deform_nodes, flexicubes, mesh_validity, sign_change_loss, write_mesh
from diffmatch.meshing.shapes import torus
from diffmatch.report import Frame, encode_png, render_mesh


def main(folder: str | Path = "out", *, resolution: int = 24, steps: int = 400, width: int = 400) -> History:
    """Write ``drop.ply``, and pictures ``drop-STEP.png`` of the start, the middle and the end."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # What FlexiCubes has to play with: the field at the nodes, where the nodes are, and three kinds of weights. The
    # field is kept in cells and starts within one of zero, so that every node is a few steps away from changing sign.
    grid = Grid.cube(resolution)
    cell = grid.spacing[0]
    field = (torus(grid.nodes(), radius=0.5, tube=0.28) / cell).clamp(-1, 1).requires_grad_()
    deformation = torch.zeros(grid.n_nodes, 3, requires_grad=True)
    alpha, beta, gamma = (torch.zeros(grid.n_cells, *shape, requires_grad=True) for shape in [(8,), (12,), ()])

    def extract(*, training: bool) -> Mesh:
        positions = deform_nodes(grid, deformation)
        return flexicubes(grid, field, positions=positions, alpha=alpha, beta=beta, gamma=gamma, training=training)

    with torch.no_grad():
        volume = extract(training=False).volume
        least_area = (36 * math.pi * volume**2) ** (1 / 3)  # of all bodies with this volume: the ball's

    def loss(step: int) -> dict[str, Tensor]:  # named terms, whose sum is minimised; each gets its own curve
        mesh = extract(training=True)
        return {
            "area": mesh.face_areas.sum() / least_area,
            "volume": 100 * (mesh.volume / volume - 1).square(),
            "deviation": 0.2 * mesh.l_dev / cell,  # crossing points equally far from their vertex: good triangles
            "signs": 0.02 * (1 - step / steps) * sign_change_loss(grid, field),  # no crumbs where the hole closes
        }

    def watch(state: FitState) -> None:  # a callback sees each finished step; returning True would end the fit
        if state.step in (1, steps // 8, steps):
            mesh = extract(training=False).detach()
            area, genus = mesh.face_areas.sum() / least_area, mesh_validity(mesh).genus
            print(f"step {state.step}: genus {genus}, {area:.4f} times the area of a ball")
            picture = render_mesh(mesh, frame=Frame((0.0, 0.0, 0.0), 0.9), width=width, height=width * 3 // 4)
            (folder / f"drop-{state.step}.png").write_bytes(encode_png(picture))

    history = fit(
        [{"params": field}, {"params": [deformation, alpha, beta, gamma], "lr": 0.025}],  # the field moves at `lr`
        loss,
        optimizer="adam",
        lr=0.05,
        steps=steps,
        schedule="cosine",
        callbacks=[watch],
        checkpoint=folder / "drop.checkpoint",  # stopped or killed anywhere, the same call goes on to the same bits
    )
    (folder / "drop.checkpoint").unlink()
    write_mesh(folder / "drop.ply", extract(training=False))
    return history


if __name__ == "__main__":
    main(*sys.argv[1:])
