"""Concrete masks: closed forms, gradients against finite differences, a planted interference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffmatch.errors import InputError
from diffmatch.matching.weights import concrete_mask, concrete_merging, task_arithmetic
from diffmatch.matching.weights.tasks import Tasks


def random(device, *shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(seed), device=device, dtype=torch.float64)


def test_mask_without_noise_at_zero_is_one(device, dtype):
    mask = concrete_mask(torch.zeros(3, 4, device=device, dtype=dtype))
    assert mask.dtype == dtype
    assert torch.equal(mask, torch.ones_like(mask))


@given(seed=st.integers(0, 100), temperature=st.floats(0.05, 5))
def test_mask_is_its_definition(device, seed, temperature):
    x, u = random(device, 5, seed=seed), random(device, 5, seed=seed + 1).sigmoid()
    plain = 1 / (1 + torch.exp(-(torch.log(u) - torch.log(1 - u) + x) / temperature))
    mask = concrete_mask(x, u, temperature=temperature)
    torch.testing.assert_close(mask, plain / plain.mean())
    torch.testing.assert_close(mask.mean(), mask.new_ones(()))


def test_cold_masks_are_bernoulli(device, generator):
    x = torch.full((20000,), 0.8, device=device)
    mask = concrete_mask(x, torch.rand(20000, generator=generator, device=device), temperature=1e-3)
    share = float((mask > mask.max() / 2).float().mean())
    assert share == pytest.approx(torch.tensor(0.8).sigmoid().item(), abs=0.014)  # 4 deviations
    hard = (mask > mask.max() / 2).float()
    assert float((mask - hard / hard.mean()).abs().mean()) < 0.01


def test_ends_of_the_noise_are_finite(device, dtype):
    x = torch.zeros(3, device=device, dtype=dtype).requires_grad_()
    mask = concrete_mask(x, torch.tensor([0.0, 0.5, 1.0], device=device, dtype=dtype))
    mask.square().sum().backward()
    assert mask.isfinite().all()
    assert x.grad.isfinite().all()


def test_gradient_of_the_mask(device):
    x, u = random(device, 2, 3).requires_grad_(), random(device, 2, 3, seed=1).sigmoid()
    assert torch.autograd.gradcheck(lambda x: concrete_mask(x, u, temperature=0.5), (x,))
    # before the scaling, dm/dx = m (1 - m) / T; the scaling by the mean takes out the common part
    m = ((u.logit() + x) / 0.5).sigmoid()
    plain, weights = m * (1 - m) / 0.5, random(device, 2, 3, seed=2)
    (found,) = torch.autograd.grad((weights * concrete_mask(x, u)).sum(), [x])
    wanted = plain * (weights - (weights * m).mean() / m.mean()) / m.mean()
    torch.testing.assert_close(found, wanted.detach())


def problem(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(device).double()
    base = {n: t.clone() for n, t in model.state_dict().items()}
    states = [{n: t + random(device, *t.shape, seed=s) for n, t in base.items()} for s in (1, 2, 3)]
    return base, states, model, [[random(device, 7, 3, seed=s)] for s in (4, 5, 6)]


def test_gradient_of_the_entropy_to_the_logits_by_finite_differences(device):
    tasks = Tasks(*problem(device))
    batches, coefficients = tasks.next_batches(), tasks.coefficients(0.3, layerwise=True)
    logits = {n: random(device, *v.shape[1:], seed=7) for n, v in tasks.vectors.items()}
    noise = {n: random(device, *v.shape[1:], seed=8).sigmoid() for n, v in tasks.vectors.items()}

    def value(x):
        masks = {n: concrete_mask(x[n], noise[n], temperature=0.5) for n in x}
        return tasks.entropy(tasks.merged(coefficients, masks), batches)

    leaves = {n: x.clone().requires_grad_() for n, x in logits.items()}
    gradients = torch.autograd.grad(value(leaves), list(leaves.values()))
    h = 1e-5
    for (name, x), gradient in zip(logits.items(), gradients, strict=True):
        for i in range(x.numel()):
            step = torch.zeros_like(x)
            step.view(-1)[i] = h
            ahead, behind = value({**logits, name: x + step}), value({**logits, name: x - step})
            assert float(gradient.view(-1)[i]) == pytest.approx(float(ahead - behind) / (2 * h), abs=1e-8, rel=1e-6)


@pytest.mark.parametrize("granularity", ["fixed", "task", "layer"])
def test_before_the_first_step_it_is_task_arithmetic(device, granularity):
    found = concrete_merging(*problem(device), granularity=granularity, steps=0, refine_steps=0, scale=0.2)
    base, states, _, _ = problem(device)
    for name, tensor in task_arithmetic(base, states, scale=0.2).items():
        torch.testing.assert_close(found.state[name], tensor)
    assert (found.refinement is None) == (granularity == "fixed")


@pytest.mark.parametrize("granularity", ["fixed", "task", "layer"])
def test_entropy_falls_below_that_of_task_arithmetic(device, granularity):
    base, states, model, data = problem(device)
    runs = [
        concrete_merging(
            base,
            states,
            model,
            data,
            granularity=granularity,
            steps=60,
            lr=0.05,
            coefficient_lr=0.01,
            refine_steps=20,
            generator=torch.Generator(device).manual_seed(0),
        )
        for _ in range(2)
    ]
    tasks = Tasks(base, states, model, data)
    batches = tasks.next_batches()
    found = runs[0]
    assert tasks.entropy(found.state, batches) < 0.9 * tasks.entropy(task_arithmetic(base, states), batches)
    assert all(torch.equal(found.state[n], runs[1].state[n]) for n in base)  # same seed, same bits
    for name in base:
        torch.testing.assert_close(found.mask[name].mean(), found.mask[name].new_ones(()))
        moved = sum(c * (state[name] - base[name]) for c, state in zip(found.coefficients[name], states, strict=True))
        torch.testing.assert_close(found.state[name], base[name] + found.mask[name] * moved)
    learned = any(not torch.equal(c, torch.full_like(c, 0.3)) for c in found.coefficients.values())
    assert learned == (granularity != "fixed")


def test_a_planted_interference_is_masked(device):
    """Each task is answered by a coordinate of its own; a third one, that both have learned, works against it."""

    class Scorer(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3, device=device))

        def forward(self, x):
            score = x @ self.w
            return torch.stack([score, torch.zeros_like(score)], -1)

    base = {"w": torch.zeros(3, device=device)}
    states = [{"w": torch.tensor(v, device=device)} for v in ([16.0, 0.0, 4.0], [0.0, 16.0, 4.0])]
    data = [[torch.tensor([x], device=device)] for x in ([1.0, 0.0, -1.0], [0.0, 1.0, -1.0])]
    found = concrete_merging(
        base, states, Scorer(), data, steps=150, lr=0.05, generator=torch.Generator(device).manual_seed(0)
    )
    assert float(found.mask["w"][2]) < 0.6 < float(found.mask["w"][:2].min())


def test_bad_arguments_are_named(device):
    base, states, model, data = problem(device)
    with pytest.raises(InputError, match="temperature"):
        concrete_merging(base, states, model, data, temperature=0.0)
    with pytest.raises(InputError, match="temperature"):
        concrete_mask(torch.zeros(2, device=device), temperature=-1.0)
    with pytest.raises(InputError, match="data: want 3"):
        concrete_merging(base, states, model, data[:2])


@pytest.mark.untyped
def test_unknown_granularity_is_named(device):
    with pytest.raises(InputError, match="did you mean 'fixed'"):
        concrete_merging(*problem(device), granularity="fix")
