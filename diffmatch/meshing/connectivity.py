"""From the signs of a field to the connectivity of its dual surface.

One dual vertex per loop of a surface cell, one quad per crossing edge that has all four cells around it. On a regular
grid this takes no hashing, sorting or ``unique``: an edge is numbered ``3 * node + axis`` by its low end, and the quad
of an edge is found from the one cell that has the edge at its low corner.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from diffmatch.meshing.case_tables import device_tables
from diffmatch.ops import offsets_to_index

# Around an edge of axis a, counter-clockwise seen from +a: offset of each cell along (u, v), and the slot at which
# that cell sees the edge.
RING = ((0, 0, 0), (-1, 0, 1), (-1, -1, 3), (0, -1, 2))


@dataclass(frozen=True)
class Connectivity:
    """How the dual surface of a batch of fields hangs together.

    Cells and nodes of item ``b`` of the batch are numbered behind those of the items before it.

    Attributes:
        shape: cells along each axis of one item.
        n_items: number of fields in the batch.
        cell: surface cells, ascending, shape (k,).
        node: node at the low corner of each surface cell, shape (k,).
        nodes: nodes at the corners of the surface cells, ascending, shape (m,), int64: values elsewhere do not matter.
        columns: position in ``nodes`` of corners 0 to 3 of each surface cell, shape (k, 4); those of corners 4 to 7
            are one higher.
        row: row of the case tables of each surface cell, shape (k,).
        vertex_start: number of the first dual vertex of each surface cell, and the number of all, shape (k + 1,).
        quads: dual vertices of each quad, counter-clockwise seen from outside, shape (q, 4), int64.
        quad_edge: edge ``3 * node + axis`` that each quad stands for, shape (q,), int64.
    """

    shape: tuple[int, int, int]
    n_items: int
    cell: Int[Tensor, " k"]
    node: Int[Tensor, " k"]
    nodes: Int64[Tensor, " m"]
    columns: Int[Tensor, "k 4"]
    row: Int[Tensor, " k"]
    vertex_start: Int[Tensor, " k1"]
    quads: Int64[Tensor, "q 4"]
    quad_edge: Int64[Tensor, " q"]

    @cached_property
    def n_vertices(self) -> int:
        """Number of dual vertices (reads one number from the device)."""
        return int(self.vertex_start[-1])

    @cached_property
    def vertex_slot(self) -> Int64[Tensor, " v"]:
        """Position in ``cell`` of the cell that holds each dual vertex."""
        return offsets_to_index(self.vertex_start)

    @cached_property
    def vertex_cell(self) -> Int64[Tensor, " v"]:
        """Cell that holds each dual vertex."""
        return self.cell.long()[self.vertex_slot]

    @cached_property
    def vertex_offsets(self) -> Int64[Tensor, " b1"]:
        """First dual vertex of each item, and the number of all."""
        first_cell = torch.arange(self.n_items + 1, device=self.cell.device) * math.prod(self.shape)
        first_slot = torch.searchsorted(self.cell, first_cell.to(self.cell.dtype))
        return self.vertex_start.long()[first_slot]

    @cached_property
    def quad_offsets(self) -> Int64[Tensor, " b1"]:
        """First quad of each item, and the number of all."""
        n_edges = 3 * math.prod(n + 1 for n in self.shape)
        bounds = torch.arange(self.n_items + 1, device=self.quad_edge.device) * n_edges
        return torch.searchsorted(self.quad_edge, bounds)

    @cached_property
    def n_crossings(self) -> Int64[Tensor, ""]:
        """Crossing edges of all dual vertices together."""
        return device_tables(self.cell.device).n_incidences[self.row.long()].sum()

    @cached_property
    def fan(self) -> Int64[Tensor, "f 3"]:
        """Four triangles a quad, around its centre; the centres are numbered behind all dual vertices."""
        quads = self.quads
        centre = self.n_vertices + torch.arange(len(quads), device=quads.device)
        return torch.stack((quads, quads.roll(-1, 1), centre[:, None].expand(-1, 4)), -1).reshape(-1, 3)

    @cached_property
    def incidences(self) -> "Incidences":
        """The crossing edges of every dual vertex, for the tensor path."""
        return _incidences(self)


@dataclass(frozen=True)
class Incidences:
    """One row for each crossing edge of each dual vertex, vertex after vertex.

    Attributes:
        vertex: dual vertex, shape (m,).
        slot: position of its cell in ``Connectivity.cell``.
        edge: edge of the cell, 0..11.
        corner: low and high corner of the edge in the cell, shape (m, 2).
        node: low and high node of the edge, shape (m, 2).
        place: positions of the two in ``Connectivity.nodes``, shape (m, 2).
        count: number of incidences of each vertex, shape (v,).
    """

    vertex: Int64[Tensor, " m"]
    slot: Int64[Tensor, " m"]
    edge: Int64[Tensor, " m"]
    corner: Int64[Tensor, "m 2"]
    node: Int64[Tensor, "m 2"]
    place: Int64[Tensor, "m 2"]
    count: Int64[Tensor, " v"]


def _incidences(connectivity: Connectivity) -> Incidences:
    tables = device_tables(connectivity.cell.device)
    row = connectivity.row.long()
    edges = tables.loop_edges[row].long()  # (k, 12), loop after loop
    slot, position = (edges >= 0).nonzero(as_tuple=True)
    edge = edges[slot, position]
    vertex = connectivity.vertex_start[slot].long() + tables.edge_loop[row[slot], edge]
    corner = tables.edge_corners[edge].long()
    place = connectivity.columns[slot[:, None], corner & 3].long() + (corner >> 2)
    return Incidences(
        vertex=vertex,
        slot=slot,
        edge=edge,
        corner=corner,
        node=connectivity.nodes[place],
        place=place,
        count=torch.bincount(vertex, minlength=connectivity.n_vertices),
    )


def case_ids(inside: Tensor) -> Tensor:
    """Case of every cell.

    Args:
        inside: bool, shape (b, nx + 1, ny + 1, nz + 1).

    Returns:
        uint8, shape (b, nx, ny, nz).
    """
    # Corner bits double along x, quadruple along y, and shift by four along z: three passes instead of eight.
    code = inside.to(torch.uint8)
    code = code[:, :-1] + 2 * code[:, 1:]
    code = code[:, :, :-1] + 4 * code[:, :, 1:]
    return code[..., :-1] + 16 * code[..., 1:]


def connect(field: Float[Tensor, "b x y z"]) -> Connectivity:
    """Connectivity of the dual surface where the field changes sign.

    Inside is ``field < 0``: zeros of either sign and NaN are outside. Waits for the device three times, for
    the numbers of surface cells, of their nodes and of quads.

    Args:
        field: node values, shape (b, nx + 1, ny + 1, nz + 1).
    """
    b, *node_shape = field.shape
    nx, ny, nz = (n - 1 for n in node_shape)
    tables = device_tables(field.device)

    cases = case_ids(field < 0).flatten()
    cell = ((cases != 0) & (cases != 255)).nonzero().squeeze(1)
    case = cases[cell].long()
    row = _repair(cell, case, cases, (nx, ny, nz))
    start = torch.zeros(len(cell) + 1, dtype=torch.int64, device=field.device)
    torch.cumsum(tables.n_loops[row], 0, out=start[1:])

    # Only surface cells are ever looked up, so the rest of the map stays uninitialised.
    slot_of = torch.empty(b * nx * ny * nz, dtype=torch.int64, device=field.device)
    slot_of[cell] = torch.arange(len(cell), device=field.device)
    bi = cell // (ny * nz)
    node = ((bi + bi // nx) * (ny + 1) + cell // nz % ny) * (nz + 1) + cell % nz
    nodes, columns = _surface_nodes(node, field.shape)
    quads, quad_edge = _quads(cell, node, case, row, start, slot_of, (nx, ny, nz))
    return Connectivity((nx, ny, nz), b, cell, node, nodes, columns, row, start, quads, quad_edge)


def _surface_nodes(node: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The nodes at the corners of the cells with these low corners, and where the four low ones of each stand."""
    _, _, ny, nz = shape
    low = node[:, None] + torch.tensor((0, ny * nz, nz, (ny + 1) * nz), device=node.device)
    marked = torch.zeros(math.prod(shape), dtype=torch.bool, device=node.device)
    marked[low] = True
    marked[low + 1] = True
    nodes = marked.nonzero().squeeze(1)
    place = torch.empty(len(marked), dtype=torch.int64, device=node.device)
    place[nodes] = torch.arange(len(nodes), device=node.device)
    return nodes, place[low]


def _repair(cell: Tensor, case: Tensor, cases: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Rows of the case tables: flip both cells where they share a face that is the problem face of each."""
    tables = device_tables(cell.device)
    _, ny, nz = shape
    problem = tables.problem_face[case].long()
    candidate = (problem >= 0).nonzero().squeeze(1)
    face = problem[candidate]
    axis, side = face // 2, face % 2
    stride = torch.tensor([ny * nz, nz, 1], device=cell.device)[axis]
    size = torch.tensor(shape, device=cell.device)[axis]
    along = cell[candidate] // stride % size
    in_range = torch.where(side == 1, along + 1 < size, along > 0)
    neighbour = torch.where(in_range, cell[candidate] + (2 * side - 1) * stride, 0)
    flip = in_range & (tables.problem_face[cases[neighbour].long()].long() == (face ^ 1))
    return case.index_put((candidate,), case[candidate] + 256 * flip)


def _quads(
    cell: Tensor,
    node: Tensor,
    case: Tensor,
    row: Tensor,
    start: Tensor,
    slot_of: Tensor,
    shape: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """Quads around the crossing edges at the low corner of each surface cell, cell by cell, then axis by axis."""
    tables = device_tables(cell.device)
    nx, ny, nz = shape
    stride = (ny * nz, nz, 1)
    index = (cell // (ny * nz) % nx, cell // nz % ny, cell % nz)
    low_inside = (case & 1).bool()
    wanted = []
    for a in range(3):
        u, v = (a + 1) % 3, (a + 2) % 3
        crossing = tables.edge_loop[row, 4 * a] >= 0
        wanted.append(crossing & (index[u] > 0) & (index[v] > 0))
    slot, axis = torch.stack(wanted, 1).nonzero(as_tuple=True)

    strides = torch.tensor(stride, device=cell.device)
    stride_u, stride_v = strides[(axis + 1) % 3], strides[(axis + 2) % 3]
    corners = []
    for du, dv, seen_at in RING:
        around = slot_of[cell[slot] + du * stride_u + dv * stride_v]
        corners.append(start[around] + tables.edge_loop[row[around], 4 * axis + seen_at])
    quads = torch.stack(corners, 1)
    quads = torch.where(low_inside[slot, None], quads, quads.flip(1))
    return quads, 3 * node[slot] + axis
