import pytest
import torch

from diffmatch.optim import EXAdam

F64 = torch.float64


def quartic(x: torch.Tensor) -> torch.Tensor:
    scales = torch.tensor([1.0, 10.0, 0.1, -0.5], dtype=x.dtype)
    return (0.5 * scales * x**2 + 0.25 * x**4).sum() + 0.5 * x[0] * x[1]


@pytest.mark.parametrize("fused", [None, False])
def test_trajectory(fused):
    x = torch.tensor([1.0, -1.5, 0.5, 2.0], dtype=F64, requires_grad=True)
    optimizer = EXAdam([x], lr=0.1, weight_decay=0.01, fused=fused)
    wanted = [
        [-0.59624486, 0.09674970, -1.09550176, 0.40275043],
        [-0.04900039, 0.15051878, 0.10002850, 0.32648929],
        [-0.08984827, 0.13711457, 0.16885938, 0.26881990],
        [-0.09451596, 0.11960134, 0.21756775, 0.22198990],
        [-0.08712124, 0.10119680, 0.25000478, 0.18244545],
    ]
    for row in wanted:
        optimizer.zero_grad()
        quartic(x).backward()
        optimizer.step()
        torch.testing.assert_close(x.detach(), torch.tensor(row, dtype=F64), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    # float64 to 30 digits by hand; the published row is what float32 makes of it
    ("dtype", "wanted"),
    [(F64, -0.595242120435180), (torch.float32, -0.59524214)],
    ids=str,
)
def test_a_late_parameter_takes_its_own_first_step(dtype, wanted):
    a, b = (torch.ones(3, dtype=dtype, requires_grad=True) for _ in range(2))
    optimizer = EXAdam([a, b], lr=0.1)
    a.grad = torch.ones(3, dtype=dtype)
    optimizer.step()
    a.grad, b.grad = None, torch.ones(3, dtype=dtype)
    optimizer.step()
    torch.testing.assert_close(b.detach(), torch.full((3,), wanted, dtype=dtype), atol=1e-8, rtol=0)


@pytest.mark.parametrize("fused", [None, False])
def test_clip_bounds_the_first_step_and_keeps_nan(fused):
    x = torch.zeros(5000, requires_grad=True)
    x.grad = torch.linspace(-3, 3, 5000)
    x.grad[7] = torch.nan
    EXAdam([x], lr=0.1, clip=2.0, fused=fused).step()
    assert torch.isnan(x[7])
    assert float(x.detach().nan_to_num().abs().max()) == pytest.approx(0.2)


def test_agrees_with_pytorch_optimizer_over_200_steps(generator):
    peer = pytest.importorskip("pytorch_optimizer")
    x = torch.randn(33, 7, generator=generator, dtype=F64).requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours, theirs = EXAdam([x], lr=1e-3), peer.EXAdam([y], lr=1e-3, weight_decay=0.0)
    for t in range(200):
        grad = torch.randn(33, 7, generator=generator, dtype=F64) + torch.sin(torch.tensor(0.1 * t))
        x.grad, y.grad = grad, grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(x, y, atol=1e-7, rtol=1e-7)
