"""The compiled solver against the tensor operations that run on other devices, and the dispatch."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from diffmatch.matching.transport import sinkhorn, solve
from diffmatch.matching.transport.costs import DenseCost
from diffmatch.matching.transport.kernels import solve_dense
from diffmatch.matching.transport.newton import newton, scaled_start
from diffmatch.matching.transport.problem import Problem
from diffmatch.matching.transport.sweeps import log_sweeps, marginal_error

F64 = torch.float64


def problem(eps: float, rho: float | None, *, m: int = 24, n: int = 31, batch: int = 3) -> tuple[Tensor, Problem]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(batch, k, 2, generator=generator, dtype=F64) for k in (m, n))
    a, b = (0.1 + torch.rand(batch, k, generator=generator, dtype=F64) for k in (m, n))
    a[:, 0] = 0
    strength = torch.full((batch,), eps, dtype=F64)
    slack = strength / rho if rho else torch.zeros_like(strength)
    masses = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    return torch.cdist(x, y).square(), Problem(*masses, strength, slack, slack / 2)


@pytest.mark.parametrize("eps", [0.2, 0.01, 0.002])
@pytest.mark.parametrize("rho", [None, 0.5])
def test_all_solvers_find_the_same_potentials(eps: float, rho: float | None) -> None:
    matrix, p = problem(eps, rho)
    cost, g = DenseCost(matrix), torch.zeros_like(p.b)
    first = torch.full_like(p.eps, 0.3)
    start = scaled_start(cost, p, g, first, tol=1e-10)
    found = {
        "log sweeps": log_sweeps(cost, p, g, tol=1e-10, max_steps=100_000, every=50),
        "newton": newton(cost, p, start.g, tol=1e-10, max_steps=5000),
        "compiled sweeps": solve_dense(matrix, p, None, tol=1e-10, max_steps=100_000, newton=0 * first),
        "compiled newton": solve_dense(matrix, p, None, tol=1e-10, max_steps=5000, newton=first),
        "compiled newton without scaling": solve_dense(matrix, p, None, tol=1e-10, max_steps=5000, newton=p.eps),
    }
    wanted = cost.plan_tensor(found["log sweeps"].f, found["log sweeps"].g, p.eps)
    for name, solution in found.items():
        assert solution.converged.all(), name
        assert (marginal_error(cost, p, solution.f, solution.g) < 2e-10).all(), name
        plan = cost.plan_tensor(solution.f, solution.g, p.eps)
        torch.testing.assert_close(plan, wanted, atol=1e-8, rtol=0, msg=name)


@pytest.mark.parametrize("eps", [0.2, 0.01, 0.001])
def test_the_door_of_other_devices(eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, p = problem(eps, None)
    wanted = sinkhorn(matrix, p.a, p.b, eps=eps)

    monkeypatch.setattr("diffmatch.matching.transport.solve.runs_compiled", lambda cost: False)
    for method in ("auto", "newton"):
        r = sinkhorn(matrix, p.a, p.b, eps=eps, method=method).require_converged()
        torch.testing.assert_close(r.plan, wanted.plan, atol=1e-7, rtol=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "DIRECT_SWEEPS", 1)
        torch.testing.assert_close(sinkhorn(matrix, p.a, p.b, eps=eps).plan, wanted.plan, atol=1e-7, rtol=0)


def test_newton_needs_far_fewer_steps_than_sweeps_at_small_eps() -> None:
    matrix, p = problem(0.001, None, m=60, n=60)
    swept = solve_dense(matrix, p, None, tol=1e-6, max_steps=100_000, newton=0 * p.eps)
    finished = solve_dense(matrix, p, None, tol=1e-6, max_steps=100_000, newton=0 * p.eps + 0.3)
    assert (4 * finished.steps < swept.steps).all()


def test_single_precision_kernels() -> None:
    matrix, p = problem(0.005, None)
    single = Problem(*(x.float() for x in (p.a, p.b, p.eps, p.slack_a, p.slack_b)))
    r = solve_dense(matrix.float(), single, None, tol=1e-5, max_steps=5000, newton=single.eps)
    wanted = solve_dense(matrix, p, None, tol=1e-9, max_steps=5000, newton=p.eps)
    assert r.f.dtype == torch.float32
    assert r.converged.all()
    torch.testing.assert_close(
        (r.f[:, 1:, None] + r.g[:, None]).double(), wanted.f[:, 1:, None] + wanted.g[:, None], atol=1e-4, rtol=0
    )


def test_two_threads_give_the_same_bits() -> None:
    matrix, p = problem(0.01, None, batch=8)
    run = lambda _: sinkhorn(matrix, p.a, p.b, eps=0.01).f  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(run, range(2))
    assert one.equal(two)
    assert one.equal(run(0))
