"""Critical sets: the pairs that they keep, and the steps that they save."""

import math

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.topology.critical_sets import critical_set_gradient
from diffmatch.topology.cubical import cubical_persistence
from diffmatch.topology.losses import betti_loss, total_persistence


def noise(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(9, 11), (5, 6, 4), (15,)])
def test_its_diagrams_are_those_of_the_grid(shape):
    values = noise(shape)
    seen = []
    critical_set_gradient(values, lambda p: seen.append(p) or total_persistence(p), step=1.0)
    if len(shape) == 1:
        assert len(seen[0]) == 1
        return
    for ours, theirs in zip(seen[0], cubical_persistence(values), strict=True):
        assert torch.allclose(ours.points(), theirs.points(), atol=0)
        assert torch.equal(ours.birth_index, theirs.birth_index)
        assert torch.equal(ours.essential_births, theirs.essential_births)


@pytest.mark.parametrize("shape", [(9, 11), (5, 6, 4)])
@pytest.mark.parametrize("end", ["births", "deaths"])
def test_an_end_reaches_its_new_value(shape, end):
    values = noise(shape)
    reached = total = 0
    for diagram in cubical_persistence(values):
        for bar in range(min(len(diagram), 6)):
            for share in (-0.4, 0.4):
                way = share * float(diagram.persistence[bar])
                field = values - critical_set_gradient(
                    values, lambda p, d=diagram.degree, b=bar, w=way: -w * getattr(p[d], end)[b], step=1.0
                )
                wanted = diagram.points()[bar].clone()
                wanted[0 if end == "births" else 1] += way
                found = cubical_persistence(field)[diagram.degree].points()
                reached += bool((found - wanted).abs().amax(1).min() < 1e-9)
                total += 1
    assert reached >= 0.95 * total


def test_one_step_does_what_plain_steps_do_not():
    values = noise((16, 16))

    def loss(found):
        return betti_loss(found, betti=(1, 0), margin=0.01)

    big = values - critical_set_gradient(values, loss, step=1.0)
    leaf = values.clone().requires_grad_()
    loss(cubical_persistence(leaf)).backward()
    assert leaf.grad is not None
    plain = values - leaf.grad
    start, after_big, after_plain = (float(loss(cubical_persistence(x))) for x in (values, big, plain))
    assert after_big < 0.5 * after_plain
    assert after_plain < start


def test_a_loss_of_the_essential_class_moves_its_pixel():
    values = noise((4, 5))
    found = critical_set_gradient(values, lambda p: p[0].essential_births.sum(), step=0.5)
    expected = torch.zeros(20, dtype=torch.float64)
    expected[values.argmin()] = 1
    assert torch.equal(found.flatten(), expected)


def test_constant_fields_and_losses_without_a_gradient_do_not_move():
    for values in (torch.zeros(4, 5), torch.rand(1, 1)):
        assert not critical_set_gradient(values, total_persistence, step=1.0).any()
    assert not critical_set_gradient(torch.rand(4, 5), lambda p: torch.zeros(()), step=1.0).any()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("field", lambda x: critical_set_gradient(x.long(), total_persistence, step=1.0)),
        ("field", lambda x: critical_set_gradient(x[0, 0], total_persistence, step=1.0)),
        ("field", lambda x: critical_set_gradient(x * math.inf, total_persistence, step=1.0)),
        ("step", lambda x: critical_set_gradient(x, total_persistence, step=0.0)),
        ("loss", lambda x: critical_set_gradient(x, lambda p: p[0].births, step=1.0)),
    ],
)
def test_wrong_arguments_are_named(argument, call):
    with pytest.raises(InputError) as error:
        call(torch.rand(5, 6))
    assert error.value.argument == argument
