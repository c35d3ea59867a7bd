import pytest
import torch

from diffmatch.optim import AdamUniform


def test_steps_by_the_formula():
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    optimizer = AdamUniform([x], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    p = x.detach().clone()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t in range(1, 8):
        g = 4 * p**3
        x.grad = 4 * x.detach() ** 3
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        p = p * (1 - 0.01) - 0.1 * m / (1 - 0.9**t) / ((v.max() / (1 - 0.99**t)).sqrt() + 1e-8)
        torch.testing.assert_close(x.detach(), p)


def test_equals_adamw_where_all_entries_are_alike():
    x, y = (torch.full((2, 3), 3.0, requires_grad=True) for _ in range(2))
    ours, theirs = AdamUniform([x], lr=0.1, weight_decay=0.01), torch.optim.AdamW([y], lr=0.1, weight_decay=0.01)
    for _ in range(50):
        x.grad, y.grad = 2 * x.detach(), 2 * y.detach()
        ours.step()
        theirs.step()
    torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_step_keeps_the_direction_of_the_gradient(dtype):
    params = [torch.zeros((2,) * dims, dtype=dtype, requires_grad=True) for dims in range(6)]
    params.append(torch.zeros(0, dtype=dtype, requires_grad=True))
    optimizer = AdamUniform(params, lr=1.0)
    for p in params:
        p.grad = torch.arange(1.0, p.numel() + 1).to(dtype).view(p.shape)
    optimizer.step()
    for p in params[:-1]:
        torch.testing.assert_close(p.detach(), -p.grad / p.numel(), rtol=1e-2, atol=1e-2)
