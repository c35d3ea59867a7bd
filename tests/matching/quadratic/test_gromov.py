"""Gromov-Wasserstein plans against a peer, planted isometries, finite differences and single problems."""

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.quadratic import gromov_wasserstein

DOUBLE = torch.float64


def spaces(n, m, generator):
    x, y = (torch.rand(k, 2, dtype=DOUBLE, generator=generator) for k in (n, m))
    return torch.cdist(x, x), torch.cdist(y, y), torch.cdist(x, y)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("proximal", [False, True])
def test_steps_are_those_of_the_peer(proximal, fused, generator):
    ot = pytest.importorskip("ot")
    a, b, cost = spaces(7, 8, generator)
    p, q = (torch.rand(k, dtype=DOUBLE, generator=generator) + 0.5 for k in (7, 8))
    p, q = p / p.sum(), q / q.sum()
    given = {"cost": cost, "alpha": 0.3} if fused else {}
    ours = gromov_wasserstein(a, b, p, q, eps=0.1, proximal=proximal, max_steps=10, **given)
    settings = {"epsilon": 0.1, "solver": "PPA" if proximal else "PGD", "max_iter": 10, "tol": 0.0}
    parts = [x.numpy() for x in (a, b, p, q)]
    theirs = (
        ot.gromov.entropic_fused_gromov_wasserstein(cost.numpy(), *parts, alpha=0.3, **settings)
        if fused
        else ot.gromov.entropic_gromov_wasserstein(*parts, **settings)
    )
    np.testing.assert_allclose(ours.plan.numpy(), theirs, atol=1e-7)
    if not fused:
        constant, first, second = ot.gromov.init_matrix(*parts)
        assert float(ours.value) == pytest.approx(ot.gromov.gwloss(constant, first, second, ours.plan.numpy()))


def test_proximal_steps_find_a_planted_isometry(generator):
    a, _, _ = spaces(12, 1, generator)
    order = torch.randperm(12, generator=generator)
    result = gromov_wasserstein(a, a[order][:, order], eps=0.05, max_steps=500)
    assert torch.equal(order[result.plan.argmax(1)], torch.arange(12))
    assert float(result.value) < 1e-3
    assert float(result.error) < 1e-8


def test_gradients_are_those_at_the_fixed_plan(generator):
    a, b, cost = (x.requires_grad_() for x in spaces(4, 5, generator))
    result = gromov_wasserstein(a, b, eps=0.05, cost=cost, alpha=0.4)
    got = torch.autograd.grad(result.value, (a, b, cost))

    def value(a, b, cost):
        difference = (a[:, :, None, None] - b[None, None]) ** 2
        pairs = torch.einsum("ijkl,ik,jl->", difference, result.plan, result.plan)
        return 0.4 * pairs + 0.6 * (cost * result.plan).sum()

    torch.testing.assert_close(result.value, value(a, b, cost))
    for ours, exact in zip(got, torch.autograd.grad(value(a, b, cost), (a, b, cost)), strict=True):
        torch.testing.assert_close(ours, exact)
    assert not result.plan.requires_grad


@pytest.mark.parametrize("proximal", [False, True])
def test_a_padded_batch_gives_the_single_results(proximal, generator):
    sizes = [(4, 6), (5, 3)]
    a, b = torch.full((2, 5, 5), float("nan"), dtype=DOUBLE), torch.full((2, 6, 6), float("nan"), dtype=DOUBLE)
    cost = torch.full((2, 5, 6), float("nan"), dtype=DOUBLE)
    for k, (n, m) in enumerate(sizes):
        a[k, :n, :n], b[k, :m, :m], cost[k, :n, :m] = spaces(n, m, generator)
    masks = tuple(torch.arange(size) < torch.tensor(counts)[:, None] for size, counts in ((5, (4, 5)), (6, (6, 3))))
    options = {"eps": 0.1, "proximal": proximal, "max_steps": 15}
    together = gromov_wasserstein(a, b, cost=cost, mask=masks, **options)
    for k, (n, m) in enumerate(sizes):
        alone = gromov_wasserstein(a[k, :n, :n], b[k, :m, :m], cost=cost[k, :n, :m], **options)
        torch.testing.assert_close(together.plan[k, :n, :m], alone.plan, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(together.value[k], alone.value, rtol=1e-6, atol=1e-8)
        assert float(together.plan[k].sum()) == pytest.approx(1)


def test_renumbering_both_spaces_renumbers_the_plan(generator):
    a, b, _ = spaces(5, 6, generator)
    rows, columns = torch.randperm(5, generator=generator), torch.randperm(6, generator=generator)
    plain = gromov_wasserstein(a, b, eps=0.1, max_steps=10)
    moved = gromov_wasserstein(a[rows][:, rows], b[columns][:, columns], eps=0.1, max_steps=10)
    torch.testing.assert_close(moved.plan, plain.plan[rows][:, columns], rtol=1e-6, atol=1e-9)


def test_relative_strength_makes_the_unit_of_the_distances_irrelevant(generator):
    a, b, _ = spaces(5, 6, generator)
    plans = [
        gromov_wasserstein(unit * a, unit * b, eps=0.05, eps_relative=True, max_steps=10).plan for unit in (1.0, 100.0)
    ]
    torch.testing.assert_close(plans[0], plans[1], rtol=1e-5, atol=1e-8)


@pytest.mark.untyped
def test_what_does_not_fit_is_refused():
    good = torch.rand(3, 3)
    with pytest.raises(InputError, match="a: want square"):
        gromov_wasserstein(torch.rand(3, 4), good, eps=0.1)
    with pytest.raises(InputError, match="b: want batch axes"):
        gromov_wasserstein(good, torch.rand(2, 3, 3), eps=0.1)
    with pytest.raises(InputError, match="cost: want shape"):
        gromov_wasserstein(good, good, eps=0.1, cost=torch.rand(3, 4))
    with pytest.raises(InputError, match="eps: want a number > 0"):
        gromov_wasserstein(good, good, eps=0.0)
    with pytest.raises(InputError, match="alpha: want a number between 0 and 1"):
        gromov_wasserstein(good, good, eps=0.1, alpha=2.0)
