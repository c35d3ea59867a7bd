"""The record of bars."""

import math

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.topology import Diagram, Persistence, cubical_persistence


def diagram(births: list[float], deaths: list[float], essential: list[float], degree: int = 0) -> Diagram:
    index = torch.arange(len(births))
    values = (torch.tensor(x, dtype=torch.float64) for x in (births, deaths, essential))
    births_, deaths_, essential_ = values
    return Diagram(degree, births_, deaths_, index, index + 10, essential_, torch.arange(len(essential)))


def test_views():
    d = diagram([0.0, 1.0, 2.0], [5.0, 3.0, 2.5], [-1.0])
    assert len(d) == 3
    assert d.persistence.tolist() == [5.0, 2.0, 0.5]
    assert d.points().tolist() == [[0.0, 5.0], [1.0, 3.0], [2.0, 2.5]]
    longer = d.filter(0.5)
    assert longer.birth_index.tolist() == [0, 1]
    assert longer.death_index.tolist() == [10, 11]
    assert longer.essential_births.tolist() == [-1.0]
    assert d.select(slice(1)).births.tolist() == [0.0]
    assert d.select(torch.tensor([2, 0])).births.tolist() == [2.0, 0.0]


def test_empty():
    d = diagram([], [], [])
    assert d.points().shape == (0, 2)
    assert len(d.filter(0.0)) == 0
    assert Persistence((d,)).betti(0.0) == (0,)


def test_by_degree():
    result = Persistence((diagram([0.0], [2.0], [0.0]), diagram([1.0], [3.0], [], degree=2)))
    assert result.degrees == (0, 2)
    assert len(result) == 2
    assert [d.degree for d in result] == [0, 2]
    assert result[2].deaths.tolist() == [3.0]
    assert result.betti(0.0) == (0, 0)  # a level at a birth is below it
    assert result.betti(1.5) == (2, 1)
    assert result.betti(2.0) == (2, 1)
    assert result.betti(math.inf) == (1, 0)
    with pytest.raises(InputError, match="degree: want one of 0, 2, as computed, got 1"):
        result[1]
    with pytest.raises(InputError, match="level: want a number, got nan"):
        result.betti(math.nan)


def test_superlevel_counts():
    result = Persistence((diagram([3.0], [1.0], [4.0]),), superlevel=True)
    assert [result.betti(level) for level in (4.0, 3.5, 2.0, 1.0, 0.5)] == [(0,), (1,), (2,), (2,), (1,)]


def test_gradients_and_detach():
    field = torch.tensor([[0.0, 2.0, 1.0]], requires_grad=True)
    d = cubical_persistence(field)[0]
    d.filter(0.5).persistence.sum().backward()
    assert field.grad.tolist() == [[0.0, 1.0, -1.0]]
    assert not d.detach().births.requires_grad
    assert not d.detach().essential_births.requires_grad


@pytest.mark.untyped
def test_filter_refuses():
    with pytest.raises(InputError, match="min_persistence: want a number >= 0, got -1"):
        diagram([], [], []).filter(-1)
