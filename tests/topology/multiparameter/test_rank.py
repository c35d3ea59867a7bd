"""Rank invariants: components counted for every pair of places, the Hilbert function, the peer, gradients, edges."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.topology import graph_persistence
from diffmatch.topology.multiparameter import (
    graph_rank_invariant,
    image_rank_invariant,
    image_signed_measure,
)


def graph(seed, n, density, tied):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, (2, n)).astype(float) if tied else rng.standard_normal((2, n))
    edges = [pair for pair in itertools.combinations(range(n), 2) if rng.random() < density]
    return torch.from_numpy(values), torch.tensor(edges, dtype=torch.int64).reshape(-1, 2)


def places(values):
    return torch.cartesian_prod(*(row[row.isfinite()].unique() for row in values)).reshape(-1, 2)


def components_met(values, edges, first, second):
    """Components of the set at `second` that hold a vertex of the set at `first`."""
    there = [bool((v <= second).all()) for v in values.T]
    label = list(range(len(there)))
    for u, v in edges.tolist():
        if there[u] and there[v]:
            old, new = label[u], label[v]
            label = [new if x == old else x for x in label]
    return len({label[i] for i, v in enumerate(values.T) if bool((v <= first).all())})


def all_pairs(at):
    return tuple(x.reshape(-1, 2) for x in (at[:, None].expand(-1, len(at), 2), at.expand(len(at), -1, 2)))


@given(st.integers(0, 10**6), st.integers(0, 6), st.floats(0, 1), st.booleans())
def test_components_are_counted(seed, n, density, tied):
    values, edges = graph(seed, n, density, tied)
    first, second = all_pairs(places(values))
    below = (first <= second).all(1)
    expected = [components_met(values, edges, a, b) if ok else 0 for a, b, ok in zip(first, second, below, strict=True)]
    found = graph_rank_invariant(values, edges)
    assert found.at(first, second).tolist() == expected
    assert (found.births <= found.deaths).all()
    assert tied or (found.births < found.deaths).all()


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("levels", [None, 4])
def test_the_diagonal_is_the_hilbert_function(generator, construction, levels):
    field = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    rank = image_rank_invariant(field, construction=construction, levels=levels)
    hilbert = image_signed_measure(field, degree=0, construction=construction, levels=levels)
    s, t = (torch.linspace(-3, 3, 20, dtype=torch.float64) for _ in range(2))
    at = torch.cartesian_prod(s, t)
    assert torch.equal(rank.at(at, at).reshape(20, 20), hilbert.at(s, t))


def test_one_parameter_is_the_barcode(generator):
    """With a constant second function the rectangles are the bars of the first."""
    values = torch.randn(12, generator=generator, dtype=torch.float64)
    edges = torch.stack((torch.arange(11), torch.arange(1, 12)), 1)
    levels = values.sort().values, torch.zeros(1, dtype=torch.float64)
    rank = graph_rank_invariant(torch.stack((values, torch.zeros_like(values))), edges, levels=levels)
    bars = graph_persistence(values, edges, degrees=(0,))[0]
    ends = torch.cat((bars.points(), torch.tensor([[bars.essential_births[0], math.inf]])))
    found = torch.stack((rank.births[:, 0], rank.deaths[:, 0]), 1)
    assert sorted(found.tolist()) == sorted(ends.tolist())
    assert (rank.weights == 1).all()
    assert rank.deaths[:, 1].isposinf().all()


def test_a_component_that_is_joined_and_one_that_is_not():
    """Two vertices at (0, 0) and (1, 0), joined at (2, 2)."""
    values = torch.tensor([[0.0, 1, 2], [0, 0, 2]])
    found = graph_rank_invariant(values, torch.tensor([[0, 2], [1, 2]]))
    rectangles = zip(found.births.tolist(), found.deaths.tolist(), found.weights.tolist(), strict=True)
    never = math.inf
    assert sorted(rectangles) == [
        ([0.0, 0.0], [never, never], 1),
        ([1.0, 0.0], [2.0, 2.0], -1),
        ([1.0, 0.0], [2.0, never], 1),
        ([1.0, 0.0], [never, 2.0], 1),
    ]


def test_gradients(generator):
    values, edges = graph(3, 8, 0.4, False)

    def loss(x):
        capped = lambda death: death.clamp_max(5).square()  # noqa: E731
        return graph_rank_invariant(x, edges).integrate(lambda b, d: b[:, 0].exp() * b[:, 1] + capped(d).sum(1))

    assert torch.autograd.gradcheck(loss, values.requires_grad_())


def test_empty_constant_and_masked():
    none = graph_rank_invariant(torch.zeros(2, 0), torch.zeros(0, 2, dtype=torch.int64))
    assert len(none) == 0
    assert none.at(torch.zeros(1, 2), torch.zeros(1, 2)).tolist() == [0]
    path = torch.tensor([[0, 1], [1, 2]])
    constant = graph_rank_invariant(torch.ones(2, 3), path)
    assert constant.at(torch.ones(1, 2), torch.ones(1, 2)).tolist() == [1]
    masked = graph_rank_invariant(torch.tensor([[0.0, math.inf, 1], [0, 0, 1]]), path)
    assert masked.at(torch.ones(1, 2), torch.full((1, 2), 9.0)).tolist() == [2]
    never = graph_rank_invariant(torch.full((2, 3), math.inf), path)
    assert len(never) == 0


@pytest.mark.untyped
def test_messages():
    values, edges = graph(1, 4, 1.0, False)
    with pytest.raises(InputError, match="values"):
        graph_rank_invariant(values[0], edges)
    with pytest.raises(InputError, match="edges"):
        graph_rank_invariant(values, edges + 2)
    with pytest.raises(InputError, match="levels"):
        graph_rank_invariant(values, edges, levels=0)
    with pytest.raises(InputError, match="construction"):
        image_rank_invariant(values.reshape(2, 2, 2), construction="U")


@pytest.mark.filterwarnings("ignore")
def test_the_peer_agrees():
    """On a square image: multipers 2.3.2 reads others in another order of the axes."""
    multipers = pytest.importorskip("multipers")
    rng = np.random.default_rng(0)
    field = rng.integers(0, 5, (2, 8, 8)).astype(float)
    peer = multipers.filtrations.Cubical(np.ascontiguousarray(np.moveaxis(field, 0, -1)))
    grid = [np.arange(5.0)] * 2
    found, weights = multipers.signed_measure(peer, degree=0, invariant="rank", grid=grid, n_jobs=1)[0]
    found, weights = torch.as_tensor(found).double(), torch.as_tensor(weights).double()
    first, second = all_pairs(torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)).double())
    born = (found[:, :2] <= first[:, None]).all(-1)
    alive = (second[:, None] < found[:, 2:]).all(-1)
    theirs = ((born & alive).double() @ weights).long() * (first <= second).all(1)
    levels = (torch.arange(5.0).double(),) * 2
    assert torch.equal(theirs, image_rank_invariant(torch.from_numpy(field), levels=levels).at(first, second))
