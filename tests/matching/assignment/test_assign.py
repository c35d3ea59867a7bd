"""Linear assignment: against SciPy and brute force, certified by its dual variables, with every edge case."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.utils.data import DataLoader, Dataset

from diffmatch.autodiff import BlackBox, Perturbed
from diffmatch.errors import InputError
from diffmatch.matching.assignment import assign
from diffmatch.matching.transport.result import ConvergenceError

SOLVERS = ("compiled", "auction")


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def certify(result, cost, *, maximize=False, mask=None, tol=1e-7):
    """The assignment is one, and the dual variables prove that it is optimal."""
    sign = -1 if maximize else 1
    _, m = cost.shape[-2:]
    allowed = (sign * cost < torch.inf) & ~cost.isnan()
    rows = torch.ones(cost.shape[:-1], dtype=torch.bool) if mask is None else mask[0]
    columns = torch.ones((*cost.shape[:-2], m), dtype=torch.bool) if mask is None else mask[1]
    allowed &= rows.unsqueeze(-1) & columns.unsqueeze(-2)
    plan = result.plan
    assert (plan.sum(-1) <= 1).all()
    assert (plan.sum(-2) <= 1).all()
    assert not plan[~allowed].any()
    slack = torch.where(allowed, sign * (cost - result.f.unsqueeze(-1) - result.g.unsqueeze(-2)), 0)
    assert (slack >= -1e-9 * (1 + slack.abs().max() if slack.numel() else 1)).all()
    scale = 1 + torch.where(allowed, cost, 0).abs().sum((-1, -2))
    done = result.converged
    assert ((slack * plan).sum((-1, -2)) <= tol * scale)[done].all()
    assert (result.error[done] <= tol * scale[done]).all()
    assert (plan.sum((-1, -2))[done] == torch.minimum(rows.sum(-1), columns.sum(-1))[done]).all()
    assert not result.f[~rows].any()
    assert not result.g[~columns].any()
    # what the longer side has left over has no price, and no member of it a positive one
    longer_rows = (rows.sum(-1) > columns.sum(-1)) & done
    longer_columns = (rows.sum(-1) < columns.sum(-1)) & done
    loose = tol * scale
    assert (sign * result.f[longer_rows] <= 1e-9).all()
    assert (sign * result.g[longer_columns] <= 1e-9).all()
    assert ((result.f.abs() * (result.assignment < 0)).sum(-1) <= loose)[longer_rows].all()
    assert ((result.g.abs() * (result.inverse < 0)).sum(-1) <= loose)[longer_columns].all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("shape", [(3, 7, 7), (2, 5, 9), (2, 9, 5), (4, 1, 1), (2, 3, 1, 4), (6, 6)])
def test_equals_scipy(solver, maximize, shape):
    cost = randn(*shape)
    result = assign(cost, maximize=maximize, solver=solver)
    certify(result, cost, maximize=maximize)
    for index in np.ndindex(*shape[:-2]):
        rows, columns = linear_sum_assignment(cost[index], maximize=maximize)
        assert float(result.value[index]) == pytest.approx(float(cost[index][rows, columns].sum()))
        wanted = torch.full((shape[-2],), -1)
        wanted[rows] = torch.from_numpy(columns)
        assert torch.equal(result.assignment[index], wanted)


@given(
    n=st.integers(0, 7),
    m=st.integers(0, 7),
    seed=st.integers(0, 2**20),
    integer=st.booleans(),
    forbidden=st.sampled_from([0.0, 0.3, 0.8]),
    masked=st.booleans(),
    maximize=st.booleans(),
)
def test_both_solvers_are_certified_and_agree(n, m, seed, integer, forbidden, masked, maximize):
    generator = torch.Generator().manual_seed(seed)
    cost = 3 * torch.randn(2, n, m, generator=generator, dtype=torch.float64)
    cost = cost.round() if integer else cost
    cost[torch.rand(cost.shape, generator=generator) < forbidden] = -torch.inf if maximize else torch.inf
    mask = None
    if masked:
        mask = tuple(torch.rand(2, k, generator=generator) < 0.7 for k in (n, m))
        cost[~(mask[0][:, :, None] & mask[1][:, None, :])] = torch.nan
    results = [assign(cost, mask=mask, maximize=maximize, solver=solver) for solver in SOLVERS]
    for result in results:
        certify(result, cost, maximize=maximize, mask=mask)
    assert torch.equal(results[0].converged, results[1].converged)
    torch.testing.assert_close(results[0].value, results[1].value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_cannot_be_complete_is_cheapest_among_the_largest(solver):
    cost = randn(40, 4, 5, seed=3)
    cost[randn(40, 4, 5, seed=4) > -0.4] = torch.inf
    result = assign(cost, solver=solver)
    assert (~result.converged).any()
    assert result.converged.any()
    assert torch.isinf(result.error[~result.converged]).all()
    assert torch.isfinite(result.f).all()
    assert torch.isfinite(result.g).all()
    for c, found, value in zip(cost.numpy(), result.assignment, result.value, strict=True):
        best = (0, 0.0)
        for columns in itertools.permutations([0, 1, 2, 3, 4], 4):
            pairs = [c[i, j] for i, j in enumerate(columns) if c[i, j] < np.inf]
            best = min(best, (-len(pairs), sum(pairs)))
        assert int((found >= 0).sum()) == -best[0]
        assert float(value) == pytest.approx(best[1], abs=1e-9)
    with pytest.raises(ConvergenceError, match="of 40 assignments"):
        result.require_converged()
    assert assign(randn(2, 2)).require_converged().converged


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_padded_batch_is_the_loop_over_its_problems(solver):
    sizes = [(3, 5), (5, 3), (4, 4), (0, 2), (1, 1)]
    cost = torch.full((5, 6, 5), torch.nan, dtype=torch.float64)
    rows, columns = torch.zeros(5, 6, dtype=torch.bool), torch.zeros(5, 5, dtype=torch.bool)
    singles = []
    for k, (n, m) in enumerate(sizes):
        singles.append(randn(n, m, seed=k).requires_grad_())
        cost[k, :n, :m] = singles[-1].detach()
        rows[k, :n], columns[k, :m] = True, True
    cost.requires_grad_()
    result = assign(cost, mask=(rows, columns), grad=BlackBox(2.0), solver=solver)
    weight = randn(5, 6, 5, seed=9)
    ((result.plan * weight).sum() + result.value.square().sum()).backward()
    for k, ((n, m), single) in enumerate(zip(sizes, singles, strict=True)):
        alone = assign(single, grad=BlackBox(2.0), solver=solver)
        assert torch.equal(result.assignment[k, :n], alone.assignment)
        assert (result.assignment[k, n:] == -1).all()
        torch.testing.assert_close(result.value[k], alone.value)
        ((alone.plan * weight[k, :n, :m]).sum() + alone.value.square()).backward()
        torch.testing.assert_close(cost.grad[k, :n, :m], single.grad)
        outside = cost.grad[k].clone()
        outside[:n, :m] = 0
        assert not outside.any()  # nor NaN


def test_one_side_of_a_mask_may_be_missing_and_masks_broadcast():
    cost = randn(3, 4, 4)
    columns = torch.tensor([True, False, True, True])
    result = assign(cost, mask=(None, columns))
    assert not (result.assignment == 1).any()
    assert torch.equal(result.assignment, assign(cost, mask=(torch.ones(4, dtype=torch.bool), columns)).assignment)


@given(seed=st.integers(0, 2**20), n=st.integers(1, 6), m=st.integers(1, 6))
def test_equivariance(seed, n, m):
    cost = randn(n, m, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    value = assign(cost).value
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(m, generator=generator)
    permuted = assign(cost[rows][:, columns])
    torch.testing.assert_close(permuted.value, value)
    torch.testing.assert_close(assign(cost.T).value, value)
    torch.testing.assert_close(assign(3 * cost).value, 3 * value)
    torch.testing.assert_close(assign(cost + 5).value, value + 5 * min(n, m))
    torch.testing.assert_close(-assign(-cost, maximize=True).value, value)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 2, 3), (2, 0, 3)])
def test_empty(solver, shape):
    result = assign(torch.zeros(shape), solver=solver)
    assert result.assignment.shape == shape[:-1]
    assert (result.assignment == -1).all()
    assert result.value.shape == shape[:-2]
    assert not result.value.any()
    assert result.converged.all()
    assert result.plan.shape == shape
    assert result.inverse.shape == (*shape[:-2], shape[-1])


@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_costs_give_the_identity_and_duplicates_any_optimum(solver):
    assert torch.equal(assign(torch.full((4, 4), 2.5), solver=solver).assignment, torch.arange(4))
    points = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    cost = (points[:, None] - points.flip(0)[None]).abs()
    result = assign(cost, solver=solver)
    assert abs(float(result.value)) <= float(result.error) + 1e-12 <= 1e-8
    certify(result, cost)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scale", [1e-30, 1e8, 1e100])
def test_scale_does_not_matter(solver, scale):
    cost = randn(2, 6, 6) * scale
    result = assign(cost, solver=solver)
    assert torch.equal(result.assignment, assign(randn(2, 6, 6)).assignment)
    assert (result.error <= 1e-8 * scale).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.uint8])
def test_dtypes(solver, dtype):
    cost = (10 * randn(2, 5, 5).abs()).to(dtype)
    result = assign(cost, solver=solver)
    wanted = assign(cost.double())
    floating = dtype if dtype.is_floating_point else torch.float64
    assert {result.value.dtype, result.f.dtype, result.g.dtype, result.plan.dtype} == {floating}
    assert result.assignment.dtype == torch.int64
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if floating.itemsize == 2 else {"rtol": 1e-6, "atol": 1e-4}
    torch.testing.assert_close(result.value.double(), wanted.value, **tolerance)


def test_memory_layout_does_not_matter():
    cost = randn(3, 6, 4)
    wanted = assign(cost)
    assert torch.equal(assign(cost.mT.contiguous().mT).assignment, wanted.assignment)
    assert torch.equal(assign(cost[:1].expand(3, 6, 4)).assignment[2], wanted.assignment[0])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("maximize", [False, True])
def test_values_that_no_solver_can_work_with_are_named(solver, maximize):
    cost = randn(3, 4, 4)
    cost[1, 2, 2] = torch.nan
    with pytest.raises(InputError, match="NaN in batch element 1"):
        assign(cost, maximize=maximize, solver=solver)
    cost[1, 2, 2] = torch.inf if maximize else -torch.inf
    with pytest.raises(InputError, match="inf in batch element 1"):
        assign(cost, maximize=maximize, solver=solver)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cost": torch.zeros(3)}, "cost: want shape"),
        ({"cost": torch.zeros(2, 2, dtype=torch.complex64)}, "cost: want a real dtype"),
        ({"mask": (torch.ones(3, dtype=torch.bool), None)}, r"mask_a: want shape \(\*b, 2\)"),
        ({"mask": (None, torch.ones(2))}, "mask_b: want bool"),
        ({"mask": (torch.ones(5, 2, dtype=torch.bool), None)}, "mask_a: want a shape that expands"),
        ({"solver": "simplex"}, "solver: want one of"),
        ({"grad": "black-box"}, r"grad: want one of .*did you mean 'blackbox'"),
        ({"tol": -1.0}, "tol: want a number > 0"),
        ({"max_steps": 0}, "max_steps: want a number > 0"),
        ({"cost": torch.zeros(2, 2, dtype=torch.int64), "grad": "blackbox"}, "floating-point dtype where grad"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(InputError, match=message):
        assign(**{"cost": torch.zeros(2, 2), **arguments})


def test_the_value_has_the_assignment_as_its_gradient():
    cost = randn(2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: assign(c).value, (cost,), eps=1e-7)
    result = assign(cost)
    (grad,) = torch.autograd.grad(result.value.sum(), cost)
    assert torch.equal(grad, result.plan)
    assert not result.plan.requires_grad


@pytest.mark.parametrize("grad", ["blackbox", "perturbed", "implicit_mle", "straight_through", Perturbed(samples=3)])
def test_gradients_of_the_plan_by_name(grad):
    cost = randn(2, 3, 4, dtype=torch.float32).requires_grad_()
    target = torch.eye(3, 4)

    def call(seed):
        result = assign(cost, grad=grad, generator=torch.Generator().manual_seed(seed))
        (found,) = torch.autograd.grad((result.plan * (1 - target)).sum(), cost)
        return result, found

    result, found = call(0)
    assert result.plan.shape == cost.shape
    assert result.plan.dtype == cost.dtype
    torch.testing.assert_close(result.plan.sum(-1), torch.ones(2, 3))
    assert found.isfinite().all()
    assert found.any()
    assert torch.equal(call(0)[1], found)


def test_black_box_needs_one_more_solve(monkeypatch):
    from diffmatch.matching.assignment import solve

    calls = []
    original = solve.solve_compiled
    monkeypatch.setattr(solve, "solve_compiled", lambda *a, **k: calls.append(1) or original(*a, **k))
    cost = randn(3, 4, 4).requires_grad_()
    plan = assign(cost, grad="blackbox").plan
    assert len(calls) == 1
    (plan * randn(3, 4, 4, seed=1)).sum().backward()
    assert len(calls) == 2


def test_the_auction_stops_when_its_steps_are_spent():
    cost = randn(2, 12, 12)
    result = assign(cost, solver="auction", max_steps=3)
    assert not result.converged.any()
    assert (result.steps == 3).all()
    with pytest.raises(ConvergenceError):
        result.require_converged()


def test_the_auction_keeps_its_tolerance():
    cost = randn(20, 15, 15)
    exact = assign(cost).value
    spread = cost.amax((-1, -2)) - cost.amin((-1, -2))
    for tol in (1e-1, 1e-3, 1e-6):
        result = assign(cost, solver="auction", tol=tol)
        assert (result.error <= tol * spread * (1 + 1e-9)).all()
        assert (result.value - exact <= result.error + 1e-12).all()


@pytest.mark.parametrize("n", [60, 250])
def test_larger_problems_with_ties(n):
    generator = torch.Generator().manual_seed(n)
    points = torch.rand(2, n, 2, generator=generator, dtype=torch.float64)
    for cost in (torch.cdist(points[0], points[1]), torch.randint(0, 20, (n, n), generator=generator).double()):
        result = assign(cost)
        certify(result, cost)
        rows, columns = linear_sum_assignment(cost)
        assert float(result.value) == pytest.approx(float(cost[rows, columns].sum()))


class Solutions(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, item):
        return assign(randn(5, 6, 6, seed=item)).value


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_threads_and_forked_workers_can_solve():
    wanted = [Solutions()[item] for item in range(3)]
    with ThreadPoolExecutor(2) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(Solutions().__getitem__, range(3)), wanted, strict=True))
    loader = DataLoader(Solutions(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
    assert all(torch.equal(a, b) for a, b in zip(loader, wanted, strict=True))


def test_the_batch_is_shared_among_threads(monkeypatch):
    from diffmatch.matching.assignment import compiled

    cost = randn(7, 5, 5)
    wanted = assign(cost)
    monkeypatch.setattr(compiled, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found = assign(cost)
    assert torch.equal(found.assignment, wanted.assignment)
    assert torch.equal(found.g, wanted.g)
