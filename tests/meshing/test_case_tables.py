"""The tables of the 256 cases: counts known from the literature, symmetries, and what a closed surface needs."""

import itertools

import numpy as np
import pytest
import torch

from diffmatch.meshing.case_tables import case_tables, cell_geometry, device_tables

CASES = range(256)
TABLES, GEOMETRY = case_tables(), cell_geometry()
CORNERS = GEOMETRY.corner_offset.astype(int)
MIDDLES = CORNERS[GEOMETRY.edge_corners].mean(1)  # of the edges


def loops_of(row):
    """Loops of a row as lists of edges."""
    ends = TABLES.loop_start[row]
    return [TABLES.loop_edges[row, ends[i] : ends[i + 1]].tolist() for i in range(TABLES.n_loops[row])]


def partition(row):
    return {frozenset(loop) for loop in loops_of(row)}


def is_inside(case, corner):
    return bool(case >> int(corner) & 1)


def crossing_edges(case):
    return [e for e, (a, b) in enumerate(GEOMETRY.edge_corners) if is_inside(case, a) != is_inside(case, b)]


def ambiguous_faces(case):
    """Faces with their inside corners on a diagonal."""
    walks = [[is_inside(case, c) for c in face] for face in GEOMETRY.face_corners]
    return [face for face, walk in enumerate(walks) if walk in ([True, False] * 2, [False, True] * 2)]


PROBLEM_CASES = [case for case in CASES if TABLES.problem_face[case] >= 0]


def test_edges_run_along_their_axis():
    for edge, (low, high) in enumerate(GEOMETRY.edge_corners):
        axis, slot = divmod(edge, 4)
        step = CORNERS[high] - CORNERS[low]
        assert step.tolist() == np.eye(3, dtype=int)[axis].tolist()
        assert (CORNERS[low][(axis + 1) % 3], CORNERS[low][(axis + 2) % 3]) == (slot & 1, slot >> 1)


def test_faces_turn_counter_clockwise_seen_from_outside():
    for face, corners in enumerate(GEOMETRY.face_corners):
        axis, side = divmod(face, 2)
        a, b, c, d = CORNERS[corners]
        assert {int(x[axis]) for x in (a, b, c, d)} == {side}
        assert np.cross(b - a, c - b)[axis] == 2 * side - 1
        assert (a + c == b + d).all()
        for i, edge in enumerate(GEOMETRY.face_edges[face]):
            assert set(GEOMETRY.edge_corners[edge]) == {corners[i], corners[(i + 1) % 4]}


def test_histogram_of_dual_vertices():
    assert np.bincount(TABLES.n_loops[:256]).tolist() == [2, 162, 82, 8, 2]


@pytest.mark.parametrize("repaired", [False, True])
def test_loops_partition_the_crossing_edges(repaired):
    for case in CASES:
        row = case + 256 * repaired
        loops = loops_of(row)
        assert sorted(itertools.chain(*loops)) == crossing_edges(case)
        assert all(3 <= len(loop) <= 7 for loop in loops)
        assert [min(loop) for loop in loops] == sorted(loop[0] for loop in loops)
        assert TABLES.n_incidences[row] == len(crossing_edges(case))
        of_edge = {edge: i for i, loop in enumerate(loops) for edge in loop}
        assert TABLES.edge_loop[row].tolist() == [of_edge.get(edge, -1) for edge in range(12)]
        assert (TABLES.loop_edges[row, len(of_edge) :] == -1).all()
        assert (TABLES.loop_start[row, len(loops) :] == len(of_edge)).all()


@pytest.mark.parametrize("repaired", [False, True])
def test_consecutive_edges_of_a_loop_share_a_face(repaired):
    on_face = [set(edges) for edges in GEOMETRY.face_edges.tolist()]
    for case in CASES:
        arcs = [
            (a, b) for loop in loops_of(case + 256 * repaired) for a, b in zip(loop, loop[1:] + loop[:1], strict=True)
        ]
        for face in on_face:
            # As many arcs on a face as half its crossing edges: 0, 1 or 2.
            assert 2 * sum({a, b} <= face for a, b in arcs) == len(face & set(crossing_edges(case)))


@pytest.mark.parametrize("repaired", [False, True])
def test_loops_turn_counter_clockwise_seen_from_outside(repaired):
    for case in CASES:
        for loop in loops_of(case + 256 * repaired):
            points = MIDDLES[loop]
            area = np.cross(points, np.roll(points, -1, 0)).sum(0) / 2
            outward = np.zeros(3)
            for low, high in GEOMETRY.edge_corners[loop]:
                outward += (CORNERS[high] - CORNERS[low]) * (1 if is_inside(case, low) else -1)
            assert area @ outward > 0


def test_problem_cases_are_those_of_the_literature():
    inside = [case.bit_count() for case in PROBLEM_CASES]
    assert (len(inside), inside.count(5), inside.count(6)) == (36, 24, 12)
    for case in PROBLEM_CASES:
        assert ambiguous_faces(case) == [TABLES.problem_face[case]]
        assert (TABLES.n_loops[case], TABLES.n_loops[case + 256]) == (1, 2)


def test_a_problem_face_has_both_arcs_on_one_loop():
    for case in CASES:
        for face in ambiguous_faces(case):
            loops = {int(TABLES.edge_loop[case, edge]) for edge in GEOMETRY.face_edges[face]}
            assert (len(loops) == 1) == (TABLES.problem_face[case] == face)


def test_repair_gives_the_loops_of_the_complement():
    for case in PROBLEM_CASES:
        assert partition(case + 256) == partition(255 - case)


def test_other_cases_are_not_repaired():
    for case in set(CASES) - set(PROBLEM_CASES):
        assert loops_of(case + 256) == loops_of(case)
    assert (TABLES.problem_face[256:] == TABLES.problem_face[:256]).all()


def test_complement_keeps_the_loops_of_unambiguous_cases():
    unambiguous = [case for case in CASES if not ambiguous_faces(case)]
    assert len(unambiguous) > 100
    for case in unambiguous:
        # The same polygons, seen from the other side.
        assert {tuple(loop) for loop in loops_of(255 - case)} == {(x[0], *reversed(x[1:])) for x in loops_of(case)}


def symmetries():
    """The 48 symmetries of the cube, as where each corner goes and whether handedness is kept."""
    for order in itertools.permutations(range(3)):
        for mirror in itertools.product((0, 1), repeat=3):
            moved = CORNERS[:, order] ^ np.array(mirror)
            handed = np.linalg.det(np.eye(3)[list(order)]) * (-1) ** sum(mirror) > 0
            yield (moved * [1, 2, 4]).sum(1), handed


def test_tables_are_symmetric():
    edge_of = {frozenset(pair): e for e, pair in enumerate(GEOMETRY.edge_corners.tolist())}
    for corner_to, handed in symmetries():
        edge_to = [edge_of[frozenset(corner_to[pair].tolist())] for pair in GEOMETRY.edge_corners]
        for case in CASES:
            image = sum(1 << int(corner_to[c]) for c in range(8) if is_inside(case, c))
            moved = set()
            for loop in loops_of(case):
                ring = [edge_to[edge] for edge in loop]
                ring = ring if handed else ring[::-1]
                first = ring.index(min(ring))
                moved.add(tuple(ring[first:] + ring[:first]))
            assert moved == {tuple(loop) for loop in loops_of(image)}


def test_tables_are_made_once_and_cannot_be_written():
    assert case_tables() is TABLES
    with pytest.raises(ValueError, match="read-only"):
        TABLES.n_loops[0] = 1


def test_device_tables_hold_the_same(device):
    tables = device_tables(device)
    assert tables is device_tables(device)
    assert tables.edge_loop.device.type == device.type
    for name in ("n_loops", "n_incidences", "edge_loop", "loop_edges", "problem_face"):
        torch.testing.assert_close(
            getattr(tables, name).cpu().int(), torch.tensor(getattr(TABLES, name).astype(np.int32))
        )
    assert tables.edge_corners.tolist() == GEOMETRY.edge_corners.tolist()
