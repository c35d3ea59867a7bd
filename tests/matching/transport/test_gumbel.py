import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.transport import gumbel_sinkhorn, sinkhorn


def test_samples_are_doubly_stochastic_and_seeded() -> None:
    scores = torch.zeros(2, 6, 6)
    draw = [gumbel_sinkhorn(scores, temperature=0.5, samples=3, generator=torch.Generator().manual_seed(s)).plan
            for s in (0, 0, 1)]  # fmt: skip
    assert draw[0].shape == (3, 2, 6, 6)
    torch.testing.assert_close(draw[0].sum(-1), torch.ones(3, 2, 6), atol=1e-3, rtol=0)
    torch.testing.assert_close(draw[0].sum(-2), torch.ones(3, 2, 6), atol=1e-3, rtol=0)
    assert draw[0].equal(draw[1])
    assert not draw[0].equal(draw[2])
    assert (draw[0][0] - draw[0][1]).abs().max() > 0.01


def test_without_noise_it_is_sinkhorn_of_the_scores(generator: torch.Generator) -> None:
    scores = torch.randn(5, 5, generator=generator, dtype=torch.float64).requires_grad_()
    r = gumbel_sinkhorn(scores, temperature=0.3, noise=0.0)
    ones = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(r.plan, sinkhorn(-scores, ones, ones, eps=0.3).plan)
    (grad,) = torch.autograd.grad(r.plan.square().sum(), scores)
    assert grad.abs().max() > 0


def test_cold_samples_favour_the_scores(generator: torch.Generator) -> None:
    scores = 5 * torch.eye(4)
    plan = gumbel_sinkhorn(scores, temperature=0.05, samples=50, generator=generator).plan
    hits = (plan.argmax(-1) == torch.arange(4)).float().mean()
    assert hits > 0.8
    assert plan.amax(-1).mean() > 0.9


@pytest.mark.untyped
def test_errors() -> None:
    with pytest.raises(InputError, match="as many rows as columns"):
        gumbel_sinkhorn(torch.zeros(2, 3), temperature=1.0)
    with pytest.raises(InputError, match="noise"):
        gumbel_sinkhorn(torch.zeros(2, 2), temperature=1.0, noise=-1.0)
