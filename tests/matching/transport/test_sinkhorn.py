import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.matching.transport import ConvergenceError, TransportResult, sinkhorn

F64 = torch.float64


def costs(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def masses(*shape: int, seed: int = 1) -> Tensor:
    x = 0.2 + costs(*shape, seed=seed)
    return x / x.sum(-1, keepdim=True)


def marginal_errors(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (plan.sum(-1) - a).abs().sum(-1) + (plan.sum(-2) - b).abs().sum(-1)


@pytest.mark.parametrize("method", ["auto", "sweeps", "newton"])
@pytest.mark.parametrize("eps", [0.5, 0.02, 0.004])
def test_plan_has_the_gibbs_form_and_the_marginals(method: str, eps: float) -> None:
    cost, a, b = costs(3, 8, 11), masses(3, 8), masses(3, 11, seed=2)
    r = sinkhorn(cost, a, b, eps=eps, method=method).require_converged()
    torch.testing.assert_close(r.plan, ((r.f[:, :, None] + r.g[:, None] - cost) / eps).exp())
    assert marginal_errors(r.plan, a, b).max() < 3e-9
    entropy = (r.plan * (r.plan.log() - 1)).sum((-2, -1))
    torch.testing.assert_close(r.value, r.cost + eps * entropy, rtol=1e-8, atol=1e-8)


def test_equals_pot() -> None:
    ot = pytest.importorskip("ot")
    cost, a, b = costs(9, 12), masses(9), masses(12, seed=2)
    wanted = ot.sinkhorn(
        a.numpy(), b.numpy(), cost.numpy(), 0.03, method="sinkhorn_log", stopThr=1e-12, numItermax=9999
    )
    np.testing.assert_allclose(sinkhorn(cost, a, b, eps=0.03, tol=1e-12).plan.numpy(), wanted, atol=1e-10)


def test_unbalanced_equals_pot() -> None:
    ot = pytest.importorskip("ot")
    cost, a, b = costs(7, 5), 2 * masses(7), masses(5, seed=2)
    wanted = ot.unbalanced.sinkhorn_unbalanced(
        a.numpy(), b.numpy(), cost.numpy(), 0.1, (0.7, 0.3), reg_type="kl", stopThr=1e-14, numItermax=9999
    )
    r = sinkhorn(cost, a, b, eps=0.1, rho=(0.7, 0.3), tol=1e-12)
    np.testing.assert_allclose(r.plan.numpy(), wanted, atol=1e-9)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.special.xlogy(p, p / q) - p + q).sum()


@pytest.mark.parametrize("rho", [0.5, (0.5, 2.0), (math.inf, 0.3)])
def test_unbalanced_value_has_no_duality_gap(rho: float | tuple[float, float]) -> None:
    cost, a, b = costs(6, 5), masses(6), 1.5 * masses(5, seed=2)
    r = sinkhorn(cost, a, b, eps=0.05, rho=rho, tol=1e-12)
    both = rho if isinstance(rho, tuple) else (rho, rho)
    primal = r.cost + 0.05 * kl(r.plan, a[:, None] * b)
    for strength, found, wanted in zip(both, (r.plan.sum(1), r.plan.sum(0)), (a, b), strict=True):
        if strength == math.inf:
            torch.testing.assert_close(found, wanted)
        else:
            primal = primal + strength * kl(found, wanted)
    torch.testing.assert_close(r.value, primal)


def test_weak_penalties_move_less_and_strong_ones_tend_to_the_balanced_plan() -> None:
    cost = costs(6, 6)
    balanced = sinkhorn(cost, eps=0.05).plan
    moved = [sinkhorn(cost, eps=0.05, rho=rho).plan for rho in (0.1, 1.0, 1e7)]
    assert moved[0].sum() < moved[1].sum() < moved[2].sum()
    torch.testing.assert_close(moved[2], balanced, atol=1e-6, rtol=0)


def test_partial_moves_the_mass_and_respects_the_bounds() -> None:
    cost, a, b = costs(2, 6, 7), masses(2, 6), 2 * masses(2, 7, seed=2)
    mass = torch.tensor([0.3, 0.9], dtype=F64)
    plan = sinkhorn(cost, a, b, eps=0.01, mass=mass).plan
    assert plan.shape == cost.shape
    torch.testing.assert_close(plan.sum((-2, -1)), mass)
    assert (plan.sum(-1) <= a + 1e-8).all()
    assert (plan.sum(-2) <= b + 1e-8).all()


def test_small_eps_gives_the_exact_cost_of_partial_transport() -> None:
    ot = pytest.importorskip("ot")
    cost, a, b = costs(6, 7), masses(6), masses(7, seed=2)
    exact = ot.partial.partial_wasserstein2(a.numpy(), b.numpy(), cost.numpy(), m=0.6)
    assert float(sinkhorn(cost, a, b, eps=5e-4, mass=0.6).cost) == pytest.approx(float(exact), abs=2e-3)


def test_small_eps_gives_the_permutation() -> None:
    truth = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    cost = 0.2 + costs(20, 20)
    cost[torch.arange(20), truth] = 0.0
    r = sinkhorn(cost, eps=1e-3)
    assert r.plan.argmax(-1).equal(truth)
    assert r.cost < 1e-8


def test_one_dimension_tends_to_sorting() -> None:
    x, y = costs(30, seed=4), costs(30, seed=5)
    r = sinkhorn((x[:, None] - y).square(), eps=2e-4, tol=1e-7)
    assert float(r.cost) == pytest.approx(float((x.sort()[0] - y.sort()[0]).square().mean()), abs=3e-4)


def test_gaussians() -> None:
    # Entropic transport between N(0, s^2) and N(m, s^2) on a fine grid: the plan is Gaussian with the covariance
    # (sqrt(4 s^4 + e^2) - e) / 2 for the strength e = eps / 2 of the cost |x - y|^2 / 2 (Janati et al. 2020).
    x = torch.linspace(-5, 5, 200, dtype=F64)
    a = (-(x**2) / 2).exp()
    b = (-((x - 0.5) ** 2) / 2).exp()
    r = sinkhorn((x[:, None] - x).square(), a / a.sum(), b / b.sum(), eps=0.5)
    covariance = (r.plan * x[:, None] * (x - 0.5)).sum()
    assert float(covariance) == pytest.approx((math.sqrt(4 + 0.25**2) - 0.25) / 2, abs=2e-3)


def test_mask_is_proven_by_nan_in_the_padding() -> None:
    sizes = [(3, 5), (6, 2), (6, 7), (1, 1)]
    cost = torch.full((4, 6, 7), math.nan, dtype=F64)
    a, b = torch.full((4, 6), math.nan, dtype=F64), torch.full((4, 7), math.nan, dtype=F64)
    mask_a, mask_b = torch.zeros(4, 6, dtype=torch.bool), torch.zeros(4, 7, dtype=torch.bool)
    for k, (m, n) in enumerate(sizes):
        cost[k, :m, :n], a[k, :m], b[k, :n] = costs(m, n, seed=k), masses(m, seed=k), masses(n, seed=k + 9)
        mask_a[k, :m], mask_b[k, :n] = True, True
    cost.requires_grad_()
    for settings in ({}, {"rho": 0.5}, {"mass": 0.4}, {"eps_relative": True}):
        eps = 0.02
        r = sinkhorn(cost, a, b, eps=eps, mask=(mask_a, mask_b), tol=1e-12, **settings)
        weights = costs(4, 6, 7, seed=20)
        (grad,) = torch.autograd.grad((r.plan * weights).sum() + r.value.sum(), cost)
        assert (r.plan.isfinite()).all()
        assert (grad.isfinite()).all()
        for k, (m, n) in enumerate(sizes):
            single = cost[k, :m, :n].detach().requires_grad_()
            s = sinkhorn(single, a[k, :m], b[k, :n], eps=eps, tol=1e-12, **settings)
            (wanted,) = torch.autograd.grad((s.plan * weights[k, :m, :n]).sum() + s.value, single)
            torch.testing.assert_close(r.plan[k, :m, :n], s.plan, atol=1e-8, rtol=0)
            torch.testing.assert_close(r.value[k], s.value, atol=1e-8, rtol=0)
            torch.testing.assert_close(grad[k, :m, :n], wanted, atol=1e-6, rtol=0)
            real = mask_a[k, :, None] & mask_b[k]
            assert (r.plan[k][~real] == 0).all()
            assert (grad[k][~real] == 0).all()


def test_masked_uniform_masses_count_real_entries() -> None:
    mask = torch.tensor([True, True, False])
    plan = sinkhorn(costs(3, 2), eps=0.1, mask=(mask, None)).plan
    torch.testing.assert_close(plan.sum(-1), torch.tensor([0.5, 0.5, 0.0], dtype=F64))


@given(seed=st.integers(0, 10_000), m=st.integers(1, 6), n=st.integers(1, 6), eps=st.floats(0.02, 1.0))
def test_symmetries(seed: int, m: int, n: int, eps: float) -> None:
    cost, a, b = costs(m, n, seed=seed), masses(m, seed=seed + 1), masses(n, seed=seed + 2)
    plan = sinkhorn(cost, a, b, eps=eps).plan
    close = {"atol": 1e-7, "rtol": 0}
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(sinkhorn(cost[order], a[order], b, eps=eps).plan, plan[order], **close)
    torch.testing.assert_close(sinkhorn(cost.mT, b, a, eps=eps).plan, plan.mT, **close)
    torch.testing.assert_close(sinkhorn(7 * cost, a, b, eps=7 * eps).plan, plan, **close)
    torch.testing.assert_close(sinkhorn(cost, 3 * a, 3 * b, eps=eps).plan, 3 * plan, **close)
    shift = costs(m, 1, seed=seed + 3) + costs(1, n, seed=seed + 4)
    torch.testing.assert_close(sinkhorn(cost + shift, a, b, eps=eps).plan, plan, **close)


def test_warm_start_takes_few_steps() -> None:
    cost = costs(40, 40)
    first = sinkhorn(cost, eps=0.02)
    again = sinkhorn(cost + 1e-6 * costs(40, 40, seed=7), eps=0.02, init=first, tol=1e-5)
    assert int(again.steps) <= 4
    assert int(first.steps) > 20
    by_pair = sinkhorn(cost, eps=0.02, init=(first.f, first.g))
    torch.testing.assert_close(by_pair.plan, first.plan, atol=1e-9, rtol=0)


def test_potentials_are_centred() -> None:
    a, b = masses(5), masses(6, seed=2)
    r = sinkhorn(costs(5, 6), a, b, eps=0.1)
    assert float((a * r.f).sum()) == pytest.approx(float((b * r.g).sum()), abs=1e-12)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0), (2, 0, 4), (0, 3, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    cost = torch.zeros(shape, requires_grad=True)
    r = sinkhorn(cost, eps=0.1)
    assert r.plan.shape == shape
    assert r.converged.all()
    assert (r.value == 0).all()
    (r.plan.sum() + r.value.sum()).backward()
    assert cost.grad is not None


def test_one_by_one_and_constant_costs() -> None:
    assert sinkhorn(torch.ones(1, 1), eps=0.1).plan.item() == pytest.approx(1)
    a, b = masses(3), masses(4, seed=2)
    torch.testing.assert_close(sinkhorn(torch.full((3, 4), 5.0, dtype=F64), a, b, eps=0.01).plan, a[:, None] * b)


def test_zero_masses() -> None:
    a = torch.tensor([0.0, 0.5, 0.5], dtype=F64, requires_grad=True)
    cost = costs(3, 3).requires_grad_()
    r = sinkhorn(cost, a, eps=0.05)
    assert (r.plan[0] == 0).all()
    assert r.f[0] == -math.inf
    grads = torch.autograd.grad(r.plan.square().sum() + r.value, [cost, a])
    assert all(g.isfinite().all() for g in grads)


def test_forbidden_pairs() -> None:
    cost = costs(4, 4).masked_fill(torch.eye(4, dtype=torch.bool), math.inf).requires_grad_()
    r = sinkhorn(cost, eps=0.02).require_converged()
    assert (r.plan.diagonal() == 0).all()
    (grad,) = torch.autograd.grad(r.plan.square().sum() + r.cost, cost)
    assert grad.isfinite().all()


def test_a_row_that_is_forbidden_throughout_is_reported() -> None:
    cost = costs(4, 4)
    cost[1] = math.inf
    r = sinkhorn(cost, eps=0.05)
    assert not r.converged
    assert r.error >= 0.25
    assert r.plan.isfinite().all()
    with pytest.raises(ConvergenceError, match="1 of 1 transport problems"):
        r.require_converged()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_huge_costs(dtype: torch.dtype) -> None:
    r = sinkhorn((1e8 * costs(4, 4)).to(dtype), eps=1.0)
    assert r.plan.isfinite().all()
    if dtype == F64:
        assert r.converged
    else:
        assert not r.converged or r.error < 2e-2


def test_tiny_eps_in_single_precision_is_honest() -> None:
    r = sinkhorn(costs(60, 60).float(), eps=1e-4)
    uniform = torch.full((60,), 1 / 60)
    true = float(marginal_errors(r.plan.double(), uniform.double(), uniform.double()))
    assert true <= 1.5 * float(r.error) + 1e-6
    assert r.plan.isfinite().all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(half: torch.dtype) -> None:
    cost = costs(20, 20).to(half).requires_grad_()
    r = sinkhorn(cost, eps=0.05)
    assert r.plan.dtype == half
    assert r.f.dtype == r.value.dtype == torch.float32
    assert r.error < 2e-5
    (grad,) = torch.autograd.grad(r.value, cost)
    assert grad.dtype == half


def test_duplicates_views_and_broadcast_masses() -> None:
    cost = costs(5, 6).mT.expand(3, 6, 5)
    cost[0, 1] = cost[0, 0]
    a = masses(6)
    r = sinkhorn(cost, a, eps=0.05)
    torch.testing.assert_close(r.plan.sum(-1), a.expand(3, 6), atol=1e-8, rtol=0)
    torch.testing.assert_close(r.plan[0], r.plan[2])


def test_eps_of_each_element_and_relative() -> None:
    cost = costs(2, 5, 5)
    eps = torch.tensor([0.02, 0.3], dtype=F64)
    both = sinkhorn(cost, eps=eps)
    for k in range(2):
        torch.testing.assert_close(both.plan[k], sinkhorn(cost[k], eps=float(eps[k])).plan, atol=1e-8, rtol=0)
    relative = sinkhorn(1000 * cost, eps=0.1, eps_relative=True).plan
    torch.testing.assert_close(relative, sinkhorn(cost, eps=0.1, eps_relative=True).plan, atol=1e-8, rtol=0)


def test_totals_that_differ_a_little_are_made_equal() -> None:
    r = sinkhorn(costs(3, 3), masses(3), (1 + 5e-5) * masses(3, seed=2), eps=0.1)
    assert float(r.plan.sum()) == pytest.approx(1, abs=1e-8)


def test_steps_are_bounded_and_the_status_says_so() -> None:
    r = sinkhorn(costs(30, 30), eps=1e-3, max_steps=5)
    assert not r.converged
    assert int(r.steps) <= 6
    assert isinstance(r, TransportResult)


def test_same_bits_twice() -> None:
    cost = costs(4, 16, 16)
    assert sinkhorn(cost, eps=0.003).plan.equal(sinkhorn(cost, eps=0.003).plan)


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("cost", {"cost": torch.tensor([[1.0, math.nan]])}),
        ("cost", {"cost": torch.tensor([[1.0, -math.inf]])}),
        ("a", {"a": torch.tensor([-0.5, 1.5])}),
        ("a, b", {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([0.1, 0.1])}),
        ("eps", {"eps": 0.0}),
        ("eps", {"eps": torch.tensor(-1.0)}),
        ("rho", {"rho": -1.0}),
        ("rho", {"rho": 1.0, "mass": 0.5}),
        ("mass", {"mass": 1.5}),
        ("method", {"method": "fast"}),
        ("adjoint", {"adjoint": "none"}),
        ("tol", {"tol": 0.0}),
        ("max_steps", {"max_steps": 0}),
        ("init", {"init": (torch.zeros(2), torch.zeros(3))}),
        ("mask_a", {"mask": (torch.ones(2), None)}),
    ],
)
@pytest.mark.untyped
def test_errors_name_the_argument(argument: str, change: dict) -> None:
    settings = {"cost": torch.ones(2, 2), "eps": 0.1, **change}
    with pytest.raises(InputError) as caught:
        sinkhorn(**settings)
    assert caught.value.argument == argument


@pytest.mark.untyped
def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="cost: want shape"):
        sinkhorn(torch.ones(3), eps=0.1)
    with pytest.raises(InputError, match="a: want shape"):
        sinkhorn(torch.ones(2, 3), torch.ones(3), eps=0.1)
    with pytest.raises(InputError, match="a real floating-point dtype"):
        sinkhorn(torch.ones(2, 3, dtype=torch.int64), eps=0.1)
