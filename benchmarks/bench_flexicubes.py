"""FlexiCubes against the public implementation, and marching cubes against scikit-image, by cells a side.

The public implementation (nv-tlabs/FlexiCubes) takes part where ``DIFFMATCH_FLEXICUBES`` names the folder of a
checkout. Both get the same field, node positions and weights in single precision; how far vertices and gradients are
from ours stands beside each time. Our forward time over the sizes is fitted by ``a n^2 + b n^3``: what grows with the
surface, and what grows with the volume.
"""

import logging
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.spatial import cKDTree
from torch import Tensor

from diffmatch.meshing import Grid, flexicubes, marching_cubes
from diffmatch.meshing.shapes import torus
from diffmatch.meshing.weights import from_public_order

logger = logging.getLogger("benchmarks")

OURS = "diffmatch"
PUBLIC = "public FlexiCubes"


@dataclass
class Problem:
    """A ring on a grid, with random weights and moved nodes that require gradients; `cubes` numbers their corners."""

    grid: Grid
    sdf: Tensor
    positions: Tensor
    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    beta_public: Tensor
    cubes: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        return [self.sdf, self.positions, self.alpha, self.gamma]


def make(n: int, generator: torch.Generator) -> Problem:
    grid, device = Grid.cube(n), generator.device
    rest = grid.nodes(device=device)
    weights = 0.5 * torch.randn(grid.n_cells, 21, generator=generator, device=device)
    alpha, beta, gamma = (x.contiguous().requires_grad_() for x in from_public_order(weights))
    jitter = torch.rand(rest.shape, generator=generator, device=device) - 0.5
    _, ny, nz = grid.node_shape
    i, j, k = grid.cell_index(torch.arange(grid.n_cells, device=device)).unbind(-1)
    corner = torch.tensor([((c & 1) * ny + (c >> 1 & 1)) * nz + (c >> 2) for c in range(8)], device=device)
    return Problem(
        grid=grid,
        sdf=torus(rest, radius=0.6, tube=0.25).requires_grad_(),
        positions=(rest + 0.5 * grid.spacing[0] * jitter).requires_grad_(),
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        beta_public=weights[:, :12].clone().requires_grad_(),
        cubes=((i * ny + j) * nz + k)[:, None] + corner,
    )


def run(bench: Any) -> None:
    """Forward in test mode, forward and backward in training mode, and the baseline."""
    public, skimage = find_public(bench), bench.peer("skimage.measure")
    seconds = {}
    for n in bench.sizes((32, 64, 96, 128), tiny=(5, 8)):
        problem = make(n, bench.generator())
        rows = compare_forward(bench, problem, public)
        seconds[n] = next(row.median for row in rows if row.contender == OURS)
        compare_backward(bench, problem, public)
        compare_marching_cubes(bench, problem, skimage)
    by_surface, by_volume = growth(seconds)
    rows[0].quality.update({"ns / n^2": by_surface, "ns / n^3": by_volume})
    logger.info("%s forward: %.3g n^2 + %.3g n^3 ns", OURS, by_surface, by_volume)


def find_public(bench: Any) -> Any:
    """The public implementation on the benchmark's device, or None."""
    folder = os.environ.get("DIFFMATCH_FLEXICUBES")
    if folder and folder not in sys.path:
        sys.path.append(folder)
    module = bench.peer("flexicubes")
    return module and module.FlexiCubes(device=str(bench.device))


def compare_forward(bench: Any, p: Problem, public: Any) -> list[Any]:
    def ours() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            mesh = flexicubes(p.grid, p.sdf, positions=p.positions, alpha=p.alpha, beta=p.beta, gamma=p.gamma)
        return mesh.vertices, mesh.faces

    def theirs() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            vertices, faces, _ = call_public(public, p)
        return vertices, faces

    reference, _ = ours()

    def quality(result: tuple[Tensor, Tensor]) -> dict[str, float]:
        return {"faces": len(result[1]), "vertices off": farthest(result[0], reference)}

    contenders = {OURS: ours, PUBLIC: theirs if public else None}
    return per_cell(p, bench.compare("forward", contenders, size=p.grid.shape[0], quality=quality))


def compare_backward(bench: Any, p: Problem, public: Any) -> None:
    def gradients(vertices: Tensor, l_dev: Tensor, beta: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(vertices.square().sum() + l_dev, [*p.inputs, beta]))

    def ours() -> tuple[Tensor, int, list[Tensor]]:
        mesh = flexicubes(
            p.grid, p.sdf, positions=p.positions, alpha=p.alpha, beta=p.beta, gamma=p.gamma, training=True
        )
        return mesh.vertices, len(mesh.faces), gradients(mesh.vertices, mesh.l_dev, p.beta)

    def theirs() -> tuple[Tensor, int, list[Tensor]]:
        vertices, faces, deviations = call_public(public, p, training=True)
        return vertices, len(faces), gradients(vertices, deviations.mean(), p.beta_public)

    reference, _, wanted = ours()

    def quality(result: tuple[Tensor, int, list[Tensor]]) -> dict[str, float]:
        vertices, faces, found = result
        # Beta is left out, since each counts its edges in its own order; the tests compare it.
        errors = [relative(x, y) for x, y in zip(found[:-1], wanted[:-1], strict=True)]
        return {"faces": faces, "vertices off": farthest(vertices, reference), "gradients off": max(errors)}

    contenders = {OURS: ours, PUBLIC: theirs if public else None}
    per_cell(p, bench.compare("forward + backward", contenders, size=p.grid.shape[0], quality=quality))


def compare_marching_cubes(bench: Any, p: Problem, skimage: Any) -> None:
    field = p.sdf.detach().reshape(p.grid.node_shape)
    array, low = field.cpu().numpy(), np.array(p.grid.origin, np.float32)

    def ours() -> tuple[Tensor, int]:
        mesh = marching_cubes(p.grid, field)
        return mesh.vertices, len(mesh.faces)

    def theirs() -> tuple[Tensor, int]:
        vertices, faces, *_ = skimage.marching_cubes(array, 0.0, spacing=p.grid.spacing)
        return torch.from_numpy(vertices + low), len(faces)

    reference, _ = ours()
    bench.compare(
        "marching cubes",
        {OURS: ours, "scikit-image": theirs if skimage else None},
        size=p.grid.shape[0],
        quality=lambda result: {"faces": result[1], "vertices off": farthest(result[0], reference)},
    )


def call_public(public: Any, p: Problem, **settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    vertices, faces, deviations = public(
        p.positions,
        p.sdf,
        p.cubes,
        list(p.grid.shape),
        beta_fx12=p.beta_public,
        alpha_fx8=p.alpha,
        gamma_f=p.gamma,
        **settings,
    )
    return vertices, faces, deviations


def per_cell(p: Problem, rows: list[Any]) -> list[Any]:
    """Add the time for each cell that the surface passes through."""
    mesh = flexicubes(p.grid, p.sdf.detach())
    cells = len(mesh.vertex_cell.unique())
    for row in rows:
        row.quality["ns / surface cell"] = row.median * 1e9 / cells
    return rows


def growth(seconds: dict[int, float]) -> tuple[float, float]:
    """Nanoseconds a and b of ``a n^2 + b n^3``, both >= 0, by least squares of relative errors."""
    n, t = np.array([*seconds], float), np.array([*seconds.values()]) * 1e9
    (a, b), _ = nnls(np.stack((n**2 / t, n**3 / t), 1), np.ones(len(n)))
    return float(a), float(b)


def farthest(vertices: Tensor, reference: Tensor) -> float:
    """Largest distance of a vertex to the nearest one of the reference."""
    tree = cKDTree(reference.detach().cpu().numpy())
    return float(tree.query(vertices.detach().cpu().numpy())[0].max())


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
