"""Barrier curves and temperatures against closed forms and SciPy."""

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional as F

from diffmatch.errors import InputError
from diffmatch.matching.weights import barrier_curve, fit_temperature, mean_barrier, repair, reset_batch_norm


def line(device):
    """A model y = w x, two states of it, and data on which a loss of -y² is a parabola open below."""
    model = nn.Linear(1, 1, bias=False).to(device).double()
    a, b = ({"weight": torch.tensor([[w]], device=device, dtype=torch.float64)} for w in (1.0, -2.0))
    x = torch.ones(6, 1, device=device, dtype=torch.float64)
    return model, a, b, [(x[:4], x[:4]), (x[4:], x[4:])]


def concave(output, target):
    return -(output * target).square().mean()


def test_barrier_of_a_parabola(device):
    model, a, b, data = line(device)
    curve = barrier_curve(model, a, b, data, loss=concave, points=5)
    assert curve.lambdas.tolist() == [0, 0.25, 0.5, 0.75, 1]
    # L(λ) = -(1 - 3λ)², above the line between its ends by 9 λ (1 - λ)
    torch.testing.assert_close(curve.losses, -(1 - 3 * curve.lambdas).square())
    assert curve.barrier == pytest.approx(9 / 4)
    assert curve.temperatures.tolist() == [1] * 5
    assert barrier_curve(model, a, b, data, loss=concave, points=[0.1]).barrier == pytest.approx(0.81)


def test_barrier_of_a_valley_is_zero(device):
    model, a, b, data = line(device)
    assert barrier_curve(model, a, b, data, loss=lambda y, t: (y * t).square().mean()).barrier == 0


def test_batches_count_by_their_samples(device):
    model, a, b, _ = line(device)
    x = torch.arange(7.0, device=device, dtype=torch.float64)[:, None]
    whole = barrier_curve(model, a, b, [(x, x)], loss=concave)
    parts = barrier_curve(model, a, b, [(x[:1], x[:1]), (x[1:], x[1:])], loss=concave)
    torch.testing.assert_close(whole.losses, parts.losses)


def test_mean_of_several_models(device):
    model, a, b, data = line(device)
    c = {"weight": a["weight"] * 4}
    found = mean_barrier(model, [a, b, c], data, loss=concave)
    torch.testing.assert_close(found.losses, found.losses.new_tensor([-(1 + 4 + 16) / 3, -1.0]))
    assert found.barrier == pytest.approx(6)
    weighted = mean_barrier(model, [a, b, c], data, weights=[0.5, 0.5, 0.0], loss=concave)
    assert weighted.barrier == pytest.approx(2.5 - 0.25)
    assert mean_barrier(model, [a, b, c], data, mean=a, loss=concave).barrier == pytest.approx(6)


def classifier(device, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 6), nn.Linear(6, 3))
    return model.to(device)


def samples(device, n=64):
    generator = torch.Generator(device).manual_seed(2)
    x = torch.randn(n, 5, generator=generator, device=device)
    return x, x[:, :3].argmax(1)


@pytest.mark.parametrize("kind", ["reset", "repair"])
def test_what_lies_between_is_repaired_and_the_ends_are_not(device, kind):
    model, a, b = classifier(device, 0), classifier(device, 1).state_dict(), classifier(device, 2).state_dict()
    data = [samples(device)]
    found = barrier_curve(model, a, b, data, points=3, repair=kind).losses
    plain = barrier_curve(model, a, b, data, points=3).losses
    assert torch.equal(found[::2], plain[::2])
    middle = {name: (a[name] + b[name]) / 2 if a[name].is_floating_point() else a[name] for name in a}
    if kind == "reset":
        fixed = reset_batch_norm(model, middle, data)
    else:
        fixed = repair(model, middle, [a, b], data)
    model.load_state_dict(fixed)
    wanted = F.cross_entropy(model.eval()(data[0][0]), data[0][1])
    torch.testing.assert_close(found[1].to(wanted), wanted)


def test_model_and_modes_are_left_alone(device):
    model = classifier(device, 0)
    model[3].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    a, b = classifier(device, 1).state_dict(), classifier(device, 2).state_dict()
    barrier_curve(model, a, b, [samples(device)], points=3, repair="repair", calibrate=True)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_calibrated_losses_are_the_smallest_over_temperatures(device):
    model, a, b = classifier(device, 0), classifier(device, 1).state_dict(), classifier(device, 2).state_dict()
    x, y = samples(device)
    curve = barrier_curve(model, a, b, [(x[:40], y[:40]), (x[40:], y[40:])], points=2, calibrate=True)
    model.load_state_dict(a)
    logits = model.eval()(x).detach()
    best = minimize_scalar(lambda s: float(F.cross_entropy(logits * s, y)), bounds=(1e-2, 100), method="bounded")
    assert float(curve.losses[0]) == pytest.approx(best.fun, abs=1e-5)


def test_temperature_is_that_of_scipy(device, dtype):
    generator = torch.Generator(device).manual_seed(3)
    z = 2 * torch.randn(400, 5, generator=generator, device=device, dtype=torch.float64)
    y = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    found = fit_temperature((3 * z).to(dtype), y)
    assert found.dtype == dtype
    best = minimize_scalar(lambda b: float(F.cross_entropy(b * 3 * z, y)), bounds=(0.01, 10), method="bounded")
    assert float(found) == pytest.approx(1 / best.x, rel=1e-2 if dtype.itemsize < 4 else 1e-3)
    assert float(found) == pytest.approx(3, rel=0.2)


def test_temperature_stays_in_its_limits(device):
    z = torch.eye(4, device=device)
    assert 0.01 <= float(fit_temperature(z, torch.arange(4, device=device))) < 0.05
    assert float(fit_temperature(z, (torch.arange(4, device=device) + 1) % 4)) == pytest.approx(100, rel=1e-3)


class Tied(nn.Module):
    """Inputs by name or by position, and one weight under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x, shift):
        return self.second(self.first(x)) + shift


@pytest.mark.parametrize("wrap", [tuple, lambda xs: dict(zip(("x", "shift"), xs, strict=True))])
def test_inputs_by_position_and_by_name_and_tied_weights(device, wrap):
    model = Tied().to(device)
    states = [Tied().to(device).state_dict() for _ in range(2)]
    x = torch.eye(2, device=device)
    data = [(wrap((x, torch.tensor(0.5, device=device))), x)]
    curve = barrier_curve(model, *states, data, loss=F.mse_loss, points=3)
    middle = (states[0]["first.weight"] + states[1]["second.weight"]) / 2
    wanted = F.mse_loss((middle @ middle).T + 0.5, x)
    assert float(curve.losses[1]) == pytest.approx(float(wanted), rel=1e-5)


def test_bad_arguments_are_named(device):
    model, a, b, data = line(device)
    with pytest.raises(InputError, match="more than once"):
        barrier_curve(model, a, b, iter(data))
    with pytest.raises(InputError, match="at least one batch"):
        barrier_curve(model, a, b, [])
    with pytest.raises(InputError, match="pairs of inputs and targets"):
        barrier_curve(model, a, b, [data[0][0]])
    with pytest.raises(InputError, match="scalar tensor"):
        barrier_curve(model, a, b, data, loss=lambda y, t: y)
    with pytest.raises(InputError, match="places inside"):
        barrier_curve(model, a, b, data, points=[0.5, 1.0])
    with pytest.raises(InputError, match="2 places at least"):
        barrier_curve(model, a, b, data, points=1)
    with pytest.raises(InputError, match="state_b: want the entries and shapes of the model, got no weight, other"):
        barrier_curve(model, a, {"other": a["weight"]}, data)
    with pytest.raises(InputError, match=r"weight \(2, 1\) for \(1, 1\)"):
        barrier_curve(model, {"weight": torch.ones(2, 1)}, b, data)


@pytest.mark.untyped
def test_bad_types_are_named(device):
    model, a, b, data = line(device)
    with pytest.raises(InputError, match="batches to iterate over"):
        barrier_curve(model, a, b, 3)
    with pytest.raises(InputError, match="did you mean 'repair'"):
        barrier_curve(model, a, b, data, repair="repairs")
    with pytest.raises(InputError, match=r"shapes \(n, c\) and \(n,\)"):
        fit_temperature(torch.zeros(3), torch.zeros(3, dtype=torch.int64))
