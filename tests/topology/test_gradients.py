"""Sparse gradients made smooth."""

import math

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.topology.gradients import blurred_gradient, diffeomorphic_gradient


def sparse(n, d, rows):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(n, d, dtype=torch.float64, generator=generator)
    gradient = torch.zeros(n, d, dtype=torch.float64)
    gradient[rows] = torch.randn(len(rows), d, dtype=torch.float64, generator=generator)
    return points, gradient


def test_the_field_agrees_with_the_gradient_where_that_is_not_zero():
    points, gradient = sparse(40, 2, [3, 17, 30])
    field = diffeomorphic_gradient(points, gradient, bandwidth=0.1, ridge=1e-12)
    assert torch.allclose(field[[3, 17, 30]], gradient[[3, 17, 30]])
    assert (field != 0).any(1).all()  # the others come along


def test_one_point_carries_a_gaussian_field():
    points, gradient = sparse(5, 3, [2])
    at = points[2] + torch.tensor([[0.3, 0.0, 0.4]])
    field = diffeomorphic_gradient(points, gradient, bandwidth=0.5, ridge=1e-12, at=at)
    assert torch.allclose(field, gradient[2:3] * math.exp(-0.5))


def test_it_is_the_smallest_field_that_agrees():
    points, gradient = sparse(12, 2, [0, 1, 2])
    field = diffeomorphic_gradient(points, gradient, bandwidth=0.3, ridge=1e-12)
    kernel = torch.exp(-torch.cdist(points, points).square() / (2 * 0.3**2)) + 1e-9 * torch.eye(12)
    other = field.clone()
    other[5] += 0.01
    norms = [float((f * torch.linalg.solve(kernel, f)).sum()) for f in (field, other)]
    assert norms[0] < norms[1]


def test_the_blurred_gradient_keeps_the_slope():
    gradient = torch.zeros(20, 25, dtype=torch.float64)
    gradient[4, 5], gradient[12, 20] = 2.0, -1.0
    blurred = blurred_gradient(gradient, bandwidth=1.5)
    assert float((blurred * gradient).sum()) == pytest.approx(5)
    assert (blurred != 0).sum() > 200
    assert blurred[4, 6] / blurred[4, 5] == pytest.approx(math.exp(-0.5 / 1.5**2))


@pytest.mark.parametrize("shape", [(9,), (5, 6), (4, 5, 6)])
def test_nothing_moves_without_a_gradient(shape):
    assert not blurred_gradient(torch.zeros(shape), bandwidth=1.0).any()
    points = torch.rand(*shape[:1], 2)
    assert not diffeomorphic_gradient(points, torch.zeros_like(points), bandwidth=1.0).any()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("points", lambda x: diffeomorphic_gradient(x[0], x, bandwidth=1.0)),
        ("gradient", lambda x: diffeomorphic_gradient(x, x[:2], bandwidth=1.0)),
        ("gradient", lambda x: diffeomorphic_gradient(x, x * math.nan, bandwidth=1.0)),
        ("bandwidth", lambda x: diffeomorphic_gradient(x, x, bandwidth=0.0)),
        ("ridge", lambda x: diffeomorphic_gradient(x, x, bandwidth=1.0, ridge=0.0)),
        ("at", lambda x: diffeomorphic_gradient(x, x, bandwidth=1.0, at=x[:, :1])),
        ("gradient", lambda x: blurred_gradient(x.long(), bandwidth=1.0)),
        ("gradient", lambda x: blurred_gradient(torch.zeros(2, 2, 2, 2), bandwidth=1.0)),
        ("bandwidth", lambda x: blurred_gradient(x, bandwidth=-1.0)),
    ],
)
def test_wrong_arguments_are_named(argument, call):
    with pytest.raises(InputError) as error:
        call(torch.rand(5, 2))
    assert error.value.argument == argument
