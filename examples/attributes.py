"""Values that ride on a surface: colours at the nodes of a grid, carried to the vertices and into files.

FlexiCubes interpolates attributes as it does positions, so gradients of a loss on the vertices reach the nodes. Here
the vertices say what colour they want, by where they lie, and the nodes around the surface learn it.
Run ``python examples/attributes.py [FOLDER]``; some ten seconds.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from diffmatch import fit
from diffmatch.meshing import Grid, Mesh, flexicubes, write_mesh
from diffmatch.meshing.shapes import torus
from diffmatch.report import encode_png, render_mesh


def stripes(points: Tensor) -> Tensor:
    """The wanted colours at points (n, 3): red, green and blue in [0, 1], winding around the ring."""
    x, y, z = points.unbind(1)
    around, along = torch.atan2(y, x), torch.atan2(z, torch.hypot(x, y) - 0.6)
    shift = torch.tensor([0.0, 2.0, 4.0]) * torch.pi / 3
    return 0.5 + 0.4 * torch.cos((3 * around + 2 * along)[:, None] - shift)


def main(folder: str | Path = "out", *, resolution: int = 64, steps: int = 100, width: int = 800) -> None:
    """Write ``ring.ply`` and ``ring.glb``, with colours at the vertices, and the picture ``ring.png``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    grid = Grid.cube(resolution)
    field = torus(grid.nodes(), radius=0.6, tube=0.25)

    # One row of attributes a node, with as many columns as you like; three within [0, 1] are a colour to file formats.
    # A sigmoid keeps them there: interpolation leaves no interval that the nodes are in.
    raw = torch.zeros(grid.n_nodes, 3, requires_grad=True)

    def colored_mesh() -> Mesh:
        return flexicubes(grid, field, attributes=raw.sigmoid())

    def loss() -> Tensor:
        mesh = colored_mesh()
        return (mesh.vertex_attributes - stripes(mesh.vertices)).square().mean()

    history = fit([raw], loss, optimizer="adam", lr=0.1, steps=steps, schedule="cosine")
    print(f"error of the colours: {history.loss[0] ** 0.5:.3f} at first, {history.loss[-1] ** 0.5:.4f} at the end")

    # Nodes far from the surface never had a gradient and are still grey; no vertex sees them.
    seen = (raw.detach() != 0).any(1).double().mean()
    print(f"nodes that the surface reaches: {100 * seen:.0f} %")

    mesh = colored_mesh().detach()
    for name in ("ring.ply", "ring.glb"):
        write_mesh(folder / name, mesh)
    per_face = mesh.vertex_attributes[mesh.faces].mean(1)  # the renderer wants one colour a face, 8 bits a channel
    picture = render_mesh(mesh, color=(255 * per_face).byte().numpy(), width=width, height=width * 3 // 4)
    (folder / "ring.png").write_bytes(encode_png(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])
