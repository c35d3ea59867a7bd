"""Compiled loops for the dual surface on the CPU.

Each kernel does in one pass over the surface cells what the tensor operations of :mod:`.connectivity` and
:mod:`.dual_surface` do in dozens of passes over temporaries; those are its reference and its test. The kernels release
the interpreter lock and are serial.

Numba's cache does not notice edits in other files, so every jitted function that a kernel calls lives here.
"""

import math
import typing
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from diffmatch.meshing.case_tables import case_tables, cell_geometry
from diffmatch.meshing.connectivity import Connectivity
from diffmatch.ops import lazy_zeros

DISTANCE_EPS = 1e-12
"""Added to squared distances, so that a distance of zero has a gradient."""
CENTRE_EPS = 1e-8
"""Added to the weights of a quad centre, as published."""
STEEPEST = 1e-6
"""Gradients of a crossing point grow as 1 / |a - b|; below this fraction of the mean |s| they are held constant."""


# Division by zero gives what IEEE 754 says. Annotation checks would wrap what numba has to compile, hence the second
# decorator of each kernel.
_kernel = njit(cache=True, nogil=True, error_model="numpy")


def connect(field: Tensor) -> Connectivity:
    """Compiled form of :func:`diffmatch.meshing.connectivity.connect`."""
    tables = case_tables()
    batch, *node_shape = field.shape
    nx, ny, nz = (n - 1 for n in node_shape)
    # Sized for the worst case; the pages that no surface cell touches are never backed by memory.
    n_cells = batch * nx * ny * nz
    cell, row, slot_of = np.empty(n_cells, np.int32), np.empty(n_cells, np.int16), np.empty(n_cells, np.int32)
    values = field.detach().contiguous().numpy()
    count = _surface_cells(values, cell, row, slot_of)
    cell, row = cell[:count].copy(), row[:count].copy()
    start = np.empty(count + 1, np.int32)
    n_quads = _repair_and_number(
        (nx, ny, nz), cell, row, slot_of, tables.problem_face, tables.n_loops, tables.edge_loop, start
    )
    quads, quad_edge = np.empty((n_quads, 4), np.int64), np.empty(n_quads, np.int64)
    _quads((nx, ny, nz), cell, row, start, slot_of, tables.edge_loop, quads, quad_edge)
    return Connectivity((nx, ny, nz), *(torch.from_numpy(x) for x in (cell, row, start, quads, quad_edge)))


def dual_surface(
    connectivity: Connectivity,
    field: Tensor,
    payload: Tensor,
    corner_weights: Tensor | None,
    edge_weights: Tensor | None,
    split_weights: Tensor | None,
    centres: bool,
) -> tuple[Tensor, Tensor]:
    """Compiled form of :func:`diffmatch.meshing.dual_surface.surface_forward`."""
    n_vertices, columns = connectivity.n_vertices, payload.shape[1]
    n_points = n_vertices + (len(connectivity.quads) if centres else 0)
    points, deviation = payload.new_empty(n_points, columns), payload.new_empty(n_vertices)
    weights = _weights(connectivity, corner_weights, 8, field), _weights(connectivity, edge_weights, 12, field)
    _vertices(*_arrays(connectivity, field, payload), *weights, points.numpy(), deviation.numpy())
    if centres:
        split = _vertex_weights(connectivity, split_weights, payload)
        _centres(connectivity.quads.numpy(), split, points.numpy(), n_vertices)
    return points, deviation


def dual_surface_backward(
    connectivity: Connectivity,
    field: Tensor,
    payload: Tensor,
    corner_weights: Tensor | None,
    edge_weights: Tensor | None,
    split_weights: Tensor | None,
    points: Tensor,
    grad_points: Tensor,
    grad_deviation: Tensor,
    centres: bool,
) -> tuple[Tensor | None, ...]:
    """Compiled form of :func:`diffmatch.meshing.dual_surface.surface_backward`."""
    n_vertices = connectivity.n_vertices
    grad_vertices = grad_points[:n_vertices].contiguous()
    grad_split_weights = None
    if centres:
        grad_vertices = grad_points[:n_vertices].clone(memory_format=torch.contiguous_format)  # it is added to
        split = _vertex_weights(connectivity, split_weights, payload)
        grad_split = torch.zeros(n_vertices, dtype=field.dtype)
        _centres_backward(
            connectivity.quads.numpy(),
            split,
            points.numpy(),
            grad_points[n_vertices:].contiguous().numpy(),
            n_vertices,
            grad_vertices.numpy(),
            grad_split.numpy(),
        )
        if split_weights is not None:
            grad_split_weights = torch.zeros_like(split_weights)
            grad_split_weights.index_add_(0, connectivity.vertex_slot, grad_split)
    weight_a = _weights(connectivity, corner_weights, 8, field)
    weight_b = _weights(connectivity, edge_weights, 12, field)
    grad_field, grad_payload = lazy_zeros(field.shape, like=field), lazy_zeros(payload.shape, like=payload)
    grad_a, grad_b = (torch.from_numpy(np.zeros_like(weight)) for weight in (weight_a, weight_b))
    _vertices_backward(
        *_arrays(connectivity, field, payload),
        weight_a,
        weight_b,
        points.numpy(),
        grad_vertices.numpy(),
        grad_deviation.contiguous().numpy(),
        grad_field.numpy(),
        grad_payload.numpy(),
        grad_a.numpy(),
        grad_b.numpy(),
    )
    return (
        grad_field,
        grad_payload,
        None if corner_weights is None else grad_a,
        None if edge_weights is None else grad_b,
        grad_split_weights,
    )


def _weights(connectivity: Connectivity, weights: Tensor | None, width: int, like: Tensor) -> Any:
    """Weights A or B of the surface cells as an array (k, width)."""
    if weights is None:
        weights = like.new_ones(len(connectivity.cell), width)
    return weights.detach().contiguous().numpy()


def _vertex_weights(connectivity: Connectivity, split_weights: Tensor | None, like: Tensor) -> Any:
    """Split weight G of the cell of each dual vertex as an array (v,)."""
    if split_weights is None:
        return like.new_full((connectivity.n_vertices,), 0.5).numpy()
    return split_weights.detach()[connectivity.vertex_slot].numpy()


def _arrays(connectivity: Connectivity, field: Tensor, payload: Tensor) -> tuple[Any, ...]:
    tables, geometry = case_tables(), cell_geometry()
    return (
        connectivity.shape,
        connectivity.cell.numpy(),
        connectivity.row.numpy(),
        connectivity.vertex_start.numpy(),
        tables.n_loops,
        tables.loop_edges,
        tables.loop_start,
        geometry.edge_corners,
        field.detach().contiguous().numpy(),
        payload.detach().contiguous().numpy(),
    )


@_kernel
@typing.no_type_check
def _surface_cells(field, cell, row, slot_of):
    """List the cells whose corners differ in sign; returns how many there are."""
    batch, nodes_x, nodes_y, nodes_z = field.shape
    count = 0
    number = 0
    signs = np.empty(nodes_z, np.uint8)
    for b in range(batch):
        for i in range(nodes_x - 1):
            for j in range(nodes_y - 1):
                r00, r10 = field[b, i, j], field[b, i + 1, j]
                r01, r11 = field[b, i, j + 1], field[b, i + 1, j + 1]
                for k in range(nodes_z):
                    signs[k] = (r00[k] < 0) | (r10[k] < 0) << 1 | (r01[k] < 0) << 2 | (r11[k] < 0) << 3
                for k in range(nodes_z - 1):
                    case = signs[k] | signs[k + 1] << 4
                    if case != 0 and case != 255:
                        cell[count] = number + k
                        row[count] = case
                        slot_of[number + k] = count
                        count += 1
                number += nodes_z - 1
    return count


@_kernel
@typing.no_type_check
def _repair_and_number(shape, cell, row, slot_of, problem_face, n_loops, edge_loop, start):
    """Flip pairs of problem cells, number the dual vertices; returns the number of quads."""
    nx, ny, nz = shape
    start[0] = 0
    n_quads = 0
    for slot in range(len(cell)):
        number = np.int64(cell[slot])
        k = number % nz
        j = number // nz % ny
        i = number // (nz * ny) % nx
        case = row[slot] & 255
        face = problem_face[case]
        if face >= 0:
            axis, side = face >> 1, face & 1
            if axis == 0:
                along, size, stride = i, nx, ny * nz
            elif axis == 1:
                along, size, stride = j, ny, nz
            else:
                along, size, stride = k, nz, 1
            beyond = along + 2 * side - 1
            if beyond >= 0 and beyond < size:
                neighbour = slot_of[number + (2 * side - 1) * stride]
                if problem_face[row[neighbour] & 255] == face ^ 1:
                    row[slot] = case + 256
        start[slot + 1] = start[slot] + n_loops[row[slot]]
        n_quads += (edge_loop[case, 0] >= 0) and j > 0 and k > 0
        n_quads += (edge_loop[case, 4] >= 0) and k > 0 and i > 0
        n_quads += (edge_loop[case, 8] >= 0) and i > 0 and j > 0
    return n_quads


@_kernel
@typing.no_type_check
def _quads(shape, cell, row, start, slot_of, edge_loop, quads, quad_edge):
    nx, ny, nz = shape
    n = 0
    index = np.empty(3, np.int64)
    stride = np.array((ny * nz, nz, 1), np.int64)
    for slot in range(len(cell)):
        number = np.int64(cell[slot])
        index[2] = number % nz
        index[1] = number // nz % ny
        bi = number // (nz * ny)
        index[0] = bi % nx
        node = ((bi + bi // nx) * (ny + 1) + index[1]) * (nz + 1) + index[2]
        case = row[slot] & 255
        for axis in range(3):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            if edge_loop[case, 4 * axis] < 0 or index[u] == 0 or index[v] == 0:
                continue
            s1 = slot_of[number - stride[u]]
            s2 = slot_of[number - stride[u] - stride[v]]
            s3 = slot_of[number - stride[v]]
            q0 = start[slot] + edge_loop[row[slot], 4 * axis]
            q1 = start[s1] + edge_loop[row[s1], 4 * axis + 1]
            q2 = start[s2] + edge_loop[row[s2], 4 * axis + 3]
            q3 = start[s3] + edge_loop[row[s3], 4 * axis + 2]
            quad_edge[n] = 3 * node + axis
            if case & 1:
                quads[n, 0], quads[n, 1], quads[n, 2], quads[n, 3] = q0, q1, q2, q3
            else:
                quads[n, 0], quads[n, 1], quads[n, 2], quads[n, 3] = q3, q2, q1, q0
            n += 1


@_kernel
@typing.no_type_check
def _load_cell(number, nx, ny, nz, field, corner_node, s):
    """Nodes at the corners of one cell, and their field values."""
    k = number % nz
    j = number // nz % ny
    bi = number // (nz * ny)
    node = ((bi + bi // nx) * (ny + 1) + j) * (nz + 1) + k
    for c in range(8):
        n = node + ((c & 1) * (ny + 1) + (c >> 1 & 1)) * (nz + 1) + (c >> 2)
        corner_node[c] = n
        s[c] = field[n]


@_kernel
@typing.no_type_check
def _crossing(low, high, half):
    difference = low - high
    t = low / difference
    return t if np.isfinite(difference) and np.isfinite(t) else half


@_kernel
@typing.no_type_check
def _vertices(
    shape, cell, row, start, n_loops, loop_edges, loop_start, edge_corners, field, payload, weight_a, weight_b,
    points, deviation,
):  # fmt: skip
    nx, ny, nz = shape
    columns = payload.shape[1]
    # Constants of the field's type: a literal would lift single precision to double.
    real = field.dtype.type
    zero, one, half, eps = real(0), real(1), real(0.5), real(DISTANCE_EPS)
    corner_node, s = np.empty(8, np.int64), np.empty(8, field.dtype)
    plain, distance = np.empty((8, 3), field.dtype), np.empty(8, field.dtype)
    point = np.empty(columns, field.dtype)
    for slot in range(len(cell)):
        r = row[slot]
        _load_cell(np.int64(cell[slot]), nx, ny, nz, field, corner_node, s)
        for loop in range(n_loops[r]):
            v = start[slot] + loop
            begin, end = np.int64(loop_start[r, loop]), np.int64(loop_start[r, loop + 1])
            count = end - begin
            total = zero
            for d in range(columns):
                point[d] = zero
            for m in range(count):
                edge = loop_edges[r, begin + m]
                c0, c1 = edge_corners[edge, 0], edge_corners[edge, 1]
                n0, n1 = corner_node[c0], corner_node[c1]
                t = _crossing(s[c0] * weight_a[slot, c0], s[c1] * weight_a[slot, c1], half)
                z = _crossing(s[c0], s[c1], half)
                w = weight_b[slot, edge]
                total += w
                for d in range(3):
                    x0, step = payload[n0, d], payload[n1, d] - payload[n0, d]
                    point[d] += w * (x0 + t * step)
                    plain[m, d] = x0 + z * step
                for d in range(3, columns):
                    point[d] += w * (payload[n0, d] + t * (payload[n1, d] - payload[n0, d]))
            inverse = one / total
            for d in range(columns):
                point[d] *= inverse
                points[v, d] = point[d]
            mean = zero
            for m in range(count):
                square = eps
                for d in range(3):
                    square += (plain[m, d] - point[d]) ** 2
                distance[m] = math.sqrt(square)
                mean += distance[m]
            mean /= real(count)
            spread = zero
            for m in range(count):
                spread += abs(distance[m] - mean)
            deviation[v] = spread


@_kernel
@typing.no_type_check
def _smallest_difference(shape, cell, row, n_loops, loop_edges, loop_start, edge_corners, field):
    """Smallest difference that crossing gradients divide by, see STEEPEST."""
    nx, ny, nz = shape
    corner_node, s = np.empty(8, np.int64), np.empty(8, field.dtype)
    magnitude, rows = 0.0, 0
    for slot in range(len(cell)):
        r = row[slot]
        _load_cell(np.int64(cell[slot]), nx, ny, nz, field, corner_node, s)
        count = np.int64(loop_start[r, n_loops[r]])
        rows += count
        for m in range(count):
            edge = loop_edges[r, m]
            ends = abs(s[edge_corners[edge, 0]]) + abs(s[edge_corners[edge, 1]])
            if np.isfinite(ends):
                magnitude += ends / 2
    return field.dtype.type(max(STEEPEST * magnitude / max(rows, 1), np.finfo(field.dtype).tiny))


@_kernel
@typing.no_type_check
def _vertices_backward(
    shape, cell, row, start, n_loops, loop_edges, loop_start, edge_corners, field, payload, weight_a, weight_b,
    points, grad_vertices, grad_deviation, grad_field, grad_payload, grad_a, grad_b,
):  # fmt: skip
    nx, ny, nz = shape
    columns = payload.shape[1]
    real = field.dtype.type
    zero, one, half, eps = real(0), real(1), real(0.5), real(DISTANCE_EPS)
    floor = _smallest_difference(shape, cell, row, n_loops, loop_edges, loop_start, edge_corners, field)
    corner_node, s = np.empty(8, np.int64), np.empty(8, field.dtype)
    offset, distance, zs = np.empty((8, 3), field.dtype), np.empty(8, field.dtype), np.empty(8, field.dtype)
    grad_v = np.empty(columns, field.dtype)
    for slot in range(len(cell)):
        r = row[slot]
        _load_cell(np.int64(cell[slot]), nx, ny, nz, field, corner_node, s)
        for loop in range(n_loops[r]):
            v = start[slot] + loop
            begin, end = np.int64(loop_start[r, loop]), np.int64(loop_start[r, loop + 1])
            count = end - begin
            # Deviation.
            mean, total = zero, zero
            for m in range(count):
                edge = loop_edges[r, begin + m]
                c0, c1 = edge_corners[edge, 0], edge_corners[edge, 1]
                n0, n1 = corner_node[c0], corner_node[c1]
                z = _crossing(s[c0], s[c1], half)
                square = eps
                for d in range(3):
                    o = payload[n0, d] + z * (payload[n1, d] - payload[n0, d]) - points[v, d]
                    offset[m, d] = o
                    square += o * o
                zs[m] = z
                distance[m] = math.sqrt(square)
                mean += distance[m]
                total += weight_b[slot, edge]
            mean /= real(count)
            mean_sign = zero
            for m in range(count):
                mean_sign += np.sign(distance[m] - mean)
            mean_sign /= real(count)
            for d in range(columns):
                grad_v[d] = grad_vertices[v, d]
            for m in range(count):
                pull = grad_deviation[v] * (np.sign(distance[m] - mean) - mean_sign) / distance[m]
                for d in range(3):
                    offset[m, d] *= pull  # from here on: the gradient of the plain crossing point
                    grad_v[d] -= offset[m, d]
            inverse = one / total
            for m in range(count):
                edge = loop_edges[r, begin + m]
                c0, c1 = edge_corners[edge, 0], edge_corners[edge, 1]
                n0, n1 = corner_node[c0], corner_node[c1]
                low, high = s[c0], s[c1]
                a, b = low * weight_a[slot, c0], high * weight_a[slot, c1]
                t, z = _crossing(a, b, half), zs[m]
                share = weight_b[slot, edge] * inverse
                grad_t, grad_z, grad_w = zero, zero, zero
                for d in range(3):
                    x0, step = payload[n0, d], payload[n1, d] - payload[n0, d]
                    g, gz = grad_v[d], offset[m, d]
                    grad_w += g * (x0 + t * step - points[v, d])
                    g *= share
                    grad_t += g * step
                    grad_z += gz * step
                    grad_payload[n0, d] += g * (one - t) + gz * (one - z)
                    grad_payload[n1, d] += g * t + gz * z
                for d in range(3, columns):
                    x0, step = payload[n0, d], payload[n1, d] - payload[n0, d]
                    g = grad_v[d]
                    grad_w += g * (x0 + t * step - points[v, d])
                    g *= share
                    grad_t += g * step
                    grad_payload[n0, d] += g * (one - t)
                    grad_payload[n1, d] += g * t
                grad_b[slot, edge] = grad_w * inverse
                ta, tb = _crossing_grad(a, b, floor, one)
                za, zb = _crossing_grad(low, high, floor, one)
                ga, gb = grad_t * ta, grad_t * tb
                grad_field[n0] += ga * weight_a[slot, c0] + grad_z * za
                grad_field[n1] += gb * weight_a[slot, c1] + grad_z * zb
                if np.isfinite(low):
                    grad_a[slot, c0] += ga * low
                if np.isfinite(high):
                    grad_a[slot, c1] += gb * high


@_kernel
@typing.no_type_check
def _crossing_grad(low, high, floor, one):
    difference = low - high
    if not (np.isfinite(difference) and np.isfinite(low / difference)):
        return one - one, one - one
    if abs(difference) < floor:
        difference = math.copysign(floor, difference)
    inverse = one / difference
    return -high * inverse * inverse, low * inverse * inverse


@_kernel
@typing.no_type_check
def _centres(quads, split, points, n_vertices):
    for q in range(len(quads)):
        i0, i1, i2, i3 = quads[q, 0], quads[q, 1], quads[q, 2], quads[q, 3]
        g02, g13 = split[i0] * split[i2], split[i1] * split[i3]
        inverse = split.dtype.type(0.5) / (g02 + g13 + split.dtype.type(CENTRE_EPS))
        for d in range(points.shape[1]):
            points[n_vertices + q, d] = (
                g02 * (points[i0, d] + points[i2, d]) + g13 * (points[i1, d] + points[i3, d])
            ) * inverse


@_kernel
@typing.no_type_check
def _centres_backward(quads, split, points, grad, n_vertices, grad_vertices, grad_split):
    half = split.dtype.type(0.5)
    for q in range(len(quads)):
        i0, i1, i2, i3 = quads[q, 0], quads[q, 1], quads[q, 2], quads[q, 3]
        g0, g1, g2, g3 = split[i0], split[i1], split[i2], split[i3]
        g02, g13 = g0 * g2, g1 * g3
        inverse = split.dtype.type(1) / (g02 + g13 + split.dtype.type(CENTRE_EPS))
        by_02, by_13 = split.dtype.type(0), split.dtype.type(0)
        for d in range(points.shape[1]):
            g = grad[q, d] * inverse
            centre = points[n_vertices + q, d]
            by_02 += g * ((points[i0, d] + points[i2, d]) * half - centre)
            by_13 += g * ((points[i1, d] + points[i3, d]) * half - centre)
            on_02, on_13 = g * g02 * half, g * g13 * half
            grad_vertices[i0, d] += on_02
            grad_vertices[i2, d] += on_02
            grad_vertices[i1, d] += on_13
            grad_vertices[i3, d] += on_13
        grad_split[i0] += by_02 * g2
        grad_split[i2] += by_02 * g0
        grad_split[i1] += by_13 * g3
        grad_split[i3] += by_13 * g1
