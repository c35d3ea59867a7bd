"""Task arithmetic, TIES and DARE against their definitions, entry by entry."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.matching.weights import average_states, dare, task_arithmetic, ties


def tasks(device, seed=0, count=3):
    generator = torch.Generator(device).manual_seed(seed)

    def state():
        return {
            "w": torch.randn(4, 5, generator=generator, device=device, dtype=torch.float64),
            "b": torch.randn(5, generator=generator, device=device, dtype=torch.float64),
            "count": torch.tensor(7, device=device),
        }

    return state(), [state() for _ in range(count)]


def test_task_arithmetic_adds_what_was_learned(device):
    base, states = tasks(device)
    found = task_arithmetic(base, states, scale=[0.5, -1.0, 0.25])
    wanted = base["w"] + sum(s * (state["w"] - base["w"]) for s, state in zip((0.5, -1, 0.25), states, strict=True))
    torch.testing.assert_close(found["w"], wanted)
    assert found["count"] == 7
    average = task_arithmetic(base, states, scale=1 / 3)
    torch.testing.assert_close(average["w"], average_states(states)["w"])
    torch.testing.assert_close(task_arithmetic(base, states[:1], scale=1.0)["b"], states[0]["b"])


def ties_by_hand(base, states, keep, scale):
    """The definition, one number at a time."""
    flat = [torch.cat([(state[n] - base[n]).flatten() for n in ("w", "b")]).tolist() for state in states]
    kept = max(int(keep * len(flat[0])), 1)
    for vector in flat:
        for i in sorted(range(len(vector)), key=lambda i: abs(vector[i]))[: len(vector) - kept]:
            vector[i] = 0.0
    merged = []
    for entries in zip(*flat, strict=True):
        sign = (sum(entries) > 0) - (sum(entries) < 0)
        agreeing = [x for x in entries if x * sign > 0]
        merged.append(scale * sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return torch.cat([base[n].flatten() for n in ("w", "b")]) + base["w"].new_tensor(merged)


@given(
    seed=st.integers(0, 1000), keep=st.sampled_from([0.01, 0.2, 0.5, 1.0]), scale=st.floats(-1, 2), m=st.integers(1, 4)
)
def test_ties_is_its_definition(device, seed, keep, scale, m):
    base, states = tasks(device, seed, m)
    found = ties(base, states, keep=keep, scale=scale)
    both = torch.cat([found[n].flatten() for n in ("w", "b")])
    torch.testing.assert_close(both, ties_by_hand(base, states, keep, scale))


def test_ties_of_one_model_with_all_entries_is_the_model(device):
    base, states = tasks(device)
    torch.testing.assert_close(ties(base, states[:1], keep=1.0)["w"], states[0]["w"])
    assert torch.equal(ties(base, [base, base])["w"], base["w"])


def test_a_tied_weight_counts_once_and_stays_tied(device):
    base, (state,) = tasks(device, count=1)
    base["also"], state["also"] = base["w"], state["w"]
    found = ties(base, [state], keep=0.4)
    assert found["also"] is found["w"]
    changed = sum(int((found[n] != base[n]).sum()) for n in ("w", "b"))
    assert changed == 10  # 0.4 of 25


def test_dare_drops_and_rescales(device, generator):
    base = {"w": torch.zeros(200, 100, device=device), "n": torch.tensor(1, device=device)}
    state = {"w": torch.ones(200, 100, device=device), "n": torch.tensor(2, device=device)}
    found = dare(base, state, drop=0.8, generator=generator)
    values = found["w"].unique()
    torch.testing.assert_close(values, values.new_tensor([0.0, 5.0]))
    assert float(found["w"].mean()) == pytest.approx(1, abs=0.06)  # 4 deviations of the mean
    assert found["n"] == 1
    assert torch.equal(dare(base, state, drop=0.0)["w"], state["w"])
    again = dare(base, state, drop=0.8, generator=torch.Generator(device).manual_seed(0))
    assert torch.equal(again["w"], found["w"])


def test_half_precision_stays(device):
    base, states = tasks(device)
    base, *states = ({n: t.bfloat16() if t.is_floating_point() else t for n, t in s.items()} for s in (base, *states))
    for found in (task_arithmetic(base, states), ties(base, states), dare(base, states[0])):
        assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in base.items()}
        assert all(t.isfinite().all() for t in found.values())


def test_bad_arguments_are_named(device):
    base, states = tasks(device)
    with pytest.raises(InputError, match="scale: want one number or 3"):
        task_arithmetic(base, states, scale=[1.0, 2.0])
    with pytest.raises(InputError, match="no b in state 1"):
        task_arithmetic(base, [{"w": base["w"], "count": base["count"]}])
    for keep in (0.0, 1.5):
        with pytest.raises(InputError, match="keep"):
            ties(base, states, keep=keep)
    with pytest.raises(InputError, match="drop"):
        dare(base, states[0], drop=1.0)
