"""The range that the choice of a solver goes by: the compiled one against tensor operations, and the rule."""

import pytest
import torch

from diffmatch.matching.transport.costs import DenseCost
from diffmatch.matching.transport.levels import first_level
from diffmatch.matching.transport.problem import Problem


def problem(eps, batch):
    ones = torch.ones(batch, 1, dtype=torch.float64)
    strength = torch.full((batch,), eps, dtype=torch.float64)
    return Problem(ones, ones, strength, 0 * strength, 0 * strength)


@pytest.mark.parametrize("m", [0, 1, 15, 40])
def test_newton_starts_at_a_quarter_of_the_range_of_some_rows(m, generator):
    cost = torch.randn(4, m, 7, generator=generator, dtype=torch.float64)
    if m:
        cost[1, 0, 2] = torch.inf
        cost[2] = torch.inf
        cost[3] = 2.5
    rows = DenseCost(cost[:, :: max(1, m // 16)])
    assert torch.equal(first_level(DenseCost(cost), problem(1e-9, 4), "newton"), (rows.scale() / 4).clamp_min(1e-9))


def test_scaling_is_for_small_eps_only():
    cost = DenseCost(torch.tensor([[[0.0, 1.0]]], dtype=torch.float64))
    assert first_level(cost, problem(0.1, 1), "auto").tolist() == [0.1]
    assert first_level(cost, problem(0.001, 1), "auto").tolist() == [0.25]
    assert first_level(cost, problem(0.001, 1), "sweeps").tolist() == [0]
