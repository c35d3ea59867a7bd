"""How the surface runs through one cell, for each of the 256 sign patterns of its corners.

Nothing here is typed in: the tables follow from one rule about faces. On a face, each maximal run of inside corners is
cut off by one arc that joins the two crossing edges at the ends of the run. The rule looks at the face alone, so two
cells that share the face agree on it. Every crossing edge of a cell lies on two of its faces, hence the arcs close into
loops; a loop is a polygon of the primal surface and carries one vertex of the dual surface.

Numbering, used everywhere in :mod:`diffmatch.meshing`:

- corner ``c`` of a cell sits at offset ``(c & 1, c >> 1 & 1, c >> 2 & 1)``;
- edge ``4 * axis + p + 2 * q`` runs along ``axis`` at offset ``p`` along ``u`` and ``q`` along ``v``, where
  ``(axis, u, v)`` are cyclic, from its low to its high corner;
- face ``2 * axis + side`` has side 0 low, 1 high;
- case id: the sum of ``2**c`` over the inside corners.

The manifold repair (Wenger 2013; FlexiCubes, Shen et al. 2023, section 4.1) pairs one ambiguous face of a cell by its
outside corners instead. Row ``case + 256`` of each table holds that variant; where a case needs none, it repeats row
``case``.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int8, Int16, UInt8
from numpy import ndarray as Array
from torch import Tensor

N_CASES = 256
"""Sign patterns of the eight corners."""


@dataclass(frozen=True)
class CaseTables:
    """Connectivity inside one cell; 512 rows: the 256 cases, then the 256 repaired ones.

    Attributes:
        n_loops: loops, and so dual vertices, of each row.
        n_incidences: crossing edges of each row.
        edge_loop: loop of each edge, -1 where the edge is not crossed.
        loop_edges: crossing edges loop after loop, each loop as a cycle that runs counter-clockwise seen from outside
            the shape and starts at its smallest edge; -1 behind the last.
        loop_start: position in ``loop_edges`` where each loop begins; the entries behind the last loop hold
            ``n_incidences``.
        problem_face: face whose two arcs lie on one loop, -1 if there is none (same in both halves).
    """

    n_loops: UInt8[Array, " 512"]
    n_incidences: UInt8[Array, " 512"]
    edge_loop: Int8[Array, "512 12"]
    loop_edges: Int8[Array, "512 12"]
    loop_start: UInt8[Array, "512 5"]
    problem_face: Int8[Array, " 512"]


@dataclass(frozen=True)
class CellGeometry:
    """Where the edges and faces of a cell are.

    Attributes:
        edge_corners: low and high corner of each edge.
        corner_offset: offset of each corner from the low corner of the cell, in cells.
        face_edges: edges of each face in the order of its corner cycle (edge i joins corner i and corner i + 1).
        face_corners: corners of each face, counter-clockwise seen from outside the cell.
    """

    edge_corners: Int8[Array, "12 2"]
    corner_offset: Int8[Array, "8 3"]
    face_edges: Int8[Array, "6 4"]
    face_corners: Int8[Array, "6 4"]


@lru_cache(maxsize=1)
def cell_geometry() -> CellGeometry:
    """Corners, edges and faces of a cell in the numbering of this module."""
    corner_offset = np.array([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)], np.int8)
    edge_corners = np.empty((12, 2), np.int8)
    face_corners = np.empty((6, 4), np.int8)
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        for q in range(2):
            for p in range(2):
                low = (p << u) | (q << v)
                edge_corners[4 * axis + p + 2 * q] = low, low | 1 << axis
        for side in range(2):
            cycle = [side << axis | p << u | q << v for p, q in ((0, 0), (1, 0), (1, 1), (0, 1))]
            face_corners[2 * axis + side] = cycle if side else cycle[::-1]
    edge_of = {frozenset(pair): e for e, pair in enumerate(edge_corners.tolist())}
    face_edges = np.array(
        [[edge_of[frozenset((cycle[i], cycle[(i + 1) % 4]))] for i in range(4)] for cycle in face_corners.tolist()],
        np.int8,
    )
    return CellGeometry(edge_corners, corner_offset, face_edges, face_corners)


def _arcs(inside: list[bool], face: int, *, pair_outside: bool) -> list[tuple[int, int]]:
    """Arcs of the surface on one face, as directed pairs of edges.

    Walking counter-clockwise around the face, a run of inside corners begins behind an edge where the walk enters the
    shape and ends at an edge where it leaves. The arc that cuts the run off is directed from the entering to the
    leaving edge. A neighbouring face walks the shared edge the other way round, so each crossing edge of the cell ends
    one arc and begins one: the arcs chain into directed loops. Pairing by outside corners joins each leaving edge with
    the entering edge that follows it.
    """
    geometry = cell_geometry()
    corners, edges = geometry.face_corners[face], geometry.face_edges[face]
    walk = [inside[c] for c in corners]
    entering = [i for i in range(4) if not walk[i] and walk[(i + 1) % 4]]
    leaving = [i for i in range(4) if walk[i] and not walk[(i + 1) % 4]]
    arcs = []
    for enter in entering:
        step = -1 if pair_outside else 1
        leave = next(i for i in ((enter + step * k) % 4 for k in range(1, 4)) if i in leaving)
        arcs.append((int(edges[enter]), int(edges[leave])))
    return arcs


def _loops(case: int, *, flipped_face: int = -1) -> list[list[int]]:
    """Loops of a case as cycles of edges, ordered by and starting at their smallest edge."""
    inside = [bool(case >> c & 1) for c in range(8)]
    successor = dict(arc for face in range(6) for arc in _arcs(inside, face, pair_outside=face == flipped_face))
    loops = []
    while successor:
        start = edge = min(successor)
        loop = [start]
        while (edge := successor.pop(edge)) != start:
            loop.append(edge)
        loops.append(loop)
    return loops


def _problem_face(case: int, loops: list[list[int]]) -> int:
    """The ambiguous face of a case whose two arcs lie on the same loop, or -1."""
    inside = [bool(case >> c & 1) for c in range(8)]
    for face in range(6):
        arcs = _arcs(inside, face, pair_outside=False)
        if len(arcs) == 2 and any(arcs[0][0] in loop and arcs[1][0] in loop for loop in loops):
            return face
    return -1


@lru_cache(maxsize=1)
def case_tables() -> CaseTables:
    """Derive the tables (some milliseconds, once a process)."""
    n_loops = np.zeros(2 * N_CASES, np.uint8)
    n_incidences = np.zeros(2 * N_CASES, np.uint8)
    edge_loop = np.full((2 * N_CASES, 12), -1, np.int8)
    loop_edges = np.full((2 * N_CASES, 12), -1, np.int8)
    loop_start = np.zeros((2 * N_CASES, 5), np.uint8)
    problem_face = np.full(2 * N_CASES, -1, np.int8)
    for case in range(N_CASES):
        plain = _loops(case)
        problem = _problem_face(case, plain)
        for row, loops in ((case, plain), (case + N_CASES, _loops(case, flipped_face=problem))):
            n_loops[row] = len(loops)
            n_incidences[row] = sum(map(len, loops))
            problem_face[row] = problem
            begin = 0
            for i, loop in enumerate(loops):
                edge_loop[row, loop] = i
                loop_edges[row, begin : begin + len(loop)] = loop
                begin += len(loop)
                loop_start[row, i + 1 :] = begin
    tables = CaseTables(n_loops, n_incidences, edge_loop, loop_edges, loop_start, problem_face)
    for array in vars(tables).values():
        array.setflags(write=False)
    return tables


@dataclass(frozen=True)
class DeviceTables:
    """The same tables as tensors on one device, in the types that indexing wants."""

    n_loops: Int16[Tensor, " 512"]
    n_incidences: Int16[Tensor, " 512"]
    edge_loop: Int8[Tensor, "512 12"]
    loop_edges: Int8[Tensor, "512 12"]
    problem_face: Int8[Tensor, " 512"]
    edge_corners: Int8[Tensor, "12 2"]


@lru_cache(maxsize=8)
def device_tables(device: torch.device) -> DeviceTables:
    """The tables on a device, uploaded once."""
    tables, geometry = case_tables(), cell_geometry()

    def upload(array: Array) -> Tensor:
        return torch.from_numpy(array.copy()).to(device)

    return DeviceTables(
        n_loops=upload(tables.n_loops.astype(np.int16)),
        n_incidences=upload(tables.n_incidences.astype(np.int16)),
        edge_loop=upload(tables.edge_loop),
        loop_edges=upload(tables.loop_edges),
        problem_face=upload(tables.problem_face),
        edge_corners=upload(geometry.edge_corners),
    )
