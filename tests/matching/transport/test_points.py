import pytest
import torch
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.matching.transport import sinkhorn, sinkhorn_points

F64 = torch.float64


@pytest.fixture
def clouds(generator: torch.Generator) -> list[Tensor]:
    return [torch.rand(2, k, 3, generator=generator, dtype=F64).requires_grad_() for k in (15, 20)]


@pytest.mark.parametrize(
    ("p", "rho", "adjoint"), [(1, None, "implicit"), (2, None, "implicit"), (2, 0.5, "implicit"), (2, 0.5, "unroll")]
)
def test_blocks_equal_the_stored_cost(
    clouds: list[Tensor], p: int, rho: float | None, adjoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffmatch.matching.transport.points.STORED", 0)
    monkeypatch.setattr("diffmatch.matching.transport.points.BLOCK", 300)
    eps = torch.tensor(0.1, dtype=F64, requires_grad=True)
    r = sinkhorn_points(*clouds, eps=eps, p=p, rho=rho, tol=1e-11, adjoint=adjoint)
    s = sinkhorn(torch.cdist(*clouds) ** p, eps=eps, rho=rho, tol=1e-11)
    weights = torch.linspace(-1, 1, 15, dtype=F64)
    for found, wanted in ((r.value, s.value), (r.cost, s.cost), (r.plan, s.plan)):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
    for name in ("value", "cost", "plan"):
        grads = [
            torch.autograd.grad((getattr(x, name).mT * weights).sum() if name == "plan" else getattr(x, name).sum(),
                                [*clouds, eps], retain_graph=True)
            for x in (r, s)
        ]  # fmt: skip
        for found, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-6)


def test_points_far_from_the_origin(clouds: list[Tensor]) -> None:
    x, y = (q.detach().float() for q in clouds)
    near, far = sinkhorn_points(x, y, eps=0.05).cost, sinkhorn_points(x + 64, y + 64, eps=0.05).cost
    torch.testing.assert_close(near, far, atol=1e-3, rtol=0)


def test_memory_stays_linear(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffmatch.matching.transport.points.STORED", 0)
    monkeypatch.setattr("diffmatch.matching.transport.points.BLOCK", 1 << 14)
    x, y = (torch.rand(1, 600, 2, generator=generator).requires_grad_() for _ in range(2))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        sinkhorn_points(x, y, eps=0.1).cost.sum().backward()
    assert x.grad is not None
    assert max(saved) <= 1 << 15


def test_mask_hides_the_padding(clouds: list[Tensor]) -> None:
    x, y = (q.detach().clone() for q in clouds)
    mask = (torch.arange(15) < 10).expand(2, 15), (torch.arange(20) < 12).expand(2, 20)
    wanted = sinkhorn_points(x[:, :10], y[:, :12], eps=0.05).value
    x[:, 10:], y[:, 12:] = torch.nan, torch.nan
    x.requires_grad_()
    value = sinkhorn_points(x, y, eps=0.05, mask=mask).value
    torch.testing.assert_close(value, wanted, atol=1e-8, rtol=0)
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert (grad[:, 10:] == 0).all()


def test_one_side_empty() -> None:
    r = sinkhorn_points(torch.zeros(0, 2), torch.ones(3, 2), eps=0.1)
    assert r.plan.shape == (0, 3)
    assert r.value == 0


@pytest.mark.untyped
def test_errors() -> None:
    x = torch.rand(4, 2)
    with pytest.raises(InputError, match="y: want shape"):
        sinkhorn_points(x, torch.rand(4, 3), eps=0.1)
    with pytest.raises(InputError, match="p: want 1 or 2, got 3"):
        sinkhorn_points(x, x, eps=0.1, p=3)
    with pytest.raises(InputError, match="x: want finite values"):
        sinkhorn_points(x * torch.nan, x, eps=0.1)
    with pytest.raises(InputError, match="y: want batch axes"):
        sinkhorn_points(x, torch.rand(2, 4, 2), eps=0.1)
