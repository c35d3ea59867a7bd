import pytest
import torch
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.matching.transport import sinkhorn, sinkhorn_sparse

F64 = torch.float64


def band(n: int, width: int) -> Tensor:
    near = (torch.arange(n)[:, None] - torch.arange(n)).abs() <= width
    return near.nonzero().T


@pytest.mark.parametrize(("rho", "adjoint"), [(None, "implicit"), (0.4, "implicit"), (0.4, "unroll")])
def test_equals_the_dense_problem_with_forbidden_pairs(
    rho: float | None, adjoint: str, generator: torch.Generator
) -> None:
    n, pairs = 12, band(12, 3)
    cost = torch.rand(2, n, n, generator=generator, dtype=F64)
    values = cost[:, pairs[0], pairs[1]].requires_grad_()
    dense = torch.full_like(cost, torch.inf)
    dense[:, pairs[0], pairs[1]] = values.detach()
    dense.requires_grad_()
    r = sinkhorn_sparse(values, pairs, sizes=(n, n), eps=0.05, rho=rho, tol=1e-11, adjoint=adjoint)
    s = sinkhorn(dense, eps=0.05, rho=rho, tol=1e-11)
    torch.testing.assert_close(r.plan, s.plan[:, pairs[0], pairs[1]], atol=1e-9, rtol=0)
    torch.testing.assert_close(r.value, s.value, atol=1e-9, rtol=0)
    torch.testing.assert_close(r.cost, s.cost, atol=1e-9, rtol=0)
    (found,) = torch.autograd.grad(r.plan.square().sum() + r.value.sum() + r.f.square().sum() * (rho or 0), values)
    (wanted,) = torch.autograd.grad(s.plan.square().sum() + s.value.sum() + s.f.square().sum() * (rho or 0), dense)
    torch.testing.assert_close(found, wanted[:, pairs[0], pairs[1]], atol=1e-7, rtol=1e-6)


def test_lists_that_differ_are_padded_by_infinity() -> None:
    pairs = torch.stack((band(4, 1), torch.cat((band(4, 0), torch.zeros(2, 6, dtype=torch.int64)), 1)))
    cost = torch.zeros(2, 10, dtype=F64)
    cost[1, 4:] = torch.inf
    r = sinkhorn_sparse(cost, pairs, sizes=(4, 4), eps=0.1).require_converged()
    torch.testing.assert_close(r.plan[1, :4], torch.full((4,), 0.25, dtype=F64))
    assert (r.plan[1, 4:] == 0).all()


def test_pairs_without_a_plan_are_reported() -> None:
    pairs = torch.tensor([[0, 1, 2], [0, 0, 1]])
    r = sinkhorn_sparse(torch.zeros(3, dtype=F64), pairs, sizes=(3, 2), eps=0.1)
    assert not r.converged
    assert r.plan.isfinite().all()
    assert sinkhorn_sparse(torch.zeros(3, dtype=F64), pairs, sizes=(3, 2), eps=0.1, rho=1.0).converged


def test_no_pairs() -> None:
    r = sinkhorn_sparse(torch.zeros(0), torch.zeros(2, 0, dtype=torch.int64), sizes=(2, 2), eps=0.1)
    assert r.plan.shape == (0,)
    assert r.error >= 1
    assert not r.converged


@pytest.mark.untyped
def test_errors() -> None:
    with pytest.raises(InputError, match="pairs: want rows below 2"):
        sinkhorn_sparse(torch.zeros(1), torch.tensor([[2], [0]]), sizes=(2, 2), eps=0.1)
    with pytest.raises(InputError, match="pairs: want shape"):
        sinkhorn_sparse(torch.zeros(2), torch.tensor([[0], [0]]), sizes=(2, 2), eps=0.1)
    with pytest.raises(InputError, match="cost: want no NaN"):
        sinkhorn_sparse(torch.tensor([torch.nan]), torch.tensor([[0], [0]]), sizes=(2, 2), eps=0.1)
