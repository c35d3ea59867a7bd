"""Activation matching: planted permutations come back wherever units can be told apart, however the data are cut."""

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
    match_activations,
    permutation_spec,
    random_permutations,
)
from diffmatch.matching.weights.activations import record_activations

NET = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))
SPEC = PermutationSpec.by_hand(
    NET.state_dict(),
    {
        "0.weight": ("a", None),
        "0.bias": ("a",),
        "2.weight": ("b", "a"),
        "2.bias": ("b",),
        "4.weight": (None, "b"),
    },
)


def random_state(model, generator):
    """Weights that keep activations near one, positive running variances; tied tensors stay tied."""
    known, state = {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            value = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if "running" in name:
                value = value.abs() + 0.5
            elif tensor.ndim > 1:
                value = value / (tensor.numel() / len(tensor)) ** 0.5
            known[id(tensor)] = value if tensor.is_floating_point() else tensor.detach()
        state[name] = known[id(tensor)]
    return state


def batches(example, generator, n=6):
    if example.is_floating_point():
        shape = (16, *example.shape[1:])
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(n)]
    return [torch.randint(int(example.max()) + 1, (8, example.shape[1]), generator=generator) for _ in range(n)]


@pytest.mark.parametrize("name", ["mlp", "resnet8", "decoder, gqa", "grouped", "vit", "recurrent"])
def test_planted_permutations_come_back_in_every_architecture(cases, name, generator):
    model, example = cases[name].make(), cases[name].inputs()
    spec = permutation_spec(model, example)
    a = random_state(model, generator)
    permutations = random_permutations(spec, generator=generator)
    b = apply_permutations(a, spec, permutations)
    data = batches(example, generator)
    match = match_activations(model.double(), a, b, spec, data)
    assert match.converged
    # Units that are zero on all data may be mixed up; the others correlate perfectly.
    assert match.objective == pytest.approx(match_activations(model, a, a, spec, data).initial)
    if name not in ("resnet8", "grouped"):
        wanted = inverse_permutations(spec, permutations)
        assert all(torch.equal(match.permutations[atom], wanted[atom]) for atom in wanted)


def test_the_assignment_is_that_of_correlations_computed_at_once(generator):
    a, b = random_state(NET, generator), random_state(NET, generator)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    hidden = [(x @ s["0.weight"].T + s["0.bias"]).relu() for s in (a, b)]
    correlation = torch.corrcoef(torch.cat(hidden, 1).T)[:9, 9:].nan_to_num()
    wanted = linear_sum_assignment(correlation.numpy(), maximize=True)[1]
    match = match_activations(NET.double(), a, b, SPEC, [x])
    assert match.permutations["a"].tolist() == wanted.tolist()
    last = [(h @ s["2.weight"].T + s["2.bias"]).tanh() for h, s in zip(hidden, (a, b), strict=True)]
    other = torch.corrcoef(torch.cat(last, 1).T)[:8, 8:]
    rows, columns = linear_sum_assignment(other.numpy(), maximize=True)
    total = correlation[range(9), wanted].sum() + other[rows, columns].sum()
    assert match.objective == pytest.approx(float(total))


def test_raw_inner_products_minimise_the_squared_difference(generator):
    a, b = random_state(NET, generator), random_state(NET, generator)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    first, second = ((x @ s["0.weight"].T + s["0.bias"]).relu() for s in (a, b))
    cost = torch.cdist(first.T, second.T).square()
    wanted = linear_sum_assignment(cost.numpy())[1]
    assert match_activations(NET.double(), a, b, SPEC, [x], cost="inner").permutations["a"].tolist() == wanted.tolist()


@pytest.mark.parametrize(("cost", "mean"), [("correlation", 1e3), ("inner", 0.0)])
def test_how_the_data_are_cut_does_not_matter(cost, mean, generator):
    a, b = random_state(NET, generator), random_state(NET, generator)
    x = mean + torch.randn(
        60, 6, generator=generator, dtype=torch.float64
    )  # far from zero sums of squares would cancel
    targets = torch.zeros(60)
    whole = match_activations(NET.double(), a, b, SPEC, [x], cost=cost)
    parts = [(x[:7], targets[:7]), (x[7:8], targets[7:8]), (x[8:], targets[8:])]
    cut = match_activations(NET, a, b, SPEC, parts, cost=cost)
    assert cut.objective == pytest.approx(whole.objective, rel=1e-9)
    assert all(torch.equal(cut.permutations[atom], whole.permutations[atom]) for atom in SPEC.atoms)


def test_dead_units_and_equal_models_stay(generator):
    a = random_state(NET, generator)
    a["0.weight"][2:4], a["0.bias"][2:4] = 0, -1
    match = match_activations(NET.double(), a, a, SPEC, batches(torch.randn(1, 6), generator))
    assert all(torch.equal(match.permutations[atom], p) for atom, p in identity_permutations(SPEC).items())
    assert match.objective == match.initial == pytest.approx(9 - 2 + 8)


def test_atoms_that_no_activation_shows_keep_their_start(generator):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.linear = nn.Parameter(torch.ones(4)), nn.Linear(3, 5)

        def forward(self, x):
            return self.linear(x).relu().sum(-1) * (self.scale**2).sum()

    model = Scaled().double()
    spec = PermutationSpec.by_hand(
        model.state_dict(), {"scale": ("s",), "linear.weight": ("h", None), "linear.bias": ("h",)}
    )
    state, start = model.state_dict(), {"s": torch.tensor([1, 0, 3, 2])}
    moved = apply_permutations(state, spec, {"h": torch.tensor([4, 0, 1, 3, 2])})
    match = match_activations(model, state, moved, spec, [torch.randn(9, 3, dtype=torch.float64)], start=start)
    assert torch.equal(match.permutations["s"], start["s"])
    assert torch.equal(match.permutations["h"], torch.tensor([1, 2, 4, 3, 0]))  # seen where it is written


def test_positions_are_samples_and_sites_are_chosen():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3))
    spec = permutation_spec(net, torch.randn(1, 1, 4, 4))
    found = record_activations(net, net.state_dict(), torch.randn(5, 1, 4, 4), spec)
    shapes = {(site.parameter, site.reads): tuple(x.shape) for site, x in found.items()}
    assert shapes == {("0.weight", False): (4, 5 * 4), ("3.weight", True): (4, 5 * 4)}
    only = {site for site in found if site.reads}
    assert set(record_activations(net, net.state_dict(), torch.randn(5, 1, 4, 4), spec, only=only)) == only


def test_the_model_and_its_modes_stay_as_they_were(generator):
    model = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 2)).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spec = permutation_spec(model.float(), torch.randn(4, 6))
    a, b = random_state(model, generator), random_state(model, generator)
    match_activations(model.double(), a, b, spec, batches(torch.randn(1, 6), generator))
    assert model.training
    assert model[1].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.untyped
def test_bad_arguments_are_named(generator):
    a = random_state(NET, generator)
    model = NET.double()
    with pytest.raises(InputError, match="data: want at least one batch, got none"):
        match_activations(model, a, a, SPEC, [])
    with pytest.raises(InputError, match="did you mean 'correlation'"):
        match_activations(model, a, a, SPEC, [torch.zeros(1, 6)], cost="corelation")
    with pytest.raises(InputError, match="data: want finite activations, got NaN or infinity at"):
        match_activations(model, a, a, SPEC, [torch.full((2, 6), torch.nan, dtype=torch.float64)])
    with pytest.raises(InputError, match=r"state_b: .* no 4.weight"):
        match_activations(model, a, {k: v for k, v in a.items() if k != "4.weight"}, SPEC, [torch.zeros(1, 6)])
