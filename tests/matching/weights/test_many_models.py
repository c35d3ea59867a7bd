"""Many models at once: planted orders come back, maps around cycles are the identity, two models are the pair."""

import itertools

import pytest
import torch
from torch import nn

from diffmatch.errors import InputError
from diffmatch.matching.weights import (
    PermutationSpec,
    apply_permutations,
    compose_permutations,
    identity_permutations,
    inverse_permutations,
    match_many,
    match_weights,
    permutation_spec,
    random_permutations,
    weight_objective,
)
from diffmatch.matching.weights.ascent import Alignment, Structure, packed
from diffmatch.matching.weights.many_models import _company, _take_turns

SPEC = PermutationSpec.by_hand(
    nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 5)).state_dict(),
    {
        "0.weight": ("a", None),
        "0.bias": ("a",),
        "2.weight": ("b", "a"),
        "2.bias": ("b",),
        "4.weight": (None, "b"),
    },
)


def normal(generator, spec=SPEC):
    return {
        name: torch.randn([layout.size for layout in layouts], generator=generator)
        for name, layouts in spec.layouts.items()
    }


def pairs_objective(states, spec, permutations):
    moved = [apply_permutations(state, spec, found) for state, found in zip(states, permutations, strict=True)]
    return sum(weight_objective(a, b, spec) for a, b in itertools.combinations(moved, 2))


def noisy_copies(n, noise, generator):
    base, states, wanted = normal(generator), [], []
    for _ in range(n):
        permutations = random_permutations(SPEC, generator=generator)
        own = {k: v + noise * torch.randn(v.shape, generator=generator) for k, v in base.items()}
        states.append(apply_permutations(own, SPEC, permutations))
        wanted.append(inverse_permutations(SPEC, permutations))
    return states, wanted


@pytest.mark.parametrize("frank_wolfe", [True, False])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_planted_orders_come_back(n, frank_wolfe, generator):
    states, wanted = noisy_copies(n, 0.5, generator)
    match = match_many(states, SPEC, frank_wolfe=frank_wolfe)
    assert match.converged
    assert match.objective == pytest.approx(pairs_objective(states, SPEC, wanted), rel=1e-6)
    for m in range(n):
        to_first = compose_permutations(SPEC, wanted[m], inverse_permutations(SPEC, wanted[0]))
        assert all(torch.equal(match.permutations[m][atom], to_first[atom]) for atom in SPEC.atoms)


def test_maps_around_a_cycle_are_the_identity(generator):
    states = [normal(generator) for _ in range(4)]
    match = match_many(states, SPEC)
    identity = identity_permutations(SPEC)
    for i, j, k in itertools.permutations(range(4), 3):
        found = compose_permutations(SPEC, match.between(SPEC, i, j), match.between(SPEC, j, k))
        found = compose_permutations(SPEC, found, match.between(SPEC, k, i))
        assert all(torch.equal(found[atom], identity[atom]) for atom in identity)
    moved = apply_permutations(states[2], SPEC, match.between(SPEC, 2, 1))
    by_two = apply_permutations(
        apply_permutations(states[2], SPEC, match.permutations[2]), SPEC, match.between(SPEC, 0, 1)
    )
    assert all(torch.equal(moved[name], by_two[name]) for name in moved)


def test_the_objective_is_that_of_the_permuted_models_and_a_local_maximum(generator):
    states = [normal(generator) for _ in range(3)]
    match = match_many(states, SPEC)
    assert match.initial == pytest.approx(pairs_objective(states, SPEC, [{}] * 3), rel=1e-5)
    assert match.objective == pytest.approx(pairs_objective(states, SPEC, match.permutations), rel=1e-5)
    assert match.objective > match.initial
    moved = [apply_permutations(state, SPEC, p) for state, p in zip(states, match.permutations, strict=True)]
    for m in range(3):
        others = {name: sum(moved[j][name] for j in range(3) if j != m) for name in moved[0]}
        again = match_weights(others, moved[m], SPEC, start={})
        assert again.objective == pytest.approx(again.initial)
    again = match_many(states, SPEC, start=match.permutations, frank_wolfe=False)
    assert again.objective == pytest.approx(match.objective)
    assert again.rounds == 1


def test_what_is_kept_between_turns_is_that_computed_anew(generator):
    tensors, spec = packed([normal(generator) for _ in range(3)], SPEC, list(SPEC.layouts))
    models = _company(tensors, Structure(spec), [identity_permutations(spec)] * 3, 1e-4)
    assert _take_turns(models, 50, torch.Generator().manual_seed(0))[1]
    for m, model in enumerate(models):
        moved = apply_permutations(tensors[m], spec, model.permutations)
        assert all(torch.equal(moved[name], model.b[name]) for name in moved)
        for name in model.b:
            others = sum(other.b[name] for other in models if other is not model)
            torch.testing.assert_close(model.a[name], others, rtol=1e-4, atol=1e-4)
        assert model._grams
        for atom, gram in model._grams.items():
            anew = Alignment._gram(model, model.structure.places[atom])
            torch.testing.assert_close(gram, anew, rtol=1e-3, atol=1e-3)


def test_two_models_are_as_good_as_the_pair(generator):
    ours, plain, relaxed = 0.0, 0.0, 0.0
    for _ in range(10):  # a single pair may end several per cent higher or lower
        a, b = normal(generator), normal(generator)
        match = match_many([a, b], SPEC)
        ours += match.objective
        plain += match_weights(a, b, SPEC).objective
        relaxed += match_weights(a, b, SPEC, frank_wolfe=True).objective
        assert all(torch.equal(match.permutations[0][atom], p) for atom, p in identity_permutations(SPEC).items())
    assert ours > plain
    assert ours > 0.96 * relaxed  # of several times as many steps


def test_heads_and_streams_are_aligned_too(cases, generator):
    model = cases["encoder"].make()
    spec = permutation_spec(model, cases["encoder"].inputs())
    base = {k: torch.randn(v.shape, generator=generator) for k, v in model.state_dict().items()}
    planted = [random_permutations(spec, generator=generator) for _ in range(3)]
    states = [apply_permutations(base, spec, permutations) for permutations in planted]
    match = match_many(states, spec)
    assert match.objective == pytest.approx(3 * weight_objective(base, base, spec), rel=1e-6)


@pytest.mark.untyped
def test_bad_arguments_are_named(generator):
    state = normal(generator)
    with pytest.raises(InputError, match="states: want two states or more, got 1"):
        match_many([state], SPEC)
    with pytest.raises(InputError, match="start: want 2 dicts, one a model, got 1"):
        match_many([state, state], SPEC, start=[{}])
    with pytest.raises(InputError, match=r"states\[1\]: .* no 4.weight"):
        match_many([state, {k: v for k, v in state.items() if k != "4.weight"}], SPEC)
    broken = {**state, "0.bias": torch.full((24,), torch.nan)}
    with pytest.raises(InputError, match=r"states\[1\]\['0.bias'\]: want finite values"):
        match_many([state, broken], SPEC)
