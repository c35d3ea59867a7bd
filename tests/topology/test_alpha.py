"""Alpha complexes: closed forms, a peer, points in special position, gradients."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.topology.alpha import alpha_persistence, squared_circumradius
from diffmatch.topology.alpha_complex import alpha_complex
from diffmatch.topology.losses import total_persistence


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def sorted_points(points, digits):
    points = np.asarray(points).reshape(-1, 2)
    return points[np.lexsort(points.round(digits).T)]


def of_gudhi(points):
    gudhi = pytest.importorskip("gudhi")
    tree = gudhi.AlphaComplex(points=points).create_simplex_tree()
    tree.compute_persistence()
    bars = [tree.persistence_intervals_in_dimension(k).reshape(-1, 2) for k in range(points.shape[1])]
    return [b[np.isfinite(b[:, 1])] for b in bars]


def assert_equal_to_gudhi(points, *, min_persistence, atol):
    found = alpha_persistence(torch.from_numpy(points), min_persistence=min_persistence)
    digits = -round(math.log10(atol)) - 1
    for degree, theirs in enumerate(of_gudhi(points)):
        theirs = theirs[theirs[:, 1] - theirs[:, 0] > min_persistence]
        np.testing.assert_allclose(
            sorted_points(found[degree].points(), digits),
            sorted_points(theirs, digits),
            rtol=atol,
            atol=atol,
            err_msg=str(degree),
        )
    assert len(found[0].essential_births) == 1


def test_closed_forms_in_the_plane():
    square = alpha_persistence(tensor([[0, 0], [1, 0], [0, 1], [1, 1]]))
    assert square[1].points().tolist() == [[0.25, 0.5]]
    triangle = alpha_persistence(tensor([[0, 0], [1, 0], [0.5, math.sqrt(0.75)]]))
    assert triangle[1].points()[0].tolist() == pytest.approx([1 / 4, 1 / 3])
    obtuse = alpha_persistence(tensor([[0, 0], [1, 0], [0.5, 0.1]]))
    assert obtuse[0].deaths.tolist() == pytest.approx([0.065] * 2)
    assert len(obtuse[1]) == 0


def test_closed_forms_in_space():
    corners = tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / math.sqrt(3)
    found = alpha_persistence(corners)
    assert found[0].deaths.tolist() == pytest.approx([2 / 3] * 3)
    assert found[1].points().flatten().tolist() == pytest.approx([2 / 3, 8 / 9] * 3)
    assert found[2].points().flatten().tolist() == pytest.approx([8 / 9, 1])
    radii = alpha_persistence(corners, squared=False)
    assert radii[2].deaths.tolist() == pytest.approx([1])
    assert torch.allclose(radii[1].births.square(), found[1].births)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("n", [4, 30, 300])
def test_clouds_agree_with_gudhi(n, d):
    assert_equal_to_gudhi(np.random.default_rng(n).random((n, d)), min_persistence=0.0, atol=1e-12)


@given(st.integers(1, 40), st.integers(2, 3), st.integers(2, 5), st.integers(0, 10**6))
def test_points_in_special_position_agree_with_gudhi(n, d, width, seed):
    points = np.random.default_rng(seed).integers(0, width, (n, d)) / 3
    assert_equal_to_gudhi(points, min_persistence=1e-9, atol=1e-9)


@pytest.mark.parametrize("d", [2, 3])
def test_a_regular_grid(d):
    points = np.array(list(itertools.product(range(4), repeat=d)), dtype=float)
    assert_equal_to_gudhi(points, min_persistence=1e-9, atol=1e-9)
    found = alpha_persistence(torch.from_numpy(points), min_persistence=1e-9)
    cells, squares = 3**d, {2: 9, 3: 108}[d]
    assert found[d - 1].points()[:, 1].tolist() == pytest.approx([d / 4] * cells)
    assert len(found[1]) == squares - (0 if d == 2 else cells)


def test_rings_above_each_other():
    angle = np.arange(12) / 6 * math.pi
    ring = np.stack((np.cos(angle), np.sin(angle), 0 * angle), 1)
    points = np.concatenate([ring + np.array([0, 0, z]) for z in (0, 0.3, 2)])
    assert_equal_to_gudhi(points, min_persistence=1e-9, atol=1e-9)


def test_points_on_a_plane_have_no_cavity_and_points_on_a_line_no_loop(generator):
    flat = torch.rand(20, 2, dtype=torch.float64, generator=generator)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator)).Q[:2]
    in_space, in_plane = alpha_persistence(flat @ turn), alpha_persistence(flat)
    assert torch.allclose(in_space[1].points(), in_plane[1].points())
    assert len(in_space[2]) == 0
    line = alpha_persistence(tensor([[1, 1], [0, 0], [3, 3]]))
    assert line[0].deaths.tolist() == pytest.approx([2.0, 0.5])
    assert line[0].death_index.tolist() == [[0, 2, -1], [0, 1, -1]]
    assert len(line[1]) == 0


@pytest.mark.parametrize("height", [1e-6, 1e-9, 1e-12, 1e-15])
def test_almost_flat_clouds_have_the_bars_of_flat_ones(height, generator):
    points = torch.rand(50, 3, dtype=torch.float64, generator=generator)
    points[:, 2] *= height
    in_space, in_plane = alpha_persistence(points, min_persistence=1e-8), alpha_persistence(points[:, :2])
    assert torch.allclose(in_space[1].points(), in_plane[1].filter(1e-8).points())
    assert len(in_space[2]) == 0
    on_line = alpha_persistence(points[:, 1:])
    assert torch.allclose(on_line[0].deaths.sum(), (points[:, 1].sort().values.diff().square() / 4).sum())
    assert len(on_line[1]) == 0


@pytest.mark.parametrize("n", [0, 1, 3])
def test_no_point_and_points_that_coincide(n):
    points = torch.ones(n, 2, dtype=torch.float64, requires_grad=True)
    found = alpha_persistence(points)
    assert (len(found[0]), len(found[1]), len(found[0].essential_births)) == (0, 0, min(n, 1))
    total_persistence(found).backward()


@pytest.mark.parametrize("d", [2, 3])
def test_the_complex_is_closed_and_monotone(d):
    complex_ = alpha_complex(np.random.default_rng(0).random((60, d)))
    values = {
        tuple(v): f
        for k in range(1, d + 1)
        for v, f in zip(complex_.faces(k).vertices.tolist(), complex_.faces(k).values, strict=True)
    }
    for simplex, value in values.items():
        for face in itertools.combinations(simplex, len(simplex) - 1):
            if len(face) > 1:
                assert values[face] <= value
    euler = len(complex_.vertices) + sum((-1) ** (len(v) - 1) for v in values)
    assert euler == 1


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("squared", [True, False])
def test_gradients(d, squared, generator):
    points = torch.rand(10, d, dtype=torch.float64, generator=generator, requires_grad=True)
    found = alpha_persistence(points, squared=squared)
    assert all(len(found[k]) for k in range(d))
    assert torch.autograd.gradcheck(lambda x: total_persistence(alpha_persistence(x, squared=squared), power=2), points)


def test_values_are_those_of_the_spheres_that_are_named(generator):
    points = torch.rand(40, 3, dtype=torch.float64, generator=generator)
    for diagram in alpha_persistence(points):
        assert torch.equal(squared_circumradius(points, diagram.death_index), diagram.deaths)
        assert (diagram.persistence > 0).all()
        assert (diagram.persistence.diff() <= 0).all()


def test_single_precision_keeps_its_dtype_and_device(device, generator):
    points = torch.rand(30, 3, generator=generator, device=device)
    found, exact = alpha_persistence(points, degrees=(1,)), alpha_persistence(points.double(), degrees=(1,))
    assert found.degrees == (1,)
    assert found[1].births.dtype == torch.float32
    assert found[1].births.device.type == device.type
    assert torch.allclose(found[1].births.double(), exact[1].births, rtol=1e-6)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("points", lambda x: alpha_persistence(x / 0)),
        ("points", lambda x: alpha_persistence(x[0])),
        ("points", lambda x: alpha_persistence(torch.rand(5, 4))),
        ("points", lambda x: alpha_persistence(x.long())),
        ("degrees", lambda x: alpha_persistence(x, degrees=(2,))),
        ("degrees", lambda x: alpha_persistence(x, degrees=())),
        ("min_persistence", lambda x: alpha_persistence(x, min_persistence=math.nan)),
    ],
)
def test_wrong_arguments_are_named(argument, call):
    with pytest.raises(InputError) as error:
        call(torch.rand(5, 2))
    assert error.value.argument == argument
