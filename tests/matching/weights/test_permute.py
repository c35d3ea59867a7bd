"""Permutations form a group that acts on states by reordering values."""

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
    permutation_spec,
    random_permutations,
)


@pytest.fixture(scope="module", params=["resnet8", "encoder", "decoder, gqa", "densenet", "grouped", "recurrent"])
def example(request, cases):
    case = cases[request.param]
    model = case.make()
    return permutation_spec(model, case.inputs()), model.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_identity_moves_nothing(example):
    spec, state = example
    assert equal(apply_permutations(state, spec, identity_permutations(spec)), state)
    assert equal(apply_permutations(state, spec, {}), state)


def test_the_inverse_undoes(example, generator):
    spec, state = example
    permutations = random_permutations(spec, generator=generator)
    inverse = inverse_permutations(spec, permutations)
    there = apply_permutations(state, spec, permutations)
    assert equal(apply_permutations(there, spec, inverse), state)
    assert equal(compose_permutations(spec, permutations, inverse), identity_permutations(spec))
    assert equal(compose_permutations(spec, inverse, permutations), identity_permutations(spec))


def test_a_composition_is_one_after_the_other(example, generator):
    spec, state = example
    a, b, c = (random_permutations(spec, generator=generator) for _ in range(3))
    both = apply_permutations(apply_permutations(state, spec, a), spec, b)
    assert equal(apply_permutations(state, spec, compose_permutations(spec, a, b)), both)
    left = compose_permutations(spec, compose_permutations(spec, a, b), c)
    assert equal(left, compose_permutations(spec, a, compose_permutations(spec, b, c)))


def test_values_are_reordered_and_dtypes_stay(example, generator):
    spec, state = example
    state = {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}
    permuted = apply_permutations(state, spec, random_permutations(spec, generator=generator))
    for key, value in state.items():
        assert permuted[key].dtype == value.dtype
        assert torch.equal(permuted[key].flatten().sort().values, value.flatten().sort().values)


SPEC = PermutationSpec.by_hand(nn.Linear(3, 4).state_dict(), {"weight": ("h", None), "bias": ("h",)})


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        ({"g": torch.arange(4)}, "names of the spec's atoms"),
        ({"h": torch.arange(3)}, "shape"),
        ({"h": torch.zeros(4)}, "integers"),
        ({"h": torch.tensor([0, 1, 1, 3])}, "each of 0 to 3 once"),
    ],
)
def test_what_is_no_permutation_is_refused(permutations, message):
    with pytest.raises(InputError, match=message):
        apply_permutations(nn.Linear(3, 4).state_dict(), SPEC, permutations)


def test_a_state_of_another_model_is_refused():
    with pytest.raises(InputError, match=r"weight \(5, 3\) for \(4, 3\)"):
        apply_permutations(nn.Linear(3, 5).state_dict(), SPEC, {})
    with pytest.raises(InputError, match="no bias"):
        apply_permutations(nn.Linear(3, 4, bias=False).state_dict(), SPEC, {})
