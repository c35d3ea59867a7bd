"""The straight-through estimator: its gradient, planted permutations, a loss never above weight matching's."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffmatch.errors import InputError
from diffmatch.matching.weights import (
    PermutationSpec,
    apply_permutations,
    identity_permutations,
    inverse_permutations,
    match_straight_through,
    match_weights,
    random_permutations,
)
from diffmatch.matching.weights.midpoint import Midpoint
from diffmatch.matching.weights.straight_through import _Projected

AXES = {
    "0.weight": ("a", None),
    "0.bias": ("a",),
    "2.weight": ("b", "a"),
    "2.bias": ("b",),
    "4.weight": (None, "b"),
}


def net():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


SPEC = PermutationSpec.by_hand(net().state_dict(), AXES)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(4, 8, generator=generator)
    labels = torch.randint(4, (400,), generator=generator)
    points = centres[labels] + torch.randn(400, 8, generator=generator)
    return list(zip(points.split(100), labels.split(100), strict=True))


@pytest.fixture(scope="module")
def states(data):
    """Three nets trained from different initial weights."""
    found = []
    for seed in range(3):
        model, generator = net(), torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8**0.5
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for inputs, targets in itertools.islice(itertools.cycle(data), 120):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        found.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    return found


def test_the_gradient_passes_through_the_permuted_models(states, data):
    start = [identity_permutations(SPEC)] * 3
    projected = _Projected(states, SPEC, start, 2)
    middle = Midpoint(net(), states, SPEC, data, F.cross_entropy)
    mean = projected.mean()
    middle.next_loss(mean).backward()
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in mean.items()}
    inputs, targets = data[0]
    rest = {"4.bias": torch.stack([state["4.bias"] for state in states]).mean(0)}
    F.cross_entropy(torch.func.functional_call(net(), {**leaves, **rest}, (inputs,)), targets).backward()
    for free in projected.latents:
        for name, tensor in free.items():
            torch.testing.assert_close(tensor.grad, leaves[name].grad / 3)


def test_it_begins_with_weight_matching(states, data):
    found = _Projected(states[:2], SPEC, None, 2).permutations()[1]
    wanted = match_weights(states[0], states[1], SPEC).permutations
    assert all(torch.equal(found[atom], wanted[atom]) for atom in SPEC.atoms)


@pytest.mark.parametrize("n", [2, 3])
def test_the_loss_of_the_mean_is_never_above_that_of_weight_matching(n, states, data):
    match = match_straight_through(net(), states[:n], SPEC, data, steps=40, lr=0.02)
    assert match.history.steps == 40
    assert match.loss <= match.initial
    moved = [apply_permutations(s, SPEC, p) for s, p in zip(states[:n], match.permutations, strict=True)]
    mean = {name: torch.stack([s[name] for s in moved]).mean(0) for name in moved[0]}
    losses = [F.cross_entropy(torch.func.functional_call(net(), mean, (x,)), y) for x, y in data]
    assert match.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert all(torch.equal(match.permutations[0][atom], p) for atom, p in identity_permutations(SPEC).items())


def test_a_start_is_improved(states, data, generator):
    start = [{}, match_weights(states[0], states[1], SPEC).permutations, random_permutations(SPEC, generator=generator)]
    match = match_straight_through(net(), states, SPEC, data, start=start, steps=30, lr=0.02)
    moved = [apply_permutations(s, SPEC, p) for s, p in zip(states, start, strict=True)]
    mean = {name: torch.stack([s[name] for s in moved]).mean(0) for name in moved[0]}
    losses = [F.cross_entropy(torch.func.functional_call(net(), mean, (x,)), y) for x, y in data]
    assert match.initial == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert match.loss < match.initial


def test_planted_permutations_stay_found(states, data, generator):
    permutations = random_permutations(SPEC, generator=generator)
    other = apply_permutations(states[0], SPEC, permutations)
    match = match_straight_through(net(), [states[0], other], SPEC, data, steps=5)
    wanted = inverse_permutations(SPEC, permutations)
    assert all(torch.equal(match.permutations[1][atom], wanted[atom]) for atom in wanted)


def test_batch_norm_sees_batches_and_nothing_changes(generator, data):
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4)).train()
    axes = dict.fromkeys(("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"), ("h",))
    axes |= {"0.weight": ("h", None), "4.weight": (None, "h")}
    buffers = ["1.running_mean", "1.running_var"]
    spec = PermutationSpec.by_hand(model.state_dict(), axes, buffers=buffers)
    states = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for _ in range(2)]
    states[1]["1.running_mean"] += 100.0  # would spoil the mean if it were used
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    match = match_straight_through(model, states, spec, data, steps=3)
    assert match.initial < 3
    assert model.training
    assert all(torch.equal(s[name], b[name]) for s, b in zip(states, before, strict=True) for name in s)
    assert torch.equal(model[1].running_mean, torch.zeros(6))


@pytest.mark.untyped
def test_bad_arguments_are_named(states, data):
    with pytest.raises(InputError, match="states: want two states or more"):
        match_straight_through(net(), states[:1], SPEC, data)
    with pytest.raises(InputError, match="start: want 2 dicts, one a model, got 1"):
        match_straight_through(net(), states[:2], SPEC, data, start=[{}])
    with pytest.raises(InputError, match="data: want at least one batch, got none"):
        match_straight_through(net(), states[:2], SPEC, [])
    with pytest.raises(InputError, match="data: want batches that can be gone through more than once"):
        match_straight_through(net(), states[:2], SPEC, iter(data))
    with pytest.raises(InputError, match="data: want batches that are pairs of inputs and targets"):
        match_straight_through(net(), states[:2], SPEC, [data[0][0]])
