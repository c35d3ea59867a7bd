"""Signs at the nodes that give a surface the topology that is wanted, where samples of it have another."""

import logging

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from diffmatch.meshing.connectivity import connect
from diffmatch.meshing.grid import Grid
from diffmatch.meshing.mesh import Mesh
from diffmatch.meshing.metrics import mesh_validity

__all__ = ["surface_topology", "with_topology", "without_small_pieces"]

logger = logging.getLogger(__name__)

LEVELS = (0.02, -0.02, 0.05, -0.05, 0.1, -0.1, 0.2, -0.2, 0.3, -0.3)
"""Offsets to try, in cells: up to what moves of the nodes can follow."""


def with_topology(
    grid: Grid, sdf: Float[Tensor, " nodes"], *, euler_characteristic: int, bodies: int
) -> Float[Tensor, " nodes"]:
    """The field with a few signs next to its surface changed, so that the surface has a wanted topology.

    Parts and gaps thinner than a cell are lost in samples, or come out as handles and pieces. A small offset of the
    field, outwards or inwards, often has the topology that its zero has not. Of the nodes that change sides with it,
    only those groups are taken that change the Euler characteristic of the surface around them.

    Args:
        grid: the cells.
        sdf: node values, negative inside.
        euler_characteristic: what the surface is to have, all pieces together.
        bodies: connected pieces of the surface that are wanted.

    Returns:
        The field with these nodes at the value of the offset that turned them, or as it came, with a warning, where
        no offset of up to 0.3 cells helps.
    """
    wanted = (euler_characteristic, bodies)
    found = surface_topology(grid, sdf)
    if found == wanted:
        return sdf
    for level in LEVELS:
        offset = sdf - level * min(grid.spacing)
        turned = _turned_groups(grid, sdf, offset)
        repaired = torch.where(turned, offset, sdf)
        if bool(turned.any()) and surface_topology(grid, repaired) == wanted:
            logger.info("topology: the signs of %d nodes were changed to that of the target", int(turned.sum()))
            return repaired
    logger.warning(
        "topology: on this grid the target comes out with Euler characteristic %d in %d bodies, not %d in %d: "
        "a finer resolution may find its thin parts",
        *(*found, *wanted),
    )
    return sdf


def without_small_pieces(grid: Grid, sdf: Float[Tensor, " nodes"], *, smallest: int) -> Float[Tensor, " nodes"]:
    """The field with the nodes within small closed pieces of its surface turned to the sign around them.

    What labels of nodes cannot tell: two nodes outside that share a face diagonal are joined by the surface, unless
    the cells on both sides of the face are flipped to keep it manifold. Such a node makes a cavity of its own, at most
    a few nodes large. Nodes that the surface does not touch stay as they are: larger pieces are left to
    :func:`~diffmatch.meshing.signs.without_specks`.

    Args:
        grid: the cells.
        sdf: node values, negative inside, with the boundary of the grid outside.
        smallest: pieces around fewer nodes go; the largest stays.
    """
    connectivity = connect(sdf.reshape(1, *grid.node_shape))
    quads, edge = connectivity.quads.cpu().numpy(), connectivity.quad_edge
    n = connectivity.n_vertices
    ends = quads[:, :3].ravel(), quads[:, 1:].ravel()
    graph = coo_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(n, n))
    n_pieces, label = connected_components(graph, directed=False)
    piece = torch.from_numpy(label).to(sdf.device).long()[connectivity.quads[:, 0]]
    low, axis = edge // 3, edge % 3
    # With all vertices in the middle of their cells, a piece encloses a cube around each node within, and its volume,
    # by the quads across one axis, is the number of these: positive for bodies, negative for cavities.
    outwards = 1.0 - 2.0 * (sdf[low] >= 0).double()
    plane = low // (grid.node_shape[1] * grid.node_shape[2]) + 0.5
    volume = sdf.new_zeros(n_pieces, dtype=torch.float64)
    volume.index_add_(0, piece, torch.where(axis == 0, outwards * plane, 0.0))
    small = volume.abs() < smallest - 0.5
    small[volume.abs().argmax()] = False
    high = low + torch.tensor(_strides(grid), device=low.device)[axis]
    within = torch.where((outwards > 0) == (volume[piece] > 0), low, high)
    turned = torch.zeros_like(sdf, dtype=torch.bool)
    turned[within[small[piece]]] = True
    if not bool(turned.any()):
        return sdf
    logger.warning("left out pieces of the surface around fewer than %d nodes: %d nodes in all", smallest, turned.sum())
    return torch.where(turned, -sdf, sdf)


def _strides(grid: Grid) -> tuple[int, int, int]:
    """From a node to the next one along each axis."""
    _, ny, nz = grid.node_shape
    return ny * nz, nz, 1


def surface_topology(grid: Grid, sdf: Float[Tensor, " nodes"]) -> tuple[int, int]:
    """Euler characteristic and number of connected pieces of the surface that is extracted from a field."""
    connectivity = connect(sdf.reshape(1, *grid.node_shape))
    quads = connectivity.quads
    faces = quads[:, [0, 1, 3, 1, 2, 3]].reshape(-1, 3)
    validity = mesh_validity(Mesh(torch.zeros(connectivity.n_vertices, 3), faces))
    return validity.euler_characteristic, validity.bodies


def _turned_groups(grid: Grid, one: Tensor, other: Tensor) -> Tensor:
    """Mask of the nodes that differ in sign, of groups that change the Euler characteristic around them."""
    before, after = ((x < 0).reshape(grid.node_shape).cpu().numpy() for x in (one, other))
    label, count = ndimage.label(before != after, np.ones((3, 3, 3)))
    turned = np.zeros(grid.node_shape, dtype=bool)
    for number, box in enumerate(ndimage.find_objects(label, count), start=1):
        around = tuple(slice(max(axis.start - 2, 0), axis.stop + 2) for axis in box)
        group = label[around] == number
        if _euler(before[around]) != _euler(np.where(group, after[around], before[around])):
            turned[around] |= group
    return torch.from_numpy(turned).flatten().to(one.device)


def _euler(inside: np.ndarray) -> int:
    """Euler characteristic of the nodes and what lies between them: edges, faces and cells with all corners inside.

    Half of it, so counted, is what these nodes add to that of their surface.
    """
    total, sign = 0, 1
    cells: list[tuple[np.ndarray, tuple[int, ...]]] = [(inside, (0, 1, 2))]
    for _ in range(4):
        total += sign * sum(int(cell.sum()) for cell, _ in cells)
        cells = [
            (np.delete(cell, 0, axis) & np.delete(cell, -1, axis), axes[i + 1 :])
            for cell, axes in cells
            for i, axis in enumerate(axes)
        ]
        sign = -sign
    return total
