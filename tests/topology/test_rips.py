"""Vietoris-Rips persistence: closed forms, peers, gradients, and what happens at the edges of the domain."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError, MissingExtraError
from diffmatch.topology.losses import total_persistence
from diffmatch.topology.rips import rips_persistence


def polygon(n):
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    return torch.stack((angle.cos(), angle.sin()), dim=1)


def sorted_points(points, digits=9):
    points = np.asarray(points).reshape(-1, 2)
    return points[np.lexsort(points.round(digits).T)]


def finite(intervals):
    intervals = np.asarray(intervals).reshape(-1, 2)
    return intervals[np.isfinite(intervals[:, 1]) & (intervals[:, 1] > intervals[:, 0])]


def reduced(distances, degrees):
    """Bars by the reduction of the full boundary matrix, for a few points."""
    n = len(distances)
    subsets = [[v for v in range(n) if mask >> v & 1] for mask in range(1, 1 << n)]
    cells = [(max((distances[a][b] for a in s for b in s), default=0.0), len(s), s) for s in subsets if len(s) <= 4]
    cells.sort()
    number = {tuple(s): i for i, (_, _, s) in enumerate(cells)}
    low, bars = {}, {k: [] for k in degrees}
    for value, size, s in cells:
        column = {number[tuple(x for x in s if x != v)] for v in s} if size > 1 else set()
        while column and max(column) in low:
            column = column ^ low[max(column)]
        if column:
            pivot = max(column)
            low[pivot] = column
            birth, birth_size, _ = cells[pivot]
            if birth_size - 1 in bars and value > birth:
                bars[birth_size - 1].append((birth, value))
    return bars


@pytest.mark.parametrize("n", [4, 5, 6, 7, 12, 70])
def test_a_regular_polygon_has_one_loop(n):
    found = rips_persistence(polygon(n), min_persistence=1e-9)
    expected = [2 * math.sin(math.pi / n), 2 * math.sin(math.pi * math.ceil(n / 3) / n)]
    assert found[1].points()[0].tolist() == pytest.approx(expected)
    assert (len(found[0]), len(found[1]), len(found[0].essential_births)) == (n - 1, 1, 1)


def test_a_triangle_has_no_loop_and_an_octahedron_only_a_cavity():
    assert len(rips_persistence(polygon(3), min_persistence=1e-9)[1]) == 0
    pytest.importorskip("gudhi")
    corners = torch.cat((torch.eye(3), -torch.eye(3))).double()
    found = rips_persistence(corners, degrees=(0, 1, 2))
    assert found[0].deaths.tolist() == pytest.approx([math.sqrt(2)] * 5)
    assert len(found[1]) == 0
    assert found[2].points()[0].tolist() == pytest.approx([math.sqrt(2), 2])


def test_many_loops_may_be_alive_at_once():
    points = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0)).double()
    found = rips_persistence(points, min_persistence=1e-9)
    assert found[1].births.tolist() == [1.0] * 81
    assert found[1].deaths.tolist() == pytest.approx([math.sqrt(2)] * 81)


@given(st.integers(1, 7), st.integers(1, 3), st.integers(0, 10**6))
def test_small_clouds_agree_with_the_reduction_of_all_simplices(n, width, seed):
    points = torch.from_numpy(np.random.default_rng(seed).integers(0, 2 + width, (n, 2)).astype(float))
    found = rips_persistence(points)
    bars = reduced(torch.cdist(points, points).tolist(), (0, 1))
    for degree in (0, 1):
        ours = sorted_points(found[degree].points())
        np.testing.assert_allclose(ours, sorted_points(bars[degree]), atol=1e-12)
    assert torch.equal(rips_persistence(points, degrees=[0])[0].points(), found[0].points())


@pytest.mark.parametrize(("n", "d"), [(40, 2), (150, 2), (80, 5), (60, 20)])
def test_clouds_agree_with_ripser(n, d, generator):
    ripser = pytest.importorskip("ripser")
    points = torch.randn(n, d, generator=generator, dtype=torch.float64)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    found = rips_persistence(points)
    for degree, theirs in enumerate(ripser.ripser(distances, distance_matrix=True)["dgms"]):
        np.testing.assert_allclose(sorted_points(found[degree].points()), sorted_points(finite(theirs)), atol=2e-6)


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_clouds_agree_with_gudhi_to_the_last_digits(threshold, generator):
    gudhi = pytest.importorskip("gudhi")
    points = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    found = rips_persistence(points, degrees=(0, 1, 2), threshold=threshold)
    tree = gudhi.RipsComplex(points=points.numpy(), max_edge_length=threshold or math.inf).create_simplex_tree(3)
    tree.compute_persistence()
    for degree in range(3):
        theirs = tree.persistence_intervals_in_dimension(degree).reshape(-1, 2)
        np.testing.assert_allclose(sorted_points(found[degree].points()), sorted_points(finite(theirs)), atol=1e-12)
        endless = np.sort(theirs[np.isinf(theirs[:, 1]), 0])
        np.testing.assert_allclose(found[degree].essential_births.sort().values, endless, atol=1e-12)


def test_weighted_filtrations_agree_with_gudhi(generator):
    weighted = pytest.importorskip("gudhi.weighted_rips_complex")
    points = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(40, generator=generator, dtype=torch.float64)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    complex_ = weighted.WeightedRipsComplex(distance_matrix=distances.numpy(), weights=weights.tolist())
    tree = complex_.create_simplex_tree(max_dimension=2)
    tree.compute_persistence()
    found = rips_persistence(points, weights=weights)
    for degree in range(2):
        theirs = finite(tree.persistence_intervals_in_dimension(degree))
        np.testing.assert_allclose(sorted_points(found[degree].points()), sorted_points(theirs), atol=1e-12)
    assert found[0].essential_births.tolist() == [2 * float(weights.min())]


def test_vertex_values_hold_points_back():
    points = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    found = rips_persistence(points, vertex_values=torch.tensor([0.0, 1.5, 1.0], dtype=torch.float64))
    # the point in the middle enters after it is in reach of the first one: a bar of length zero, left out
    assert found[0].points().tolist() == [[1.0, 2.0]]
    assert found[0].birth_index.tolist() == [[2]]
    assert found[0].death_index.tolist() == [[1, 2]]
    assert found[0].essential_births.tolist() == [0.0]


@pytest.mark.parametrize("kind", ["plain", "weights", "vertex_values"])
def test_gradients(kind, generator):
    points = torch.randn(12, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.rand(12, generator=generator, dtype=torch.float64, requires_grad=True)
    some = {} if kind == "plain" else {kind: values}

    def loss(points, values):
        found = rips_persistence(points, **({} if kind == "plain" else {kind: values}))
        return total_persistence(found, power=2) + found[0].essential_births.sum()

    assert len(rips_persistence(points, **some)[1])
    assert torch.autograd.gradcheck(loss, (points, values))


def test_gradients_of_distances(generator):
    points = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    distances = torch.cdist(points, points).requires_grad_()
    found = rips_persistence(distances, metric="precomputed")
    total_persistence(found).backward()
    assert distances.grad is not None
    i, j = found[1].birth_index[0].tolist()
    assert distances.grad[i, j] == -1
    assert not distances.grad.tril().any()
    expected = rips_persistence(points)
    assert torch.allclose(found[1].points().detach(), expected[1].points())


def test_bars_are_read_from_their_critical_edges(generator):
    points = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    diagram = rips_persistence(points)[1]
    lengths = [(points[i[:, 0]] - points[i[:, 1]]).norm(dim=1) for i in (diagram.birth_index, diagram.death_index)]
    assert torch.allclose(torch.stack(lengths, 1), diagram.points())
    assert (diagram.persistence.diff() <= 0).all()


def test_the_gradient_at_duplicated_points_is_finite():
    points = torch.zeros(4, 2, dtype=torch.float64)
    points[3, 0] = 1
    points.requires_grad_()
    found = rips_persistence(points)
    assert found[0].deaths.tolist() == [1.0]
    total_persistence(found).backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()


@pytest.mark.parametrize("n", [0, 1])
def test_no_point_and_one_point(n):
    found = rips_persistence(torch.zeros(n, 3, requires_grad=True))
    assert (len(found[0]), len(found[1]), len(found[0].essential_births)) == (0, 0, n)
    total_persistence(found).backward()


def test_infinite_distances_are_missing_edges():
    distances = torch.full((3, 3), math.inf).fill_diagonal_(0)
    distances[0, 1] = distances[1, 0] = 2
    found = rips_persistence(distances, metric="precomputed")
    assert found[0].deaths.tolist() == [2]
    assert found[0].essential_index.tolist() == [[0], [2]]


def test_points_that_enter_after_the_threshold_do_not_count():
    found = rips_persistence(torch.eye(3), vertex_values=torch.tensor([0.0, 0.5, 9.0]), threshold=1.0)
    assert found[0].essential_births.tolist() == [0.0, 0.5]


def test_dtype_and_device_are_those_of_the_points(device, generator):
    points = torch.rand(20, 2, generator=generator, device=device)
    found = rips_persistence(points, min_persistence=0.05)
    assert found[0].deaths.dtype == torch.float32
    assert found[1].births.device.type == device.type
    assert (found[0].persistence > 0.05).all()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("points", lambda x: rips_persistence(x.fill_(math.nan))),
        ("points", lambda x: rips_persistence(x[0])),
        ("points", lambda x: rips_persistence(x.long())),
        ("points", lambda x: rips_persistence(x, metric="precomputed")),
        ("points", lambda x: rips_persistence(torch.rand(3, 3), metric="precomputed")),
        ("points", lambda x: rips_persistence(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), metric="precomputed")),
        ("points", lambda x: rips_persistence(torch.full((2, 2), math.nan), metric="precomputed")),
        ("metric", lambda x: rips_persistence(x, metric="euclid")),
        ("degrees", lambda x: rips_persistence(x, degrees=())),
        ("degrees", lambda x: rips_persistence(x, degrees=(-1,))),
        ("threshold", lambda x: rips_persistence(x, threshold=math.nan)),
        ("min_persistence", lambda x: rips_persistence(x, min_persistence=-1.0)),
        ("weights", lambda x: rips_persistence(x, weights=x[:, 0][:2])),
        ("weights", lambda x: rips_persistence(x, weights=x[:, 0] * math.inf)),
        ("vertex_values", lambda x: rips_persistence(x, weights=x[:, 0], vertex_values=x[:, 0])),
    ],
)
def test_wrong_arguments_are_named(argument, call):
    with pytest.raises(InputError) as error:
        call(torch.rand(5, 2) + 0.1)
    assert error.value.argument == argument


def test_higher_degrees_name_the_extra_they_need(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gudhi", None)
    with pytest.raises(MissingExtraError, match="topology"):
        rips_persistence(torch.rand(4, 2), degrees=(2,))
