import pytest
import torch

from diffmatch.optim import Lion

F64 = torch.float64


def quartic(x: torch.Tensor) -> torch.Tensor:
    scales = torch.tensor([1.0, 10.0, 0.1, -0.5], dtype=x.dtype)
    return (0.5 * scales * x**2 + 0.25 * x**4).sum() + 0.5 * x[0] * x[1]


@pytest.mark.parametrize("fused", [None, False])
def test_trajectory(fused):
    x = torch.tensor([1.0, -1.5, 0.5, 2.0], dtype=F64, requires_grad=True)
    optimizer = Lion([x], lr=0.1, weight_decay=0.1, fused=fused)
    wanted = [
        [0.89000000, -1.38500000, 0.39500000, 1.88000000],
        [0.78110000, -1.27115000, 0.29105000, 1.76120000],
        [0.67328900, -1.15843850, 0.18813950, 1.64358800],
        [0.56655611, -1.04685411, 0.08625811, 1.52715212],
        [0.46089055, -0.93638557, -0.01460448, 1.41188060],
    ]
    for row in wanted:
        optimizer.zero_grad()
        quartic(x).backward()
        optimizer.step()
        torch.testing.assert_close(x.detach(), torch.tensor(row, dtype=F64), atol=1e-8, rtol=0)


def test_zero_gradients_move_nothing():
    x = torch.ones(9, requires_grad=True)
    x.grad = torch.zeros(9)
    Lion([x], lr=1.0).step()
    assert torch.equal(x, torch.ones(9))


def test_weight_decay_does_not_enter_the_sign():
    x = torch.full((9,), 5.0, requires_grad=True)
    x.grad = torch.full((9,), -1e-3)
    Lion([x], lr=0.1, weight_decay=1.0).step()
    torch.testing.assert_close(x.detach(), torch.full((9,), 5.0 * 0.9 + 0.1))


def test_state_takes_four_bytes_an_entry():
    x = torch.ones(4099, requires_grad=True)
    x.grad = torch.ones(4099)
    optimizer = Lion([x])
    optimizer.step()
    held = sum(t.numel() * t.element_size() for t in optimizer.state[x].values() if isinstance(t, torch.Tensor))
    assert held == 4 * 4099


def test_agrees_with_lion_pytorch_over_200_steps(generator):
    peer = pytest.importorskip("lion_pytorch")
    x = torch.randn(33, 7, generator=generator).requires_grad_()
    y = x.detach().clone().requires_grad_()
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    ours, theirs = Lion([x], **options), peer.Lion([y], **options)
    for t in range(200):
        grad = torch.randn(33, 7, generator=generator) + torch.sin(torch.tensor(0.1 * t))
        x.grad, y.grad = grad, grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
