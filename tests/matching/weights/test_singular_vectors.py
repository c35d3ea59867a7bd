"""The singular vector statistics: closed forms, invariance, what weight matching does to them."""

import pytest
import torch
from torch import nn

from diffmatch.errors import InputError
from diffmatch.matching.weights import (
    apply_permutations,
    match_weights,
    permutation_spec,
    random_permutations,
    singular_alignment,
    singular_vector_agreement,
    spectrum_distance,
    weighted_agreement,
)


def rotation(n, generator):
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q


def weight(u, s, v):
    return u[:, : len(s)] @ torch.diag(s) @ v[:, : len(s)].T


def test_equal_and_opposite_weights(generator):
    a = torch.randn(6, 4, 3, 3, generator=generator)
    for gamma in (0.0, 0.3, 0.9):
        assert float(singular_vector_agreement(a, a, gamma=gamma)) == pytest.approx(1)
        assert float(singular_vector_agreement(a, -a, gamma=gamma)) == pytest.approx(-1)
    assert float(weighted_agreement(a, a)) == pytest.approx(1)
    assert float(weighted_agreement(a, 3 * a)) == pytest.approx(1)
    assert float(spectrum_distance(a, a)) == 0
    assert float(spectrum_distance(a, 3 * a)) == pytest.approx(1)
    assert singular_vector_agreement(a, a).dtype == torch.float64


def test_the_double_sum_of_the_definition(generator):
    a, b = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in "ab")
    (u, s, v), (y, t, z) = (torch.linalg.svd(x, full_matrices=False) for x in (a, b))
    top_a, top_b = ([i for i in range(5) if x[i] >= 0.5 * x[0]] for x in (s, t))
    total = sum((u[:, i] @ y[:, j]) * (v[i] @ z[j]) for i in top_a for j in top_b)
    wanted = float(total) / min(len(top_a), len(top_b))
    assert float(singular_vector_agreement(a, b, gamma=0.5)) == pytest.approx(wanted)
    by_values = sum(s[i] * t[j] * (u[:, i] @ y[:, j]) * (v[i] @ z[j]) for i in range(5) for j in range(5))
    assert float(weighted_agreement(a, b)) == pytest.approx(float(by_values / (s * t).sum()))


def test_only_the_leading_directions_count(generator):
    u, v = rotation(6, generator), rotation(6, generator)
    strong, weak = torch.tensor([5.0, 4.0]).double(), torch.tensor([0.5, 0.4]).double()
    a = weight(u, torch.cat([strong, weak]), v)
    b = weight(u, strong, v) + weight(u[:, 4:], weak, v[:, 4:])  # other weak directions
    assert float(singular_vector_agreement(a, b, gamma=0.3)) == pytest.approx(1)
    assert float(singular_vector_agreement(a, b, gamma=0.01)) == pytest.approx(0.5)
    assert float(weighted_agreement(a, b)) == pytest.approx(float((strong**2).sum() / ((strong**2).sum() + 0.41)))


def test_rotations_of_both_change_nothing_and_spectra_ignore_rotations(generator):
    a, b = (torch.randn(6, 8, generator=generator, dtype=torch.float64) for _ in "ab")
    p, q = rotation(6, generator), rotation(8, generator)
    for statistic in (singular_vector_agreement, weighted_agreement, spectrum_distance):
        assert float(statistic(p @ a @ q, p @ b @ q)) == pytest.approx(float(statistic(a, b)))
    assert float(spectrum_distance(a, p @ b @ q)) == pytest.approx(float(spectrum_distance(a, b)))
    assert abs(float(weighted_agreement(a, b))) <= 1


def test_zero_weights_have_defined_answers():
    a, zero = torch.eye(3), torch.zeros(3, 3)
    assert float(weighted_agreement(a, zero)) == 0
    assert float(spectrum_distance(zero, zero)) == 0
    assert float(spectrum_distance(a, zero)) == 2


def test_weight_matching_turns_the_directions_of_permuted_models_back(generator):
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    spec = permutation_spec(model, torch.randn(2, 10))
    a = {name: torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}
    b = apply_permutations(a, spec, random_permutations(spec, generator=generator))
    before = singular_alignment(a, b, spec)
    after = singular_alignment(a, apply_permutations(b, spec, match_weights(a, b, spec).permutations), spec)
    assert before.layers == ["0.weight", "2.weight", "4.weight"]
    torch.testing.assert_close(before.spectra, torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert before.mean_agreement < 0.5
    for found in (after.agreement, after.weighted):
        torch.testing.assert_close(found, torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert after.mean_agreement == pytest.approx(1)
    inner = sum(float((a[name] * b[name]).double().sum()) for name in before.layers)
    bound = sum(float(torch.linalg.svdvals(a[name].double()).square().sum()) for name in before.layers)
    assert before.mean_weighted == pytest.approx(inner / bound, abs=1e-6)


@pytest.mark.untyped
def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="a: want a weight of two axes or more"):
        weighted_agreement(torch.zeros(3), torch.zeros(3))
    with pytest.raises(InputError, match=r"b: want shape \(2, 3\), got \(3, 2\)"):
        spectrum_distance(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(InputError, match=r"gamma: want a number in \[0, 1\], got 1.5"):
        singular_vector_agreement(torch.eye(2), torch.eye(2), gamma=1.5)
