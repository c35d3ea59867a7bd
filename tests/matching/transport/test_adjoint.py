import time
from typing import Any

import pytest
import torch
from torch import Tensor

from diffmatch.matching.transport import TransportResult, sinkhorn, sinkhorn_dustbin

F64 = torch.float64


@pytest.fixture
def inputs(generator: torch.Generator) -> list[Tensor]:
    cost = torch.rand(2, 5, 6, generator=generator, dtype=F64)
    a = 0.2 + torch.rand(2, 5, generator=generator, dtype=F64)
    b = 0.2 + torch.rand(2, 6, generator=generator, dtype=F64)
    eps = torch.tensor(0.15, dtype=F64)
    return [x.requires_grad_() for x in (cost, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True), eps)]


PROBLEMS = [{}, {"rho": 0.6}, {"rho": (0.4, float("inf"))}, {"mass": 0.7}]


def loss(r: TransportResult, generator: torch.Generator, *, gauge_free: bool) -> Tensor:
    """A function of plan, cost and potentials."""
    weights = [torch.randn(x.shape, generator=generator, dtype=F64) for x in (r.plan, r.f, r.g)]
    if gauge_free:
        excess = weights[1].sum(-1, keepdim=True) - weights[2].sum(-1, keepdim=True)
        weights[2] = weights[2] + excess / weights[2].shape[-1]
    terms = [(w * x).sum() for w, x in zip(weights, (r.plan, r.f, r.g), strict=True)]
    return sum(terms, r.cost.square().sum())


def tangent(x: Tensor) -> Tensor:
    """Masses whose total is held have gradients up to a constant."""
    return x - x.mean(-1, keepdim=True)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_implicit_equals_unrolled(inputs: list[Tensor], problem: dict[str, Any]) -> None:
    found = {}
    for adjoint in ("implicit", "unroll"):
        cost, a, b, eps = inputs
        r = sinkhorn(cost, a, b, eps=eps, adjoint=adjoint, tol=1e-13, **problem)
        generator = torch.Generator().manual_seed(5)
        grads = torch.autograd.grad(loss(r, generator, gauge_free="rho" not in problem), inputs)
        found[adjoint] = [tangent(x) if k in (1, 2) and not problem else x for k, x in enumerate(grads)]
    for implicit, unrolled in zip(found["implicit"], found["unroll"], strict=True):
        torch.testing.assert_close(implicit, unrolled, atol=1e-8, rtol=1e-6)


def test_implicit_equals_unrolled_with_dustbins(inputs: list[Tensor]) -> None:
    scores, z, eps = inputs[0], torch.tensor([0.3, 0.6], dtype=F64, requires_grad=True), inputs[3]
    found = []
    for adjoint in ("implicit", "unroll"):
        r = sinkhorn_dustbin(scores, z, eps=eps, adjoint=adjoint, tol=1e-13)
        value = loss(r, torch.Generator().manual_seed(5), gauge_free=True)
        found.append(torch.autograd.grad(value, [scores, z, eps]))
    for implicit, unrolled in zip(*found, strict=True):
        torch.testing.assert_close(implicit, unrolled, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("problem", [{"rho": 0.6}, {"mass": 0.3}], ids=str)
def test_gradcheck(inputs: list[Tensor], problem: dict[str, Any]) -> None:
    def solve(cost: Tensor, a: Tensor, b: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        r = sinkhorn(cost, a, b, eps=eps, tol=1e-13, **problem)
        return r.plan, r.cost, r.value

    small = [inputs[0][:1, :3, :4], inputs[1][:1, :3], inputs[2][:1, :4], inputs[3]]
    assert torch.autograd.gradcheck(solve, [x.detach().clone().requires_grad_() for x in small], atol=1e-5)


def test_gradcheck_balanced(inputs: list[Tensor]) -> None:
    def solve(cost: Tensor, a: Tensor, b: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
        r = sinkhorn(cost, a, b, eps=eps, tol=1e-13)
        return r.plan, r.cost, r.value, r.f[..., None] + r.g[..., None, :]

    small = [inputs[0][:1, :4, :3], inputs[1][:1, :4], inputs[2][:1, :3], inputs[3]]
    assert torch.autograd.gradcheck(solve, [x.detach().clone().requires_grad_() for x in small], atol=1e-5)


@pytest.mark.parametrize("adjoint", ["implicit", "unroll", "value"])
def test_envelope_of_the_value(inputs: list[Tensor], adjoint: str) -> None:
    cost, a, b, eps = inputs
    r = sinkhorn(cost, a, b, eps=eps, tol=1e-12, adjoint=adjoint)
    d_cost, d_a, d_b, d_eps = torch.autograd.grad(r.value.sum(), inputs)
    torch.testing.assert_close(d_cost, r.plan.detach())
    torch.testing.assert_close(tangent(d_a), tangent(r.f.detach()))
    torch.testing.assert_close(tangent(d_b), tangent(r.g.detach()))
    torch.testing.assert_close(d_eps, (r.plan * (r.plan.log() - 1)).sum().detach())


def test_value_alone_leaves_the_plan_constant(inputs: list[Tensor]) -> None:
    r = sinkhorn(*inputs[:3], eps=0.1, adjoint="value")
    assert not r.plan.requires_grad
    assert not r.cost.requires_grad
    assert r.value.requires_grad


def test_no_grad_is_respected_and_lazy_parts_follow_the_call(inputs: list[Tensor]) -> None:
    with torch.no_grad():
        silent = sinkhorn(*inputs[:3], eps=0.1)
        assert not torch.is_grad_enabled()
    assert not silent.plan.requires_grad
    loud = sinkhorn(*inputs[:3], eps=0.1)
    with torch.no_grad():
        plan = loud.plan
    assert plan.requires_grad


def test_conjugate_gradients_equal_the_factorisation(monkeypatch: pytest.MonkeyPatch, inputs: list[Tensor]) -> None:
    def gradient() -> Tensor:
        r = sinkhorn(*inputs[:3], eps=0.05, tol=1e-12)
        return torch.autograd.grad(r.plan.square().sum(), inputs[0])[0]

    direct = gradient()
    monkeypatch.setattr("diffmatch.matching.transport.adjoint.DIRECT", 0)
    torch.testing.assert_close(gradient(), direct, atol=1e-9, rtol=1e-6)


def test_separate_components_have_finite_gradients() -> None:
    cost = torch.full((6, 6), torch.inf, dtype=F64)
    cost[:3, :3], cost[3:, 3:] = torch.rand(3, 3, dtype=F64), torch.rand(3, 3, dtype=F64)
    cost.requires_grad_()
    r = sinkhorn(cost, eps=0.1, tol=1e-12)
    (grad,) = torch.autograd.grad(r.plan.square().sum(), cost)
    block = cost.detach()[:3, :3].clone().requires_grad_()
    half = torch.full((3,), 1 / 6, dtype=F64)
    single = sinkhorn(block, half, half, eps=0.1, tol=1e-12)
    (wanted,) = torch.autograd.grad(single.plan.square().sum(), block)
    torch.testing.assert_close(grad[:3, :3], wanted, atol=1e-8, rtol=1e-6)
    assert grad.isfinite().all()


def test_saved_memory_and_time_of_the_backward() -> None:
    n = 256
    cost = torch.rand(1, n, n, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        r = sinkhorn(cost, eps=0.02)
        loss = (r.plan * cost.detach()).sum()
    saved.pop(cost.untyped_storage().data_ptr(), None)
    # The plan, the constant that it is multiplied with (here the cost) and vectors.
    assert sum(saved.values()) < 2 * cost.untyped_storage().nbytes()
    start = time.process_time()
    loss.backward()
    assert time.process_time() - start < 1
