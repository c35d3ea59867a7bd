"""Signed measures of point clouds: counting at every pair of levels, closed forms, peers, gradients, edges."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from diffmatch.errors import InputError
from diffmatch.topology.multiparameter import (
    codensity,
    degree_rips_signed_measure,
    delaunay_signed_measure,
    rips_signed_measure,
)

MORE = 1e-9  # above a level, for sums that are rounded in another order


def cloud(seed, n, integers=False):
    rng = np.random.default_rng(seed)
    if integers:
        return torch.from_numpy(rng.integers(0, 3, (n, 2)).astype(float)), torch.from_numpy(
            rng.integers(0, 3, n).astype(float)
        )
    return torch.from_numpy(rng.random((n, 2))), torch.from_numpy(rng.random(n))


def distances(points):
    between = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return between, torch.cat((between.new_zeros(1), between.reshape(-1))).unique()


@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
def test_function_rips_counts_components(brute_force, seed, n, integers):
    points, function = cloud(seed, n, integers)
    between, radii = distances(points)
    vertices = [(0.0, c) for c in function]
    edges = [((i, j), (between[i, j], max(function[i], function[j]))) for i, j in itertools.combinations(range(n), 2)]
    measure = rips_signed_measure(points, function)
    values = function.unique()
    assert torch.equal(measure.at(radii + MORE, values), brute_force(vertices, edges, radii + MORE, values, 0))
    assert measure.weights.sum() == 1


@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
def test_degree_rips_counts_components(brute_force, seed, n, integers):
    points, _ = cloud(seed, n, integers)
    between, radii = distances(points)
    measure = degree_rips_signed_measure(points)
    pairs = list(itertools.combinations(range(n), 2))
    for k in range(n):
        crowded = between.sort(dim=1).values[:, k]
        vertices = [(r, 0) for r in crowded]
        edges = [((i, j), (max(between[i, j], crowded[i], crowded[j]), 0)) for i, j in pairs]
        at = torch.tensor([-float(k)]).double()
        expected = brute_force(vertices, edges, radii + MORE, torch.zeros(1), 0)
        assert torch.equal(measure.at(radii + MORE, at), expected)


def test_degree_rips_of_chosen_numbers_of_neighbours():
    points, _ = cloud(1, 9)
    _, radii = distances(points)
    whole, some = degree_rips_signed_measure(points), degree_rips_signed_measure(points, neighbours=(5, 0, 2))
    ks = torch.tensor([-5.0, -2.0, 0.0]).double()
    assert torch.equal(whole.at(radii + MORE, ks), some.at(radii + MORE, ks))
    assert set(some.points[:, 1].tolist()) <= {-5.0, -2.0, 0.0}


@pytest.mark.parametrize("degree", [0, 1, None])
def test_delaunay_counts_cells(brute_force, degree):
    points, function = cloud(2, 11)
    between, _ = distances(points)
    triangles = Delaunay(points.numpy()).simplices.tolist()
    corners = {tuple(sorted(c)) for t in triangles for c in itertools.combinations(t, 2)} | {
        tuple(t) for t in triangles
    }
    cells = [
        (c, (max(between[i, j] for i, j in itertools.combinations(c, 2)) / 2, max(function[i] for i in c)))
        for c in corners
    ]
    measure = delaunay_signed_measure(points, function, degree=degree)
    radii = torch.stack([r for _, (r, _) in cells]).unique()
    vertices = [(0.0, c) for c in function]
    expected = brute_force(vertices, cells, radii + MORE, function.unique(), degree)
    assert torch.equal(measure.at(radii + MORE, function.unique()), expected)


def test_a_ring_of_points_has_a_loop_that_low_function_values_open():
    """A regular polygon with its centre: the loop is there while the centre is not, from side / 2 on."""
    angle = torch.arange(12, dtype=torch.float64) * (2 * math.pi / 12)
    points = torch.cat((torch.stack((angle.cos(), angle.sin()), 1), torch.zeros(1, 2, dtype=torch.float64)))
    function = torch.zeros(13, dtype=torch.float64)
    function[12] = 1.0
    measure = delaunay_signed_measure(points, function)
    side = math.sin(math.pi / 12)
    radii = torch.tensor([side - MORE, side + MORE, 0.49, 0.51], dtype=torch.float64)
    expected = [[0, 0], [1, 1], [1, 1], [1, 0]]
    assert measure.at(radii, torch.tensor([0.0, 1.0])).tolist() == expected


def test_codensity_is_the_kernel_estimate():
    points, _ = cloud(3, 7)
    kernel = (-torch.cdist(points, points).square() / (2 * 0.3**2)).exp()
    torch.testing.assert_close(codensity(points, bandwidth=0.3), -kernel.mean(1).log())
    far = torch.tensor([[0.0], [1e6]])
    assert codensity(far, bandwidth=1.0).tolist() == pytest.approx([math.log(2)] * 2)
    assert codensity(torch.zeros(0, 2), bandwidth=1.0).shape == (0,)


@pytest.mark.parametrize("name", ["rips", "degree", "delaunay", "euler"])
def test_gradcheck(name):
    points, function = (x.requires_grad_() for x in cloud(4, 8))
    made = {
        "rips": rips_signed_measure,
        "degree": lambda p, f: degree_rips_signed_measure(p, neighbours=(0, 2)),
        "delaunay": delaunay_signed_measure,
        "euler": lambda p, f: delaunay_signed_measure(p, codensity(p, bandwidth=0.4) + f, degree=None),
    }[name]

    def loss(p, f):
        return made(p, f).integrate(lambda x: x[:, 0].square() * x[:, 1].exp()) + f.sum()

    assert torch.autograd.gradcheck(loss, (points, function))


def test_points_that_coincide_have_gradient_zero():
    points = torch.zeros(3, 2, requires_grad=True)
    for measure in (rips_signed_measure(points, torch.arange(3.0)), degree_rips_signed_measure(points)):
        measure.integrate(lambda p: p[:, 0]).backward()
    assert points.grad.tolist() == [[0, 0]] * 3


def test_empty_and_single_clouds():
    none, one = torch.zeros(0, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    for make in (rips_signed_measure, delaunay_signed_measure):
        empty = make(none, none[:, 0])
        assert len(empty) == 0
        empty.integrate(lambda p: p.sum(1)).backward()
    assert len(degree_rips_signed_measure(none)) == 0
    single = rips_signed_measure(one, torch.tensor([2.0]))
    assert (single.points.tolist(), single.weights.tolist()) == ([[0, 2]], [1])
    single.integrate(lambda p: p.sum(1)).backward()
    assert delaunay_signed_measure(one, torch.tensor([2.0]), degree=0).points.tolist() == [[0, 2]]
    assert degree_rips_signed_measure(one).points.tolist() == [[0, 0]]
    line = torch.tensor([[0.0, 0], [1, 1], [2, 2]])
    assert len(delaunay_signed_measure(line, torch.zeros(3))) == 0
    assert delaunay_signed_measure(line, torch.zeros(3), degree=0).weights.sum() == 1


@pytest.mark.untyped
def test_messages():
    points = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    for bad in (torch.nan, torch.inf):
        broken = points.clone()
        broken[2, 1] = bad
        for make in (rips_signed_measure, delaunay_signed_measure):
            with pytest.raises(InputError, match="points"):
                make(broken, points[:, 0])
            with pytest.raises(InputError, match="function"):
                make(points, broken[:, 1])
        with pytest.raises(InputError, match="points"):
            degree_rips_signed_measure(broken)
    with pytest.raises(InputError, match="function"):
        rips_signed_measure(points, points[:3, 0])
    with pytest.raises(InputError, match="points"):
        delaunay_signed_measure(torch.zeros(4, 3), points[:, 0])
    with pytest.raises(InputError, match="degree"):
        delaunay_signed_measure(points, points[:, 0], degree=2)
    for neighbours in ((4,), (-1, 0)):
        with pytest.raises(InputError, match="neighbours"):
            degree_rips_signed_measure(points, neighbours=neighbours)
    with pytest.raises(InputError, match="bandwidth"):
        codensity(points, bandwidth=0.0)


@pytest.mark.filterwarnings("ignore")
def test_the_peer_agrees_on_function_rips():
    multipers = pytest.importorskip("multipers")
    points, function = cloud(5, 12)
    tree = multipers.filtrations.RipsLowerstar(points=points.numpy(), function=function.numpy(), threshold_radius=9.0)
    found, weights = multipers.signed_measure(tree, degree=0, invariant="hilbert", n_jobs=1)[0]
    radii, values = distances(points)[1] + 1e-6, function + 1e-6
    inside = torch.as_tensor(found, dtype=torch.float64)
    weights = torch.as_tensor(weights).double()
    left, below = (inside[:, 0] <= radii[:, None]).double(), (inside[:, 1] <= values[:, None]).double()
    assert torch.equal(((left * weights) @ below.T).long(), rips_signed_measure(points, function).at(radii, values))
