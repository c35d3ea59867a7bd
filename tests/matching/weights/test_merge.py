"""Whole merges: planted permutations, the choice among candidates, what is reported, what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffmatch.errors import InputError
from diffmatch.matching.weights import (
    apply_permutations,
    average_states,
    inverse_permutations,
    match_many,
    merge,
    permutation_spec,
    random_permutations,
)


def make(norm=False):
    layers = [nn.Linear(6, 24), nn.BatchNorm1d(24) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 4)).double()


def samples(seed=0, n=300):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (x[:, :4] + x[:, 1:5]).argmax(1)


def trained(seed, norm=False):
    torch.manual_seed(seed)
    model, (x, y) = make(norm), samples()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def plain():
    model = make()
    return model, permutation_spec(model, samples()[0]), [trained(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def normed():
    model = make(norm=True)
    return model, permutation_spec(model, samples()[0]), [trained(seed, norm=True) for seed in range(2)]


def loss_of(model, state, data):
    model.load_state_dict(state)
    with torch.no_grad():
        return float(F.cross_entropy(model.eval()(data[0]), data[1]))


def test_copies_that_were_shuffled_merge_to_the_model(plain):
    _, spec, (state, *_) = plain
    generator = torch.Generator().manual_seed(1)
    moved = [random_permutations(spec, generator=generator) for _ in range(2)]
    copies = [apply_permutations(state, spec, p) for p in moved]
    result = merge([state, *copies], spec)
    for name, tensor in result.state.items():
        torch.testing.assert_close(tensor, state[name])
    for found, planted in zip(result.permutations[1:], moved, strict=True):
        assert all(torch.equal(found[n], p) for n, p in inverse_permutations(spec, planted).items())
    assert all(torch.equal(p, torch.arange(len(p))) for p in result.permutations[0].values())
    assert result.barrier is None


def test_without_data_the_weights_decide(plain):
    _, spec, (a, b, _) = plain
    result = merge([a, b], spec)
    assert (result.method, result.repair, result.notes) == ("weights", "none", [])
    assert [(c.method, c.loss) for c in result.candidates] == [("weights", None)]
    aligned = apply_permutations(b, spec, result.permutations[1])
    wanted = average_states([a, aligned])
    assert all(torch.equal(result.state[name], wanted[name]) for name in wanted)
    identity = merge([a, b], spec, method="identity")
    assert identity.candidates[0].objective < result.candidates[0].objective
    assert torch.equal(identity.state["0.weight"], (a["0.weight"] + b["0.weight"]) / 2)


def test_with_data_the_smallest_loss_wins(plain):
    model, spec, (a, b, _) = plain
    data, lines = samples(), []
    result = merge([a, b], spec, model=model, data=[data], progress=lines.append, points=5)
    tried = {(c.method, c.repair): c.loss for c in result.candidates}
    methods = ["identity", "weights", "activations", "activations+weights"]
    first = min((key for key in tried if key[0] in methods), key=tried.get)
    methods += [f"{name}+straight-through" for name in dict.fromkeys(["activations", first[0]])]
    assert list(tried) == [(method, repair) for method in methods for repair in ("none", "repair")]
    assert tried[result.method, result.repair] == min(tried.values())
    assert loss_of(model, result.state, data) == pytest.approx(min(tried.values()))
    assert min(tried.values()) < 0.5 * tried["identity", "none"]
    assert "weight matching" in lines
    assert float(result.barrier.losses[2]) == pytest.approx(min(tried.values()))
    assert float(result.barrier.losses[0]) == pytest.approx(loss_of(model, a, data))
    assert result.barrier.lambdas.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_a_loss_without_gradient_chooses_but_does_not_refine(plain):
    model, spec, (a, b, _) = plain
    result = merge(
        [a, b], spec, model=model, data=[samples()], loss=lambda y, t: (y.argmax(1) != t).double().mean(), points=3
    )
    assert {c.method for c in result.candidates} == {"identity", "weights", "activations", "activations+weights"}


def test_batch_norm_is_reset(normed):
    model, spec, (a, _) = normed
    x, y = samples()
    b = {name: tensor.clone() for name, tensor in a.items()}
    for name, power in {"0.weight": 1, "0.bias": 1, "1.running_mean": 1, "1.running_var": 2}.items():
        b[name] *= 5.0**power  # the same function, but the mean of the variances is not that of the mean
    b = apply_permutations(b, spec, random_permutations(spec, generator=torch.Generator().manual_seed(3)))
    result = merge([a, b], spec, model=model, data=[(x, y)])
    tried = {(c.method, c.repair): c.loss for c in result.candidates}
    assert {repair for _, repair in tried} == {"none", "reset", "repair"}
    layer = F.linear(x, result.state["0.weight"], result.state["0.bias"])
    torch.testing.assert_close(result.state["1.running_mean"], layer.mean(0))
    torch.testing.assert_close(result.state["1.running_var"], layer.var(0))
    assert tried["weights", "reset"] < 1.2 * loss_of(model, a, (x, y)) < tried["weights", "none"]
    blind = merge([a, b], spec)
    assert "reset_batch_norm" in blind.notes[0]


@pytest.mark.parametrize("method", ["auto", "activations+weights", "straight-through"])
def test_several_models(plain, method):
    model, spec, states = plain
    data = samples()
    result = merge(states, spec, model=model, data=[data], repair="none", method=method)
    if method == "auto":
        both = match_many(states, spec)
        assert result.candidates[1].objective == pytest.approx(both.objective)
    else:
        assert [c.method for c in result.candidates] == [method]
    aligned = [apply_permutations(s, spec, p) for s, p in zip(states, result.permutations, strict=True)]
    wanted = average_states(aligned)
    for name in wanted:
        torch.testing.assert_close(result.state[name], wanted[name])
    own = sum(loss_of(model, state, data) for state in states) / 3
    assert result.barrier.barrier == pytest.approx(loss_of(model, result.state, data) - own)


def test_given_permutations_and_weights(plain):
    _, spec, (a, b, _) = plain
    p = random_permutations(spec, generator=torch.Generator().manual_seed(2))
    result = merge([a, b], spec, permutations=[{}, p], weights=[0.25, 0.75])
    wanted = average_states([a, apply_permutations(b, spec, p)], weights=[0.25, 0.75])
    assert all(torch.equal(result.state[name], wanted[name]) for name in wanted)
    assert result.method == "given"
    assert all(torch.equal(result.permutations[1][name], p[name]) for name in p)


def test_any_loss_and_labels_of_any_kind(plain):
    model, spec, (a, b, _) = plain
    x, _ = samples()
    result = merge(
        [a, b], spec, model=model, data=[(x, x[:, :4])], loss=F.mse_loss, method="weights", repair="none", points=3
    )
    assert len(result.candidates) == 1
    model.load_state_dict(result.state)
    assert result.candidates[0].loss == pytest.approx(float(F.mse_loss(model.eval()(x).detach(), x[:, :4])))


def test_given_states_and_model_are_not_changed(normed):
    model, spec, states = normed
    before = [{n: t.clone() for n, t in s.items()} for s in [*states, model.state_dict()]]
    merge(states, spec, model=model.train(), data=[samples()])
    assert model.training
    for state, old in zip([*states, model.state_dict()], before, strict=True):
        assert all(torch.equal(state[n], old[n]) for n in old)


def test_what_is_missing_is_named(plain):
    model, spec, (a, b, _) = plain
    data = [samples()]
    with pytest.raises(InputError, match="two states or more"):
        merge([a], spec)
    with pytest.raises(InputError, match=r"no 0\.weight in state 1"):
        merge([a, {n: t for n, t in b.items() if n != "0.weight"}], spec)
    with pytest.raises(InputError, match="model: want the model that the data are for"):
        merge([a, b], spec, data=data)
    with pytest.raises(InputError, match="data: want batches to measure for repair='repair'"):
        merge([a, b], spec, model=model, repair="repair")
    with pytest.raises(InputError, match="data: want batches to run the models on"):
        merge([a, b], spec, model=model, method="activations")
    with pytest.raises(InputError, match="permutations: want 2 dicts"):
        merge([a, b], spec, permutations=[{}])
    with pytest.raises(InputError, match="sum to 1"):
        merge([a, b], spec, weights=[1.0, 1.0])
    with pytest.raises(InputError, match="did you mean 'weights'"):
        merge([a, b], spec, method="weight")
    with pytest.raises(InputError, match=r"states\[0\]: want the entries and shapes of the model"):
        merge([a, b], spec, model=make(norm=True), data=data)
    broken = {**b, "0.weight": b["0.weight"] * float("nan")}
    with pytest.raises(InputError, match="NaN"):
        merge([a, broken], spec)


@pytest.mark.untyped
def test_unknown_repair_is_named(plain):
    _, spec, (a, b, _) = plain
    with pytest.raises(InputError, match="did you mean 'reset'"):
        merge([a, b], spec, repair="resets")
