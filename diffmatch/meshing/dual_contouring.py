"""Dual contouring: the surface of a known field with its sharp edges, without a fit.

The connectivity is that of FlexiCubes; each vertex minimises the squared distances to the tangent planes at the
crossing points of its loop (Ju et al. 2002; one vertex per loop as in Schaefer, Ju and Warren 2007).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating
from diffmatch.meshing.connectivity import Connectivity, connect
from diffmatch.meshing.dual_surface import crossing
from diffmatch.meshing.grid import Grid
from diffmatch.meshing.mesh import Mesh
from diffmatch.ops import segment_sum

__all__ = ["dual_contouring"]

_REFINEMENTS = 3
_ARRIVED = 1e-5  # of an edge: what single precision resolves

FieldAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def dual_contouring(
    grid: Grid, sdf: Float[Tensor, "*field"], value_and_gradient: FieldAndGradient, *, regularization: float = 0.03
) -> Mesh:
    """Extract a field whose values and gradients can be asked for anywhere; not differentiable.

    Vertices stay inside their cells, where the quadratic may want them outside. Where it does not determine a direction
    (along an edge, in a plane), the vertex stays at the mean of its crossing points.

    Args:
        grid: the cells.
        sdf: values at the nodes, shape (nx + 1, ny + 1, nz + 1) or (nodes,), negative inside.
        value_and_gradient: the same field at any points (n, 3): values (n,) and gradients (n, 3).
        regularization: weight of the distance to the mean of the crossing points beside the distances to the planes.

    Raises:
        InputError: the field does not fit the grid.
    """
    check_floating("sdf", sdf)
    if tuple(sdf.shape) not in (grid.node_shape, (grid.n_nodes,)):
        raise InputError("sdf", f"shape {grid.node_shape} or ({grid.n_nodes},)", str(tuple(sdf.shape)))
    field = sdf.flatten()
    connectivity = connect(field.reshape(1, *grid.node_shape))
    nodes = grid.nodes(dtype=field.dtype, device=field.device)
    rows = connectivity.incidences
    points = _crossing_points(nodes[rows.node], field[rows.node], value_and_gradient)
    gradient = value_and_gradient(points)[1]
    length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    normals = gradient / torch.where(length > 0, length, 1)

    count = rows.count[:, None]
    n_vertices = connectivity.n_vertices
    mean = segment_sum(points, rows.vertex, n_segments=n_vertices) / count
    distance = (normals * (points - mean[rows.vertex])).sum(1, keepdim=True)
    pull = segment_sum(normals * distance, rows.vertex, n_segments=n_vertices) / count
    planes = segment_sum(normals[:, :, None] * normals[:, None], rows.vertex, n_segments=n_vertices) / count[..., None]
    planes = planes + regularization**2 * torch.eye(3, dtype=field.dtype, device=field.device)
    step = torch.linalg.solve(planes, pull)

    low = nodes[connectivity.node][connectivity.vertex_slot]
    high = low + low.new_tensor(grid.spacing)
    vertices = torch.minimum(torch.maximum(mean + step, low), high)
    return Mesh(vertices, _split_by_error(connectivity, vertices, value_and_gradient))


def _crossing_points(ends: Tensor, values: Tensor, value_and_gradient: FieldAndGradient) -> Tensor:
    """Where the field vanishes on each edge: the linear guess, then Newton's method kept inside the bracket.

    A point that is there already stays: the sign of its value is noise, and would move the wrong end of the bracket.
    """
    (x0, x1), (a, b) = ends.unbind(1), values.unbind(1)
    low, high = torch.zeros_like(a), torch.ones_like(a)
    t = crossing(a, b)
    for _ in range(_REFINEMENTS):
        value, gradient = value_and_gradient(torch.lerp(x0, x1, t[:, None]))
        on_low_side = (value < 0) == (a < 0)
        low, high = torch.where(on_low_side, t, low), torch.where(on_low_side, high, t)
        slope = (gradient * (x1 - x0)).sum(1)
        newton = t - value / slope
        within = (low <= newton) & (newton <= high)
        arrived = value.abs() <= _ARRIVED * slope.abs()
        t = torch.where(arrived, t, torch.where(within, newton, (low + high) / 2))
    return torch.lerp(x0, x1, t[:, None])


def _split_by_error(connectivity: Connectivity, vertices: Tensor, value_and_gradient: FieldAndGradient) -> Tensor:
    """Split each quad along the diagonal whose middle lies nearer to the surface."""
    quads = connectivity.quads
    corners = vertices[quads]
    error_02, error_13 = (value_and_gradient((corners[:, i] + corners[:, i + 2]) / 2)[0].abs() for i in range(2))
    turned = torch.where((error_02 < error_13)[:, None], quads.roll(1, 1), quads)
    return turned[:, [0, 1, 3, 1, 2, 3]].reshape(-1, 3)
