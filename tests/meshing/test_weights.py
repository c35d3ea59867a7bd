"""Activations of the weights, and the order of the public implementation."""

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing.case_tables import cell_geometry
from diffmatch.meshing.weights import (
    corner_weight,
    from_public_order,
    split_weight,
    to_public_order,
)

# Edges of the public implementation as pairs of corner positions (x, y, z), in its order: around the low-y face, around
# the high-y face, then the four along y.
PUBLIC_EDGES = [
    ((0, 0, 0), (1, 0, 0)), ((1, 0, 0), (1, 0, 1)), ((0, 0, 1), (1, 0, 1)), ((0, 0, 0), (0, 0, 1)),
    ((0, 1, 0), (1, 1, 0)), ((1, 1, 0), (1, 1, 1)), ((0, 1, 1), (1, 1, 1)), ((0, 1, 0), (0, 1, 1)),
    ((0, 1, 0), (0, 0, 0)), ((1, 1, 0), (1, 0, 0)), ((1, 1, 1), (1, 0, 1)), ((0, 1, 1), (0, 0, 1)),
]  # fmt: skip


def test_corner_weight_is_one_plus_tanh(generator, device, dtype, tolerance):
    raw = torch.randn(1000, dtype=dtype, device=device, generator=generator)
    weight = corner_weight(raw, 0.99)
    torch.testing.assert_close(weight, 1 + 0.99 * raw.tanh(), **tolerance(dtype))
    assert weight.dtype == dtype
    assert corner_weight(torch.zeros(3), 0.99).tolist() == [1, 1, 1]


def test_corner_weight_has_first_and_second_derivatives(generator, device):
    raw = torch.randn(9, dtype=torch.float64, device=device, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: corner_weight(x, 0.9), raw)
    assert torch.autograd.gradgradcheck(lambda x: corner_weight(x, 0.9), raw)


def test_weights_stay_positive_and_bounded():
    raw = torch.tensor([-1e30, -100.0, 100.0, 1e30, -torch.inf, torch.inf])
    for scale in (0.5, 0.99):
        assert bool(((corner_weight(raw, scale) > 0) & (corner_weight(raw, scale) < 2)).all())
        assert bool(((split_weight(raw, scale) > 0) & (split_weight(raw, scale) < 1)).all())
    assert split_weight(torch.zeros(()), 0.99) == 0.5


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_order_survives_the_round_trip(batch, generator, device):
    weights = torch.randn(*batch, 5, 21, generator=generator, device=device)
    alpha, beta, gamma = from_public_order(weights)
    assert (alpha.shape, beta.shape, gamma.shape) == ((*batch, 5, 8), (*batch, 5, 12), (*batch, 5))
    assert torch.equal(to_public_order(alpha, beta, gamma), weights)


def test_each_edge_and_corner_finds_its_place():
    geometry = cell_geometry()
    alpha, beta, gamma = from_public_order(torch.arange(21.0)[None])
    for edge, number in enumerate(beta[0].long().tolist()):
        ends = {tuple(geometry.corner_offset[c].tolist()) for c in geometry.edge_corners[edge]}
        assert ends == set(PUBLIC_EDGES[number])
    assert alpha[0].tolist() == list(range(12, 20))
    assert gamma.tolist() == [20]


def test_order_passes_gradients():
    weights = torch.randn(2, 21, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(from_public_order, weights)
    assert torch.autograd.gradcheck(lambda w: to_public_order(*from_public_order(w)), weights)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("weights", lambda: from_public_order(torch.zeros(4, 20))),
        ("weights", lambda: from_public_order(torch.zeros(21))),
        ("alpha", lambda: to_public_order(torch.zeros(4, 7), torch.zeros(4, 12), torch.zeros(4))),
        ("beta", lambda: to_public_order(torch.zeros(4, 8), torch.zeros(3, 12), torch.zeros(4))),
        ("beta", lambda: to_public_order(torch.zeros(2, 4, 8), torch.zeros(4, 12), torch.zeros(2, 4))),
        ("gamma", lambda: to_public_order(torch.zeros(4, 8), torch.zeros(4, 12), torch.zeros(5))),
    ],
)
def test_shapes_are_checked(argument, call):
    with pytest.raises(InputError, match=rf"^{argument}: want shape"):
        call()
