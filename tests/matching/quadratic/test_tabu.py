"""Tabu search against brute force, planted permutations and its own objective."""

import itertools

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.quadratic import tabu_search


def cost(a, b, p):
    return float((a * b[p][:, p]).sum())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_small_problems_are_solved_as_by_brute_force(n):
    generator = torch.Generator().manual_seed(n)
    a, b = torch.randn(2, 3, n, n, dtype=torch.float64, generator=generator)
    result = tabu_search(a, b, steps=200, generator=generator)
    for k in range(3):
        wanted = min(cost(a[k], b[k], list(p)) for p in itertools.permutations(range(n)))
        assert float(result.value[k]) == pytest.approx(wanted)
        assert cost(a[k], b[k], result.assignment[k]) == pytest.approx(wanted)


def test_a_planted_permutation_is_found_and_the_seed_fixes_the_result():
    generator = torch.Generator().manual_seed(0)
    b = torch.rand(20, 20, generator=generator)
    planted = torch.randperm(20, generator=generator)
    a = -b[planted][:, planted]  # <a, b_p> is least, -|b|^2, at the planted permutation alone
    first, second = (tabu_search(a, b, steps=2000, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.assignment, planted)
    assert torch.equal(first.assignment, second.assignment)
    assert first.value.dtype == a.dtype


def test_empty_problems_have_the_value_zero():
    result = tabu_search(torch.zeros(2, 0, 0), torch.zeros(2, 0, 0), steps=3)
    assert result.assignment.shape == (2, 0)
    assert result.value.tolist() == [0.0, 0.0]
    assert tabu_search(torch.zeros(0, 3, 3), torch.zeros(0, 3, 3)).assignment.shape == (0, 3)


@pytest.mark.untyped
def test_what_does_not_fit_is_refused():
    good = torch.rand(3, 3)
    with pytest.raises(InputError, match="a: want square"):
        tabu_search(torch.rand(2, 3), torch.rand(2, 3))
    with pytest.raises(InputError, match="b: want shape"):
        tabu_search(good, torch.rand(4, 4))
    with pytest.raises(InputError, match="a: want finite values, got 1 of 9"):
        tabu_search(torch.tensor([[float("nan"), 0, 0], [0, 0, 0], [0, 0, 0]]), good)
    with pytest.raises(InputError, match="b: want a real floating"):
        tabu_search(good, torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="restarts: want at least 1"):
        tabu_search(good, good, restarts=0)
