"""Fields made ready for extraction."""

import torch

from diffmatch.meshing import Grid, flexicubes, mesh_validity
from diffmatch.meshing.signs import walled, without_specks

GRID = Grid((6, 7, 8))


def test_a_walled_field_closes_within_the_grid(generator):
    field = torch.randn(GRID.n_nodes, generator=generator)
    made = walled(GRID, field).reshape(GRID.node_shape)
    inner = (slice(1, -1),) * 3
    assert torch.equal(made[inner], field.reshape(GRID.node_shape)[inner])
    assert mesh_validity(flexicubes(GRID, made)).watertight
    assert not mesh_validity(flexicubes(GRID, field)).watertight


def test_small_bodies_and_cavities_change_sign_and_nothing_else():
    field = torch.ones(GRID.node_shape)
    field[1:5, 1:5, 1:5] = -2
    field[2, 2, 2] = 0.5  # a cavity of one node
    field[5, 6, 7] = field[5, 6, 6] = -0.25  # a body of two
    made = without_specks(GRID, field.flatten(), smallest=3).reshape(GRID.node_shape)
    assert made[2, 2, 2] == -0.5
    assert made[5, 6, 7] == made[5, 6, 6] == 0.25
    assert int((made != field).sum()) == 3
    assert int((without_specks(GRID, field.flatten(), smallest=2).reshape(GRID.node_shape) != field).sum()) == 1


def test_the_largest_body_stays_however_small():
    field = torch.ones(GRID.node_shape)
    field[3, 3, 3] = field[5, 5, 5] = field[5, 5, 6] = -1
    made = without_specks(GRID, field.flatten(), smallest=8).reshape(GRID.node_shape)
    assert (made < 0).nonzero().tolist() == [[5, 5, 5], [5, 5, 6]]


def test_bodies_that_touch_along_a_diagonal_are_apart_and_voids_are_not():
    field = torch.ones(GRID.node_shape)
    field[2:4, 2:4, 2:4] = -1
    field[4, 4, 4] = -1  # touches at a corner alone: the surface passes between
    made = without_specks(GRID, field.flatten(), smallest=2).reshape(GRID.node_shape)
    assert made[4, 4, 4] == 1
    assert torch.equal(without_specks(GRID, -made.flatten(), smallest=2), -made.flatten())
