"""Interpolated and averaged states against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffmatch.errors import InputError
from diffmatch.matching.weights import average_states, interpolate_states


def pair(device, dtype=torch.float64):
    generator = torch.Generator(device).manual_seed(1)

    def state():
        tied = torch.randn(3, 2, generator=generator, device=device, dtype=dtype)
        return {
            "w": torch.randn(4, 3, generator=generator, device=device, dtype=dtype),
            "tied": tied,
            "also": tied,
            "count": torch.randint(9, (), generator=generator, device=device),
        }

    return state(), state()


def test_ends_and_middle_of_the_line(device, tolerance):
    a, b = pair(device)
    assert all(torch.equal(interpolate_states(a, b, 0.0)[name], a[name]) for name in a)
    assert torch.equal(interpolate_states(a, b, 1.0)["w"], b["w"])
    middle = interpolate_states(a, b, 0.5)
    torch.testing.assert_close(middle["w"], (a["w"] + b["w"]) / 2)
    torch.testing.assert_close(interpolate_states(a, b, -1.0)["w"], 2 * a["w"] - b["w"])


def test_integers_are_the_first_models_and_ties_stay_ties(device):
    a, b = pair(device)
    for merged in (interpolate_states(a, b, 0.3), average_states([a, b])):
        assert merged["count"] == a["count"]
        assert merged["count"].data_ptr() != a["count"].data_ptr()
        assert merged["tied"] is merged["also"]
    b["also"] = b["also"] + 1  # tied in one of them only
    merged = average_states([a, b])
    torch.testing.assert_close(merged["also"], merged["tied"] + 0.5)


def test_arc_between_perpendicular_vectors_keeps_the_length(device):
    a = {"w": torch.tensor([[2.0, 0.0]], device=device, dtype=torch.float64)}
    b = {"w": torch.tensor([[0.0, 2.0]], device=device, dtype=torch.float64)}
    for t in (0.0, 0.25, 0.7, 1.0):
        found = interpolate_states(a, b, t, method="spherical")["w"]
        angle = t * math.pi / 2
        wanted = found.new_tensor([[2 * math.cos(angle), 2 * math.sin(angle)]])
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("other", [1.0, 3.0, -1.0, 0.0])
def test_arc_of_vectors_on_one_line_is_the_line(device, other):
    a = {"w": torch.tensor([1.0, -2.0], device=device)}
    b = {"w": other * a["w"]}
    found = interpolate_states(a, b, 0.4, method="spherical")["w"]
    torch.testing.assert_close(found, (0.6 + 0.4 * other) * a["w"])


@given(t=st.floats(-1, 2), method=st.sampled_from(["linear", "spherical"]))
def test_the_way_back_is_the_same_way(device, t, method):
    a, b = pair(device)
    there, back = interpolate_states(a, b, t, method=method), interpolate_states(b, a, 1 - t, method=method)
    torch.testing.assert_close(there["w"], back["w"])


def test_average_is_the_weighted_sum(device):
    a, b = pair(device)
    c = {name: tensor * 2 for name, tensor in a.items()}
    torch.testing.assert_close(average_states([a, b, c])["w"], (3 * a["w"] + b["w"]) / 3)
    found = average_states([a, b, c], weights=[0.5, 0.75, -0.25])["w"]
    torch.testing.assert_close(found, 0.75 * b["w"])
    assert torch.equal(average_states([a])["w"], a["w"])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(device, half):
    a, b = pair(device, half)
    states = [a, b, a, b, a]
    wanted = torch.stack([state["w"].float() for state in states]).mean(0).to(half)
    found = average_states(states)["w"]
    assert found.dtype == half
    assert (found - wanted).abs().max() <= torch.finfo(half).eps * wanted.abs().max()


def test_given_states_are_not_changed(device):
    states = pair(device)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    average_states(states)
    interpolate_states(*states, 0.4)
    for state, old in zip(states, before, strict=True):
        assert all(torch.equal(state[name], old[name]) for name in state)


def test_state_of_a_module_loads(device):
    models = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(device) for _ in range(2)]
    merged = average_states([model.state_dict() for model in models])
    models[0].load_state_dict(merged)
    assert not any(tensor.requires_grad for tensor in merged.values())


def test_what_does_not_fit_is_listed(device):
    a, b = pair(device)
    with pytest.raises(InputError, match="no w in state 1"):
        average_states([a, {name: b[name] for name in b if name != "w"}])
    with pytest.raises(InputError, match=r"w \(4, 3\) and \(2, 3\)"):
        interpolate_states(a, {**b, "w": b["w"][:2]}, 0.5)
    with pytest.raises(InputError, match="extra in state 1 only"):
        interpolate_states(a, {**b, "extra": b["w"]}, 0.5)
    with pytest.raises(InputError, match="at least one state"):
        average_states([])
    with pytest.raises(InputError, match="finite"):
        interpolate_states(a, b, math.nan)
    with pytest.raises(InputError, match="2 numbers, one a model"):
        average_states([a, b], weights=[1.0])
    for weights in ([0.5, 0.6], [math.nan, 1.0], [math.inf, -math.inf]):
        with pytest.raises(InputError, match="sum to 1"):
            average_states([a, b], weights=weights)


@pytest.mark.untyped
def test_unknown_path_is_named(device):
    with pytest.raises(InputError, match="did you mean 'spherical'"):
        interpolate_states(*pair(device), 0.5, method="sphericle")
