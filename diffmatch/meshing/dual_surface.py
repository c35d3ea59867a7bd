"""Vertices of the dual surface as one differentiable function of field, positions and weights.

For each crossing edge k of a dual vertex (ends 0 low, 1 high), with corner weights A, edge weights B and split weights
G (FlexiCubes, Shen et al. 2023, equations 4 to 8)::

    a = s0 A0,  b = s1 A1,  t = a / (a - b)      crossing point   u_k = x0 + t (x1 - x0)
    dual vertex       v = sum_k B_k u_k / sum_k B_k
    quad centre       c = (g02 (v0 + v2)/2 + g13 (v1 + v3)/2) / (g02 + g13),   g02 = G0 G2, g13 = G1 G3
    deviation         sum_k |d_k - mean d|,  d_k = |z_k - v|,  z_k the crossing point with A = 1

Attributes of the nodes travel with the positions: both are columns of one *payload* that is interpolated alike.

Only the nodes at the corners of the surface cells take part, in the order of ``Connectivity.nodes``.

Nothing but the inputs, the weights and the points is kept for the backward pass, which recomputes t and u. It is
written out by hand, once in tensor operations (any device; differentiable again, so that second derivatives work) and
once as numba kernels.
"""

from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.meshing import kernels
from diffmatch.meshing.connectivity import Connectivity
from diffmatch.meshing.kernels import CENTRE_EPS, DISTANCE_EPS, STEEPEST
from diffmatch.meshing.weights import corner_slope, corner_weight, split_slope, split_weight
from diffmatch.ops import distinct_rows, segment_sum

_Weights: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]


def dual_surface(
    connectivity: Connectivity,
    field: Float[Tensor, " m"],
    payload: Float[Tensor, "m d"],
    alpha: Float[Tensor, "k 8"] | None,
    beta: Float[Tensor, "k 12"] | None,
    gamma: Float[Tensor, " k"] | None,
    *,
    scale: float,
    centres: bool,
    compiled: bool,
) -> tuple[Float[Tensor, "points d"], Float[Tensor, " v"]]:
    """Payload at the dual vertices (and the quad centres behind them), and the deviation of each dual vertex.

    Args:
        connectivity: which cells and edges the surface crosses.
        field: values at the nodes of the connectivity.
        payload: columns to interpolate, at these nodes; the first three are the positions.
        alpha: raw corner weights of the surface cells; None for A = 1.
        beta: raw edge weights of the surface cells; None for B = 1.
        gamma: raw split weights of the surface cells; None for G = 1/2.
        scale: reach of the weights, in (0, 1).
        centres: append the centre of each quad.
        compiled: use the numba kernels (tensors on the CPU only).
    """
    result: tuple[Tensor, Tensor] = _DualSurface.apply(
        field, payload, alpha, beta, gamma, connectivity, scale, centres, compiled
    )
    return result


class _DualSurface(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        field: Tensor,
        payload: Tensor,
        alpha: Tensor | None,
        beta: Tensor | None,
        gamma: Tensor | None,
        connectivity: Connectivity,
        scale: float,
        centres: bool,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        forward = kernels.dual_surface if compiled else surface_forward
        weights = _activated(alpha, beta, gamma, scale)
        points, deviation, floor = forward(connectivity, field, payload, *weights, centres)
        ctx.save_for_backward(field, payload, alpha, beta, gamma, *weights, points, floor)
        ctx.settings = connectivity, scale, centres, compiled
        return points, deviation

    @staticmethod
    def backward(ctx: Any, grad_points: Tensor, grad_deviation: Tensor) -> tuple[Tensor | None, ...]:
        connectivity, scale, centres, compiled = ctx.settings
        field, payload, alpha, beta, gamma, corner, edge, split, points, floor = ctx.saved_tensors
        given, upstream = (points, floor), (grad_points, grad_deviation)
        if compiled and not torch.is_grad_enabled():
            grads = kernels.dual_surface_backward(
                connectivity, field, payload, corner, edge, split, *given, *upstream, centres, scale
            )
        else:
            # With create_graph=True autograd records this very function: tensor operations, from the raw weights on.
            weights = _activated(alpha, beta, gamma, scale)
            grads = surface_backward(connectivity, field, payload, *weights, *given, *upstream, centres)
            slopes = corner_slope, corner_slope, split_slope
            by_raw = [
                None if grad is None or weight is None else grad * slope(weight, scale)
                for grad, weight, slope in zip(grads[2:], weights, slopes, strict=True)
            ]
            grads = *grads[:2], *by_raw
        return *grads, None, None, None, None


def at_nodes(
    connectivity: Connectivity, field: Float[Tensor, " n"], payload: Float[Tensor, "n d"], *, compiled: bool
) -> tuple[Float[Tensor, " m"], Float[Tensor, "m d"]]:
    """Rows of field and payload at the nodes of the connectivity; the gradient writes only those rows."""
    if compiled:
        rows: tuple[Tensor, Tensor] = _AtNodes.apply(field, payload, connectivity.nodes)
        return rows
    return distinct_rows(field, connectivity.nodes), distinct_rows(payload, connectivity.nodes)


class _AtNodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, field: Tensor, payload: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(nodes)
        ctx.n = len(field)
        return kernels.at_nodes(nodes, field, payload)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (nodes,) = ctx.saved_tensors

        def spread(rows: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                return rows.new_zeros(ctx.n, *rows.shape[1:]).index_copy(0, nodes, rows)
            return kernels.from_nodes(nodes, rows, ctx.n)

        wanted = zip(grads, ctx.needs_input_grad[:2], strict=True)
        return *(spread(rows) if needed else None for rows, needed in wanted), None


def _activated(alpha: Tensor | None, beta: Tensor | None, gamma: Tensor | None, scale: float) -> _Weights:
    """The weights A, B and G."""
    return (
        None if alpha is None else corner_weight(alpha, scale),
        None if beta is None else corner_weight(beta, scale),
        None if gamma is None else split_weight(gamma, scale),
    )


def crossing(low: Tensor, high: Tensor) -> Tensor:
    """Where a linear function with these end values vanishes, as a fraction of the edge.

    One half, without a gradient, where that is not a number: values that underflow to zero, infinite or NaN.
    """
    # Replaced before the division and not after it, where its derivative would make NaN of the infinite.
    usable = _usable(low, high)
    low, high = torch.where(usable, low, 1.0), torch.where(usable, high, -1.0)
    return low / (low - high)


def _usable(low: Tensor, high: Tensor) -> Tensor:
    difference = low - high
    return difference.isfinite() & (low / difference).isfinite()


def _crossing_grad(low: Tensor, high: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of :func:`crossing` by its end values, held constant below a difference of ``floor``."""
    usable = _usable(low, high)
    low, high = torch.where(usable, low, 0.0), torch.where(usable, high, 0.0)
    difference = low - high
    steep = torch.where(difference.abs() < floor, torch.copysign(floor, difference), difference)
    return -high / steep / steep, low / steep / steep  # the square of a small difference could underflow


def _steepest(low: Tensor, high: Tensor) -> Tensor:
    """Smallest difference that crossing gradients divide by, relative to the mean magnitude at the crossings."""
    magnitude = (low.abs() + high.abs()).detach() / 2
    mean = torch.where(magnitude.isfinite(), magnitude, 0).mean()
    return (STEEPEST * mean).clamp_min(torch.finfo(low.dtype).tiny)


def surface_forward(
    connectivity: Connectivity,
    field: Tensor,
    payload: Tensor,
    corner_weights: Tensor | None,
    edge_weights: Tensor | None,
    split_weights: Tensor | None,
    centres: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The function in tensor operations; differentiable by autograd as well, which is how the backward is tested.

    Returns points and deviations, and the smallest difference of field values that the backward divides by.
    """
    rows, n_vertices = connectivity.incidences, connectivity.n_vertices
    low, high = field[rows.place].unbind(1)
    x0, x1 = payload[rows.place].unbind(1)
    a, b = low, high
    if corner_weights is not None:
        weight = corner_weights[rows.slot[:, None], rows.corner]
        a, b = low * weight[:, 0], high * weight[:, 1]
    u = torch.lerp(x0, x1, crossing(a, b).unsqueeze(1))
    if edge_weights is None:
        vertices = segment_sum(u, rows.vertex, n_segments=n_vertices) / rows.count[:, None]
    else:
        weight = edge_weights[rows.slot, rows.edge]
        total = segment_sum(weight, rows.vertex, n_segments=n_vertices)
        vertices = segment_sum(u * weight[:, None], rows.vertex, n_segments=n_vertices) / total[:, None]

    z = torch.lerp(x0[:, :3], x1[:, :3], crossing(low, high).unsqueeze(1))
    distance = _distance(z - vertices[rows.vertex, :3])
    mean = segment_sum(distance, rows.vertex, n_segments=n_vertices) / rows.count
    deviation = segment_sum((distance - mean[rows.vertex]).abs(), rows.vertex, n_segments=n_vertices)
    if centres:
        vertices = torch.cat((vertices, _centres(connectivity, vertices, split_weights)))
    return vertices, deviation, _steepest(low, high)


def _distance(offset: Tensor) -> Tensor:
    return torch.sqrt((offset * offset).sum(-1) + DISTANCE_EPS)


def quad_weights(connectivity: Connectivity, split_weights: Tensor | None, like: Tensor) -> Float[Tensor, "q 4"]:
    """Split weight G of the cell of each corner of each quad."""
    if split_weights is None:
        return like.new_full((len(connectivity.quads), 4), 0.5)
    return split_weights[connectivity.vertex_slot[connectivity.quads]]


def _centres(connectivity: Connectivity, vertices: Tensor, split_weights: Tensor | None) -> Tensor:
    g = quad_weights(connectivity, split_weights, vertices)
    g02, g13 = (g[:, 0] * g[:, 2]).unsqueeze(1), (g[:, 1] * g[:, 3]).unsqueeze(1)
    v = vertices[connectivity.quads]
    return (g02 * (v[:, 0] + v[:, 2]) + g13 * (v[:, 1] + v[:, 3])) / 2 / (g02 + g13 + CENTRE_EPS)


def surface_backward(
    connectivity: Connectivity,
    field: Tensor,
    payload: Tensor,
    corner_weights: Tensor | None,
    edge_weights: Tensor | None,
    split_weights: Tensor | None,
    points: Tensor,
    floor: Tensor,
    grad_points: Tensor,
    grad_deviation: Tensor,
    centres: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients by field, payload and the three kinds of weights (None for weights that are None)."""
    rows, n_vertices = connectivity.incidences, connectivity.n_vertices
    vertices, grad_vertices = points[:n_vertices], grad_points[:n_vertices]
    grad_split = None
    if centres:
        spread, grad_split = _centres_backward(connectivity, points, split_weights, grad_points[n_vertices:])
        grad_vertices = grad_vertices + spread

    low, high = field[rows.place].unbind(1)
    x0, x1 = payload[rows.place].unbind(1)
    edge = x1 - x0
    z_t = crossing(low, high)

    # Deviation: through the plain crossing points z and through the vertex.
    offset = torch.lerp(x0[:, :3], x1[:, :3], z_t[:, None]) - vertices[rows.vertex, :3]
    distance = _distance(offset)
    mean = segment_sum(distance, rows.vertex, n_segments=n_vertices) / rows.count
    sign = torch.sign(distance - mean[rows.vertex])
    mean_sign = segment_sum(sign, rows.vertex, n_segments=n_vertices) / rows.count
    grad_distance = grad_deviation[rows.vertex] * (sign - mean_sign[rows.vertex])
    grad_z = (grad_distance / distance)[:, None] * offset
    pull = segment_sum(grad_z, rows.vertex, n_segments=n_vertices)
    grad_vertices = torch.cat((grad_vertices[:, :3] - pull, grad_vertices[:, 3:]), 1)

    # Vertex: the weighted mean of its crossing points u.
    a, b = low, high
    if corner_weights is not None:
        weight = corner_weights[rows.slot[:, None], rows.corner]
        a, b = low * weight[:, 0], high * weight[:, 1]
    t = crossing(a, b)
    grad_u = grad_vertices[rows.vertex]
    grad_edge = None
    if edge_weights is None:
        share = 1 / rows.count[rows.vertex].to(field.dtype)
    else:
        weight_b = edge_weights[rows.slot, rows.edge]
        total = segment_sum(weight_b, rows.vertex, n_segments=n_vertices)[rows.vertex]
        share = weight_b / total
        u = torch.lerp(x0, x1, t[:, None])
        grad_rows = (grad_u * (u - vertices[rows.vertex])).sum(1) / total
        grad_edge = torch.zeros_like(edge_weights).index_put((rows.slot, rows.edge), grad_rows)
    grad_u = grad_u * share[:, None]

    # Crossing points: linear in the payload, a quotient in the field.
    grad_t = (grad_u * edge).sum(1)
    grad_zt = (grad_z * edge[:, :3]).sum(1)
    ta, tb = _crossing_grad(a, b, floor)
    za, zb = _crossing_grad(low, high, floor)
    grad_ends = torch.stack((grad_t * ta, grad_t * tb), 1)
    grad_corner = None
    nodes = rows.place.flatten()
    if corner_weights is not None:
        ends = torch.stack((low, high), 1).nan_to_num(0, 0, 0)
        grad_corner = torch.zeros_like(corner_weights).index_put(
            (rows.slot[:, None], rows.corner), grad_ends * ends, accumulate=True
        )
        grad_ends = grad_ends * weight
    grad_ends = grad_ends + torch.stack((grad_zt * za, grad_zt * zb), 1)
    grad_field = segment_sum(grad_ends.flatten(), nodes, n_segments=len(field))
    shares = torch.stack((grad_u * (1 - t)[:, None], grad_u * t[:, None]), 1)
    plain = torch.stack((grad_z * (1 - z_t)[:, None], grad_z * z_t[:, None]), 1)
    shares = torch.cat((shares[..., :3] + plain, shares[..., 3:]), -1)
    grad_payload = segment_sum(shares.flatten(0, 1), nodes, n_segments=len(payload))
    return grad_field, grad_payload, grad_corner, grad_edge, grad_split


def _centres_backward(
    connectivity: Connectivity, points: Tensor, split_weights: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradient of the quad centres by the dual vertices, and by the split weights."""
    quads = connectivity.quads
    g = quad_weights(connectivity, split_weights, points)
    g02, g13 = (g[:, 0] * g[:, 2]).unsqueeze(1), (g[:, 1] * g[:, 3]).unsqueeze(1)
    total = g02 + g13 + CENTRE_EPS
    on_02, on_13 = grad * (g02 / (2 * total)), grad * (g13 / (2 * total))
    spread = torch.stack((on_02, on_13, on_02, on_13), 1)
    grad_vertices = segment_sum(spread.flatten(0, 1), quads.flatten(), n_segments=connectivity.n_vertices)
    if split_weights is None:
        return grad_vertices, None
    v, centre = points[quads], points[connectivity.n_vertices :]
    by_02 = (grad * ((v[:, 0] + v[:, 2]) / 2 - centre)).sum(1) / total[:, 0]
    by_13 = (grad * ((v[:, 1] + v[:, 3]) / 2 - centre)).sum(1) / total[:, 0]
    by_g = torch.stack((by_02 * g[:, 2], by_13 * g[:, 3], by_02 * g[:, 0], by_13 * g[:, 1]), 1)
    slot = connectivity.vertex_slot[quads]
    return grad_vertices, segment_sum(by_g.flatten(), slot.flatten(), n_segments=len(split_weights))
