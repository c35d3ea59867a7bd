"""Distances of diagrams: brute force, peers, properties, gradients."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.topology.distances import bottleneck_distance, sliced_wasserstein_distance, wasserstein_distance
from diffmatch.topology.rips import rips_persistence

DISTANCES = [wasserstein_distance, bottleneck_distance, sliced_wasserstein_distance]


def diagram(n, seed):
    points = torch.from_numpy(np.random.default_rng(seed).random((n, 2)))
    points[:, 1] += points[:, 0]
    return points


def brute_force(a, b, combine):
    """The best over all partial matchings of the maximum norms that `combine` makes one number of."""
    best = math.inf
    for k in range(min(len(a), len(b)) + 1):
        for rows in itertools.combinations(range(len(a)), k):
            for columns in itertools.permutations(range(len(b)), k):
                ways = [float((a[i] - b[j]).abs().max()) for i, j in zip(rows, columns, strict=True)]
                ways += [float(a[i, 1] - a[i, 0]) / 2 for i in range(len(a)) if i not in rows]
                ways += [float(b[j, 1] - b[j, 0]) / 2 for j in range(len(b)) if j not in columns]
                best = min(best, combine(ways))
    return best


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 10**6))
def test_small_diagrams_agree_with_all_matchings(m, n, seed):
    a, b = diagram(m, seed), diagram(n, seed + 1)
    for order in (1.0, 2.0):
        expected = brute_force(a, b, lambda ways: sum(w**order for w in ways)) ** (1 / order)  # noqa: B023
        assert float(wasserstein_distance(a, b, order=order, norm=math.inf)) == pytest.approx(expected)
    assert float(bottleneck_distance(a, b)) == pytest.approx(brute_force(a, b, lambda ways: max(ways, default=0.0)))


@pytest.mark.parametrize(("m", "n"), [(40, 60), (70, 3), (0, 5)])
def test_larger_diagrams_agree_with_gudhi(m, n):
    gudhi, hera = pytest.importorskip("gudhi"), pytest.importorskip("gudhi.hera")
    a, b = diagram(m, 1), diagram(n, 2)
    for order, norm in itertools.product((1.0, 2.0, 3.0), (1.0, 2.0, math.inf)):
        theirs = hera.wasserstein_distance(a.numpy(), b.numpy(), order=order, internal_p=norm, delta=1e-10)
        assert float(wasserstein_distance(a, b, order=order, norm=norm)) == pytest.approx(theirs, rel=1e-7)
    assert float(bottleneck_distance(a, b)) == pytest.approx(gudhi.bottleneck_distance(a.numpy(), b.numpy(), 0))


def test_the_sliced_distance_is_the_mean_over_directions():
    a, b = diagram(5, 3), diagram(3, 4)
    total = 0.0
    for k in range(7):
        line = torch.tensor([math.cos(k * math.pi / 7 - math.pi / 2), math.sin(k * math.pi / 7 - math.pi / 2)]).double()
        on_diagonal = [x.mean(1, keepdim=True).expand(-1, 2) for x in (a, b)]
        first, second = torch.cat((a, on_diagonal[1])) @ line, torch.cat((b, on_diagonal[0])) @ line
        total += float((first.sort().values - second.sort().values).abs().sum()) / 7
    assert float(sliced_wasserstein_distance(a, b, directions=7)) == pytest.approx(total)
    assert total <= 2 * math.sqrt(2) * float(wasserstein_distance(a, b, order=1))


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 10**6))
def test_axioms(m, n, seed):
    a, b, c = diagram(m, seed), diagram(n, seed + 1), diagram(4, seed + 2)
    for distance in DISTANCES:
        ab = float(distance(a, b))
        assert ab == pytest.approx(float(distance(b, a)))
        assert float(distance(a, a[torch.randperm(m, generator=torch.Generator().manual_seed(seed))])) < 1e-9
        assert float(distance(torch.cat((a, torch.ones(2, 2))), b)) == pytest.approx(ab)  # on the diagonal
        if distance is not sliced_wasserstein_distance:
            assert ab <= float(distance(a, c)) + float(distance(c, b)) + 1e-9


def test_stability_of_rips_diagrams(generator):
    points = torch.rand(25, 2, dtype=torch.float64, generator=generator)
    moved = points + 0.01 * torch.rand(25, 2, dtype=torch.float64, generator=generator)
    change = (torch.cdist(points, points) - torch.cdist(moved, moved)).abs().max()
    for a, b in zip(rips_persistence(points), rips_persistence(moved), strict=True):
        assert bottleneck_distance(a, b) <= change + 1e-12


def test_a_large_order_comes_close_to_the_bottleneck():
    a, b = diagram(6, 5), diagram(8, 6)
    limit = float(bottleneck_distance(a, b))
    assert float(wasserstein_distance(a, b, order=200, norm=math.inf)) == pytest.approx(limit, rel=0.02)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("m", "n"), [(5, 7), (4, 0), (0, 3)])
def test_gradients(distance, m, n):
    a, b = diagram(m, 7).requires_grad_(m > 0), diagram(n, 8).requires_grad_(n > 0)
    assert torch.autograd.gradcheck(distance, (a, b))


@pytest.mark.parametrize("distance", DISTANCES)
def test_two_empty_diagrams_and_equal_ones_have_distance_zero_and_no_slope(distance):
    for n in (0, 4):
        a = diagram(n, 9).requires_grad_()
        value = distance(a, a.detach())
        assert float(value.detach()) == pytest.approx(0, abs=1e-12)
        value.backward()
        assert a.grad is not None
        if distance is not sliced_wasserstein_distance:  # its slopes at coinciding points are those of |x| at 0
            assert not a.grad.any()


@pytest.mark.parametrize("distance", [wasserstein_distance, bottleneck_distance])
def test_essential_classes_are_matched_by_their_births(distance):
    endless = torch.tensor([[3.0, math.inf], [1.0, math.inf]])
    other = torch.tensor([[1.5, math.inf], [3.0, math.inf], [0.0, 0.2]], requires_grad=True)
    expected = math.sqrt(0.5**2 + 0.1**2 * 2) if distance is wasserstein_distance else 0.5
    value = distance(other, endless)
    assert float(value.detach()) == pytest.approx(expected)
    value.backward()
    assert other.grad is not None
    assert other.grad[0, 0] > 0
    assert math.isinf(float(distance(endless, endless[:1])))


def test_diagrams_may_be_given_as_they_come(generator):
    a = rips_persistence(torch.rand(20, 2, generator=generator))[0]
    b = rips_persistence(torch.rand(20, 2, generator=generator))[0]
    assert wasserstein_distance(a, b) == wasserstein_distance(a.points(), b.points())
    assert wasserstein_distance(a, b, order=1).dtype == torch.float32


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("a", lambda x: wasserstein_distance(x[:, :1], x)),
        ("b", lambda x: bottleneck_distance(x, x * math.nan)),
        ("a", lambda x: wasserstein_distance(x.long(), x)),
        ("b", lambda x: sliced_wasserstein_distance(x, torch.tensor([[0.0, math.inf]]))),
        ("a", lambda x: wasserstein_distance(torch.tensor([[-math.inf, 0.0]]), x)),
        ("order", lambda x: wasserstein_distance(x, x, order=0.5)),
        ("norm", lambda x: wasserstein_distance(x, x, norm=0.0)),
        ("directions", lambda x: sliced_wasserstein_distance(x, x, directions=0)),
    ],
)
def test_wrong_arguments_are_named(argument, call):
    with pytest.raises(InputError) as error:
        call(torch.rand(5, 2))
    assert error.value.argument == argument
