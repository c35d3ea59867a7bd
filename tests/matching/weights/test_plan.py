"""Plans against counts by hand, and layers against what permutations must leave as it is."""

import math

import pytest
import torch
from torch import nn

from diffmatch.matching.weights import apply_permutations, match_weights, permutation_spec, random_permutations
from diffmatch.matching.weights import layers as layers_module
from diffmatch.matching.weights.layers import layer_alignment
from diffmatch.matching.weights.plan import merge_plan


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def shapes_and_dtypes(model: nn.Module):
    state = model.state_dict()
    return {n: tuple(t.shape) for n, t in state.items()}, {n: t.dtype for n, t in state.items()}


def test_a_plan_counts_what_moves_and_what_it_takes():
    model = net()
    plan = merge_plan(permutation_spec(model, torch.zeros(2, 5)), *shapes_and_dtypes(model))
    assert (plan.atoms, plan.units) == (2, 14)
    assert plan.parameters == sum(p.numel() for p in model.parameters())
    assert plan.parameters - plan.movable == 3  # the bias of the output
    assert plan.movable_percent == pytest.approx(100 * (1 - 3 / plan.parameters))
    assert plan.model_bytes == 4 * plan.parameters + 4 * 16 + 8
    assert (plan.largest_pair, plan.largest_gram) == (2 * 4 * 48, 4 * 64)
    # units of 8: rows of 5, bias, scale and shift of the norm, columns of 6; units of 6: rows of 8, bias, columns of 3
    assert plan.sweep_flops == 2 * 8**2 * (5 + 1 + 2 + 6) + 2 * 6**2 * (8 + 1 + 3)
    assert plan.sweep_cubes == 8**3 + 6**3
    reasons = {held.reason: (held.axes, held.example) for held in plan.held}
    assert reasons["an axis of the model's output"] == (2, "5.weight axis 0")
    assert any("input" in reason for reason in reasons)


@pytest.mark.parametrize("name", ["decoder, gqa", "vit", "grouped", "recurrent"])
def test_plans_of_other_architectures_are_sound(cases, name):
    model = cases[name].make().eval()
    plan = merge_plan(permutation_spec(model, cases[name].inputs()), *shapes_and_dtypes(model))
    assert plan.atoms == cases[name].atoms
    assert 0 < plan.movable <= plan.parameters
    assert plan.sweep_flops > 0
    assert math.isfinite(plan.sweep_cubes)


def test_layers_of_a_permuted_model_agree_once_it_is_aligned(generator, monkeypatch):
    model = net()
    spec = permutation_spec(model, torch.zeros(2, 5))
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    moved = apply_permutations(state, spec, random_permutations(spec, generator=generator))
    back = apply_permutations(moved, spec, match_weights(state, moved, spec).permutations)
    found = layer_alignment(state, moved, back, spec)
    assert [layer.name for layer in found] == ["0.weight", "3.weight", "5.weight"]
    for layer in found:
        for statistic in (layer.cosine, layer.leading, layer.weighted):
            assert statistic[0] < 0.95
            assert statistic[1] == pytest.approx(1)
        assert layer.spectrum == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr(layers_module, "_MOST_WORK", 10.0)
    large = layer_alignment(state, moved, back, spec)
    assert [layer.cosine for layer in large] == [layer.cosine for layer in found]
    assert {layer.leading for layer in large} == {None}
