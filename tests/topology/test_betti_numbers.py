"""Betti numbers by counting: known solids, persistence; certificates of extracted meshes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.meshing import Grid, flexicubes
from diffmatch.topology import TopologyCertificate, betti_numbers, certify_topology, cubical_persistence

GRID = Grid.cube(32)


def ball(at: Tensor, centre: tuple[float, float, float], radius: float) -> Tensor:
    return (at - at.new_tensor(centre)).norm(dim=-1) - radius


def ring(at: Tensor, x: float, radius: float) -> Tensor:
    around = torch.hypot(at[..., 0] - x, at[..., 1]) - radius
    return torch.hypot(around, at[..., 2]) - 0.15


def solids() -> dict[str, tuple[Tensor, tuple[int, int, int]]]:
    at = GRID.nodes().double().reshape(33, 33, 33, 3)
    one = ball(at, (0.01, 0.02, 0.0), 0.7)
    return {
        "ball": (one, (1, 0, 0)),
        "torus": (ring(at, 0.0, 0.5), (1, 1, 0)),
        "shell": (torch.maximum(one, -ball(at, (0, 0, 0), 0.4)), (1, 0, 1)),
        "two balls": (torch.minimum(ball(at, (-0.5, 0, 0), 0.3), ball(at, (0.5, 0, 0), 0.35)), (2, 0, 0)),
        "double torus": (torch.minimum(ring(at, -0.4, 0.35), ring(at, 0.4, 0.35)), (1, 2, 0)),
        "nothing": (one + 5, (0, 0, 0)),
    }


@pytest.mark.parametrize("name", ["ball", "torus", "shell", "two balls", "double torus", "nothing"])
def test_known_solids(name):
    field, betti = solids()[name]
    assert betti_numbers(field) == betti_numbers(field, construction="T") == betti
    assert betti_numbers(-field, superlevel=True) == betti
    assert cubical_persistence(field).betti(0.0) == betti
    certificate = certify_topology(field, flexicubes(GRID, field.float()).faces)
    assert certificate.holds
    assert certificate.doubts == ()
    assert certificate.mesh_euler == certificate.expected_euler == 2 * (betti[0] - betti[1] + betti[2])
    assert certificate.mesh_components == betti[0] + betti[2]


@given(
    st.one_of(st.tuples(*[st.integers(0, 6)] * 2), st.tuples(*[st.integers(0, 4)] * 3)),
    st.sampled_from(["V", "T"]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_equals_persistence(shape, construction, superlevel, seed):
    field = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double()
    options = {"construction": construction, "superlevel": superlevel}
    for level in (-math.inf, -1.0, 0.0, 0.5, math.inf):
        wanted = cubical_persistence(field, **options).betti(level)
        assert betti_numbers(field, level=level, **options) == wanted


def test_known_images(device):
    ring = torch.ones(5, 5, device=device)
    ring[1:4, 1:4] = -1
    ring[2, 2] = 1
    assert betti_numbers(ring) == betti_numbers(ring, construction="T") == (1, 1)
    diagonal = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], device=device)
    assert betti_numbers(diagonal) == (2, 0)
    assert betti_numbers(diagonal, construction="T") == (1, 0)
    assert betti_numbers(diagonal * 0) == (0, 0)  # what equals the level is outside
    assert betti_numbers(diagonal, level=math.inf) == (1, 0)


def test_a_certificate_says_what_is_wrong():
    field, _ = solids()["torus"]
    other, _ = solids()["ball"]
    wrong = certify_topology(field, flexicubes(GRID, other.float()).faces)
    assert not wrong.holds
    assert wrong.doubts == ("the mesh has Euler characteristic 2, the field asks for 0",)
    alone = certify_topology(field)
    assert not alone.holds
    assert alone.doubts == ()
    cut = certify_topology(field[16:])
    assert cut.touches_border
    assert cut.doubts == ("the set reaches the border of the grid, where its surface may be open",)
    nothing = certify_topology(other + 5, torch.zeros(0, 3, dtype=torch.int64))
    assert nothing.holds


def test_ambiguous_signs_are_counted():
    field = torch.ones(4, 4, 4)
    field[1, 1, 1] = field[2, 2, 1] = -1
    edge = certify_topology(field)
    assert edge.betti == (2, 0, 0)
    assert edge.betti_top_cells == (1, 0, 0)
    assert (edge.ambiguous_faces, edge.ambiguous_cells) == (1, 0)
    assert edge.doubts == (
        "Betti numbers depend on the construction: V (2, 0, 0), T (1, 0, 0)",
        "1 faces and 0 cells of the grid have ambiguous signs",
    )
    field = torch.ones(4, 4, 4)
    field[1, 1, 1] = field[2, 2, 2] = -1
    assert certify_topology(field).ambiguous_faces == 0
    assert certify_topology(field).ambiguous_cells == 1
    assert certify_topology(-field).ambiguous_cells == 1
    assert certify_topology(-field).touches_border


def test_expected_counts():
    certificate = TopologyCertificate((2, 3, 1), (2, 3, 1), 0, 0, False, mesh_euler=0, mesh_components=3)
    assert (certificate.expected_euler, certificate.expected_components) == (0, 3)
    assert certificate.holds


@pytest.mark.untyped
def test_refusals():
    with pytest.raises(InputError, match="field: want a tensor of shape"):
        betti_numbers(torch.zeros(3))
    with pytest.raises(InputError, match=r"field: want a tensor of shape .* got list"):
        betti_numbers([[0.0]])
    with pytest.raises(InputError, match="field: want a real floating-point dtype"):
        betti_numbers(torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="field: want no NaN, got 1 of 9"):
        betti_numbers(torch.eye(3).where(torch.arange(9).reshape(3, 3) != 4, torch.nan))
    with pytest.raises(InputError, match="level: want a number, got nan"):
        betti_numbers(torch.zeros(3, 3), level=math.nan)
    with pytest.raises(InputError, match="construction: want one of T, V"):
        betti_numbers(torch.zeros(3, 3), construction="U")
    with pytest.raises(InputError, match=r"field: want shape \(nx, ny, nz\)"):
        certify_topology(torch.zeros(3, 3))
    with pytest.raises(InputError, match=r"faces: want shape \(f, 3\)"):
        certify_topology(torch.zeros(3, 3, 3), torch.zeros(1, 4, dtype=torch.int64))
