"""Merging by entropy: the gradient to the coefficients, planted cases, heads, what is not learned."""

import math

import pytest
import torch
from torch import nn

from diffmatch.errors import InputError
from diffmatch.matching.weights import ada_merging, task_arithmetic
from diffmatch.matching.weights.tasks import Tasks, entropy


class Task(nn.Module):
    """A shared body with batch norm and a head of its own."""

    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5), nn.Dropout())
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        return self.head(self.body(x))


def problem(device, count=2):
    """Base, fine-tuned states without heads, models with their own heads, unlabelled batches."""
    torch.manual_seed(0)
    models = [Task(2 + m).to(device).double() for m in range(count)]
    base = {n: t.clone() for n, t in models[0].state_dict().items() if n.startswith("body")}
    states = [
        {n: t + torch.randn_like(t) if "weight" in n or "bias" in n else t for n, t in base.items()} for _ in models
    ]
    data = [[torch.randn(8, 4, device=device, dtype=torch.float64) for _ in range(3)] for _ in models]
    return base, states, models, data


def test_entropy_of_known_distributions(device):
    assert float(entropy(torch.zeros(3, 5, device=device))) == pytest.approx(math.log(5))
    logits = torch.tensor([[0.0, math.log(3.0)], [200.0, -200.0]], device=device)
    wanted = (-0.25 * math.log(0.25) - 0.75 * math.log(0.75)) / 2
    assert float(entropy(logits)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("layerwise", [False, True])
def test_gradient_to_the_coefficients(device, layerwise):
    tasks = Tasks(*problem(device))
    batches = tasks.next_batches()
    start = tasks.coefficients(0.3, layerwise=layerwise)
    assert start.shape == (6 if layerwise else 1, 2)
    with tasks.evaluating():
        assert torch.autograd.gradcheck(
            lambda w: tasks.entropy(tasks.merged(w), batches), (start.requires_grad_(),), atol=1e-7
        )


def test_before_the_first_step_it_is_task_arithmetic(device):
    base, states, models, data = problem(device)
    states[1]["body.1.running_mean"] = states[1]["body.1.running_mean"] + 1
    for granularity in ("task", "layer"):
        found = ada_merging(base, states, models, data, granularity=granularity, scale=0.4, steps=0)
        for name, tensor in task_arithmetic(base, states, scale=0.4).items():
            torch.testing.assert_close(found.state[name], tensor)
        assert list(found.state) == list(base)


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_entropy_falls_and_the_models_stay(device, granularity):
    base, states, models, data = problem(device)
    before = [{n: t.clone() for n, t in model.state_dict().items()} for model in models]
    labelled = [[(x, None) for x in batches] for batches in data]
    found = ada_merging(base, states, models, labelled, granularity=granularity, steps=40, lr=0.02, progress=False)
    tasks = Tasks(base, states, models, [[torch.cat(batches)] for batches in data])
    batches = tasks.next_batches()
    with tasks.evaluating(), torch.no_grad():
        old = tasks.entropy(task_arithmetic(base, states), batches)
        assert tasks.entropy(found.state, batches) < 0.98 * old
    assert set(found.coefficients) == {n for n in base if "running" not in n and "num_" not in n}
    assert len({tuple(c.tolist()) for c in found.coefficients.values()}) == (1 if granularity == "task" else 6)
    weight = found.coefficients["body.0.weight"]
    merged = base["body.0.weight"] + sum(
        w * (state["body.0.weight"] - base["body.0.weight"]) for w, state in zip(weight, states, strict=True)
    )
    torch.testing.assert_close(found.state["body.0.weight"], merged)
    for model, old_state in zip(models, before, strict=True):
        assert model.training
        assert all(torch.equal(t, old_state[n]) for n, t in model.state_dict().items())


def test_a_task_vector_that_confuses_loses_its_share(device):
    """Answers are (w · x, 0): the first task vector makes them sure, the second undoes it."""

    class Scorer(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, device=device))

        def forward(self, x):
            score = x @ self.w
            return torch.stack([score, torch.zeros_like(score)], -1)

    states = [{"w": torch.tensor(v, device=device)} for v in ([4.0, 0.0], [-2.0, 0.0])]
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], device=device)
    found = ada_merging({"w": torch.zeros(2, device=device)}, states, Scorer(), [[x], [x]], steps=50, lr=0.01)
    first, second = found.coefficients["w"].tolist()
    assert first > 0.6
    assert second < 0.0


def test_tied_weights_have_one_coefficient_and_stay_tied(device):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False)).to(device)
    model[2].weight = model[0].weight
    base = {n: t.clone() for n, t in model.state_dict().items()}
    base["2.weight"] = base["0.weight"]
    states = [dict.fromkeys(base, base["0.weight"] + s) for s in (0.5, -1.0)]
    x = torch.randn(6, 3, device=device)
    found = ada_merging(base, states, model, [[x], [x]], steps=3, lr=0.1)
    assert found.state["0.weight"] is found.state["2.weight"]
    assert torch.equal(found.coefficients["0.weight"], found.coefficients["2.weight"])


def test_half_precision_is_trained_in_single(device):
    base, states, models, data = problem(device)
    models = [model.bfloat16() for model in models]
    base, *states = ({n: t.bfloat16() if t.is_floating_point() else t for n, t in s.items()} for s in (base, *states))
    found = ada_merging(base, states, models, [[x.bfloat16() for x in d] for d in data], steps=2)
    assert {n: t.dtype for n, t in found.state.items()} == {n: t.dtype for n, t in base.items()}
    assert found.coefficients["body.0.weight"].dtype == torch.float32


def test_numbers_that_do_not_fit(device):
    base, states, models, data = problem(device)
    with pytest.raises(InputError, match="models: want 2"):
        ada_merging(base, states, models[:1], data)
    with pytest.raises(InputError, match="data: want 2"):
        ada_merging(base, states, models, data[:1])
    with pytest.raises(InputError, match=r"data\[1\]: want batches that can be gone through more than once"):
        ada_merging(base, states, models, [data[0], iter(data[1])])
    with pytest.raises(InputError, match=r"data\[0\]: want at least one batch"):
        ada_merging(base, states, models, [[], data[1]])
    with pytest.raises(InputError, match="parameters of the model"):
        ada_merging({"x": torch.zeros(2)}, [{"x": torch.zeros(2)}] * 2, models, data)
    with pytest.raises(InputError, match="in state 1"):
        ada_merging(base, [{"x": torch.zeros(2)}] * 2, models, data)


@pytest.mark.untyped
def test_unknown_granularity_is_named(device):
    with pytest.raises(InputError, match="did you mean 'layer'"):
        ada_merging(*problem(device), granularity="layers")
