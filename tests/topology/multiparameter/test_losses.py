"""Distances, vectors and landscapes of signed measures: closed forms, brute force, bounds, gradients."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.topology import cubical_persistence, rips_persistence
from diffmatch.topology.multiparameter import (
    SignedMeasure,
    image_signed_measure,
    multiparameter_landscape,
    signed_convolution,
    signed_sliced_distance,
    signed_transport_distance,
    sliced_vector,
)


def measure(points, weights, degree=0):
    points = torch.as_tensor(points, dtype=torch.float64).reshape(-1, 2)
    return SignedMeasure(points, torch.as_tensor(weights, dtype=torch.int64), degree)


def random_measure(seed, n=4, total=1):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(1, 3, (n,), generator=generator) * (-1) ** torch.arange(n)
    points = torch.rand(n + 1, 2, dtype=torch.float64, generator=generator)
    return measure(points, torch.cat((weights, total - weights.sum()[None])))


def units(one, other):
    """Sources and targets of a transport, a row a unit."""
    points, weights = torch.cat((one.points, other.points)), torch.cat((one.weights, -other.weights))
    return points.repeat_interleave(weights.clamp_min(0), 0), points.repeat_interleave((-weights).clamp_min(0), 0)


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("seed", range(3))
def test_transport_is_the_best_of_all_matchings(norm, seed):
    a, b = random_measure(seed, 2), random_measure(seed + 10, 1)
    sources, targets = units(a, b)
    assert len(sources) <= 7
    cost = torch.linalg.vector_norm(sources[:, None] - targets, ord=norm, dim=-1)
    rows = torch.arange(len(cost))
    best = min(float(cost[rows, list(p)].sum()) for p in itertools.permutations(range(len(cost))))
    assert signed_transport_distance(a, b, norm=norm).item() == pytest.approx(best)


def test_distances_of_single_points():
    a, b = measure([[0, 0]], [1]), measure([[3, 4]], [1])
    assert [signed_transport_distance(a, b, norm=p).item() for p in (1, 2, math.inf)] == [7, 5, 4]
    # The mean of |<(3, 4), direction>| over the half circle is 5 * 2 / pi.
    assert signed_sliced_distance(a, b, directions=2000).item() == pytest.approx(10 / math.pi, rel=1e-5)
    negative = measure([[0, 0], [3, 4]], [1, -1])
    assert signed_transport_distance(negative, measure([], [])).item() == 7
    assert signed_transport_distance(a, a).item() == signed_sliced_distance(a, a).item() == 0


@given(st.integers(0, 10**6))
def test_metric_properties(seed):
    a, b, c = (random_measure(seed + k) for k in range(3))
    for distance in (signed_transport_distance, signed_sliced_distance):
        ab, ba = distance(a, b), distance(b, a)
        assert ab.item() == pytest.approx(ba.item())
        assert distance(a, c) <= ab + distance(b, c) + 1e-9
    assert signed_sliced_distance(a, b) <= signed_transport_distance(a, b, norm=2) + 1e-9


@given(st.integers(0, 10**6))
def test_measures_are_stable(seed):
    generator = torch.Generator().manual_seed(seed)
    f, g = torch.rand(2, 2, 3, 4, dtype=torch.float64, generator=generator)
    g = f + 0.1 * (g - 0.5)

    def grades(field):  # of pixels, edges and squares
        parts = [field, torch.maximum(field[:, 1:], field[:, :-1]), torch.maximum(field[..., 1:], field[..., :-1])]
        square = torch.maximum(parts[1][..., 1:], parts[1][..., :-1])
        return torch.cat([x.reshape(2, -1) for x in (*parts, square)], 1)

    moved = (grades(f) - grades(g)).abs().sum()
    for degree, factor in ((0, 2), (1, 2), (None, 1)):
        pair = (image_signed_measure(x, degree=degree) for x in (f, g))
        assert signed_transport_distance(*pair) <= factor * moved + 1e-9


def test_unequal_masses_need_a_cap():
    a, b = measure([[0, 0], [5, 0]], [1, 1]), measure([[1, 0]], [1])
    assert signed_transport_distance(a, b).isinf()
    assert signed_sliced_distance(a, b).isinf()
    # At the cap (2, 2) the point (5, 0) becomes (2, 0) and goes to the mass that b gets at the corner.
    cap = torch.tensor([2.0, 2.0])
    assert signed_transport_distance(a, b, cap=cap).item() == 3
    assert signed_sliced_distance(a, b, cap=cap).isfinite()


@pytest.mark.parametrize("distance", [signed_transport_distance, signed_sliced_distance])
def test_gradcheck_of_distances(distance):
    a, b = random_measure(1), random_measure(2, total=2)
    leaves = (a.points.requires_grad_(), b.points.requires_grad_())
    cap = torch.tensor([0.8, 0.9])

    def loss(x, y):
        return distance(SignedMeasure(x, a.weights, 0), SignedMeasure(y, b.weights, 0), cap=cap)

    assert torch.autograd.gradcheck(loss, leaves)


def test_a_transport_loss_moves_an_image_to_its_target():
    generator = torch.Generator().manual_seed(0)
    target = image_signed_measure(torch.rand(2, 4, 4, generator=generator))
    field = torch.rand(2, 4, 4, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([field], lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = signed_transport_distance(image_signed_measure(field), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_convolution_and_sliced_vector_by_their_definitions():
    a = random_measure(3)
    at = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = signed_convolution(a, at, bandwidth=0.3)
    for g, value in zip(at, found, strict=True):
        parts = [w * math.exp(-float((g - x).square().sum()) / 0.18) for x, w in zip(a.points, a.weights, strict=True)]
        assert value.item() == pytest.approx(sum(map(float, parts)))
    both = signed_convolution(a, at, bandwidth=torch.tensor([0.3, 0.3]).double())
    torch.testing.assert_close(both, found)
    # Below all projections nothing, above all of them the whole weight.
    vector = sliced_vector(a, torch.tensor([-3.0, -2.0, 2.0, 3.0]), directions=4)
    assert vector.shape == (4, 3)
    assert vector[:, 0].tolist() == [0] * 4
    assert vector[:, 2].tolist() == [1] * 4


def test_sliced_vectors_tend_to_the_sliced_distance():
    a, b = random_measure(5), random_measure(6)
    expected = signed_sliced_distance(a, b, directions=6).item()
    reached = []
    for bins in (10, 4000):
        edges = torch.linspace(-2, 2, bins + 1, dtype=torch.float64)
        apart = sliced_vector(a, edges, directions=6) - sliced_vector(b, edges, directions=6)
        reached.append(apart.abs().sum().item() * 4 / bins / 6)
    assert reached[0] <= reached[1] + 1e-9 <= expected + 1e-8
    assert reached[1] == pytest.approx(expected, rel=1e-3)


def test_gradcheck_of_vectors():
    a = random_measure(7)
    points, width = a.points.requires_grad_(), torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
    at = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    edges = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, g, h: signed_convolution(SignedMeasure(x, a.weights, 0), g, bandwidth=h), (points, at, width)
    )
    assert torch.autograd.gradcheck(lambda x: sliced_vector(SignedMeasure(x, a.weights, 0), edges), (points,))


def test_empty_measures():
    none = measure(torch.zeros(0, 2, requires_grad=True), [])
    for value in (
        signed_transport_distance(none, none),
        signed_sliced_distance(none, none),
        signed_convolution(none, torch.zeros(2, 2).double(), bandwidth=1).sum(),
        sliced_vector(none, torch.tensor([0.0, 1.0])).sum(),
        none.integrate(lambda p: p.sum(1)),
    ):
        assert value.item() == 0
        value.backward()
    assert none.at(torch.zeros(1).double(), torch.zeros(2).double()).tolist() == [[0, 0]]


def test_landscape_is_half_the_width_of_the_module():
    """One pixel is born at (0, 1); lambda_1 at (t, t + s) is the way back along the diagonal to its quadrant."""
    field = torch.tensor([[[0.0]], [[1.0]]], dtype=torch.float64)
    offsets, grid = torch.tensor([0.0, 1.0, 2.5]).double(), torch.linspace(-1, 3, 9).double()
    found = multiparameter_landscape(
        lambda s: cubical_persistence(torch.maximum(field[0], field[1] - s)), offsets, grid, levels=2
    )
    expected = torch.stack([(grid - max(0.0, 1 - s)).clamp_min(0) for s in offsets.tolist()])
    torch.testing.assert_close(found[0], expected)
    assert not found[1].any()


def test_landscape_is_the_rank_along_the_diagonal():
    """``lambda_k(a) > e`` where the classes that are alive throughout from a - e to a + e are at least k."""
    field = torch.rand(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    offset, grid = torch.tensor([0.2]).double(), torch.linspace(0, 1, 11).double()
    line = cubical_persistence(torch.maximum(field[0], field[1] - 0.2))[1]
    found = multiparameter_landscape(
        lambda s: cubical_persistence(torch.maximum(field[0], field[1] - s)), offset, grid, degree=1, levels=3
    )
    for e in (0.0, 0.05, 0.1):
        rank = ((line.births[:, None] < grid - e) & (line.deaths[:, None] > grid + e)).sum(0)
        assert torch.equal((found[:, 0] > e).sum(0), rank.clamp_max(3))


def test_gradcheck_of_landscapes():
    generator = torch.Generator().manual_seed(9)
    points = torch.rand(7, 2, dtype=torch.float64, generator=generator).requires_grad_()
    function = torch.rand(7, dtype=torch.float64, generator=generator).requires_grad_()
    offsets, grid = torch.tensor([0.1, 0.4]).double(), torch.linspace(0.05, 0.8, 4).double()

    def landscape(p, f):
        return multiparameter_landscape(
            lambda s: rips_persistence(p, degrees=(0,), vertex_values=(f - s).clamp_min(0)), offsets, grid, levels=2
        )

    assert torch.autograd.gradcheck(landscape, (points, function))


@pytest.mark.untyped
def test_messages():
    a = random_measure(0)
    broken = measure([[torch.nan, 0.0]], [1])
    with pytest.raises(InputError, match="norm"):
        signed_transport_distance(a, a, norm=0.5)
    for call in (
        lambda: signed_transport_distance(a, broken),
        lambda: signed_sliced_distance(a, broken),
        lambda: signed_convolution(broken, torch.zeros(1, 2), bandwidth=1),
        lambda: sliced_vector(broken, torch.tensor([0.0, 1.0])),
    ):
        with pytest.raises(InputError, match="points"):
            call()
    with pytest.raises(InputError, match="cap"):
        signed_transport_distance(a, a, cap=torch.tensor([torch.inf, 0]))
    with pytest.raises(InputError, match="directions"):
        signed_sliced_distance(a, a, directions=0)
    for bandwidth in (0.0, torch.tensor([1.0, -1.0])):
        with pytest.raises(InputError, match="bandwidth"):
            signed_convolution(a, torch.zeros(1, 2), bandwidth=bandwidth)
    for edges in ([0.0], [1.0, 0.0]):
        with pytest.raises(InputError, match="edges"):
            sliced_vector(a, torch.tensor(edges))
    with pytest.raises(InputError, match="first"):
        a.round_up(torch.tensor([1.0, 0.0]), torch.tensor([1.0]))
    with pytest.raises(InputError, match="levels"):
        multiparameter_landscape(lambda s: None, torch.zeros(1), torch.zeros(1), levels=0)
    field = torch.zeros(2, 2)
    with pytest.raises(InputError, match="along"):
        multiparameter_landscape(lambda s: cubical_persistence(field, superlevel=True), torch.zeros(1), torch.zeros(1))
