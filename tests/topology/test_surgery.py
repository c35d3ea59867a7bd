"""Changing the Betti numbers of a field by moves that persistence points out."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from diffmatch.errors import InputError
from diffmatch.topology import betti_numbers
from diffmatch.topology.surgery import change_topology
from diffmatch.topology.surgery_kernels import grow

N = 23
STEP = 2 / N


def grid():
    axis = torch.linspace(-1, 1, N + 1, dtype=torch.float64)
    return torch.meshgrid(axis, axis, axis, indexing="ij")


def ball(radius=0.7, center=(0.0, 0.0, 0.0)):
    x, y, z = (p - c for p, c in zip(grid(), center, strict=True))
    return (x * x + y * y + z * z).sqrt() - radius


def ring(radius=0.5, tube=0.25):
    x, y, z = grid()
    return (((x * x + y * y).sqrt() - radius).square() + z * z).sqrt() - tube


def block(holes=((-0.5, 0.13), (0.0, 0.17), (0.5, 0.2))):
    """A block with holes of different sizes."""
    x, y, z = grid()
    field = torch.stack((x.abs() - 0.85, y.abs() - 0.6, z.abs() - 0.3)).amax(0)
    for at, radius in holes:
        field = torch.maximum(field, radius - ((x - at).square() + y * y).sqrt())
    return field


CASES = {
    "two blobs to one": (lambda: torch.minimum(ball(0.35, (-0.45, 0, 0)), ball(0.3, (0.45, 0.1, 0))), (1, 0, 0)),
    "ball to ring": (ball, (1, 1, 0)),
    "ring to ball": (ring, (1, 0, 0)),
    "shell filled": (lambda: torch.maximum(ball(0.7), -ball(0.3)), (1, 0, 0)),
    "one of three holes closed": (block, (1, 2, 0)),
    "all holes closed": (block, (1, 0, 0)),
    "ball to shell": (ball, (1, 0, 1)),
    "another piece": (lambda: ball(0.6), (2, 0, 0)),
    "ring to double ring": (ring, (1, 2, 0)),
    "any number of pieces": (block, (None, 2, 0)),
}

ACCEPTED = tuple(CASES)[:5]


def both(field):
    return betti_numbers(field), betti_numbers(field, construction="T")


def agrees(found, wanted):
    return all(b is None or a == b for a, b in zip(found, wanted, strict=True))


def perturbed(field, seed):
    """Noise of a third of a pixel, smoothed."""
    noise = torch.randn(field.shape, dtype=field.dtype, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool3d(noise[None, None], 3, 1, 1)[0, 0]
    return field + 0.3 * STEP * smooth / smooth.std()


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_asked_for_are_reached_in_both_constructions_from_perturbed_starts(case):
    make, wanted = CASES[case]
    field = make()
    for seed in range(10 if case in ACCEPTED else 3):
        start = perturbed(field, seed) if seed else field
        result = change_topology(start, betti=wanted, spacing=STEP)
        assert result.reached
        found = both(result.field)
        assert found == (result.betti, result.betti_top_cells)
        assert all(agrees(numbers, wanted) for numbers in found)
        changed = (result.field < 0) != (start < 0)
        assert int(changed.sum()) == result.changed > 0
        far = torch.from_numpy(ndimage.distance_transform_edt(~changed.numpy())) > 4
        assert torch.equal(result.field[far], start[far])


def test_a_hole_is_closed_where_it_is_narrowest_and_nothing_else_moves():
    field = block(((-0.45, 0.12), (0.3, 0.22)))
    result = change_topology(field, betti=(1, 1, 0), spacing=STEP)
    changed = ((result.field < 0) != (field < 0)).nonzero() * STEP - 1
    assert result.moves == ("filled a tunnel",)
    assert (changed[:, 0] + 0.45).abs().max() < 0.12 + 2 * STEP  # a membrane one node wider than the hole
    assert changed[:, 1].abs().max() < 0.12 + 2 * STEP


def test_a_field_that_has_the_numbers_is_returned_as_it_is(dtype, device):
    field = ring().to(dtype=dtype, device=device)
    result = change_topology(field, betti=(1, 1, 0), spacing=(STEP, STEP, STEP))
    assert torch.equal(result.field, field)
    assert result.field.device == field.device
    assert (result.moves, result.changed, result.reached) == ((), 0, True)


def test_what_finds_no_room_is_said(caplog):
    field = torch.ones(5, 5, 5)
    field[2, 2, 2] = -1
    result = change_topology(field, betti=(1, 5, 3))
    assert not result.reached
    assert "asked for the Betti numbers (1, 5, 3)" in caplog.text
    assert both(result.field) == (result.betti, result.betti_top_cells)


def test_noise_is_tidied_up():
    field = torch.randn(12, 13, 11, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for axis in range(3):
        for end in (0, -1):
            field.select(axis, end).fill_(1.0)
    before = betti_numbers(field)
    result = change_topology(field, betti=(1, 0, 0))
    distance = [sum(abs(a - b) for a, b in zip(found, (1, 0, 0), strict=True)) for found in (before, result.betti)]
    assert distance[1] < distance[0] / 4
    assert bool((result.field[0] > 0).all())  # the border stays


def test_growing_by_simple_points_changes_no_number():
    generator = np.random.default_rng(0)
    for seed in range(5):
        inside = ndimage.binary_dilation(generator.random((9, 10, 11)) < 0.02)
        inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
        before = both(torch.from_numpy(np.where(inside, -1.0, 1.0)))
        inner = np.zeros(inside.shape, dtype=bool)
        inner[1:-1, 1:-1, 1:-1] = True
        rank = generator.permutation(inside.size).reshape(inside.shape)
        grown = inside.copy()
        grow(grown, rank, inner, True, True)
        assert grown.sum() > inside.sum(), seed
        assert both(torch.from_numpy(np.where(grown, -1.0, 1.0))) == before
        alone = inside.copy()
        grow(alone, rank, inner, True, False)
        assert betti_numbers(torch.from_numpy(np.where(alone, -1.0, 1.0))) == before[0]


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("field", "options", "message"),
    [
        (torch.ones(4, 4), {}, "field: want shape"),
        (torch.ones(4, 4, 4), {}, "negative somewhere"),
        (torch.full((4, 4, 4), torch.nan), {}, "field"),
        (torch.ones(4, 4, 4, dtype=torch.int64), {}, "field"),
        (-torch.ones(4, 4, 4), {"betti": (0, 0, 0)}, "pieces >= 1"),
        (-torch.ones(4, 4, 4), {"betti": (None, None, None)}, "pieces >= 1"),
        (-torch.ones(4, 4, 4), {"betti": (1, 0, 0, 0)}, "pieces >= 1"),
        (-torch.ones(4, 4, 4), {"spacing": (1.0, 1.0)}, "one number or three"),
        (-torch.ones(4, 4, 4), {"spacing": 0.0}, "spacing"),
    ],
)
def test_wrong_input_is_named(field, options, message):
    with pytest.raises(InputError, match=message):
        change_topology(field, **{"betti": (1, 0, 0), **options})
