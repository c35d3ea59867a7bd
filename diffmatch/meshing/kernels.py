"""Compiled loops for the dual surface on the CPU.

Each kernel does in one pass over the surface cells what the tensor operations of :mod:`.connectivity` and
:mod:`.dual_surface` do in dozens of passes over temporaries; those are its reference and its test. The kernels release
the interpreter lock and are serial.

Numba's cache does not notice edits in other files, so every jitted function that a kernel calls lives here.
"""

import math
import typing
from functools import lru_cache
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
    nx, ny, nz = shape = node_shape[0] - 1, node_shape[1] - 1, node_shape[2] - 1
    # Sized for the worst case; the pages that no surface cell touches are never backed by memory.
    n_cells = batch * nx * ny * nz
    cell, node, slot_of = (np.empty(n_cells, np.int32) for _ in range(3))
    row = np.empty(n_cells, np.int16)
    count = _surface_cells(field.detach().contiguous().numpy(), cell, node, row, slot_of)
    cell, node, row = cell[:count].copy(), node[:count].copy(), row[:count].copy()
    start = np.empty(count + 1, np.int32)
    n_quads = _repair_and_number(
        shape, cell, row, slot_of, tables.problem_face, tables.n_loops, tables.edge_loop, start
    )
    nodes, columns = np.empty(min(8 * count, field.numel()), np.int64), np.empty((count, 4), np.int32)
    nodes = nodes[: _surface_nodes(shape, batch, cell, nodes, columns)].copy()
    quads, quad_edge = np.empty((n_quads, 4), np.int64), np.empty(n_quads, np.int64)
    _quads(shape, cell, node, row, start, slot_of, tables.edge_loop, quads, quad_edge)
    arrays = cell, node, nodes, columns, row, start, quads, quad_edge
    return Connectivity(shape, batch, *(torch.from_numpy(x) for x in arrays))


def dual_surface(
    connectivity: Connectivity,
    field: Tensor,
    payload: Tensor,
    corner_weights: Tensor | None,
    edge_weights: Tensor | None,
    split_weights: Tensor | None,
    centres: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compiled form of :func:`diffmatch.meshing.dual_surface.surface_forward`."""
    n_vertices, columns = connectivity.n_vertices, payload.shape[1]
    n_points = n_vertices + (len(connectivity.quads) if centres else 0)
    points, deviation = payload.new_empty(n_points, columns), payload.new_empty(n_vertices)
    weights = _weights(corner_weights, 8, field), _weights(edge_weights, 12, field)
    floor = _vertices(*_arrays(connectivity, field, payload), *weights, points.numpy(), deviation.numpy())
    if centres:
        split = _vertex_weights(connectivity, split_weights, payload)
        _centres(_unsigned(connectivity.quads), split, points.numpy(), n_vertices)
    return points, deviation, torch.tensor(floor, dtype=field.dtype)


def dual_surface_backward(
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
    scale: float,
) -> tuple[Tensor | None, ...]:
    """Compiled form of :func:`diffmatch.meshing.dual_surface.surface_backward`, with gradients by the raw weights."""
    n_vertices = connectivity.n_vertices
    grad_vertices = grad_points[:n_vertices].contiguous()
    grad_split = None if split_weights is None else torch.zeros_like(split_weights)
    if centres:
        grad_vertices = grad_points[:n_vertices].clone(memory_format=torch.contiguous_format)  # it is added to
        grad_vertex_split = np.zeros(n_vertices, grad_vertices.numpy().dtype)
        _centres_backward(
            _unsigned(connectivity.quads),
            _vertex_weights(connectivity, split_weights, payload),
            points.numpy(),
            grad_points[n_vertices:].contiguous().numpy(),
            n_vertices,
            grad_vertices.numpy(),
            grad_vertex_split,
        )
        if grad_split is not None and split_weights is not None:
            of_cells = split_weights.contiguous().numpy()
            _split_backward(grad_vertex_split, connectivity.vertex_start.numpy(), of_cells, scale, grad_split.numpy())
    grad_field, grad_payload = torch.zeros_like(field), torch.zeros_like(payload, memory_format=torch.contiguous_format)
    grad_a = field.new_empty(0 if corner_weights is None else len(corner_weights), 8)
    grad_b = field.new_empty(0 if edge_weights is None else len(edge_weights), 12)
    _vertices_backward(
        *_arrays(connectivity, field, payload),
        _weights(corner_weights, 8, field),
        _weights(edge_weights, 12, field),
        points.numpy(),
        floor.item(),
        scale,
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
        grad_split,
    )


def at_nodes(nodes: Tensor, field: Tensor, payload: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of field and payload."""
    rows = field.new_empty(len(nodes)), payload.new_empty(len(nodes), payload.shape[1])
    arrays = field.detach().contiguous().numpy(), payload.detach().contiguous().numpy()
    _gather(_unsigned(nodes), *arrays, *(x.numpy() for x in rows))
    return rows


def from_nodes(nodes: Tensor, rows: Tensor, n: int) -> Tensor:
    """A tensor of ``n`` rows that is zero except at the nodes."""
    full = lazy_zeros(torch.Size((n, *rows.shape[1:])), like=rows)
    width = rows[0].numel() if len(rows) else 1
    _scatter(_unsigned(nodes), rows.contiguous().numpy().reshape(-1, width), full.numpy().reshape(-1, width))
    return full


def _weights(weights: Tensor | None, width: int, like: Tensor) -> Any:
    """Weights A or B of the surface cells as an array (k, width); one row of ones, for all cells, if there are none."""
    return (like.new_ones(1, width) if weights is None else weights.detach().contiguous()).numpy()


def _vertex_weights(connectivity: Connectivity, split_weights: Tensor | None, like: Tensor) -> Any:
    """Split weight G of the cell of each dual vertex as an array (v,)."""
    if split_weights is None:
        return like.new_full((connectivity.n_vertices,), 0.5).numpy()
    of_vertices = split_weights.new_empty(connectivity.n_vertices).numpy()
    _repeat_for_vertices(split_weights.detach().contiguous().numpy(), connectivity.vertex_start.numpy(), of_vertices)
    return of_vertices


def _arrays(connectivity: Connectivity, field: Tensor, payload: Tensor) -> tuple[Any, ...]:
    tables = case_tables()
    return (
        _unsigned(connectivity.columns),
        _unsigned(connectivity.row),
        tables.n_loops,
        tables.loop_start,
        tables.loop_edges.view(np.uint8),
        _loop_ends(),
        field.detach().contiguous().numpy(),
        payload.detach().contiguous().numpy(),
    )


@lru_cache(maxsize=1)
def _loop_ends() -> Any:
    """Low and high corner of the crossing edges of each case, loop after loop, shape (512, 12, 2), uint8."""
    return cell_geometry().edge_corners[case_tables().loop_edges].view(np.uint8)


def _unsigned(numbers: Tensor) -> Any:
    """Indices as an unsigned array: with signed ones each access would first ask whether to count from the end."""
    array = numbers.numpy()
    return array.view(f"u{array.itemsize}")


@_kernel
@typing.no_type_check
def _surface_cells(field, cell, node, row, slot_of):
    """List the cells whose corners differ in sign; returns how many there are."""
    batch, nodes_x, nodes_y, nodes_z = field.shape
    count = 0
    number = 0  # of the first cell of a line
    signs = np.empty(nodes_z, np.uint8)
    for b in range(batch):
        for i in range(nodes_x - 1):
            for j in range(nodes_y - 1):
                r00, r10 = field[b, i, j], field[b, i + 1, j]
                r01, r11 = field[b, i, j + 1], field[b, i + 1, j + 1]
                first_node = ((b * nodes_x + i) * nodes_y + j) * nodes_z
                for k in range(nodes_z):
                    signs[k] = (r00[k] < 0) | (r10[k] < 0) << 1 | (r01[k] < 0) << 2 | (r11[k] < 0) << 3
                for k in range(nodes_z - 1):
                    case = signs[k] | signs[k + 1] << 4
                    if case != 0 and case != 255:
                        cell[count] = number + k
                        node[count] = first_node + k
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
def _quads(shape, cell, node, row, start, slot_of, edge_loop, quads, quad_edge):
    nx, ny, nz = shape
    n = 0
    index = np.empty(3, np.int64)
    stride = np.array((ny * nz, nz, 1), np.int64)
    for slot in range(len(cell)):
        number = np.int64(cell[slot])
        index[2] = number % nz
        index[1] = number // nz % ny
        index[0] = number // (nz * ny) % nx
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
            quad_edge[n] = 3 * node[slot] + axis
            if case & 1:
                quads[n, 0], quads[n, 1], quads[n, 2], quads[n, 3] = q0, q1, q2, q3
            else:
                quads[n, 0], quads[n, 1], quads[n, 2], quads[n, 3] = q3, q2, q1, q0
            n += 1


@_kernel
@typing.no_type_check
def _surface_nodes(shape, batch, cell, nodes, columns):
    """List the nodes at the corners of the cells, and where those of each cell stand; returns how many there are."""
    nx, ny, nz = shape
    count = 0
    first = 0  # node of a line
    marked, place = np.zeros(nz + 1, np.bool_), np.empty(nz + 1, np.int32)
    # Of the four lines of cells around a line of nodes, each has a pointer of its own, which only moves on.
    begin, end, line = np.zeros(4, np.int64), np.zeros(4, np.int64), np.zeros(4, np.int64)
    for b in range(batch):
        for i in range(nx + 1):
            for j in range(ny + 1):
                low, high = nz, 0
                for c in range(4):
                    slot = begin[c] = end[c]
                    ci, cj = i - (c & 1), j - (c >> 1)
                    if ci < 0 or cj < 0 or ci == nx or cj == ny:
                        continue
                    line[c] = ((b * nx + ci) * ny + cj) * nz
                    while slot < len(cell) and cell[slot] < line[c] + nz:
                        k = cell[slot] - line[c]
                        marked[k] = marked[k + 1] = True
                        low, high = min(low, k), max(high, k + 1)
                        slot += 1
                    end[c] = slot
                for k in range(low, high + 1):
                    if marked[k]:
                        marked[k] = False
                        place[k] = count
                        nodes[count] = first + k
                        count += 1
                for c in range(4):
                    for slot in range(begin[c], end[c]):
                        columns[slot, c] = place[cell[slot] - line[c]]
                first += nz + 1
    return count


@_kernel
@typing.no_type_check
def _gather(nodes, field, payload, field_rows, payload_rows):
    for i in range(np.uintp(len(nodes))):
        field_rows[i] = field[nodes[i]]
        for d in range(np.uintp(payload.shape[1])):
            payload_rows[i, d] = payload[nodes[i], d]


@_kernel
@typing.no_type_check
def _scatter(nodes, rows, full):
    for i in range(np.uintp(len(nodes))):
        for d in range(np.uintp(rows.shape[1])):
            full[nodes[i], d] = rows[i, d]


@_kernel
@typing.no_type_check
def _crossing(low, high, half, largest):
    difference = low - high
    return low / difference if difference != 0 and abs(difference) <= largest else half


@_kernel
@typing.no_type_check
def _crossing_and_slope(low, high, half, largest, floor):
    """The crossing t, and r such that its derivatives by the ends are -high r^2 and low r^2."""
    difference = low - high
    size = abs(difference)
    if difference == 0 or not size <= largest:
        return half, half - half
    return low / difference, (half + half) / (difference if size >= floor else math.copysign(floor, difference))


@_kernel
@typing.no_type_check
def _vertices(
    columns, row, n_loops, loop_start, loop_edges, loop_ends, field, payload, weight_a, weight_b, points, deviation,
):  # fmt: skip
    """Fill points and deviation; returns the smallest difference that gradients divide by, see STEEPEST."""
    width = payload.shape[1]
    # Constants of the field's type: a literal would lift single precision to double.
    real = field.dtype.type
    zero, one, half, eps, largest = real(0), real(1), real(0.5), real(DISTANCE_EPS), np.finfo(field.dtype).max
    own_a, own_b = np.uintp(len(weight_a) == len(row)), np.uintp(len(weight_b) == len(row))
    place = np.empty(8, np.uintp)
    plain, distance, extra = np.empty((8, 3), field.dtype), np.empty(8, field.dtype), np.empty(width, field.dtype)
    magnitude, n_rows = 0.0, 0
    v = np.uintp(0)
    for slot in range(np.uintp(len(row))):
        r, slot_a, slot_b = row[slot], slot * own_a, slot * own_b
        for c in range(np.uintp(4)):
            place[c] = columns[slot, c]
            place[c + np.uintp(4)] = place[c] + np.uintp(1)
        begin = np.uintp(0)
        for loop in range(n_loops[r]):
            end = np.uintp(loop_start[r, loop + 1])
            total = px = py = pz = zero
            for d in range(3, width):
                extra[d] = zero
            for m in range(begin, end):
                c0, c1 = loop_ends[r, m, 0], loop_ends[r, m, 1]
                n0, n1 = place[c0], place[c1]
                low, high = field[n0], field[n1]
                size = abs(low - high)
                if size <= largest:
                    magnitude += size
                else:
                    low = high = zero
                t = _crossing(low * weight_a[slot_a, c0], high * weight_a[slot_a, c1], half, largest)
                z = _crossing(low, high, half, largest)
                w = weight_b[slot_b, loop_edges[r, m]]
                total += w
                x, y, h = payload[n0, 0], payload[n0, 1], payload[n0, 2]
                dx, dy, dh = payload[n1, 0] - x, payload[n1, 1] - y, payload[n1, 2] - h
                px += w * (x + t * dx)
                py += w * (y + t * dy)
                pz += w * (h + t * dh)
                plain[m - begin, 0], plain[m - begin, 1], plain[m - begin, 2] = x + z * dx, y + z * dy, h + z * dh
                for d in range(3, width):
                    extra[d] += w * (payload[n0, d] + t * (payload[n1, d] - payload[n0, d]))
            inverse = one / total
            px, py, pz = px * inverse, py * inverse, pz * inverse
            points[v, 0], points[v, 1], points[v, 2] = px, py, pz
            for d in range(3, width):
                points[v, d] = extra[d] * inverse
            count = end - begin
            mean, spread = zero, zero
            for m in range(count):
                dx, dy, dh = plain[m, 0] - px, plain[m, 1] - py, plain[m, 2] - pz
                distance[m] = math.sqrt(dx * dx + dy * dy + dh * dh + eps)
                mean += distance[m]
            mean /= real(count)
            for m in range(count):
                spread += abs(distance[m] - mean)
            deviation[v] = spread
            n_rows += np.intp(count)
            v += np.uintp(1)
            begin = end
    return max(STEEPEST * magnitude / 2 / max(n_rows, 1), np.finfo(field.dtype).tiny)


@_kernel
@typing.no_type_check
def _vertices_backward(
    columns, row, n_loops, loop_start, loop_edges, loop_ends, field, payload, weight_a, weight_b,
    points, floor, scale, grad_vertices, grad_deviation, grad_field, grad_payload, grad_a, grad_b,
):  # fmt: skip
    width = payload.shape[1]
    real = field.dtype.type
    zero, one, half, eps, largest = real(0), real(1), real(0.5), real(DISTANCE_EPS), np.finfo(field.dtype).max
    floor, scale, inverse_scale = real(floor), real(scale), real(1 / scale)
    own_a, own_b = np.uintp(len(weight_a) == len(row)), np.uintp(len(weight_b) == len(row))
    place = np.empty(8, np.uintp)
    by_a, by_b = np.empty(8, field.dtype), np.empty(12, field.dtype)
    offset, distance = np.empty((8, 3), field.dtype), np.empty(8, field.dtype)
    zs, z_slope = np.empty(8, field.dtype), np.empty(8, field.dtype)
    v = np.uintp(0)
    for slot in range(np.uintp(len(row))):
        r, slot_a, slot_b = row[slot], slot * own_a, slot * own_b
        for c in range(np.uintp(4)):
            place[c] = columns[slot, c]
            place[c + np.uintp(4)] = place[c] + np.uintp(1)
        by_a[:] = zero
        by_b[:] = zero
        begin = np.uintp(0)
        for loop in range(n_loops[r]):
            end = np.uintp(loop_start[r, loop + 1])
            count = end - begin
            px, py, pz = points[v, 0], points[v, 1], points[v, 2]
            # Deviation.
            mean, total = zero, zero
            for m in range(count):
                n0, n1 = place[loop_ends[r, begin + m, 0]], place[loop_ends[r, begin + m, 1]]
                z, z_slope[m] = _crossing_and_slope(field[n0], field[n1], half, largest, floor)
                x, y, h = payload[n0, 0], payload[n0, 1], payload[n0, 2]
                dx = x + z * (payload[n1, 0] - x) - px
                dy = y + z * (payload[n1, 1] - y) - py
                dh = h + z * (payload[n1, 2] - h) - pz
                zs[m] = z
                offset[m, 0], offset[m, 1], offset[m, 2] = dx, dy, dh
                distance[m] = math.sqrt(dx * dx + dy * dy + dh * dh + eps)
                mean += distance[m]
                total += weight_b[slot_b, loop_edges[r, begin + m]]
            mean /= real(count)
            mean_sign = zero
            for m in range(count):
                mean_sign += real(distance[m] > mean) - real(distance[m] < mean)
            mean_sign /= real(count)
            gx, gy, gz = grad_vertices[v, 0], grad_vertices[v, 1], grad_vertices[v, 2]
            for m in range(count):
                sign = real(distance[m] > mean) - real(distance[m] < mean)
                pull = grad_deviation[v] * (sign - mean_sign) / distance[m]
                # From here on: the gradient of the plain crossing point.
                dx, dy, dh = pull * offset[m, 0], pull * offset[m, 1], pull * offset[m, 2]
                offset[m, 0], offset[m, 1], offset[m, 2] = dx, dy, dh
                gx, gy, gz = gx - dx, gy - dy, gz - dh
            # Vertex.
            inverse = one / total
            for m in range(count):
                edge = loop_edges[r, begin + m]
                c0, c1 = loop_ends[r, begin + m, 0], loop_ends[r, begin + m, 1]
                n0, n1 = place[c0], place[c1]
                low, high = field[n0], field[n1]
                if not abs(low - high) <= largest:
                    low = high = zero
                a0, a1 = weight_a[slot_a, c0], weight_a[slot_a, c1]
                a, b = low * a0, high * a1
                t, t_slope = _crossing_and_slope(a, b, half, largest, floor)
                if t_slope == 0:
                    a = b = zero
                z = zs[m]
                x, y, h = payload[n0, 0], payload[n0, 1], payload[n0, 2]
                dx, dy, dh = payload[n1, 0] - x, payload[n1, 1] - y, payload[n1, 2] - h
                grad_w = gx * (x + t * dx - px) + gy * (y + t * dy - py) + gz * (h + t * dh - pz)
                share = weight_b[slot_b, edge] * inverse
                ux, uy, uz = share * gx, share * gy, share * gz
                zx, zy, zz = offset[m, 0], offset[m, 1], offset[m, 2]
                grad_t = ux * dx + uy * dy + uz * dh
                grad_z = zx * dx + zy * dy + zz * dh
                hx, hy, hz = t * ux + z * zx, t * uy + z * zy, t * uz + z * zz
                grad_payload[n0, 0] += ux + zx - hx
                grad_payload[n0, 1] += uy + zy - hy
                grad_payload[n0, 2] += uz + zz - hz
                grad_payload[n1, 0] += hx
                grad_payload[n1, 1] += hy
                grad_payload[n1, 2] += hz
                for d in range(3, width):
                    x, dx = payload[n0, d], payload[n1, d] - payload[n0, d]
                    g = grad_vertices[v, d]
                    grad_w += g * (x + t * dx - points[v, d])
                    g *= share
                    grad_t += g * dx
                    grad_payload[n0, d] += g * (one - t)
                    grad_payload[n1, d] += g * t
                by_b[edge] = grad_w * inverse
                # Multiplied in this order, so that squares of small fields do not underflow.
                grad_t, a, b = grad_t * t_slope, a * t_slope, b * t_slope
                grad_z, z_low, z_high = grad_z * z_slope[m], low * z_slope[m], high * z_slope[m]
                by_a[c0] -= grad_t * b * low
                by_a[c1] += grad_t * a * high
                grad_field[n0] -= grad_t * b * a0 + grad_z * z_high
                grad_field[n1] += grad_t * a * a1 + grad_z * z_low
            v += np.uintp(1)
            begin = end
        # Through the activation: the derivative of 1 + scale * tanh is scale - (weight - 1)^2 / scale.
        if len(grad_a) > 0:
            for c in range(8):
                reach = weight_a[slot, c] - one
                grad_a[slot, c] = by_a[c] * (scale - reach * reach * inverse_scale)
        if len(grad_b) > 0:
            for c in range(12):
                reach = weight_b[slot, c] - one
                grad_b[slot, c] = by_b[c] * (scale - reach * reach * inverse_scale)


@_kernel
@typing.no_type_check
def _repeat_for_vertices(of_cells, start, of_vertices):
    for slot in range(len(of_cells)):
        for v in range(start[slot], start[slot + 1]):
            of_vertices[v] = of_cells[slot]


@_kernel
@typing.no_type_check
def _split_backward(of_vertices, start, weight, scale, of_cells):
    """Sum over the vertices of each cell, times the derivative of ``scale * sigmoid + (1 - scale) / 2``."""
    real = weight.dtype.type
    low, scale = real((1 - scale) / 2), real(scale)
    for slot in range(len(of_cells)):
        reach = weight[slot] - low
        for v in range(start[slot], start[slot + 1]):
            of_cells[slot] += of_vertices[v]
        of_cells[slot] *= reach * (real(1) - reach / scale)


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
