import io

import pytest
import torch

from diffmatch import fit
from diffmatch.autodiff import GaussNewton, Probes
from diffmatch.errors import InputError
from diffmatch.optim import SophiaG, SophiaH

F64 = torch.float64


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64, requires_grad=True)


def quartic(x: torch.Tensor) -> torch.Tensor:
    scales = torch.tensor([1.0, 10.0, 0.1, -0.5], dtype=x.dtype)
    return (0.5 * scales * x**2 + 0.25 * x**4).sum() + 0.5 * x[0] * x[1]


def listed_probe(t: int) -> torch.Tensor:
    signs = [1, (-1) ** t, -1 if t // 2 % 2 else 1, -1 if t % 3 == 0 else 1]
    return torch.tensor(signs, dtype=F64)


@pytest.fixture
def listed_probes(monkeypatch):
    """Probes of the reference rows, whose number is the optimizer's step, from 1."""
    monkeypatch.setattr(Probes, "draw", lambda self, like: [listed_probe(self.counter + 1)])


def close(points: list[list[float]], wanted: list[list[float]]) -> None:
    torch.testing.assert_close(torch.tensor(points, dtype=F64), torch.tensor(wanted, dtype=F64), atol=1.01e-8, rtol=0)


@pytest.mark.parametrize("fused", [None, False])
def test_sophia_h_trajectory(listed_probes, fused):
    x = leaf(1.0, -1.5, 0.5, 2.0)
    optimizer = SophiaH([x], lr=0.1, gamma=10.0, weight_decay=0.1, k=2, fused=fused)
    points = []
    for _ in range(5):
        optimizer.step(lambda: quartic(x))
        points.append(x.tolist())
    close(
        points,
        [
            [0.97571429, -1.44100000, 0.48676471, 1.95565217],
            [0.93871015, -1.34271467, 0.46627304, 1.89010708],
            [0.90884484, -1.26722830, 0.44989616, 1.83695036],
            [0.87388756, -1.17658608, 0.43073696, 1.77591859],
            [0.84348096, -1.10080456, 0.41418937, 1.72279411],
        ],
    )


def g_points(x: torch.Tensor, optimizer: SophiaG, *, after: bool = False) -> list[list[float]]:
    points = []
    for t in range(1, 6):
        optimizer.zero_grad()
        quartic(x).backward()
        optimizer.step()
        points.append(x.tolist())
        if after and t % 2 == 0:
            optimizer.zero_grad()
            quartic(x).backward()
            optimizer.update_hessian()
    return points


@pytest.mark.parametrize("fused", [None, False])
def test_sophia_g_trajectory_refreshed_before_steps(fused):
    x = leaf(1.0, -1.5, 0.5, 2.0)
    optimizer = SophiaG([x], lr=0.1, rho=1.0, weight_decay=0.1, batch_size=4, k=2, fused=fused)
    close(
        g_points(x, optimizer),
        [
            [0.92000000, -1.48010490, 0.39500000, 1.96750000],
            [0.81080000, -1.45576478, 0.29105000, 1.92391866],
            [0.70269200, -1.43395391, 0.18813950, 1.88536888],
            [0.59566508, -1.41019922, 0.08625811, 1.84205129],
            [0.48970843, -1.38814077, -0.01460448, 1.80163539],
        ],
    )


def test_sophia_g_trajectory_refreshed_after_steps():
    x = leaf(1.0, -1.5, 0.5, 2.0)
    optimizer = SophiaG([x], lr=0.1, rho=1.0, weight_decay=0.1, batch_size=4, k=0)
    close(
        g_points(x, optimizer, after=True)[2:],
        [
            [0.67328900, -1.23873973, 0.18813950, 1.67438940],
            [0.56655611, -1.20143528, 0.08625811, 1.57479597],
            [0.46089055, -1.17349181, -0.01460448, 1.49508242],
        ],
    )


def test_sampled_loss_is_what_is_squared():
    x = leaf(1.0, -1.0)
    optimizer = SophiaG([x], betas=(0.9, 0.5), batch_size=3, sampled_loss=lambda: (x * torch.tensor([2.0, 4.0])).sum())
    x.grad = torch.ones_like(x)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[x]["curvature"], torch.tensor([6.0, 24.0], dtype=F64))
    assert torch.equal(x.grad, torch.ones_like(x))


def test_curvature_of_gauss_newton():
    x = leaf(1.0, -1.0)
    scales = torch.tensor([2.0, 4.0], dtype=F64)
    optimizer = SophiaH([x], betas=(0.9, 0.5), curvature=GaussNewton(lambda: scales * x), samples=2)
    optimizer.step(lambda: (scales * x).square().sum() / 2)
    torch.testing.assert_close(optimizer.state[x]["curvature"], scales**2 / 2)


def test_many_tensors_of_all_shapes_take_the_same_steps_compiled():
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (3,), (2, 5), (2, 3, 4), (2, 1, 3, 2), (1, 2, 2, 2, 3), (0,)]
    first = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    second = [p.detach().clone().requires_grad_() for p in first]

    def loss(params: list[torch.Tensor]) -> torch.Tensor:
        return sum((p**4 - p**2).sum() for p in params)

    compiled, plain = SophiaH(first, lr=0.01, k=3), SophiaH(second, lr=0.01, k=3, fused=False)
    for _ in range(10):
        compiled.step(lambda: loss(first))
        plain.step(lambda: loss(second))
    for p, q in zip(first, second, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("maximize", [False, True])
def test_ascent_is_descent_of_the_negative(maximize):
    x = leaf(1.0, -2.0)
    sign = -1 if maximize else 1
    optimizer = SophiaH([x], lr=0.05, k=1, gamma=1.0, maximize=maximize)
    for _ in range(200):
        optimizer.step(lambda: sign * (x**2).sum())
    assert float(x.detach().abs().max()) < 0.05
    assert 0 <= optimizer.unclipped <= 1


def test_parameters_without_gradients_wait():
    x, late = leaf(1.0), leaf(1.0)
    optimizer = SophiaH([x, late], lr=0.1, k=2, weight_decay=0.1)
    optimizer.step(lambda: x.square().sum())
    assert float(late.detach()) == 1.0
    assert not optimizer.state[late]
    optimizer.step(lambda: (x.square() + late.square()).sum())
    assert optimizer.state[late]["step"] == 1
    assert float(optimizer.state[late]["curvature"]) == pytest.approx(0.02)
    assert x.grad is None


@pytest.mark.parametrize("kind", [SophiaH, SophiaG])
def test_reload_continues_to_the_same_bits(kind):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 6, generator=generator)

    def steps(x: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (matrix @ x).square().sum() + x.pow(4).sum()
            if not getattr(optimizer, "needs_graph", False):
                loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)

    x = torch.ones(6, requires_grad=True)
    optimizer = kind([x], k=3)
    steps(x, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    y = x.detach().clone().requires_grad_()
    file.seek(0)
    resumed = kind([y], k=3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    steps(x, optimizer)
    steps(y, resumed)
    assert torch.equal(x, y)


def test_half_precision_moves():
    x = torch.ones(4096, dtype=torch.bfloat16, requires_grad=True)
    optimizer = SophiaH([x], lr=1e-3)
    for _ in range(10):
        optimizer.step(lambda: x.sum())
    assert optimizer.state[x]["exp_avg"].dtype == torch.float32
    assert float(x.detach().float().mean()) == pytest.approx(0.99, rel=5e-4)


@pytest.mark.parametrize("name", ["sophia-h", "sophia-g"])
def test_fit_by_name(name):
    x = leaf(2.0, -1.0)
    history = fit([x], lambda: x.square().sum(), optimizer=name, lr=0.05, steps=100, schedule="linear")
    assert history.status == "completed"
    assert history.loss[-1] < 0.2


def test_nan_gradient_leaves_everything_as_it_was():
    x = leaf(0.0)
    optimizer = SophiaH([x])
    with pytest.raises(FloatingPointError, match="parameter 0"):
        optimizer.step(lambda: x.sqrt().sum())
    assert not optimizer.state[x]
    assert float(x.detach()) == 0.0


@pytest.mark.parametrize("kind", [SophiaH, SophiaG])
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"lr": -1.0}, "lr"), ({"betas": (1.0, 0.9)}, "betas"), ({"k": -1}, "k"), ({"eps": 0.0}, "eps")],
)
def test_settings(kind, settings, message):
    with pytest.raises(InputError, match=message):
        kind([leaf(1.0)], **settings)


def test_other_errors():
    x = leaf(1.0)
    with pytest.raises(InputError, match="samples"):
        SophiaH([x], samples=0)
    with pytest.raises(InputError, match="gamma"):
        SophiaG([x], rho=0.0)
    with pytest.raises(InputError, match="closure"):
        SophiaH([x]).step()
    with pytest.raises(InputError, match="real floating-point"):
        SophiaH([torch.zeros(1, dtype=torch.complex64, requires_grad=True)])

    def freed() -> torch.Tensor:
        loss = x.square().sum()
        loss.backward()
        return loss

    with pytest.raises(InputError, match="already freed"):
        SophiaH([x]).step(freed)
