"""Loops of function-Rips bifiltrations: ranks of boundary matrices at every pair of levels, the peer, gradients."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.topology import rips_persistence
from diffmatch.topology.multiparameter import codensity, rips_signed_measure

MORE = 1e-9  # above a level, for distances that are rounded in another way


def cloud(seed, n, integers=False):
    rng = np.random.default_rng(seed)
    return tuple(
        torch.from_numpy(rng.integers(0, 3, shape).astype(float) if integers else rng.random(shape))
        for shape in ((n, 2), (n,))
    )


def rank_of(matrix):
    """Rank over the field of two elements."""
    rows, rank = [int("".join(map(str, row)), 2) for row in matrix.tolist()], 0
    while rows:
        pivot = rows.pop()
        if pivot:
            rank += 1
            low = pivot & -pivot
            rows = [row ^ pivot if row & low else row for row in rows]
    return rank


def boundary(faces, cells):
    place = {face: i for i, face in enumerate(faces)}
    matrix = np.zeros((len(cells), len(faces)), np.int64)
    for row, cell in zip(matrix, cells, strict=True):
        for face in itertools.combinations(cell, len(cell) - 1):
            row[place[face]] = 1
    return matrix


def loops_at(distance, inside, radius):
    """Betti number 1 of the clique complex of some points."""
    vertices = [(v,) for v in inside]
    edges = [e for e in itertools.combinations(inside, 2) if distance[e] <= radius]
    near = set(edges)
    triangles = [t for t in itertools.combinations(inside, 3) if near.issuperset(itertools.combinations(t, 2))]
    return len(edges) - rank_of(boundary(vertices, edges)) - rank_of(boundary(edges, triangles))


@given(st.integers(0, 10**6), st.integers(0, 9), st.booleans())
def test_loops_are_counted(seed, n, integers):
    points, function = cloud(seed, n, integers)
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    radii, values = distance.reshape(-1).unique() + MORE, function.unique()
    measure = rips_signed_measure(points, function, degree=1)
    expected = [
        [loops_at(distance, (function <= t).nonzero().squeeze(1).tolist(), r) for t in values] for r in radii.tolist()
    ]
    assert measure.at(radii, values).tolist() == expected
    assert measure.weights.sum() == 0


def test_the_last_column_is_the_rips_diagram():
    points, function = cloud(1, 40)
    measure, bars = rips_signed_measure(points, function, degree=1), rips_persistence(points, degrees=(1,))[1]
    radii = torch.linspace(0, 1.5, 50, dtype=torch.float64)
    alive = (bars.births <= radii[:, None]) & (radii[:, None] < bars.deaths)
    assert torch.equal(measure.at(radii, function.max()[None]).squeeze(1), alive.sum(1))


@pytest.mark.parametrize("degree", [0, 1])
def test_quantiles_are_levels_of_the_same_function(degree):
    points, function = cloud(2, 30)
    whole = rips_signed_measure(points, function, degree=degree)
    some = rips_signed_measure(points, function, degree=degree, levels=4)
    levels = some.points[:, 1].unique()
    assert 2 < len(levels) <= 4  # the first quantile is the least value, where one point stands alone
    radii = torch.linspace(0, 1.5, 50, dtype=torch.float64)
    assert torch.equal(whole.at(radii, levels), some.at(radii, levels))


def test_a_sum_of_terms_sees_one_parameter():
    """All bars of loops end, so a term of the function alone vanishes, and one of the radius is that of the cloud."""
    points, function = cloud(3, 40)
    measure, bars = rips_signed_measure(points, function, degree=1), rips_persistence(points, degrees=(1,))[1]
    assert measure.integrate(lambda p: p[:, 1].exp()).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(measure.integrate(lambda p: -p[:, 0]), bars.persistence.sum())


def test_gradcheck():
    points, function = (x.requires_grad_() for x in cloud(4, 14))

    def loss(p, f):
        measure = rips_signed_measure(p, codensity(p, bandwidth=0.3) + f, degree=1)
        return measure.integrate(lambda x: x[:, 0].square() * x[:, 1].exp())

    assert len(rips_signed_measure(points, function, degree=1)) > 2
    assert torch.autograd.gradcheck(loss, (points, function))


def test_few_points_have_no_loop():
    for n in range(4):
        points = torch.zeros(n, 2, requires_grad=True)
        measure = rips_signed_measure(points, points[:, 0], degree=1)
        assert len(measure) == 0
        measure.integrate(lambda p: p.sum(1)).backward()
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    measure = rips_signed_measure(square, torch.tensor([0.0, 1, 2, 3]), degree=1)
    assert (measure.points.tolist(), measure.weights.tolist()) == ([[1, 3], [pytest.approx(2**0.5), 3]], [1, -1])


@pytest.mark.untyped
def test_messages():
    points, function = cloud(5, 5)
    with pytest.raises(InputError, match="degree"):
        rips_signed_measure(points, function, degree=2)
    with pytest.raises(InputError, match="levels"):
        rips_signed_measure(points, function, levels=0)


@pytest.mark.filterwarnings("ignore")
def test_the_peer_agrees():
    multipers = pytest.importorskip("multipers")
    points, function = cloud(6, 20)
    tree = multipers.filtrations.RipsLowerstar(points=points.numpy(), function=function.numpy(), threshold_radius=9.0)
    tree.expansion(2)
    found, weights = multipers.signed_measure(tree, degree=1, invariant="hilbert", n_jobs=1)[0]
    radii = torch.cdist(points, points).reshape(-1).unique() + 1e-6
    values = function + 1e-6
    inside = torch.as_tensor(found, dtype=torch.float64)
    left, below = (inside[:, 0] <= radii[:, None]).double(), (inside[:, 1] <= values[:, None]).double()
    theirs = ((left * torch.as_tensor(weights).double()) @ below.T).long()
    assert theirs.any()
    assert torch.equal(theirs, rips_signed_measure(points, function, degree=1).at(radii, values))
