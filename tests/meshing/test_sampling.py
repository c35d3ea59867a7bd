"""Distances at nodes: those within reach are all there, the others keep their sign and stay beyond it."""

import pytest
import torch

from diffmatch.meshing import Grid
from diffmatch.meshing.sampling import near_distances
from diffmatch.meshing.shapes import box, sphere


@pytest.mark.parametrize("shape", [(32, 32, 32), (21, 34, 40), (3, 2, 5)])
@pytest.mark.parametrize("reach", [0.05, 0.3])
def test_values_are_those_of_all_nodes_up_to_the_reach(shape, reach, device):
    grid = Grid.box(shape, low=(-1.0, -1.1, -0.9), high=(1.0, 0.9, 1.2))
    asked = []

    def field(points):
        asked.append(len(points))
        return torch.minimum(sphere(points, radius=0.4, center=(0.3, 0.0, 0.1)), box(points, half=(0.7, 0.1, 0.2)))

    found = near_distances(grid, field, reach=reach, device=device)
    queries = sum(asked)
    wanted = field(grid.nodes(dtype=torch.float64, device=device))
    assert found.dtype == torch.float64
    assert torch.equal(found.clamp(-reach, reach), wanted.clamp(-reach, reach))
    assert torch.equal(found < 0, wanted < 0)
    assert (found.abs() <= wanted.abs()).all()
    if shape == (32, 32, 32) and reach == 0.05:
        assert queries < grid.n_nodes / 2
