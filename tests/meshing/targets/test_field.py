import pytest
import torch
from torch import nn

from diffmatch.errors import InputError
from diffmatch.meshing.shapes import sphere
from diffmatch.meshing.targets import FieldTarget, Target


def ball(points):
    return sphere(points, radius=0.5)


class Network(nn.Module):
    """A ball of radius 1, with a parameter that a fit must not train."""

    def __init__(self):
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(1.0))

    def forward(self, points):
        assert points.dtype == self.radius.dtype
        return points.norm(dim=1, keepdim=True) - self.radius


def test_without_bounds_coordinates_stay(device, dtype, tolerance):
    target = FieldTarget(ball)
    assert isinstance(target, Target)
    points = torch.rand(20, 3, device=device).to(dtype)
    torch.testing.assert_close(target.sdf(points), ball(points), **tolerance(dtype))
    assert target.bounds.tolist() == [[-0.9] * 3, [0.9] * 3]
    assert target.sdf(points).dtype == dtype


def test_bounds_set_the_box_and_scale_the_distance():
    target = FieldTarget(ball, [[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]])
    assert target.normalization.scale == pytest.approx(1.8)
    points = torch.rand(50, 3, dtype=torch.float64)
    values, gradient = target.value_and_gradient(points)
    torch.testing.assert_close(values, sphere(points, radius=0.9))
    torch.testing.assert_close(gradient, points / points.norm(dim=1, keepdim=True))


def test_chunks_change_nothing():
    points = torch.rand(23, 3)
    sizes = []

    def field(p):
        sizes.append(len(p))
        return ball(p)

    target = FieldTarget(field, chunk=10)
    whole = FieldTarget(ball)
    assert torch.equal(target.sdf(points), whole.sdf(points))
    assert sizes == [10, 10, 3]
    for one, other in zip(target.value_and_gradient(points), whole.value_and_gradient(points), strict=True):
        assert torch.equal(one, other)


def test_a_network_is_used_in_its_own_dtype_and_not_trained():
    network = Network()
    points = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    target = FieldTarget(network, [[-1, -1, -1], [1, 1, 1]])
    target.value_and_gradient(points)
    values = target.sdf(points)
    values.sum().backward()
    assert values.dtype == torch.float64
    assert points.grad is not None
    assert not target.sdf(points.detach()).requires_grad
    doubled = FieldTarget(network.double(), [[-1, -1, -1], [1, 1, 1]])
    torch.testing.assert_close(doubled.sdf(points), 0.9 * (points.norm(dim=1) / 0.9 - 1))


def test_differentiable_in_the_points():
    points = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FieldTarget(ball, [[-2, -2, -2], [1, 1, 1]]).sdf, points)


def test_a_constant_field_and_no_points():
    target = FieldTarget(lambda p: p.new_ones(len(p)))
    values, gradient = target.value_and_gradient(torch.rand(4, 3))
    assert values.tolist() == [1] * 4
    assert gradient.abs().max() == 0
    assert target.sdf(torch.zeros(0, 3)).shape == (0,)
    assert target.value_and_gradient(torch.zeros(0, 3))[1].shape == (0, 3)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (lambda p: p, r"field: want values of shape \(4,\) or \(4, 1\), got shape \(4, 3\)"),
        (lambda p: p.sum(), r"got shape \(\)"),
        (lambda p: p.sum(1).tolist(), r"field: want a tensor of shape \(4,\) or \(4, 1\), got list"),
        (lambda p: p.sum(1) > 0, "field: want floating-point values, got torch.bool"),
        (lambda p: p[:, 0].log(), r"field: want finite values, got 1 of 4 NaN or infinite, as at \(0, 2, 0\)"),
        (lambda p: p[:, 0] * float("nan"), "got 4 of 4 NaN"),
    ],
)
def test_bad_output_is_named(field, message):
    points = torch.tensor([[1.0, 0, 0], [0, 2, 0], [3, 0, 0], [1, 1, 1]])
    with pytest.raises(InputError, match=message):
        FieldTarget(field).sdf(points)
    with pytest.raises(InputError, match=message):
        FieldTarget(field).value_and_gradient(points)


def test_a_gradient_that_is_not_finite_is_named():
    with pytest.raises(InputError, match="field: want a finite gradient, got 1 of 2"):
        FieldTarget(lambda p: p[:, 0].sqrt()).value_and_gradient(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))


@pytest.mark.untyped
def test_bad_arguments_are_named():
    with pytest.raises(InputError, match=r"field: want a callable of points \(n, 3\), got int"):
        FieldTarget(3)
    with pytest.raises(InputError, match="chunk: want a number of points >= 1, got 0"):
        FieldTarget(ball, chunk=0)
    with pytest.raises(InputError, match=r"bounds: want shape \(2, 3\), got \(2, 2\)"):
        FieldTarget(ball, [[0, 0], [1, 1]])
    with pytest.raises(InputError, match="bounds: want a low and a high corner"):
        FieldTarget(ball, "box")
