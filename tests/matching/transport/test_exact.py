"""Exact transport: against linear programming and assignment, certified by its potentials."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from diffmatch.errors import InputError
from diffmatch.matching.assignment import assign
from diffmatch.matching.transport.exact import exact_transport
from diffmatch.matching.transport.result import ConvergenceError

pytest.importorskip("ot")


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_linear_programming(cost, a, b, mass):
    m, n = cost.shape
    sums = np.concatenate((np.kron(np.eye(m), np.ones(n)), np.kron(np.ones(m), np.eye(n))))
    found = linprog(
        cost.flatten(),
        A_ub=sums,
        b_ub=np.concatenate((a, b)) + 1e-12,
        A_eq=np.ones((1, m * n)),
        b_eq=[mass],
        bounds=(0, None),
    )
    assert found.status == 0
    return found.fun


def check_plan(result, cost, a, b, mass):
    plan = result.plan
    assert result.converged.all()
    assert (plan >= 0).all()
    assert (plan.sum(-1) <= a + 1e-9).all()
    assert (plan.sum(-2) <= b + 1e-9).all()
    assert float(plan.sum()) == pytest.approx(mass)
    slack = cost - result.f.unsqueeze(-1) - result.g.unsqueeze(-2)
    assert (slack >= -1e-9).all()
    assert float((plan * slack).sum()) == pytest.approx(0, abs=1e-9)


@given(
    m=st.integers(1, 5),
    n=st.integers(1, 5),
    seed=st.integers(0, 2**20),
    kind=st.sampled_from(["balanced", "unequal", "partial"]),
)
def test_equals_linear_programming_and_is_certified(m, n, seed, kind):
    cost, a, b = rand(m, n, seed=seed) - 0.3, 0.1 + rand(m, seed=seed + 1), 0.1 + rand(n, seed=seed + 2)
    if kind == "balanced":
        b = b * a.sum() / b.sum()
    mass = min(float(a.sum()), float(b.sum())) * (0.6 if kind == "partial" else 1)
    result = exact_transport(cost, a, b, mass=mass if kind == "partial" else None)
    check_plan(result, cost, a, b, mass)
    wanted = by_linear_programming(cost.numpy(), a.numpy(), b.numpy(), mass)
    assert float(result.value) == pytest.approx(wanted, abs=1e-8)
    assert float(result.cost) == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize("kind", ["balanced", "more rows", "more columns", "partial"])
def test_gradients_of_the_value_are_plan_and_potentials(kind):
    cost, a, b = rand(4, 5) - 0.3, 0.2 + rand(4, seed=1), 0.2 + rand(5, seed=2)
    scale = {"balanced": 1.0, "more rows": 0.7, "more columns": 1.4, "partial": 1.2}[kind]
    b = b * a.sum() / b.sum() * scale
    mass = 0.5 if kind == "partial" else None
    leaves = [x.clone().requires_grad_() for x in (cost, a, b)]
    result = exact_transport(*leaves, mass=mass)
    by_cost, by_a, by_b = torch.autograd.grad(result.value, leaves)
    torch.testing.assert_close(by_cost, result.plan)
    assert not result.plan.requires_grad
    torch.testing.assert_close(by_a, result.f)
    if kind == "partial":
        difference = result.g - by_b
        torch.testing.assert_close(difference, difference[:1].expand(5))
    else:
        torch.testing.assert_close(by_b, result.g)
    for seed in range(4):  # directions that keep the totals equal, where they have to be
        da, db = rand(4, seed=10 + seed) - 0.5, rand(5, seed=20 + seed) - 0.5
        if kind == "balanced":
            da, db = da - da.mean(), db - db.mean()
        h = 1e-5
        ends = [exact_transport(cost, a + s * da, b + s * db, mass=mass).value for s in (h, -h)]
        assert float((ends[0] - ends[1]) / (2 * h)) == pytest.approx(float(by_a @ da + by_b @ db), abs=1e-5)
    assert torch.autograd.gradcheck(lambda c: exact_transport(c, a, b, mass=mass).value, (leaves[0],), eps=1e-7)


def test_uniform_masses_are_an_assignment():
    cost = rand(2, 3, 6, 6)
    result = exact_transport(cost)
    wanted = assign(cost)
    torch.testing.assert_close(result.plan * 6, wanted.plan)
    torch.testing.assert_close(result.value * 6, wanted.value)
    assert result.f.shape == (2, 3, 6)
    assert (result.error < 1e-12).all()
    mean = (result.f.mean(-1) - result.g.mean(-1)).abs()
    assert (mean < 1e-9).all()


def test_one_dimension_is_solved_by_sorting():
    x, y = rand(40), rand(40, seed=1)
    result = exact_transport((x[:, None] - y[None]) ** 2)
    assert float(result.value) == pytest.approx(float((x.sort().values - y.sort().values).square().mean()))


@pytest.mark.parametrize("mass", [None, 0.3])
def test_a_padded_batch_is_the_loop_over_its_problems(mass):
    sizes = [(3, 4), (4, 2), (1, 1)]
    cost = torch.full((3, 4, 5), torch.nan, dtype=torch.float64)
    a, b = torch.full((3, 4), torch.nan).double(), torch.full((3, 5), torch.nan).double()
    rows, columns = torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3, 5, dtype=torch.bool)
    for k, (m, n) in enumerate(sizes):
        cost[k, :m, :n], a[k, :m], b[k, :n] = rand(m, n, seed=k), 0.5 + rand(m, seed=k + 9), 0.5 + rand(n, seed=k + 7)
        rows[k, :m], columns[k, :n] = True, True
    leaves = [x.requires_grad_() for x in (cost, a, b)]
    result = exact_transport(*leaves, mass=mass, mask=(rows, columns))
    grads = torch.autograd.grad(result.value.square().sum(), leaves)
    assert all(grad.isfinite().all() for grad in grads)
    for k, (m, n) in enumerate(sizes):
        single = [x.detach()[k][..., :s].requires_grad_() for x, s in ((a, m), (b, n))]
        inside = cost.detach()[k, :m, :n].requires_grad_()
        alone = exact_transport(inside, *single, mass=mass)
        torch.testing.assert_close(result.plan[k, :m, :n], alone.plan)
        assert not result.plan[k, m:].any()
        assert (result.f[k, m:] == -torch.inf).all()
        for found, wanted in zip(grads, torch.autograd.grad(alone.value.square(), [inside, *single]), strict=True):
            torch.testing.assert_close(found[k][tuple(slice(s) for s in wanted.shape)], wanted)


def test_forbidden_pairs():
    cost = rand(3, 3)
    cost[0, 0] = cost[1, 2] = torch.inf
    cost.requires_grad_()
    result = exact_transport(cost)
    assert result.converged
    torch.testing.assert_close(result.value * 3, assign(cost).value)
    (grad,) = torch.autograd.grad(result.value, cost)
    assert torch.equal(grad, result.plan)
    cost = rand(3, 3)
    cost[1] = torch.inf
    result = exact_transport(cost)
    assert not result.converged
    assert float(result.error) == pytest.approx(2 / 3)
    assert not result.plan[1].any()
    assert result.value.isfinite()
    with pytest.raises(ConvergenceError):
        result.require_converged()


def test_masses_of_zero_have_no_plan_and_no_gradient():
    a = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    result = exact_transport(rand(3, 3), a)
    assert not result.plan[1].any()
    assert result.f[1] == -torch.inf
    (grad,) = torch.autograd.grad(result.value, a)
    assert grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 2, 3), (1, 1)])
def test_empty_and_single(shape):
    result = exact_transport(torch.full(shape, 2.0))
    assert result.plan.shape == shape
    assert result.value.tolist() == torch.full(shape[:-2], 2.0 if shape == (1, 1) else 0.0).tolist()
    assert result.converged.all()


def test_dtypes_and_huge_costs():
    for dtype in (torch.float16, torch.float32):
        cost = rand(4, 4).to(dtype)
        result = exact_transport(cost)
        assert result.plan.dtype == dtype
        torch.testing.assert_close(result.value.double(), exact_transport(cost.double()).value, rtol=1e-5, atol=1e-6)
    huge = exact_transport(rand(5, 5) * 1e8)
    torch.testing.assert_close(huge.plan, exact_transport(rand(5, 5)).plan)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cost": torch.full((2, 2), torch.nan)}, "cost: want no NaN"),
        ({"a": torch.tensor([-1.0, 2.0])}, "a: want finite masses"),
        ({"mass": 1.5}, "mass: want numbers between 0"),
        ({"mass": torch.ones(3)}, "mass: want a shape that expands"),
        ({"max_steps": 0}, "max_steps: want a number > 0"),
        ({"cost": torch.zeros(2, 2, dtype=torch.int64)}, "cost: want a real floating-point dtype"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(InputError, match=message):
        exact_transport(**{"cost": torch.zeros(2, 2), **arguments})


def test_spent_steps_are_a_status():
    result = exact_transport(rand(30, 30), max_steps=3)
    assert not result.converged
