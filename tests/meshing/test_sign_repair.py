"""Signs changed to the topology of a mesh: planted handles and gaps thinner than a cell."""

import itertools
import logging

import numpy as np
import pytest
import torch

from diffmatch.meshing import Grid, Mesh, MeshTarget, fit_mesh, flexicubes, mesh_validity
from diffmatch.meshing.shapes import sphere, torus
from diffmatch.meshing.sign_repair import _euler, surface_topology, with_topology, without_small_pieces
from diffmatch.meshing.signs import without_specks

GRID = Grid.cube(24)
NODES = GRID.nodes(dtype=torch.float64)
CELL = 2 / 24


def changed(one, other):
    return int(((one < 0) != (other < 0)).sum())


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (sphere(NODES, radius=0.7), (2, 1)),
        (torus(NODES, radius=0.6, tube=0.25), (0, 1)),
        (torch.maximum(sphere(NODES, radius=0.7), -sphere(NODES, radius=0.3)), (4, 2)),
    ],
)
def test_the_topology_of_a_surface(field, expected):
    assert surface_topology(GRID, field) == expected


def test_the_topology_is_that_of_the_extracted_mesh(generator):
    field = torch.randn(GRID.n_nodes, generator=generator)
    mesh = flexicubes(GRID, field, boundary="open")
    validity = mesh_validity(Mesh(mesh.vertices, mesh.faces))
    assert surface_topology(GRID, field) == (validity.euler_characteristic, validity.bodies)


def test_the_euler_characteristic_of_nodes_by_hand(generator):
    inside = torch.rand(4, 3, 5, generator=generator).numpy() < 0.6
    total = 0
    for size in itertools.product((1, 2), repeat=3):
        windows = np.lib.stride_tricks.sliding_window_view(inside, size).reshape(-1, int(np.prod(size)))
        total += (-1) ** (sum(size) - 3) * windows.all(1).sum()
    assert _euler(inside) == total


def test_a_thin_channel_is_filled(caplog):
    ball = sphere(NODES, radius=0.7)
    channel = (NODES[:, :2].norm(dim=1) < CELL / 2) & (ball < 0)
    pierced = torch.where(channel, torch.full_like(ball, 0.01 * CELL), ball)
    assert surface_topology(GRID, pierced) == (0, 1)
    with caplog.at_level(logging.INFO):
        repaired = with_topology(GRID, pierced, euler_characteristic=2, bodies=1)
    assert surface_topology(GRID, repaired) == (2, 1)
    assert changed(repaired, pierced) == int(channel.sum())
    assert "signs of" in caplog.text
    assert torch.equal(repaired[~channel], pierced[~channel])


def test_a_bridge_across_a_gap_is_cut():
    two = torch.minimum(
        sphere(NODES, radius=0.35, center=(-0.5, 0.0, 0.0)), sphere(NODES, radius=0.35, center=(0.5, 0.0, 0.0))
    )
    bridge = (NODES[:, 1:].norm(dim=1) < CELL / 2) & (two > 0) & (NODES[:, 0].abs() < 0.5)
    joined = torch.where(bridge, torch.full_like(two, -0.04 * CELL), two)
    assert surface_topology(GRID, joined) == (2, 1)
    repaired = with_topology(GRID, joined, euler_characteristic=4, bodies=2)
    assert surface_topology(GRID, repaired) == (4, 2)
    assert changed(repaired, joined) == int(bridge.sum())


def test_what_cannot_be_had_changes_nothing_and_is_said(caplog):
    field = sphere(NODES, radius=0.7)
    assert with_topology(GRID, field, euler_characteristic=2, bodies=1) is field
    assert with_topology(GRID, field, euler_characteristic=-6, bodies=1) is field
    assert "Euler characteristic 2 in 1 bodies, not -6 in 1" in caplog.text


def test_a_fit_to_a_mesh_has_its_topology():
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("igl")
    # A flat ring with a tunnel narrower than a cell: no node lies in it.
    target = MeshTarget(trimesh.creation.annulus(r_min=0.065, r_max=0.9, height=0.5))
    grid = Grid.cube(15)
    assert surface_topology(grid, target.sdf(grid.nodes(dtype=torch.float64))) == (2, 1)
    assert target.whole
    result = fit_mesh(target, resolution=15, steps=3, progress=False)
    assert result.metrics.validity.euler_characteristic == 0
    assert result.metrics.validity.bodies == 1


def carved(*nodes):
    """A solid block of 6^3 nodes in a grid of 9^3, with some of its nodes outside."""
    grid = Grid.cube(8)
    field = torch.ones(grid.node_shape)
    field[1:7, 1:7, 1:7] = -1.0
    for node in nodes:
        field[node] = 1.0
    return grid, field.flatten()


def test_a_cavity_cut_off_by_flipped_cells_is_filled(caplog):
    # The end of a channel and a node diagonally below it: both cells at the face between them are flipped.
    grid, field = carved((3, 3, 6), (3, 3, 5), (3, 3, 4), (2, 3, 3))
    assert surface_topology(grid, field) == (4, 2)
    assert torch.equal(without_specks(grid, field, smallest=8), field)
    assert torch.equal(without_small_pieces(grid, field, smallest=1), field)
    filled = without_small_pieces(grid, field, smallest=8)
    assert changed(filled, field) == 1
    assert surface_topology(grid, filled) == (2, 1)
    assert "1 nodes in all" in caplog.text


def test_pieces_are_as_large_as_the_nodes_within():
    grid, field = carved((3, 3, 3), (3, 3, 4))  # a cavity of two nodes
    assert torch.equal(without_small_pieces(grid, field, smallest=2), field)
    assert surface_topology(grid, without_small_pieces(grid, field, smallest=3)) == (2, 1)
    body = torch.ones(grid.node_shape)
    body[1:8, 1:8, 1] = body[3, 3, 4] = -1.0  # a plate, and one node apart from it
    assert surface_topology(grid, body.flatten()) == (4, 2)
    assert changed(without_small_pieces(grid, body.flatten(), smallest=2), body.flatten()) == 1
