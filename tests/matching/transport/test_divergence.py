import pytest
import torch

from diffmatch.matching.transport import sinkhorn_divergence

F64 = torch.float64


@pytest.mark.parametrize("rho", [None, 0.5])
@pytest.mark.parametrize("p", [1, 2])
def test_zero_for_equal_clouds_and_positive_otherwise(rho: float | None, p: int, generator: torch.Generator) -> None:
    x, y = (torch.rand(3, 12, 2, generator=generator, dtype=F64) for _ in range(2))
    order = torch.randperm(12, generator=generator)
    assert sinkhorn_divergence(x, x[:, order], eps=0.1, rho=rho, p=p).abs().max() < 1e-9
    assert (sinkhorn_divergence(x, y, eps=0.1, rho=rho, p=p) > 1e-4).all()


def test_translation_has_the_closed_form(generator: torch.Generator) -> None:
    # With squared distances the entropic plan of a translated cloud is that of the cloud with itself.
    x = torch.rand(20, 2, generator=generator, dtype=F64)
    shift = torch.tensor([0.3, -0.2], dtype=F64)
    found = sinkhorn_divergence(x, x + shift, eps=0.1)
    assert float(found) == pytest.approx(float(shift.square().sum()), abs=1e-8)


def test_gradient_by_finite_differences(generator: torch.Generator) -> None:
    x, y = (torch.rand(k, 2, generator=generator, dtype=F64) for k in (4, 5))
    assert torch.autograd.gradcheck(
        lambda x: sinkhorn_divergence(x, y, eps=0.2, tol=1e-13), x.requires_grad_(), atol=1e-6
    )
    grad = torch.autograd.grad(sinkhorn_divergence(x, x.detach(), eps=0.2, tol=1e-12), x)[0]
    assert grad.abs().max() < 1e-8


def test_masses_of_different_totals(generator: torch.Generator) -> None:
    x = torch.rand(6, 2, generator=generator, dtype=F64)
    a = torch.full((6,), 0.5, dtype=F64)
    assert sinkhorn_divergence(x, x, a, 2 * a, eps=0.1, rho=1.0) > 1e-3
    assert sinkhorn_divergence(x, x, a, a, eps=0.1, rho=1.0).abs() < 1e-9
