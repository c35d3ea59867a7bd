"""The floor of the error of surfaces from noisy points, where it is known."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def placement_floor():
    sys.path.insert(0, str(FOLDER))
    from noise_floor import placement_floor

    yield placement_floor
    sys.path.remove(str(FOLDER))


def test_a_box_is_six_means(placement_floor):
    from diffmatch.meshing import Mesh

    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box(extents=(1.0, 2.0, 3.0))
    mesh = Mesh(torch.tensor(np.asarray(box.vertices)), torch.tensor(np.asarray(box.faces)))
    areas = np.array([2.0, 3.0, 6.0])
    counts = 22_000 * areas / (2 * areas.sum())
    wanted = math.sqrt(2 / math.pi) * 0.01 * (areas / np.sqrt(counts)).sum() / areas.sum()
    assert placement_floor(mesh, 22_000, 0.01) == pytest.approx(wanted, rel=1e-6)


def test_a_ball_has_one_place(placement_floor):
    from diffmatch.meshing import Grid, Mesh, flexicubes
    from diffmatch.meshing.shapes import sphere

    grid = Grid.cube(24)
    ball = flexicubes(grid, sphere(grid.nodes(dtype=torch.float64), radius=0.7))
    found = placement_floor(Mesh(ball.vertices, ball.faces), 3000, 0.01)
    # N' N is a third of the number of points, in each direction.
    assert found == pytest.approx(math.sqrt(2 / math.pi) * 0.01 * math.sqrt(3 / 3000), rel=0.02)
