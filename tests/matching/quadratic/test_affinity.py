"""The operators against the full table of pairs of pairs, and the kernel in factors against its formula."""

import itertools

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.quadratic import EdgeAffinity, KroneckerAffinity, SumAffinity, gaussian_factors
from diffmatch.matching.quadratic.affinity import one_hot_plan
from diffmatch.matching.quadratic.exchange import exchange_ascent

DOUBLE = torch.float64


def kronecker(generator, n=4, m=5, r=3, **options):
    a, b = (torch.randn(r, k, k, dtype=DOUBLE, generator=generator) for k in (n, m))
    return KroneckerAffinity(a, b, torch.randn(n, m, dtype=DOUBLE, generator=generator), **options)


def edges(generator, n=4, m=5):
    ends = [torch.tensor(list(itertools.permutations(range(k), 2))[:: k - 2]).T for k in (n, m)]
    values = torch.randn(ends[0].shape[1], ends[1].shape[1], dtype=DOUBLE, generator=generator)
    return EdgeAffinity(*ends, values, torch.randn(n, m, dtype=DOUBLE, generator=generator))


def table(affinity):
    """K as a tensor (n, m, n, m), from its definition."""
    if isinstance(affinity, KroneckerAffinity):
        return torch.einsum("rij,rab->iajb", affinity.a, affinity.b)
    if isinstance(affinity, SumAffinity):
        return table(affinity.first) + table(affinity.second)
    n, m = affinity.shape
    found = torch.zeros(n, m, n, m, dtype=DOUBLE)
    for e, (i, j) in enumerate(affinity.edges_a.T.tolist()):
        for f, (a, b) in enumerate(affinity.edges_b.T.tolist()):
            found[i, a, j, b] += affinity.values[e, f]
    return found


def make(kind, generator, n=4, m=5):
    if kind == "sum":
        return SumAffinity(kronecker(generator, n, m), edges(generator, n, m))
    return {"kronecker": kronecker, "edges": edges}[kind](generator, n, m)


KINDS = pytest.mark.parametrize("kind", ["kronecker", "edges", "sum"])


@KINDS
def test_product_and_objective_are_those_of_the_full_table(kind, generator):
    affinity = make(kind, generator)
    plan = torch.rand(4, 5, dtype=DOUBLE, generator=generator)
    full = table(affinity)
    wanted = (torch.einsum("iajb,jb->ia", full, plan) + torch.einsum("jbia,jb->ia", full, plan)) / 2
    torch.testing.assert_close(affinity.product(plan), wanted)
    torch.testing.assert_close(affinity.product_of_ones(), affinity.product(torch.ones_like(plan)))
    objective = torch.einsum("ia,iajb,jb->", plan, full, plan) + (affinity.unary * plan).sum()
    torch.testing.assert_close(affinity.objective(plan), objective)
    (slope,) = torch.autograd.grad(affinity.objective(plan.requires_grad_()), plan)
    torch.testing.assert_close(affinity.gradient(plan.detach()), slope)


@KINDS
def test_exchanges_change_the_objective_by_gradient_and_curvature(kind, generator):
    affinity = make(kind, generator, 5, 5)
    partners = torch.randperm(5, generator=generator)
    plan = one_hot_plan(partners, affinity)
    curvature = affinity.curvature(partners, torch.arange(5))
    for r, s in itertools.combinations(range(5), 2):
        rows = torch.tensor([r, s])
        swapped = partners.clone()
        swapped[rows] = partners[rows.flip(0)]
        change = one_hot_plan(swapped, affinity) - plan
        torch.testing.assert_close(affinity.exchange_product(rows, partners[rows]), affinity.product(change))
        torch.testing.assert_close(curvature[r, s], (change * affinity.product(change)).sum())


@KINDS
@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 5), (5, 3)])
def test_ascent_ends_where_no_exchange_helps_and_never_below_its_start(kind, n, m, generator):
    affinity = make(kind, generator, n, m)
    start = torch.full((6, n), -1)
    for k in range(6):
        pairs = min(n, m)
        start[k, torch.randperm(n, generator=generator)[:pairs]] = torch.randperm(m, generator=generator)[:pairs]
    found, _ = exchange_ascent(affinity, start)
    before, after = (affinity.objective(one_hot_plan(x, affinity)) for x in (start, found))
    assert (after >= before - 1e-9).all()
    for k, one in enumerate(found):
        assert len(set(one[one >= 0].tolist())) == int((one >= 0).sum()) == min(n, m)
        free = [-1] + [c for c in range(m) if c not in one.tolist()]
        neighbours = [swapped(one, r, s) for r, s in itertools.combinations(range(n), 2)]
        neighbours += [moved(one, r, c) for r in range(n) for c in free if c >= 0 and one[r] >= 0]
        values = affinity.objective(one_hot_plan(torch.stack(neighbours), affinity))
        assert (values <= after[k] + 1e-9).all()


def swapped(assignment, r, s):
    other = assignment.clone()
    other[[r, s]] = assignment[[s, r]]
    return other


def moved(assignment, r, column):
    other = assignment.clone()
    other[r] = column
    return other


def test_terms_of_symmetric_matrices_need_half_the_products(generator):
    general = kronecker(generator)
    a, b = ((x + x.mT) / 2 for x in (general.a, general.b))
    plan = torch.rand(2, 4, 5, dtype=DOUBLE, generator=generator)
    fast, slow = (KroneckerAffinity(a, b, symmetric=flag).product(plan) for flag in (True, False))
    torch.testing.assert_close(fast, slow)


def test_padding_may_hold_anything(generator):
    small = kronecker(generator, 3, 4)
    nan = float("nan")
    a, b = torch.full((3, 5, 5), nan, dtype=DOUBLE), torch.full((3, 6, 6), nan, dtype=DOUBLE)
    unary = torch.full((5, 6), nan, dtype=DOUBLE)
    a[:, :3, :3], b[:, :4, :4], unary[:3, :4] = small.a, small.b, small.unary
    padded = KroneckerAffinity(a, b, unary, (torch.arange(5) < 3, torch.arange(6) < 4))
    plan = torch.rand(3, 4, dtype=DOUBLE, generator=generator)
    wide = torch.nn.functional.pad(plan, (0, 2, 0, 2))
    torch.testing.assert_close(padded.objective(wide), small.objective(plan))
    torch.testing.assert_close(padded.gradient(wide)[:3, :4], small.gradient(plan))
    assert padded.valid().sum() == 12


def test_factors_give_the_gaussian_and_its_derivative(dtype):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(60, generator=generator, dtype=torch.float32).to(dtype) for _ in range(2))
    x.requires_grad_()
    f, g = gaussian_factors(x, y, width=0.05)
    exact = torch.exp(-0.5 * ((x[:, None] - y) / 0.05) ** 2)
    assert float((f.T @ g - exact).detach().abs().max()) < 4e-3
    weights = torch.rand(60, 60, generator=generator, dtype=torch.float32).to(dtype)
    ours, theirs = (torch.autograd.grad((k * weights).sum(), x, retain_graph=True)[0] for k in (f.T @ g, exact))
    assert float((ours - theirs).abs().max()) < 0.02 * float(theirs.abs().max())
    assert f.dtype == dtype
    assert len(f) < 30


def test_factors_of_equal_or_no_attributes():
    one = torch.ones(3, dtype=DOUBLE)
    f, g = gaussian_factors(one, one[:2], width=0.1)
    assert float((f.T @ g - 1).abs().max()) < 4e-3
    assert gaussian_factors(one[:0], one, width=0.1)[1].shape == (0, 3)


@pytest.mark.untyped
def test_what_does_not_fit_is_refused(generator):
    good = kronecker(generator)
    with pytest.raises(InputError, match="a: want square factors"):
        KroneckerAffinity(torch.rand(1, 2, 3), torch.rand(1, 3, 3))
    with pytest.raises(InputError, match="b: want batch and terms"):
        KroneckerAffinity(torch.rand(1, 2, 2), torch.rand(2, 3, 3))
    with pytest.raises(InputError, match="unary: want shape"):
        KroneckerAffinity(torch.rand(1, 2, 2), torch.rand(1, 3, 3), torch.rand(3, 2))
    with pytest.raises(InputError, match="values: want shape"):
        EdgeAffinity(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64), *torch.rand(2, 4, 3))
    with pytest.raises(InputError, match="second: want an affinity of shape"):
        SumAffinity(good, kronecker(generator, 5, 5))
    with pytest.raises(InputError, match="width: want a number > 0"):
        gaussian_factors(torch.rand(3), torch.rand(3), width=0.0)
