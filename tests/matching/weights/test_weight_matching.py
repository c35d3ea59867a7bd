"""Weight matching: planted permutations come back, the objective is the true one, ties stay."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from diffmatch.errors import InputError
from diffmatch.matching.weights import (
    PermutationSpec,
    apply_permutations,
    identity_permutations,
    inverse_permutations,
    match_weights,
    permutation_spec,
    random_permutations,
    weight_objective,
)
from diffmatch.matching.weights.ascent import Alignment, Structure, ascend, first_looks, packed
from diffmatch.matching.weights.remembering import RememberingAlignment

PLAIN = PermutationSpec.by_hand(
    nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)).state_dict(),
    {
        "0.weight": ("a", None),
        "0.bias": ("a",),
        "2.weight": ("b", "a"),
        "2.bias": ("b",),
        "4.weight": (None, "b"),
    },
)
BLOCKS, STREAM, HIDDEN = 3, 30, 50


def normal(spec, generator, scale=None):
    """A state of independent normal weights; some of them scaled."""
    return {
        name: torch.randn([layout.size for layout in layouts], generator=generator) * (scale or {}).get(name, 1.0)
        for name, layouts in spec.layouts.items()
    }


def planted(state, spec, generator, noise):
    permutations = random_permutations(spec, generator=generator)
    noisy = {
        name: value + noise * value.std() * torch.randn(value.shape, generator=generator)
        for name, value in state.items()
    }
    return apply_permutations(noisy, spec, permutations), inverse_permutations(spec, permutations)


def recovered(found, wanted):
    return all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_planted_permutations_of_a_plain_net_come_back(noise, generator):
    for _ in range(10):
        a = normal(PLAIN, generator)
        b, wanted = planted(a, PLAIN, generator, noise)
        match = match_weights(a, b, PLAIN)
        assert match.converged
        assert recovered(match.permutations, wanted)


@pytest.mark.parametrize("name", ["resnet20", "encoder", "decoder, gqa", "densenet", "vit", "recurrent"])
def test_planted_permutations_come_back_in_every_architecture(cases, name, generator):
    model = cases[name].make()
    spec = permutation_spec(model, cases[name].inputs())
    a = {
        key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    if "embed.weight" in a and "head.weight" in a and a["embed.weight"].shape == a["head.weight"].shape:
        a["head.weight"] = a["embed.weight"]
    permutations = random_permutations(spec, generator=generator)
    match = match_weights(a, apply_permutations(a, spec, permutations), spec)
    assert recovered(match.permutations, inverse_permutations(spec, permutations))
    assert match.objective == pytest.approx(weight_objective(a, a, spec))


def residual_toy():
    """A stream that many blocks read and write, held to its inputs and outputs by weak weights only."""
    shapes = {"in": (STREAM, 4), "out": (3, STREAM)}
    axes = {"in": ("stream", None), "out": (None, "stream")}
    for i in range(BLOCKS):
        shapes |= {f"up{i}": (HIDDEN, STREAM), f"down{i}": (STREAM, HIDDEN)}
        axes |= {f"up{i}": (f"hidden{i}", "stream"), f"down{i}": ("stream", f"hidden{i}")}
    return PermutationSpec.by_hand({name: torch.empty(shape) for name, shape in shapes.items()}, axes)


def test_planted_permutations_of_the_residual_toy_come_back():
    spec, found = residual_toy(), 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        a = normal(spec, generator, {"in": 0.3, "out": 0.3})
        b, wanted = planted(a, spec, generator, 0.2)
        found += recovered(match_weights(a, b, spec, generator=generator).permutations, wanted)
    assert found >= 19


def test_the_first_looks_find_what_the_identity_misses():
    spec, found = residual_toy(), [0, 0]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        a = normal(spec, generator, {"in": 0.3, "out": 0.3})
        b, wanted = planted(a, spec, generator, 0.2)
        for k, start in enumerate((None, {})):
            found[k] += recovered(match_weights(a, b, spec, start=start).permutations, wanted)
    assert found[0] == 5 > found[1]


def plain_loop(a, b, spec):
    """The textbook: atoms in turn, the whole Gram matrix from the original weights, until nothing changes."""
    permutations = identity_permutations(spec)
    while True:
        changed = False
        for atom in spec.atoms:
            others = {name: p for name, p in permutations.items() if name != atom}
            moved = apply_permutations(b, spec, others)
            gram = sum(
                a[name].movedim(axis, 0).flatten(1).double() @ moved[name].movedim(axis, 0).flatten(1).double().T
                for name, axis in spec.touched(atom)
                if a[name].ndim > 1
            ) + sum(
                torch.outer(a[name].double(), moved[name].double())
                for name, _ in spec.touched(atom)
                if a[name].ndim == 1
            )
            column = torch.from_numpy(linear_sum_assignment(gram.numpy(), maximize=True)[1])
            rows = torch.arange(len(gram))
            if gram[rows, column].sum() > gram[rows, permutations[atom]].sum() + 1e-6:
                permutations[atom], changed = column, True
        if not changed:
            return weight_objective(a, apply_permutations(b, spec, permutations), spec)


@pytest.mark.parametrize("spec", [PLAIN, residual_toy()], ids=["plain", "residual"])
def test_the_objective_is_that_of_a_plain_loop(spec, generator):
    for _ in range(5):
        a, b = normal(spec, generator), normal(spec, generator)
        match = match_weights(a, b, spec, start={})
        assert match.objective == pytest.approx(plain_loop(a, b, spec), rel=1e-6)
        found = apply_permutations(b, spec, match.permutations)
        assert match.objective == pytest.approx(weight_objective(a, found, spec), rel=1e-6)
        assert match.objective > match.initial


def test_the_relaxation_finds_a_larger_objective_on_a_residual_net(generator):
    spec = residual_toy()
    a, b = normal(spec, generator), normal(spec, generator)
    assert match_weights(a, b, spec, frank_wolfe=True).objective > 1.02 * match_weights(a, b, spec).objective


def test_equal_models_stay(generator):
    a = normal(PLAIN, generator)
    a["0.weight"][3] = a["0.weight"][5] = 0  # dead units tie
    a["2.weight"][:, 3] = a["2.weight"][:, 5] = 0
    a["0.bias"][3] = a["0.bias"][5] = 0
    match = match_weights(a, a, PLAIN)
    assert recovered(match.permutations, identity_permutations(PLAIN))
    assert match.sweeps == 1


def test_a_start_is_never_made_worse(generator):
    a, b = normal(PLAIN, generator), normal(PLAIN, generator)
    start = random_permutations(PLAIN, generator=generator)
    match = match_weights(a, b, PLAIN, start=start)
    begun = weight_objective(a, apply_permutations(b, PLAIN, start), PLAIN)
    assert match.initial == pytest.approx(begun)
    assert match.objective >= begun


def test_tied_tensors_and_buffers_count_once_or_not_at_all():
    shared = torch.ones(3, 2)
    state = {"a": shared, "b": shared, "mean": torch.ones(3)}
    axes = {"a": ("h", None), "b": ("h", None), "mean": ("h",)}
    spec = PermutationSpec.by_hand(state, axes, buffers=["mean"])
    assert weight_objective(state, state, spec) == 6


def test_half_precision_is_matched_as_single(generator):
    a = normal(PLAIN, generator)
    b, wanted = planted(a, PLAIN, generator, 0.1)
    a, b = ({name: value.bfloat16() for name, value in state.items()} for state in (a, b))
    assert recovered(match_weights(a, b, PLAIN).permutations, wanted)


def test_weights_that_are_not_finite_are_refused(generator):
    a, b = normal(PLAIN, generator), normal(PLAIN, generator)
    b["2.weight"][0, 0] = torch.nan
    with pytest.raises(InputError, match=r"state_b\['2.weight'\]: want finite values"):
        match_weights(a, b, PLAIN)


@pytest.mark.parametrize("look", [False, True])
@pytest.mark.parametrize("name", ["vgg16", "densenet", "resnet8"])
def test_remembered_gram_matrices_are_those_computed_anew(cases, name, look, generator):
    model = cases[name].make()
    derived = permutation_spec(model, cases[name].inputs())
    states = [normal(derived, generator) for _ in range(2)]
    (a, b), spec = packed(states, derived, [name for name in derived.layouts if name not in derived.buffers])
    found = []
    for kind in (Alignment, RememberingAlignment):
        alignment = kind(Structure(spec), a, b, identity_permutations(derived), 1e-4)
        if look:
            first_looks(alignment)
        assert ascend(alignment, max_sweeps=100)[1]
        found.append(alignment)
        moved = apply_permutations(b, spec, alignment.permutations)
        assert all(torch.equal(moved[key], alignment.b[key]) for key in moved)
    assert recovered(found[0].permutations, found[1].permutations)
    for atom, gram in found[1]._grams.items():
        anew = found[1]._gram(found[1].structure.places[atom])
        torch.testing.assert_close(gram, anew, rtol=1e-4, atol=1e-4)


def test_tensors_within_a_larger_storage_are_read_in_their_place(generator):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    spec = permutation_spec(model, torch.zeros(1, 3))
    own = normal(spec, torch.Generator().manual_seed(0))
    others = apply_permutations(own, spec, random_permutations(spec, generator=torch.Generator().manual_seed(1)))
    storage = torch.cat([torch.full((7,), torch.nan), *(tensor.flatten() for tensor in others.values())])
    parts = storage[7:].split([tensor.numel() for tensor in others.values()])
    views = {name: part.view(own[name].shape) for name, part in zip(others, parts, strict=True)}
    found = match_weights(own, views, spec)
    assert found.objective == pytest.approx(weight_objective(own, own, spec))
