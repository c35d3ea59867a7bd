import math

import pytest
import torch
from scipy import fft

from diffmatch.optim import DCTAdamW
from diffmatch.optim.dct import dct

F64 = torch.float64
TARGET = torch.sin(torch.arange(24, dtype=F64)).reshape(6, 4) * torch.tensor([3, 1, 0.3, 0.1], dtype=F64)


def pull(w: torch.Tensor) -> None:
    w.grad = (w.detach() - TARGET) * torch.linspace(1, 2, 4, dtype=F64)


@pytest.mark.parametrize(
    ("feedback", "rows"),
    [
        (
            "none",
            [
                ([0, 1], [0.11532814, 0.07705980, 0.02294020, -0.01532814]),
                ([0, 1], [0.22090308, 0.14985187, 0.04937029, -0.02168092]),
                ([0, 1], [0.30155126, 0.21188325, 0.08507354, -0.00459447]),
                ([0, 1], [0.35709898, 0.26274448, 0.12930706, 0.03495256]),
                ([1, 2], [0.32504590, 0.28792474, 0.15828367, 0.01206467]),
            ],
        ),
        (
            "full",
            [
                ([0, 1], [0.11532814, 0.07705980, 0.02294020, -0.01532814]),
                ([1, 2], [0.13403516, 0.13739763, 0.03691605, -0.10854884]),
                ([0, 1], [0.18186487, 0.17583788, 0.06218284, -0.09252268]),
                ([2, 3], [0.13690137, 0.24268250, 0.05321304, -0.10576135]),
                ([0, 1], [0.12840313, 0.25495345, 0.09519512, -0.04274533]),
            ],
        ),
    ],
)
def test_trajectory(feedback, rows):
    w = torch.zeros(6, 4, dtype=F64, requires_grad=True)
    optimizer = DCTAdamW([w], lr=0.1, weight_decay=0.01, rank=2, error_feedback=feedback)
    for frequencies, row in rows:
        pull(w)
        optimizer.step()
        assert optimizer.state[w]["frequencies"].tolist() == frequencies
        torch.testing.assert_close(w.detach()[0], torch.tensor(row, dtype=F64), atol=1e-8, rtol=0)


def test_error_in_eight_bits_follows_that_in_full():
    ends = []
    for feedback in ("full", "8bit", "none"):
        w = torch.zeros(6, 4, dtype=F64, requires_grad=True)
        optimizer = DCTAdamW([w], lr=0.1, rank=2, error_feedback=feedback)
        for _ in range(5):
            pull(w)
            optimizer.step()
        ends.append(w.detach())
    assert (ends[1] - ends[0]).abs().max() < 0.01
    assert (ends[2] - ends[0]).abs().max() > 0.02


@pytest.mark.parametrize("feedback", ["none", "full"])
def test_a_transposed_matrix_takes_the_transposed_steps(feedback):
    tall = torch.zeros(6, 4, dtype=F64, requires_grad=True)
    wide = torch.zeros(4, 6, dtype=F64, requires_grad=True)
    optimizer = DCTAdamW([tall, wide], lr=0.1, rank=2, error_feedback=feedback)
    for _ in range(5):
        pull(tall)
        wide.grad = tall.grad.mT.contiguous()
        optimizer.step()
    torch.testing.assert_close(wide.detach().mT, tall.detach())


@pytest.mark.parametrize("k", [1, 2, 7, 64, 513, 700])
def test_transform(k, generator):
    x = torch.randn(2, 3, k, generator=generator, dtype=F64)
    wanted = torch.from_numpy(fft.dct(x.numpy(), norm="ortho"))
    torch.testing.assert_close(dct(x), wanted, atol=1e-11, rtol=1e-11)


def test_gradients_in_the_chosen_frequencies_are_adams(generator):
    """On a matrix whose gradients lie in two frequencies nothing is lost: the coefficients go by plain AdamW."""
    basis = torch.from_numpy(fft.dct(torch.eye(8, dtype=F64).numpy(), norm="ortho")).mT.contiguous()  # rows
    w = torch.zeros(20, 8, dtype=F64, requires_grad=True)
    c = torch.zeros(20, 2, dtype=F64, requires_grad=True)
    ours = DCTAdamW([w], lr=0.1, rank=2, weight_decay=0.0)
    adam = torch.optim.AdamW([c], lr=0.1, weight_decay=0.0)
    for _ in range(6):
        grad = torch.randn(20, 2, generator=generator, dtype=F64)
        w.grad, c.grad = grad @ basis[[2, 5]], grad
        ours.step()
        adam.step()
    assert ours.state[w]["frequencies"].tolist() == [2, 5]
    torch.testing.assert_close(w.detach(), c.detach() @ basis[[2, 5]])


@pytest.mark.parametrize("shape", [(7,), (), (2, 9)])
def test_vectors_and_thin_matrices_go_by_adamw(shape, generator):
    x = torch.randn(shape, generator=generator).requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours, torchs = DCTAdamW([x], lr=0.1, rank=2), torch.optim.AdamW([y], lr=0.1)
    for _ in range(3):
        x.grad = torch.randn(shape, generator=generator)
        y.grad = x.grad.clone()
        ours.step()
        torchs.step()
    torch.testing.assert_close(x, y)


@pytest.mark.parametrize(("feedback", "extra"), [("none", 0.0), ("full", 4.0), ("8bit", 1 + 4 / 256)])
def test_bytes_of_state(feedback, extra):
    w = torch.ones(128, 64, requires_grad=True)
    w.grad = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    optimizer = DCTAdamW([w], error_feedback=feedback)
    optimizer.step()
    held = sum(t.numel() * t.element_size() for t in optimizer.state[w].values() if isinstance(t, torch.Tensor))
    assert held == math.ceil(128 * 64 * (8 * 16 / 64 + extra)) + 4 * 16


def test_choice_is_kept_between_gaps(generator):
    w = torch.zeros(12, 8, requires_grad=True)
    optimizer = DCTAdamW([w], rank=2, gap=3)
    seen = []
    for _ in range(7):
        w.grad = torch.randn(12, 8, generator=generator)
        optimizer.step()
        seen.append(tuple(optimizer.state[w]["frequencies"].tolist()))
    assert seen[0] == seen[1]
    assert seen[2] == seen[3] == seen[4]
    assert seen[5] == seen[6]
    assert len(set(seen)) > 1


def test_trajectory_of_a_wide_matrix():
    w = torch.zeros(4, 6, dtype=F64, requires_grad=True)
    optimizer = DCTAdamW([w], lr=0.1, weight_decay=0.01, rank=2)
    for _ in range(5):
        w.grad = (w.detach() - TARGET.mT) * torch.linspace(1, 2, 6, dtype=F64)
        optimizer.step()
    wanted = [0.38009374, -0.57126399, 0.57168310, -0.55008287, -0.56367567, 0.57188025]
    torch.testing.assert_close(w.detach()[0], torch.tensor(wanted, dtype=F64), atol=1e-8, rtol=0)
    assert float((w.detach() - TARGET.mT).square().sum() / 2) == pytest.approx(8.37520416, abs=1e-8)
