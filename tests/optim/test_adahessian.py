import io
import itertools

import pytest
import torch

from diffmatch import fit
from diffmatch.autodiff import Probes
from diffmatch.errors import InputError
from diffmatch.optim import AdaHessian
from diffmatch.optim.adahessian import spatial_average

F64 = torch.float64


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64, requires_grad=True)


def quartic(x: torch.Tensor) -> torch.Tensor:
    scales = torch.tensor([1.0, 10.0, 0.1, -0.5], dtype=x.dtype)
    return (0.5 * scales * x**2 + 0.25 * x**4).sum() + 0.5 * x[0] * x[1]


def run(x: torch.Tensor, optimizer: AdaHessian, loss) -> list[list[float]]:
    points = []
    for _ in range(5):
        optimizer.step(lambda: loss(x))
        points.append(x.flatten().tolist())
    return points


def close(points: list[list[float]], wanted: list[list[float]]) -> None:
    torch.testing.assert_close(torch.tensor(points, dtype=F64), torch.tensor(wanted, dtype=F64), atol=1.01e-8, rtol=0)


# The authors' code, run with the probes that are listed.


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (
            {},
            [
                [0.94643010, -1.33500102, 0.46912128, 1.90869645],
                [0.90036767, -1.18082326, 0.43900315, 1.82024388],
                [0.85291435, -1.03173219, 0.40971200, 1.73481297],
                [0.80791977, -0.89111915, 0.38130837, 1.65255334],
                [0.76235899, -0.75721796, 0.35384579, 1.57359127],
            ],
        ),
        (
            {"power": 0.5, "weight_decay": 0.01},
            [
                [0.89828239, -0.83263024, 0.47078097, 1.68738102],
                [0.80144809, -0.32310878, 0.44295534, 1.42768895],
                [0.70174907, 0.05828078, 0.41649048, 1.21134830],
                [0.60388330, 0.32330490, 0.39135048, 1.03058984],
                [0.50586137, 0.48961211, 0.36749656, 0.87909040],
            ],
        ),
    ],
)
def test_trajectory_as_published(monkeypatch, settings, wanted):
    def draw(probes: Probes, like: list[torch.Tensor]) -> list[torch.Tensor]:
        t = probes.counter + 1
        signs = [1, (-1) ** t, -1 if t // 2 % 2 else 1, -1 if t % 3 == 0 else 1]
        return [torch.tensor(signs, dtype=F64)]

    monkeypatch.setattr(Probes, "draw", draw)
    x = leaf(1.0, -1.5, 0.5, 2.0)
    close(run(x, AdaHessian([x], **settings), quartic), wanted)


def test_convolution_kernels_as_published(monkeypatch):
    def draw(probes: Probes, like: list[torch.Tensor]) -> list[torch.Tensor]:
        t = probes.counter + 1
        signs = [-1 if i * t % 3 == 0 else 1 for i in range(8)]
        return [torch.tensor(signs, dtype=F64).view(1, 2, 2, 2)]

    def loss(x: torch.Tensor) -> torch.Tensor:
        w = x.flatten()
        scales = torch.tensor([0.5, 2, 1, 4, 0.25, 3, 1.5, 0.75], dtype=F64)
        return 0.5 * (scales * w**2).sum() + 0.1 * (w[:-1] * w[1:]).sum() + 0.1 * (w**4).sum()

    monkeypatch.setattr(Probes, "draw", draw)
    x = (torch.arange(8, dtype=F64) / 4 - 0.9).view(1, 2, 2, 2).requires_grad_()
    close(
        run(x, AdaHessian([x], block="conv"), loss),
        [
            [-0.84561269, -0.54617122, -0.36590848, -0.10742943, 0.09590893, 0.24752944, 0.50030037, 0.76501111],
            [-0.79342989, -0.44996323, -0.33319902, -0.07040434, 0.09204663, 0.15820370, 0.40776367, 0.68446334],
            [-0.74537248, -0.36466927, -0.30312691, -0.04000040, 0.08860770, 0.08586452, 0.32690512, 0.61231666],
            [-0.69906979, -0.28581040, -0.27425145, -0.01433804, 0.08536090, 0.02483862, 0.25221570, 0.54374171],
            [-0.65469565, -0.21361567, -0.24672355, 0.00669469, 0.08232018, -0.02493279, 0.18410972, 0.47907349],
        ],
    )


class TestSpatialAverage:
    def test_kernels(self):
        values = torch.arange(16.0).view(2, 2, 2, 2)
        wanted = torch.tensor([1.5, 5.5, 9.5, 13.5]).view(2, 2, 1, 1).expand(2, 2, 2, 2)
        assert torch.equal(spatial_average(values, "conv"), wanted)
        assert torch.equal(spatial_average(values[0, 0], "conv"), values[0, 0])
        assert torch.equal(spatial_average(values, "none"), values)

    def test_runs(self):
        values = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])
        assert torch.equal(spatial_average(values, 3), torch.tensor([[2.0] * 3, [6.0] * 3]))
        wanted = torch.tensor([[2.25] * 3, [2.25, 6.5, 6.5]])
        torch.testing.assert_close(spatial_average(torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 7.0]]), 4), wanted)

    @pytest.mark.parametrize("shape", [(4, 6, 2), (5, 3, 4)])
    def test_blocks_of_a_grid(self, shape):
        values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        averaged = spatial_average(values, (2, 2, 2))
        for i in range(0, shape[0], 2):
            for j in range(0, shape[1], 2):
                for k in range(0, shape[2], 2):
                    part = (slice(i, i + 2), slice(j, j + 2), slice(k, k + 2))
                    torch.testing.assert_close(averaged[part], values[part].mean().expand_as(averaged[part]))

    def test_another_number_of_axes(self):
        with pytest.raises(InputError, match="2 edges for a parameter of shape"):
            spatial_average(torch.zeros(3, 3), (2, 2, 2))


@pytest.mark.parametrize("dims", range(6))
@pytest.mark.parametrize("block", ["none", "conv", 3])
def test_any_number_of_axes(dims, block):
    x = torch.full((2,) * dims, 2.0, requires_grad=True)
    optimizer = AdaHessian([x], block=block)
    for _ in range(30):
        optimizer.step(lambda: x.square().sum())
    assert float(x.detach().abs().max()) < 0.5


def test_refreshes_every_k_steps():
    x = leaf(3.0)
    optimizer = AdaHessian([x], k=3, samples=2)
    seen = []
    for _ in range(7):
        optimizer.step(lambda: (x**4).sum())
        seen.append(float(optimizer.state[x]["exp_hessian_sq"]))
    changed = [a != b for a, b in itertools.pairwise(seen)]
    assert changed == [False, False, True, False, False, True]


def test_reload_continues_to_the_same_bits():
    def loss(x: torch.Tensor) -> torch.Tensor:
        return (x.pow(4) + x * x.roll(1)).sum()

    x = torch.linspace(-1, 1, 7).requires_grad_()
    optimizer = AdaHessian([x], k=2)
    run(x, optimizer, loss)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    y = x.detach().clone().requires_grad_()
    resumed = AdaHessian([y], k=2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert run(x, optimizer, loss) == run(y, resumed, loss)


def test_fit_by_name():
    x = torch.full((3, 4, 5), 2.0, requires_grad=True)
    history = fit([x], lambda: x.square().sum(), optimizer="adahessian", steps=50, optimizer_options={"block": 2})
    assert history.loss[-1] < 1e-2 * history.loss[0]


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"power": 0.0}, "power"),
        ({"block": "conf"}, "did you mean 'conv'"),
        ({"block": 0}, "block"),
        ({"block": (2, 0)}, "block"),
        ({"k": 0}, "k"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(InputError, match=message):
        AdaHessian([leaf(1.0)], **settings)
