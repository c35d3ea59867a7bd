"""Solvers against brute force, planted answers and peers; batches and masks against single problems."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

from diffmatch.errors import InputError
from diffmatch.matching.quadratic import EdgeAffinity, KroneckerAffinity, gaussian_factors, match_affinity
from diffmatch.matching.quadratic.affinity import one_hot_plan
from diffmatch.matching.quadratic.relaxed import frank_wolfe, project, random_plans, uniform_plan

DOUBLE = torch.float64
SOLVERS = ("rrwm", "frank_wolfe", "spectral")


def distances_affinity(x, y, width=0.1):
    f, g = gaussian_factors(torch.cdist(x, x), torch.cdist(y, y), width=width)
    f, g = (table * (1 - torch.eye(table.shape[-1], dtype=table.dtype)) for table in (f, g))
    return KroneckerAffinity(f, g, symmetric=True)


def planted(n, generator, *, noise=0.0, extra=0):
    """Points, the same ones moved a little and shuffled among others, and where they went."""
    x = torch.rand(n, 2, dtype=DOUBLE, generator=generator)
    y = x + noise * torch.randn(n, 2, dtype=DOUBLE, generator=generator)
    y = torch.cat([y, torch.rand(extra, 2, dtype=DOUBLE, generator=generator)])
    order = torch.randperm(n + extra, generator=generator)
    return x, y[order], order.argsort()[:n]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("extra", [0, 4])
def test_planted_points_are_found_and_both_ways(solver, extra, generator):
    x, y, truth = planted(15, generator, noise=0.002, extra=extra)
    found = match_affinity(distances_affinity(x, y), solver=solver, restarts=4, generator=generator)
    assert torch.equal(found.assignment, truth)
    back = match_affinity(distances_affinity(y, x), solver=solver, restarts=4, generator=generator)
    assert torch.equal(back.assignment[truth], torch.arange(15))
    assert int((back.assignment >= 0).sum()) == 15
    torch.testing.assert_close(found.value, back.value)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 5), (5, 4)])
def test_small_problems_are_near_the_optimum(solver, n, m, generator):
    a, b = (torch.rand(3, 2, k, k, dtype=DOUBLE, generator=generator) for k in (n, m))
    affinity = KroneckerAffinity(a, b, torch.rand(3, n, m, dtype=DOUBLE, generator=generator))
    found = match_affinity(affinity, solver=solver, restarts=6, generator=generator)
    torch.testing.assert_close(found.value, affinity.objective(one_hot_plan(found.assignment, affinity)))
    if n <= m:
        options = torch.tensor(list(itertools.permutations(range(m), n)))
    else:
        options = torch.tensor(
            [[p.index(k) if k in p else -1 for k in range(n)] for p in itertools.permutations(range(n), m)]
        )
    best = affinity.objective(one_hot_plan(options[:, None].expand(-1, 3, -1), affinity)).amax(0)
    assert (found.value <= best + 1e-9).all()
    assert (found.value >= 0.97 * best).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_padded_batch_gives_the_single_results(solver, generator):
    cases = [planted(n, generator, noise=0.01, extra=e) for n, e in ((8, 0), (6, 3), (9, 1))]
    nan = float("nan")
    singles = [distances_affinity(x, y) for x, y, _ in cases]
    terms = max(len(single.a) for single in singles)
    a, b = (torch.full((3, terms, 10, 10), nan, dtype=DOUBLE) for _ in range(2))
    for k, single in enumerate(singles):
        for target, factors in ((a[k], single.a), (b[k], single.b)):
            size = factors.shape[-1]
            target[:, :size, :size] = 0
            target[: len(factors), :size, :size] = factors
    masks = tuple(torch.arange(10) < torch.tensor([[s.shape[axis]] for s in singles]) for axis in (0, 1))
    together = match_affinity(KroneckerAffinity(a, b, mask=masks, symmetric=True), solver=solver)
    for k, single in enumerate(singles):
        alone = match_affinity(single, solver=solver)
        n, m = single.shape
        assert torch.equal(together.assignment[k, :n], alone.assignment)
        assert (together.assignment[k, n:] == -1).all()
        torch.testing.assert_close(together.value[k], alone.value)
        assert not together.plan[k, n:].any()
        assert not together.plan[k, :, m:].any()


def test_frank_wolfe_is_not_below_the_peer_from_the_same_start(generator):
    a, b = (torch.rand(12, 12, dtype=DOUBLE, generator=generator) for _ in range(2))
    affinity = KroneckerAffinity(a[None], b[None])
    ours = match_affinity(affinity, solver="frank_wolfe", polish=False, max_steps=200)
    theirs = scipy.optimize.quadratic_assignment(
        a.numpy(), b.numpy(), options={"maximize": True, "maxiter": 200, "rng": np.random.default_rng(0)}
    )
    assert float(ours.value) >= theirs.fun - 1e-9  # ours keeps the best corner it met


def test_random_walks_equal_the_peer_at_equal_affinity(generator):
    pygm = pytest.importorskip("pygmtools")
    pygm.set_backend("pytorch")
    hits = []
    for _ in range(4):
        x, y, truth = planted(12, generator, noise=0.02)
        affinity = distances_affinity(x, y)
        full = torch.einsum("rij,rab->aibj", affinity.a, affinity.b).reshape(144, 144).clamp_min(0)
        plan = pygm.hungarian(pygm.rrwm(full, 12, 12, alpha=0.8, beta=30).reshape(12, 12))
        ours = match_affinity(affinity, solver="rrwm", polish=False).assignment
        hits.append([int((found == truth).sum()) for found in (plan.argmax(1), ours)])
    theirs, ours = np.sum(hits, 0)
    assert abs(theirs - ours) <= 2


def test_more_starts_are_never_worse_and_the_seed_fixes_the_result(generator):
    a, b = (torch.rand(1, 14, 14, dtype=DOUBLE, generator=generator) for _ in range(2))
    affinity = KroneckerAffinity(a, b)
    few, more, again = (
        match_affinity(affinity, solver="frank_wolfe", restarts=k, generator=torch.Generator().manual_seed(1))
        for k in (1, 8, 8)
    )
    assert float(more.value) > float(few.value)
    assert torch.equal(more.assignment, again.assignment)


def test_auto_takes_what_allows_negative_affinities(generator):
    values = torch.randn(12, 12, dtype=DOUBLE, generator=generator)
    ends = torch.tensor(list(itertools.permutations(range(4), 2))).T
    affinity = EdgeAffinity(ends, ends, values, torch.zeros(4, 4, dtype=DOUBLE))
    found = match_affinity(affinity, restarts=4, generator=generator)
    options = torch.tensor(list(itertools.permutations(range(4))))
    torch.testing.assert_close(found.value, affinity.objective(one_hot_plan(options, affinity)).max())


def test_starts_are_doubly_stochastic_and_sums_of_the_longer_side_at_most_one(generator):
    affinity = KroneckerAffinity(torch.zeros(1, 4, 4, dtype=DOUBLE), torch.zeros(1, 6, 6, dtype=DOUBLE))
    for plan in (uniform_plan(affinity), *random_plans(affinity, 3, generator=generator)):
        assert (plan.sum(1) <= 1 + 1e-6).all()
        assert (plan.sum(0) <= 1 + 1e-6).all()
    square = project(torch.rand(2, 5, 5, dtype=DOUBLE, generator=generator), None, rounds=200)
    torch.testing.assert_close(square.sum(-1), torch.ones(2, 5, dtype=DOUBLE))
    torch.testing.assert_close(square.sum(-2), torch.ones(2, 5, dtype=DOUBLE))


def test_frank_wolfe_stops_at_a_local_optimum(generator):
    affinity = KroneckerAffinity(*torch.rand(2, 1, 7, 7, dtype=DOUBLE, generator=generator))
    relaxed = frank_wolfe(affinity, uniform_plan(affinity), max_steps=500)
    assert bool(relaxed.converged)
    assert relaxed.steps < 500


def test_problems_without_nodes(device):
    for n, m in ((0, 0), (0, 3), (3, 0)):
        affinity = KroneckerAffinity(torch.zeros(2, 1, n, n, device=device), torch.zeros(2, 1, m, m, device=device))
        found = match_affinity(affinity)
        assert found.assignment.tolist() == [[-1] * n] * 2
        assert found.value.tolist() == [0.0, 0.0]
    single = match_affinity(KroneckerAffinity(torch.ones(1, 1, 1), torch.ones(1, 1, 1)))
    assert single.assignment.tolist() == [0]
    assert float(single.value) == 1.0


def test_what_does_not_fit_is_refused():
    affinity = KroneckerAffinity(torch.rand(1, 3, 3), torch.rand(1, 3, 3))
    with pytest.raises(InputError, match="solver: want one of"):
        match_affinity(affinity, solver="rwm")
    with pytest.raises(InputError, match="restarts: want at least 1"):
        match_affinity(affinity, restarts=0)
    with pytest.raises(InputError, match="max_steps: want at least 1"):
        match_affinity(affinity, max_steps=0)
    with pytest.raises(InputError, match="init: want shape"):
        match_affinity(affinity, init=torch.rand(3, 4))
