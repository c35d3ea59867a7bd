"""Losses of diagrams: values by hand, gradients, and fields that reach the Betti numbers they were asked for."""

import logging
import math

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.topology.cubical import cubical_persistence
from diffmatch.topology.diagram import Diagram, Persistence
from diffmatch.topology.losses import betti_loss, total_persistence
from diffmatch.topology.rips import rips_persistence


def field(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(births, deaths, essential=(), degree=0):
    births, deaths, essential = (torch.tensor(x, dtype=torch.float64) for x in (births, deaths, essential))
    index, ends = torch.arange(len(births)), torch.arange(len(essential))
    diagram = Diagram(degree, births, deaths, index, index, essential, ends)
    return Persistence((diagram,))


def test_total_persistence_adds_powers_of_lengths(generator):
    found = made([0.0, 1.0], [2.0, 1.5])
    assert float(total_persistence(found)) == 2.5
    assert float(total_persistence(found[0], power=2)) == 4.25
    points = torch.rand(15, 2, generator=generator)
    both = rips_persistence(points)
    assert torch.allclose(total_persistence(both), total_persistence(both[0]) + total_persistence(both[1]))
    assert float(total_persistence(both[0].select(slice(0, 0)))) == 0


def test_the_gradient_of_total_persistence_is_one_at_deaths_and_minus_one_at_births():
    values = field((6, 7)).requires_grad_()
    found = cubical_persistence(values, degrees=(1,))
    total_persistence(found).backward()
    expected = torch.zeros(42, dtype=torch.float64)
    expected.index_add_(0, found[1].death_index, torch.ones(len(found[1]), dtype=torch.float64))
    expected.index_add_(0, found[1].birth_index, -torch.ones(len(found[1]), dtype=torch.float64))
    assert values.grad is not None
    assert torch.equal(values.grad.flatten(), expected)


@pytest.mark.parametrize(
    ("wanted", "margin", "expected"),
    [
        (2, 0.0, 0.0),  # the essential class and the first bar are alive
        (1, 0.0, 1.0),  # the first bar goes: its end at 1 is the cheaper one
        (0, 0.0, 4.0),  # so does the essential class, born at -3
        (3, 0.0, 0.5),  # the third is opened: longer than the second, 0.5 too high
        (2, 0.75, 0.25 + 0.65),  # not far enough from the level: the third by 0.25, the second by 0.65
    ],
)
def test_betti_loss_by_hand(wanted, margin, expected):
    found = made([-2.0, -0.3, 0.5], [1.0, -0.1, 4.0], [-3.0])
    assert found.betti(0.0) == (2,)
    assert float(betti_loss(found, betti=(wanted,), margin=margin, other_end=0.0)) == pytest.approx(expected)


def test_the_other_end_of_a_bar_that_goes_is_pulled_along():
    found = made([-2.0, -0.3, 0.5], [1.0, -0.1, 4.0], [-3.0])
    alone, together = (float(betti_loss(found, betti=(1,), margin=0.25, other_end=w)) for w in (0.0, 0.1))
    assert together - alone == pytest.approx(0.1 * ((2 + 0.25) + (0.3 + 0.25)))  # the bar near the level goes, too
    assert float(betti_loss(found, betti=(2,), other_end=0.1)) == 0


def test_betti_loss_is_zero_exactly_where_the_numbers_are_right():
    for seed in range(20):
        found = cubical_persistence(field((5, 6), seed))
        b0, b1 = found.betti(0.1)
        assert float(betti_loss(found, betti=(b0, b1), level=0.1)) == 0
        assert float(betti_loss(found, betti=(b0 + 1, None), level=0.1)) > 0 or len(found[0]) < b0
        assert float(betti_loss(found, betti=(None, b1 + 1), level=0.1)) > 0 or len(found[1]) <= b1


@pytest.mark.parametrize("superlevel", [False, True])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_gradients(superlevel, power):
    values = field((5, 5)).requires_grad_()
    arguments = {"betti": (2, 1), "level": 0.05, "margin": 0.2, "power": power, "superlevel": superlevel}
    assert torch.autograd.gradcheck(lambda x: betti_loss(x, **arguments), values)
    assert torch.autograd.gradcheck(lambda x: total_persistence(cubical_persistence(x), power=power), values)


@pytest.mark.parametrize("superlevel", [False, True])
def test_a_superlevel_set_is_the_sublevel_set_of_the_negated_field(superlevel):
    values = field((7, 8))
    above = betti_loss(values, betti=(2, 1), level=0.1, superlevel=True)
    below = betti_loss(-values, betti=(2, 1), level=-0.1)
    assert torch.allclose(above, below)


@pytest.mark.parametrize("wanted", [(1, 0), (1, 1), (2, 0)])
def test_descent_reaches_the_wanted_betti_numbers(wanted):
    values = field((12, 13)).requires_grad_()
    optimizer = torch.optim.SGD([values], lr=0.1)
    for _ in range(80):
        loss = betti_loss(values, betti=wanted, margin=0.05)
        if loss.detach() == 0:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert cubical_persistence(values.detach()).betti(0.0) == wanted


def test_classes_that_no_bar_can_give_are_logged(caplog):
    caplog.set_level(logging.INFO)
    values = torch.zeros(4, 4, requires_grad=True)
    betti_loss(values, betti=(None, 2)).backward()
    assert "degree 1: 2 classes wanted, 0 bars to open" in caplog.text
    assert values.grad is not None
    assert not values.grad.any()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("betti", lambda x: betti_loss(x, betti=())),
        ("betti", lambda x: betti_loss(x, betti=(None,))),
        ("betti", lambda x: betti_loss(x, betti=(-1,))),
        ("degrees", lambda x: betti_loss(x, betti=(1, 1, 1))),
        ("margin", lambda x: betti_loss(x, betti=(1,), margin=-1.0)),
        ("other_end", lambda x: betti_loss(x, betti=(1,), other_end=-1.0)),
        ("power", lambda x: betti_loss(x, betti=(1,), power=0.5)),
        ("level", lambda x: betti_loss(x, betti=(1,), level=math.nan)),
        ("field", lambda x: betti_loss(x * math.nan, betti=(1,))),
        ("power", lambda x: total_persistence(cubical_persistence(x), power=0.5)),
        ("diagrams", lambda x: total_persistence(Persistence(()))),
    ],
)
def test_wrong_arguments_are_named(argument, call):
    with pytest.raises(InputError) as error:
        call(torch.rand(5, 6))
    assert error.value.argument == argument
