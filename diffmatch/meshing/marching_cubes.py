"""Marching cubes from the same tables as the dual surface: the baseline that fits are measured against.

One vertex per crossing edge, one polygon per loop of a cell, cut into a fan. Since every face is paired by the rule
of :mod:`.case_tables`, neighbouring cells agree and the mesh has no cracks; which of the topologies that the corner
signs allow is chosen by the face rule alone, without looking at the field inside faces and cells (as MC33 would).
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_same_device, check_shape
from diffmatch.meshing.case_tables import N_CASES, case_tables, cell_geometry
from diffmatch.meshing.connectivity import case_ids
from diffmatch.meshing.dual_surface import crossing
from diffmatch.meshing.grid import Grid
from diffmatch.meshing.mesh import Mesh

__all__ = ["marching_cubes"]

_MAX_TRIANGLES = 12  # more than any case needs; the table is cut to the most that one does


def marching_cubes(
    grid: Grid, sdf: Float[Tensor, "*field"], *, positions: Float[Tensor, "nodes 3"] | None = None
) -> Mesh:
    """Extract the surface where a field changes sign; differentiable in field and positions.

    Inside is ``sdf < 0``, as in :func:`~diffmatch.meshing.flexicubes`. The mesh is closed inside the grid and open
    where the surface leaves it.

    Args:
        grid: the cells.
        sdf: node values, shape (nx + 1, ny + 1, nz + 1) or (nodes,); half precision is computed in float32.
        positions: node positions, shape (nodes, 3); default: the grid at rest.

    Raises:
        InputError: a shape, dtype or device does not fit.
    """
    if not isinstance(sdf, Tensor):
        raise InputError("sdf", "a tensor", type(sdf).__name__)
    check_floating("sdf", sdf)
    if tuple(sdf.shape) not in (grid.node_shape, (grid.n_nodes,)):
        raise InputError("sdf", f"shape {grid.node_shape} or ({grid.n_nodes},)", str(tuple(sdf.shape)))
    field = sdf.to(torch.float64 if sdf.dtype == torch.float64 else torch.float32).flatten()
    if positions is None:
        positions = grid.nodes(dtype=field.dtype, device=field.device)
    check_shape("positions", positions, (grid.n_nodes, 3))
    check_floating("positions", positions)
    check_same_device("positions", positions, field.device)
    positions = positions.to(field.dtype)

    _, ny, nz = grid.node_shape
    step = (ny * nz, nz, 1)
    inside = (field < 0).reshape(grid.node_shape)
    # Crossing edges, numbered 3 * node + axis; an edge has its low end at the node.
    crosses = torch.zeros(*grid.node_shape, 3, dtype=torch.bool, device=field.device)
    for axis in range(3):
        here, there = (inside.narrow(axis, start, grid.shape[axis]) for start in (0, 1))
        crosses.narrow(axis, 0, grid.shape[axis])[..., axis] = here ^ there
    edge = crosses.flatten().nonzero().squeeze(1)
    low = edge // 3
    high = low + torch.tensor(step, device=field.device)[edge % 3]
    t = crossing(field[low], field[high]).unsqueeze(1)
    vertices = torch.lerp(positions[low], positions[high], t)

    vertex_of = torch.empty(3 * grid.n_nodes, dtype=torch.int64, device=field.device)
    vertex_of[edge] = torch.arange(len(edge), device=field.device)
    return Mesh(vertices, vertex_of[_triangle_edges(grid, inside)])


def _triangle_edges(grid: Grid, inside: Tensor) -> Tensor:
    """Triangles as triples of edge numbers."""
    cases = case_ids(inside[None]).flatten()
    cell = ((cases != 0) & (cases != 255)).nonzero().squeeze(1)
    triangles = _triangles(inside.device)[cases[cell].long()].long()  # (k, most, 3)
    slot, position = (triangles[..., 0] >= 0).nonzero(as_tuple=True)
    local = triangles[slot, position]  # (f, 3) edges of the cell
    axis, offset = local // 4, local % 4
    first, second = offset & 1, offset >> 1
    _, ny, nz = grid.node_shape
    step = torch.tensor((ny * nz, nz, 1), device=inside.device)
    i, j, k = grid.cell_index(cell[slot]).unbind(-1)
    node = ((i * ny + j) * nz + k)[:, None] + first * step[(axis + 1) % 3] + second * step[(axis + 2) % 3]
    return 3 * node + axis


@lru_cache(maxsize=8)
def _triangles(device: torch.device) -> Tensor:
    """Fans of the loops of each case as edges of the cell, padded with -1; shape (256, most, 3), int8."""
    tables = case_tables()
    triangles = np.full((N_CASES, _MAX_TRIANGLES, 3), -1, np.int8)
    for case in range(N_CASES):
        fans = []
        problem = tables.problem_face[case]
        taboo = cell_geometry().face_edges[problem] if problem >= 0 else []
        for loop in range(int(tables.n_loops[case])):
            ring = tables.loop_edges[case, tables.loop_start[case, loop] : tables.loop_start[case, loop + 1]]
            # A chord between two edges of a face that the loop meets twice would lie in that face, where the
            # neighbouring cell may have the same one: the fan starts at an edge elsewhere.
            start = int(np.argmin(np.isin(ring, taboo)))
            ring = np.roll(ring, -start)
            fans += [(ring[0], ring[i], ring[i + 1]) for i in range(1, len(ring) - 1)]
        triangles[case, : len(fans)] = np.array(fans).reshape(-1, 3)
    used = int((triangles[..., 0] >= 0).sum(1).max())
    return torch.from_numpy(triangles[:, :used]).to(device)
