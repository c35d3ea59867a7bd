"""Terms that keep a fit well shaped, on the field, the weights and the extracted mesh.

The deviation of the crossing points, L_dev, comes with the mesh: :attr:`FlexiMesh.l_dev`.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from diffmatch.errors import InputError, check_floating
from diffmatch.meshing.grid import Grid
from diffmatch.meshing.mesh import Mesh

__all__ = ["edge_length_deviation", "normal_consistency", "sign_change_loss", "weight_magnitude"]


def sign_change_loss(grid: Grid, sdf: Float[Tensor, "*field"]) -> Float[Tensor, ""]:
    """Penalise sign changes of the field: removes floaters and inner walls where the data says nothing.

    Mean over the grid edges whose ends differ in sign of ``H(s_i, [s_j >= 0]) + H(s_j, [s_i >= 0])``, with H the
    binary cross entropy of a logit and a target (FlexiCubes, Shen et al. 2023, eq. 9); 0 without a sign change.

    Args:
        grid: the cells.
        sdf: node values, shape (\\*b, nx + 1, ny + 1, nz + 1) or (\\*b, nodes); half precision is summed in float32.

    Returns:
        The loss; NaN or infinite only where an end of a crossing edge is. Waits for the device three times, for the
        numbers of crossing edges.

    Raises:
        InputError: the shape does not fit the grid, or the dtype is not floating.
    """
    check_floating("sdf", sdf)
    tail = tuple(sdf.shape[-3:]) == grid.node_shape
    if not tail and sdf.shape[-1:] != (grid.n_nodes,):
        raise InputError("sdf", f"shape (*b, {', '.join(map(str, grid.node_shape))})", str(tuple(sdf.shape)))
    field = sdf.to(torch.float64 if sdf.dtype == torch.float64 else torch.float32).reshape(-1, *grid.node_shape)
    inside = field < 0
    total, count = field[:0].sum(), 0  # zero, attached to the graph
    for axis, cells in enumerate(grid.shape, start=1):
        crossing = (inside.narrow(axis, 0, cells) ^ inside.narrow(axis, 1, cells)).flatten().nonzero().squeeze(1)
        low, high = (field.narrow(axis, start, cells).reshape(-1)[crossing] for start in (0, 1))
        # softplus(x) - x y is the cross entropy of logit x with target y, here the state of the other end.
        total = total + (softplus(low) + softplus(high) - torch.where(low < 0, low, high)).sum()
        count += len(crossing)
    return total / max(count, 1)


def weight_magnitude(*weights: Tensor) -> Float[Tensor, ""]:
    """Mean magnitude of raw cell weights (alpha and beta), which keeps them near neutral.

    Raises:
        InputError: no weights are given.
    """
    if not weights:
        raise InputError("weights", "at least one tensor", "none")
    count = sum(weight.numel() for weight in weights)
    return torch.stack([weight.abs().sum() for weight in weights]).sum() / max(count, 1)


def edge_length_deviation(mesh: Mesh) -> Float[Tensor, ""]:
    """Mean over all triangle sides of how far their length is from the mean length, in units of length."""
    corners = mesh.corners
    sides = torch.linalg.vector_norm(corners - corners.roll(-1, 1), dim=-1)
    return (sides - sides.mean()).abs().mean() if len(mesh.faces) else mesh.vertices.sum() * 0


def normal_consistency(mesh: Mesh) -> Float[Tensor, ""]:
    """Mean of ``1 - n_a . n_b`` over the pairs of triangles that share a side; 0 on a plane, at most 2."""
    first, second = _adjacent_faces(mesh.faces, len(mesh.vertices))
    normals = mesh.face_normals
    pairs = (normals[first] * normals[second]).sum(-1)
    return (1 - pairs).mean() if len(pairs) else mesh.vertices.sum() * 0


def _adjacent_faces(faces: Tensor, n_vertices: int) -> tuple[Tensor, Tensor]:
    """Pairs of faces that share a side; a side with other than two faces gives none."""
    ends = torch.stack((faces, faces.roll(-1, 1)), -1).reshape(-1, 2)
    key = ends.amin(1) * n_vertices + ends.amax(1)
    key, order = key.sort(stable=True)
    _, counts = torch.unique_consecutive(key, return_counts=True)
    start = counts.cumsum(0) - counts
    start = start[counts == 2]
    return order[start] // 3, order[start + 1] // 3
