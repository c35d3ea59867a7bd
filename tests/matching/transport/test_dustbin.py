import math

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.transport import sinkhorn_dustbin

F64 = torch.float64


def test_marginals_of_nodes_and_bins(generator: torch.Generator) -> None:
    scores = torch.randn(2, 4, 6, generator=generator, dtype=F64)
    plan = sinkhorn_dustbin(scores, 0.5).require_converged().plan
    torch.testing.assert_close(plan.sum(-1), torch.tensor([1, 1, 1, 1, 6], dtype=F64).expand(2, 5))
    torch.testing.assert_close(plan.sum(-2), torch.tensor([1, 1, 1, 1, 1, 1, 4], dtype=F64).expand(2, 7))


def test_equals_many_normalisations_in_the_log_domain(generator: torch.Generator) -> None:
    scores = 3 * torch.randn(5, 4, generator=generator, dtype=F64)
    z = torch.nn.functional.pad(scores, (0, 1, 0, 1), value=0.7)
    log_a = torch.tensor([1, 1, 1, 1, 1, 4], dtype=F64).log()
    log_b = torch.tensor([1, 1, 1, 1, 5], dtype=F64).log()
    u, v = torch.zeros(6, dtype=F64), torch.zeros(5, dtype=F64)
    for _ in range(5000):
        u = log_a - torch.logsumexp(z + v, 1)
        v = log_b - torch.logsumexp(z + u[:, None], 0)
    torch.testing.assert_close(sinkhorn_dustbin(scores, 0.7).plan, (z + u[:, None] + v).exp(), atol=1e-7, rtol=0)


def test_planted_matches_and_unmatched_nodes() -> None:
    scores = torch.full((4, 5), -5.0)
    for i, j in ((0, 3), (1, 0), (3, 4)):
        scores[i, j] = 8.0
    plan = sinkhorn_dustbin(scores, 0.0, eps=0.5).plan
    assert plan[:4].argmax(-1).tolist() == [3, 0, 5, 4]
    assert plan[:, :5].argmax(-2).tolist() == [1, 4, 4, 0, 3]


def test_padding_does_not_matter(generator: torch.Generator) -> None:
    scores = torch.randn(1, 4, 6, generator=generator, dtype=F64)
    wanted = sinkhorn_dustbin(scores[:, :3, :4], 0.2, tol=1e-12).plan
    scores[:, 3:], scores[:, :, 4:] = math.nan, math.nan
    z = torch.tensor(0.2, dtype=F64, requires_grad=True)
    mask = torch.arange(4)[None] < 3, torch.arange(6)[None] < 4
    plan = sinkhorn_dustbin(scores.requires_grad_(), z, mask=mask, tol=1e-12).plan
    torch.testing.assert_close(plan[:, [0, 1, 2, 4]][:, :, [0, 1, 2, 3, 6]], wanted, atol=1e-9, rtol=0)
    grads = torch.autograd.grad(plan.square().sum(), [scores, z])
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0][:, 3:] == 0).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_one_side_empty(shape: tuple[int, int]) -> None:
    z = torch.tensor(0.4, requires_grad=True)
    r = sinkhorn_dustbin(torch.zeros(shape), z)
    assert float(r.plan.detach().sum()) == pytest.approx(sum(shape))
    (grad,) = torch.autograd.grad(r.plan.square().sum(), z)
    assert grad.abs() < 1e-5


@pytest.mark.untyped
def test_errors() -> None:
    with pytest.raises(InputError, match="scores: want no NaN"):
        sinkhorn_dustbin(torch.full((2, 2), torch.nan), 0.0)
    with pytest.raises(InputError, match="bin_score: want a number or shape"):
        sinkhorn_dustbin(torch.zeros(2, 2, 2), torch.zeros(3))
