"""FlexiCubes against the public implementation, and marching cubes against scikit-image, by cells a side.

The public implementation (nv-tlabs/FlexiCubes) takes part where ``DIFFMATCH_FLEXICUBES`` names the folder of a
checkout. Both get the same field, node positions and weights in single precision; how far vertices and gradients are
from ours stands beside each time. "Active rows" has weights for the cells at the surface alone, "kept" also the
connectivity of an earlier extraction. "Alone" is the peak memory of one call in a process of its own. Our forward time
over the sizes is fitted by ``a n^2 + b n^3``: what grows with the surface, and what grows with the volume. The stages
of our extraction stand beside the least time in which the memory could move what each reads and writes once.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.spatial import cKDTree
from torch import Tensor

from diffmatch.meshing import FlexiMesh, Grid, flexicubes, marching_cubes
from diffmatch.meshing.shapes import torus
from diffmatch.meshing.weights import from_public_order

logger = logging.getLogger("benchmarks")

OURS = "diffmatch"
ROWS, KEPT = f"{OURS}, active rows", f"{OURS}, active rows, kept"
KEPT_NODES = f"{OURS}, active rows and nodes, kept"
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
    """Forward in test mode, forward and backward in training mode, the baseline, the growth, and the stages."""
    public, skimage = find_public(bench), bench.peer("skimage.measure")
    for n in bench.sizes((32, 64, 96, 128), tiny=(5, 8)):
        problem = make(n, bench.generator())
        compare_forward(bench, problem, public)
        compare_backward(bench, problem, public)
        compare_marching_cubes(bench, problem, skimage)
    stages(bench, problem)
    measure_growth(bench)


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
    contenders = backward_contenders(p, public)
    reference, _, wanted = contenders[OURS]()
    surface = flexicubes(p.grid, p.sdf.detach()).connectivity
    rows_of = {len(index): index.long() for index in (surface.cell, surface.nodes)}

    def quality(result: tuple[Tensor, int, list[Tensor]]) -> dict[str, float]:
        vertices, faces, found = result
        # Beta is left out, since each counts its edges in its own order; the tests compare it.
        pairs = zip(found[:-1], wanted[:-1], strict=True)
        errors = [relative(x, y if x.shape == y.shape else y[rows_of[len(x)]]) for x, y in pairs]
        return {"faces": faces, "vertices off": farthest(vertices, reference), "gradients off": max(errors)}

    n = p.grid.shape[0]
    rows = per_cell(p, bench.compare("forward + backward", contenders, size=n, quality=quality))
    if not bench.tiny and bench.device.type == "cpu":
        for row in rows:
            row.quality["alone, MiB"] = peak_alone(row.contender, n) / 2**20


def backward_contenders(p: Problem, public: Any) -> dict[str, Any]:
    """Forward and backward in training mode; each returns vertices, the number of faces, and gradients."""
    cells = flexicubes(p.grid, p.sdf.detach()).connectivity.cell.long()
    rows = [x.detach()[cells].requires_grad_() for x in (p.alpha, p.beta, p.gamma)]
    kept = flexicubes(p.grid, p.sdf.detach()).connectivity
    nodes = [x.detach()[kept.nodes].requires_grad_() for x in (p.sdf, p.positions)]

    def gradients(vertices: Tensor, l_dev: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(vertices.square().sum() + l_dev, inputs))

    def dense() -> tuple[Tensor, int, list[Tensor]]:
        mesh = extract(p)
        return mesh.vertices, len(mesh.faces), gradients(mesh.vertices, mesh.l_dev, [*p.inputs, p.beta])

    def active(
        connectivity: Any = None, sdf: Tensor = p.sdf, positions: Tensor = p.positions
    ) -> tuple[Tensor, int, list[Tensor]]:
        alpha, beta, gamma = rows
        mesh = flexicubes(
            p.grid,
            sdf,
            positions=positions,
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            weight_cells=cells,
            connectivity=connectivity,
            training=True,
        )
        found = gradients(mesh.vertices, mesh.l_dev, [sdf, positions, alpha, gamma, beta])
        return mesh.vertices, len(mesh.faces), found

    def theirs() -> tuple[Tensor, int, list[Tensor]]:
        vertices, faces, deviations = call_public(public, p, training=True)
        return vertices, len(faces), gradients(vertices, deviations.mean(), [*p.inputs, p.beta_public])

    return {
        OURS: dense,
        ROWS: active,
        KEPT: lambda: active(kept),
        KEPT_NODES: lambda: active(kept, *nodes),
        PUBLIC: theirs if public else None,
    }


def extract(p: Problem) -> FlexiMesh:
    return flexicubes(p.grid, p.sdf, positions=p.positions, alpha=p.alpha, beta=p.beta, gamma=p.gamma, training=True)


def peak_alone(contender: str, n: int) -> int:
    """Bytes that one forward and backward of a contender takes in a process that runs nothing else."""
    command = [sys.executable, str(Path(__file__).resolve()), "--peak", contender, str(n)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(contender: str, n: int) -> None:
    """What `peak_alone` starts: a small call first, so that code and threads are not counted, then one of the size."""
    from harness import Bench, peak_memory

    bench = Bench("peak")
    public = find_public(bench)
    for size in (8, n):
        run = backward_contenders(make(size, bench.generator()), public)[contender]
        peak = peak_memory(run, bench.device)
    sys.stdout.write(f"{peak}\n")


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


def measure_growth(bench: Any) -> None:
    """Our forward pass over the sizes, and the growth of its time."""
    seconds = {}
    for n in bench.sizes((32, 48, 64, 96, 128, 160, 192), tiny=(5, 8)):
        p = make(n, bench.generator())

        def run(p: Problem = p) -> int:
            with torch.no_grad():
                mesh = flexicubes(p.grid, p.sdf, positions=p.positions, alpha=p.alpha, beta=p.beta, gamma=p.gamma)
            return len(mesh.faces)

        (row,) = bench.compare("growth of forward", {OURS: run}, size=n, quality=lambda faces: {"faces": faces})
        seconds[n] = row.median
    by_surface, by_volume = growth(seconds)
    row.quality.update({"ns / n^2": by_surface, "ns / n^3": by_volume})
    logger.info("%s forward: %.3g n^2 + %.3g n^3 ns", OURS, by_surface, by_volume)


def stages(bench: Any, p: Problem) -> None:
    """The parts of our extraction, and the least time that the memory needs for what each reads and writes once."""
    field = p.sdf.detach().reshape(1, *p.grid.node_shape)
    surface = flexicubes(p.grid, p.sdf.detach()).connectivity
    mesh = extract(p)
    n, cells, real = p.grid.n_nodes, p.grid.n_cells, p.sdf.element_size()
    k, v, q = len(surface.cell), surface.n_vertices, len(surface.quads)
    lists = sum(x.numel() * x.element_size() for x in (surface.cell, surface.row, surface.quads, surface.quad_edge))
    at_surface = real * (4 * v + 21 * k)  # about as many nodes as vertices: field and position; weights

    def vertices() -> FlexiMesh:
        with torch.no_grad():
            return flexicubes(
                p.grid,
                p.sdf,
                positions=p.positions,
                alpha=p.alpha,
                beta=p.beta,
                gamma=p.gamma,
                training=True,
                connectivity=surface,
            )

    def backward() -> FlexiMesh:
        torch.autograd.grad(mesh.vertices.square().sum() + mesh.l_dev, [*p.inputs, p.beta], retain_graph=True)
        return mesh

    parts: dict[str, tuple[Callable[[], Any], int]] = {
        "signs, cells, quads": (lambda: connected(field), real * n + lists),
        "weights, vertices, faces": (vertices, at_surface + real * 3 * (v + q) + 8 * 12 * q),
        "backward, dense": (backward, 2 * at_surface + real * (4 * n + 21 * cells)),
    }
    bandwidth = copied_per_second(bench)
    for name, (run, moved) in parts.items():
        (row,) = bench.compare(f"stage: {name}", {OURS: run}, size=p.grid.shape[0], quality=lambda _: {"moved": 0.0})
        floor = moved / bandwidth
        row.quality.update(moved=moved / 2**20, floor=floor * 1e3, excess=row.median / floor)
        for old, new in (("moved", "moved, MiB"), ("floor", "floor, ms"), ("excess", "time / floor")):
            row.quality[new] = row.quality.pop(old)


def connected(field: Tensor) -> Any:
    from diffmatch.meshing import connectivity, kernels

    return kernels.connect(field) if field.device.type == "cpu" else connectivity.connect(field)


def copied_per_second(bench: Any) -> float:
    """Bytes, read and written, that a large copy moves in a second."""
    source = torch.zeros(1_000 if bench.tiny else 50_000_000, device=bench.device)
    goal = torch.empty_like(source)
    (row,) = bench.compare(
        "copy of memory", {OURS: lambda: goal.copy_(source)}, size=source.numel(), quality=lambda x: {"sum": x.sum()}
    )
    moved = 2 * source.numel() * source.element_size()
    row.quality["GB / s"] = moved / row.median / 1e9
    return float(moved / row.median)


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

    if sys.argv[1:2] == ["--peak"]:
        print_peak(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(main(files=[__file__]))
