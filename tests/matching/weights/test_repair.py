"""Batch norm reset against torch's own statistics, REPAIR against the statistics it promises."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffmatch.errors import InputError
from diffmatch.matching.weights import average_states, repair, reset_batch_norm
from diffmatch.matching.weights.repair import repairable_layers


class Mixed(nn.Module):
    """Convolutions with and without batch norm, grouped and transposed ones, one without bias, linear layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.plain = nn.Conv2d(6, 4, 3, bias=False)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.hidden, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.up(F.relu(self.plain(x)))).mean((2, 3))
        return self.head(F.relu(self.hidden(x)))


def mixed(device, seed):
    torch.manual_seed(seed)
    return Mixed().to(device).double()


def images(device, n=48):
    return torch.randn(n, 2, 6, 6, generator=torch.Generator(device).manual_seed(4), device=device).double()


def pre_activations(model, state, x):
    """What the layers return that are repaired, as rows."""
    found = {}
    model.load_state_dict(state)
    for name in ("plain", "up", "hidden"):
        model.get_submodule(name).register_forward_hook(
            lambda _, __, y, name=name: found.update({name: y.detach().movedim(1, -1).flatten(0, -2)})
        )
    model.eval()(x)
    for name in found:
        model.get_submodule(name)._forward_hooks.clear()
    return found


def test_reset_in_one_batch_is_what_torch_measures(device):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5)
    )
    model.to(device).double()
    x = images(device)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = reset_batch_norm(model, state, [x])
    for norm in (model[1], model[5]):
        norm.reset_running_stats()
        norm.momentum = None
    model.train()(x)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor)


def test_reset_pools_unequal_batches(device):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 3)).to(device).double()
    x = images(device) * 3 + torch.arange(48, device=device)[:, None, None, None]
    found = reset_batch_norm(model, model.state_dict(), [x[:5], x[5:40], x[40:47], x[47:]])
    rows = x[:47].movedim(1, -1).flatten(0, -2)  # a single sample is left out
    torch.testing.assert_close(found["0.running_mean"], rows.mean(0))
    torch.testing.assert_close(found["0.running_var"], rows.var(0))
    assert found["0.num_batches_tracked"] == 3
    torch.testing.assert_close(model[0].running_mean, torch.zeros_like(model[0].running_mean))


def test_reset_changes_nothing_else(device):
    model = mixed(device, 0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = reset_batch_norm(model, state, [images(device)])
    assert all(found[name] is state[name] for name in state if "running" not in name and "num_" not in name)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    plain = nn.Linear(2, 2).to(device)
    assert reset_batch_norm(plain, {"weight": plain.weight, "bias": plain.bias}, [])["weight"] is plain.weight


def test_layers_that_are_repaired(device):
    model = mixed(device, 0)
    assert repairable_layers(model, model.state_dict(), [images(device)]) == ["plain", "up", "hidden"]

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.once, self.head = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.tied = nn.Linear(2, 2)
            self.also = nn.Linear(2, 2)
            self.also.weight = self.tied.weight

        def forward(self, x):
            x = self.also(self.tied(self.once(self.twice(self.twice(x)))))
            return self.head(x)[:, 0], self.once.weight

    shared = Shared().to(device)
    assert repairable_layers(shared, shared.state_dict(), [torch.zeros(3, 2, device=device)]) == ["once"]


def test_repair_restores_means_and_deviations(device):
    model, x = mixed(device, 0), images(device)
    states = [mixed(device, seed).state_dict() for seed in (1, 2, 3)]
    weights = [0.5, 0.3, 0.2]
    found = repair(model, average_states(states, weights=weights), states, [x], weights=weights)
    ends = [pre_activations(model, state, x) for state in states]
    merged = pre_activations(model, found, x)
    for name, rows in merged.items():
        deviation = sum(w * end[name].std(0, correction=0) for w, end in zip(weights, ends, strict=True))
        # Evaluation goes by the unbiased variance, the pass by the batch's own: 1 part in 2 · 48 · 36.
        torch.testing.assert_close(rows.std(0, correction=0), deviation, rtol=1e-3, atol=1e-6)
        if name != "plain":
            mean = sum(w * end[name].mean(0) for w, end in zip(weights, ends, strict=True))
            torch.testing.assert_close(rows.mean(0), mean, rtol=1e-3, atol=2e-4)
    assert list(found) == list(states[0])


def test_repair_without_norms_is_exact_in_one_batch(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 2)).to(device).double()
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append({name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()})
    x = torch.randn(50, 4, generator=torch.Generator(device).manual_seed(5), device=device, dtype=torch.float64)
    found = repair(model, average_states(states), states, [x])

    def hidden(state, upto):
        model.load_state_dict(state)
        return model[: upto + 1](x).detach()

    for layer in (0, 2):
        ends, merged = [hidden(state, layer) for state in states], hidden(found, layer)
        torch.testing.assert_close(merged.mean(0), (ends[0].mean(0) + ends[1].mean(0)) / 2)
        torch.testing.assert_close(merged.std(0), (ends[0].std(0) + ends[1].std(0)) / 2)
    several = repair(model, average_states(states), states, [x[:25], x[25:]])
    torch.testing.assert_close(several["0.weight"], found["0.weight"])
    torch.testing.assert_close(several["2.weight"], found["2.weight"], rtol=0.3, atol=0.3)


def test_repair_of_equal_models_is_the_model(device):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)).to(device).double()
    state, x = model.state_dict(), torch.randn(20, 3, device=device, dtype=torch.float64)
    found = repair(model, state, [state, state], [x])
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, state[name])


def test_a_channel_that_does_not_vary_is_only_shifted(device):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(device).double()
    states = []
    for shift in (1.0, 3.0):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state["0.weight"][1] = 0
        state["0.bias"][1] = shift
        states.append(state)
    found = repair(model, average_states(states), states, [torch.randn(20, 3, device=device, dtype=torch.float64)])
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert not found["0.weight"][1].any()
    assert float(found["0.bias"][1]) == pytest.approx(2.0)


def test_dropout_stays_off_and_dtypes_stay(device):
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.9), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model.to(device)
    state, data = model.state_dict(), [torch.randn(20, 3, device=device)]
    first, second = (repair(model, state, [state, state], data) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name: t.dtype for name, t in first.items()} == {name: t.dtype for name, t in state.items()}
    assert model.training


def test_data_and_states_that_do_not_fit(device):
    model = mixed(device, 0)
    state, x = model.state_dict(), images(device)
    with pytest.raises(InputError, match="at least two samples"):
        reset_batch_norm(model, state, [x[:1]])
    with pytest.raises(InputError, match="more than once"):
        repair(model, state, [state], iter([x]))
    with pytest.raises(InputError, match="at least one batch"):
        repair(model, state, [state], [])
    with pytest.raises(InputError, match=r"no stem\.weight"):
        reset_batch_norm(model, {name: t for name, t in state.items() if name != "stem.weight"}, [x])
    with pytest.raises(InputError, match="2 numbers"):
        repair(model, state, [state, state], [x], weights=[1.0])
