import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from diffmatch.meshing.shapes import (
    DEMO_PART_BODIES,
    DEMO_PART_EULER_CHARACTERISTIC,
    DEMO_PART_GENUS,
    box,
    cylinder,
    demo_part,
    difference,
    intersection,
    sphere,
    torus,
    union,
)

BODIES = {
    "sphere": lambda p: sphere(p, radius=0.5, center=(0.1, 0, -0.2)),
    "box": lambda p: box(p, half=(0.3, 0.5, 0.2), center=(0.1, -0.1, 0)),
    "cylinder": lambda p: cylinder(p, radius=0.3, half_height=0.5, axis=0, center=(0, 0.1, 0)),
    "torus": lambda p: torus(p, radius=0.5, tube=0.2, axis=1),
}
COMBINED = {
    "union": lambda p: union(BODIES["sphere"](p), BODIES["box"](p)),
    "intersection": lambda p: intersection(BODIES["sphere"](p), BODIES["box"](p)),
    "difference": lambda p: difference(BODIES["sphere"](p), BODIES["box"](p), BODIES["cylinder"](p)),
    "demo_part": demo_part,
}


def random_points(n: int) -> torch.Tensor:
    return 2 * torch.rand(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1


def gradients(field, points):
    leaf = points.clone().requires_grad_()
    values = field(leaf)
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


def grid(n: int, half: float = 1.0) -> torch.Tensor:
    """Centres of n^3 cells that fill [-half, half]^3."""
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * half - half
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)


def test_distances_at_points_where_they_are_known():
    points = torch.tensor([[0.0, 0, 0], [2, 0, 0], [2, 3, 0], [0, 0, 2]])
    assert sphere(points, radius=0.5).tolist() == pytest.approx([-0.5, 1.5, math.sqrt(13) - 0.5, 1.5])
    assert box(points, half=(1, 1, 0.5)).tolist() == pytest.approx([-0.5, 1, math.sqrt(5), 1.5])
    assert cylinder(points, radius=1, half_height=0.5).tolist() == pytest.approx([-0.5, 1, math.sqrt(13) - 1, 1.5])
    assert torus(points, radius=2, tube=0.5).tolist() == pytest.approx([1.5, -0.5, math.sqrt(13) - 2.5, 8**0.5 - 0.5])


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_exact_distances(name):
    points = random_points(2000)
    values, gradient = gradients(BODIES[name], points)
    torch.testing.assert_close(gradient.norm(dim=1), torch.ones(2000, dtype=torch.float64))
    # A step of the distance along the gradient ends on the surface, which no point closer than that could do.
    assert BODIES[name](points - values[:, None] * gradient).abs().max() < 1e-12


@pytest.mark.parametrize("name", COMBINED)
def test_combinations_are_bounds_with_the_right_sign(name):
    points, others = random_points(1500), random_points(3000)[1500:]
    field = COMBINED[name]
    # At most the true distance: no value changes faster than the way from one point to another.
    change = (field(points)[:, None] - field(others)[None]).abs()
    assert (change <= torch.cdist(points, others) + 1e-12).all()
    inside = {key: body(points) < 0 for key, body in BODIES.items()}
    expected = {
        "union": inside["sphere"] | inside["box"],
        "intersection": inside["sphere"] & inside["box"],
        "difference": inside["sphere"] & ~inside["box"] & ~inside["cylinder"],
    }
    if name in expected:
        assert torch.equal(field(points) < 0, expected[name])


@pytest.mark.parametrize("field", [*BODIES.values(), demo_part])
def test_any_leading_axes_device_and_dtype(field, device, dtype):
    points = torch.rand(2, 5, 3, device=device).to(dtype)
    values = field(points)
    assert (values.shape, values.dtype, values.device.type) == ((2, 5), dtype, device.type)
    assert field(points[:0]).shape == (0, 5)


def euler_characteristic(inside: np.ndarray) -> int:
    """Of the union of closed unit cells: corners - edges + faces - cells, each counted once."""
    padded = np.pad(inside, 1)
    total = 0
    for axes in np.ndindex(2, 2, 2):  # along the axes marked 1 the element is as long as a cell, along others flat
        touched = padded
        for axis, extends in enumerate(axes):
            if not extends:
                lower = [slice(None)] * 3
                upper = [slice(None)] * 3
                lower[axis], upper[axis] = slice(None, -1), slice(1, None)
                touched = touched[tuple(lower)] | touched[tuple(upper)]
        total += (-1) ** sum(axes) * int(touched.sum())
    return total


def test_counting_of_cells():
    ring = np.ones((3, 3, 1), dtype=bool)
    ring[1, 1] = False
    assert euler_characteristic(ring) == 0
    assert euler_characteristic(np.ones((2, 3, 4), dtype=bool)) == 1
    hollow = np.ones((3, 3, 3), dtype=bool)
    hollow[1, 1, 1] = False
    assert euler_characteristic(hollow) == 2


def test_the_part_has_the_topology_it_claims():
    inside = (demo_part(grid(80)) < 0).numpy()
    touching = np.ones((3, 3, 3))
    assert ndimage.label(inside, touching)[1] == DEMO_PART_BODIES == 1
    assert ndimage.label(~np.pad(inside, 1))[1] == 1  # no cavity
    # A solid without cavities: bodies - handles; its surface has twice that.
    assert euler_characteristic(inside) == 1 - DEMO_PART_GENUS
    assert DEMO_PART_EULER_CHARACTERISTIC == 2 * euler_characteristic(inside) == -8


def test_the_part_fits_its_box():
    points = grid(90, half=0.999)
    solid = points[demo_part(points) < 0]
    cell = 2 / 90
    low, high = solid.amin(0), solid.amax(0)
    expected = torch.tensor([0.9, 0.45, 0.68], dtype=torch.float64)
    assert ((high <= expected) & (high > expected - cell)).all()
    torch.testing.assert_close(low, -high, rtol=0, atol=1e-9)


def test_the_part_is_on_both_sides_of_its_faces_and_edges():
    # Just within and just beyond: the base's corner, the bore's wall, the oil hole's wall, a mount's wall.
    within = torch.tensor([[0.89, 0.44, -0.41], [0.0, 0.29, 0.5], [0.11, 0, 0.6], [-0.68, 0.13, -0.5]])
    beyond = torch.tensor([[0.91, 0.44, -0.41], [0.0, 0.29, 0.48], [0.09, 0, 0.6], [-0.68, 0.11, -0.5]])
    assert (demo_part(within) < 0).all()
    assert (demo_part(beyond) > 0).all()
