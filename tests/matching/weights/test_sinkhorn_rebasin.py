"""Sinkhorn re-basin: gradients through the plans, hard matrices are permutations, planted ones come back."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffmatch.errors import InputError
from diffmatch.matching.weights import (
    PermutationSpec,
    apply_permutations,
    inverse_permutations,
    match_sinkhorn,
    permutation_spec,
    random_permutations,
)
from diffmatch.matching.weights.frank_wolfe import relaxed_atoms
from diffmatch.matching.weights.sinkhorn_rebasin import soft_permutations, soft_state

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


def normal(generator, spec=SPEC, dtype=torch.float32):
    return {
        name: torch.randn([layout.size for layout in layouts], generator=generator, dtype=dtype)
        for name, layouts in spec.layouts.items()
    }


@pytest.mark.parametrize("name", ["densenet", "encoder"])
def test_matrices_of_permutations_do_what_permutations_do(cases, name, generator):
    model = cases[name].make()
    spec = permutation_spec(model, cases[name].inputs())
    atoms = relaxed_atoms(spec)
    state = {k: v.detach().contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}
    permutations = {a: p for a, p in random_permutations(spec, generator=generator).items() if a in atoms}
    plans = {atom: torch.eye(len(p))[p] for atom, p in permutations.items()}
    soft = soft_state(state, spec.layouts, plans)
    full = {**model.state_dict(), **state}
    hard = apply_permutations(full, spec, permutations)
    assert all(torch.equal(soft[k], hard[k]) for k in state)


def test_gradients_match_finite_differences(generator):
    spec = PermutationSpec.by_hand(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict(), AXES
    )
    a, b = normal(generator, spec, torch.float64), normal(generator, spec, torch.float64)
    x, y = torch.randn(5, 3, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])

    def midpoint(*scores):
        plans = soft_permutations(dict(zip(spec.atoms, scores, strict=True)), 0.5)
        for plan in plans.values():
            torch.testing.assert_close(plan.sum(0), torch.ones(4, dtype=torch.float64))
        mean = {name: (a[name] + soft) / 2 for name, soft in soft_state(b, spec.layouts, plans).items()}
        h = (x @ mean["0.weight"].T + mean["0.bias"]).tanh()
        h = (h @ mean["2.weight"].T + mean["2.bias"]).tanh()
        return F.cross_entropy(h @ mean["4.weight"].T + mean["4.bias"], y)

    scores = [torch.randn(4, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in spec.atoms]
    assert torch.autograd.gradcheck(midpoint, scores, atol=1e-5)


@pytest.mark.parametrize("objective", ["weights", "midpoint", "random"])
def test_planted_permutations_come_back(objective, generator):
    a = normal(generator)
    permutations = random_permutations(SPEC, generator=generator)
    b = apply_permutations(a, SPEC, permutations)
    model = net()
    model.load_state_dict(a)
    x = torch.randn(256, 8, generator=generator)
    data = [(x, model(x).detach())]
    match = match_sinkhorn(
        a, b, SPEC, objective=objective, model=model, data=data, loss=F.mse_loss, steps=150, progress=False
    )
    wanted = inverse_permutations(SPEC, permutations)
    if objective == "weights":
        assert all(torch.equal(match.permutations[1][atom], wanted[atom]) for atom in wanted)
        assert match.loss == 0
    assert match.loss < match.initial
    assert match.history.loss[-1] < match.history.loss[0]


def test_the_start_is_kept_where_nothing_better_is_found(generator):
    a = normal(generator)
    permutations = random_permutations(SPEC, generator=generator)
    b = apply_permutations(a, SPEC, permutations)
    wanted = inverse_permutations(SPEC, permutations)
    match = match_sinkhorn(a, b, SPEC, start=wanted, steps=1, lr=50.0)
    assert match.loss == match.initial == 0
    assert all(torch.equal(match.permutations[1][atom], wanted[atom]) for atom in wanted)
    again = match_sinkhorn(a, b, SPEC, start=wanted, steps=20)
    assert all(torch.equal(again.permutations[1][atom], wanted[atom]) for atom in wanted)


@pytest.mark.untyped
def test_bad_arguments_are_named(generator):
    a = normal(generator)
    with pytest.raises(InputError, match=r"objective: want one of .* got 'middle'"):
        match_sinkhorn(a, a, SPEC, objective="middle")
    with pytest.raises(InputError, match="model, data: want both for objective='midpoint', got None"):
        match_sinkhorn(a, a, SPEC, objective="midpoint")
    with pytest.raises(InputError, match=r"temperatures: want a number > 0, got 0\.0"):
        match_sinkhorn(a, a, SPEC, temperatures=(1.0, 0.0))
    still = PermutationSpec.by_hand(a, {})
    with pytest.raises(InputError, match="spec: want an atom that can be relaxed, got none"):
        match_sinkhorn(a, a, still)
