"""RegMean against least squares on all data at once."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffmatch.errors import InputError
from diffmatch.matching.weights import average_states, regmean


def layer(device, seed, n_in=4, n_out=3):
    torch.manual_seed(seed)
    return nn.Linear(n_in, n_out).to(device).double()


def inputs(device, seed, n=40):
    generator = torch.Generator(device).manual_seed(seed)
    scale = torch.rand(4, generator=generator, device=device, dtype=torch.float64) * 3
    return torch.randn(n, 4, generator=generator, device=device, dtype=torch.float64) * scale + 1


def test_linear_layer_is_the_least_squares_solution(device):
    models, xs = [layer(device, seed) for seed in (0, 1, 2)], [inputs(device, seed) for seed in (0, 1, 2)]
    states = [model.state_dict() for model in models]
    found = regmean(models[0], states, [[x[:7], (x[7:], None)] for x in xs], shrink=1.0)
    ones = xs[0].new_ones(40, 1)
    wanted = torch.linalg.lstsq(
        torch.cat([torch.cat([x, ones], 1) for x in xs]),
        torch.cat([model(x) for model, x in zip(models, xs, strict=True)]).detach(),
    ).solution
    torch.testing.assert_close(found["weight"], wanted[:-1].T, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["bias"], wanted[-1], rtol=1e-3, atol=1e-4)


def test_convolution_is_the_least_squares_solution(device):
    torch.manual_seed(0)
    models = [nn.Conv2d(2, 3, 3, stride=2, padding=1).to(device).double() for _ in range(2)]
    xs = [torch.randn(20, 2, 7, 7, device=device, dtype=torch.float64) * s for s in (1, 3)]
    found = regmean(models[0], [m.state_dict() for m in models], [[x] for x in xs], shrink=1.0)
    average = average_states([m.state_dict() for m in models])

    def error(state):
        return sum(
            (F.conv2d(x, state["weight"], state["bias"], 2, 1) - m(x)).square().sum()
            for m, x in zip(models, xs, strict=True)
        )

    weights = {name: tensor.clone().requires_grad_() for name, tensor in found.items()}
    gradients = torch.autograd.grad(error(weights), list(weights.values()))
    at_average = {name: tensor.clone().requires_grad_() for name, tensor in average.items()}
    scale = max(float(g.abs().max()) for g in torch.autograd.grad(error(at_average), list(at_average.values())))
    assert all(float(g.abs().max()) < 1e-4 * scale for g in gradients)
    assert error(found) < 0.9 * error(average)


def test_without_correlations_inputs_are_weighted_by_their_size(device):
    models = [nn.Linear(4, 3, bias=False).to(device).double() for _ in range(2)]
    xs = [inputs(device, seed) for seed in (0, 1)]
    found = regmean(models[0], [m.state_dict() for m in models], [[x] for x in xs], shrink=0.0)["weight"]
    sizes = [x.square().mean(0) for x in xs]
    wanted = sum(m.weight * size for m, size in zip(models, sizes, strict=True)) / sum(sizes)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)


def test_equal_models_and_inputs_that_say_nothing(device):
    model, other = layer(device, 0), layer(device, 1)
    state = model.state_dict()
    same = regmean(model, [state, state], [[inputs(device, 0)], [inputs(device, 1)]])
    torch.testing.assert_close(same["weight"], state["weight"])
    dead = inputs(device, 0)
    dead[:, 2] = 0
    merged = regmean(model, [state, other.state_dict()], [[dead], [dead]])
    average = average_states([state, other.state_dict()])
    torch.testing.assert_close(merged["weight"][:, 2], average["weight"][:, 2])


def test_heads_stay_with_their_models_and_the_rest_is_averaged(device):
    def model(seed):
        torch.manual_seed(seed)
        return nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5)), "head": nn.Linear(5, 2 + seed)})

    class Task(nn.Module):
        def __init__(self, seed):
            super().__init__()
            parts = model(seed)
            self.body, self.head = parts["body"], parts["head"]

        def forward(self, x):
            return self.head(self.body(x))

    tasks = [Task(seed).to(device).double() for seed in (0, 1)]
    states = [{n: t for n, t in task.state_dict().items() if n.startswith("body")} for task in tasks]
    states[1]["body.1.weight"] = states[1]["body.1.weight"] * 3
    found = regmean(tasks, states, [[inputs(device, 0)], [inputs(device, 1)]])
    assert set(found) == set(states[0])
    torch.testing.assert_close(found["body.1.weight"], 2 * torch.ones_like(found["body.1.weight"]))
    assert not torch.allclose(found["body.0.weight"], average_states(states)["body.0.weight"])


def test_tied_weights_stay_tied(device):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).to(device).double()
    model[1].weight = model[0].weight
    state = model.state_dict()
    other = dict.fromkeys(state, 2 * state["0.weight"])
    found = regmean(model, [state, other], [[inputs(device, 0)]] * 2)
    torch.testing.assert_close(found["0.weight"], 1.5 * state["0.weight"])
    torch.testing.assert_close(found["1.weight"], found["0.weight"])


def test_numbers_that_do_not_fit(device):
    model = layer(device, 0)
    state, data = model.state_dict(), [inputs(device, 0)]
    with pytest.raises(InputError, match="data: want 2, one a state, got 1"):
        regmean(model, [state, state], [data])
    with pytest.raises(InputError, match="models: want 2"):
        regmean([model], [state, state], [data, data])
    with pytest.raises(InputError, match="shrink"):
        regmean(model, [state, state], [data, data], shrink=1.5)
    with pytest.raises(InputError, match="more than once"):
        regmean(model, [state, state], [data, iter(data)])
    with pytest.raises(InputError, match="no bias in state 1"):
        regmean(model, [state, {"weight": state["weight"]}], [data, data])
    with pytest.raises(InputError, match="extra, which the model lacks"):
        regmean(model, [{**state, "extra": state["bias"]}] * 2, [data, data])
