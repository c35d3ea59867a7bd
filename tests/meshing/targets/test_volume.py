import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing.shapes import box, sphere
from diffmatch.meshing.targets import Target, VolumeTarget
from diffmatch.meshing.volumes import Volume


def sampled(field, shape=(21, 21, 21), spacing=(0.1, 0.1, 0.1), origin=(-1.0, -1.0, -1.0), dtype=torch.float64):
    axes = [o + s * torch.arange(n, dtype=dtype) for o, s, n in zip(origin, spacing, shape, strict=True)]
    return Volume(field(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)), spacing, origin)


def test_nodes_are_met_and_linear_fields_are_exact(dtype, device, tolerance):
    def plane(points):
        return points @ points.new_tensor([1.0, -2.0, 0.5]) - 0.05

    volume = sampled(plane, (5, 6, 7), (0.2, 0.3, 0.1), (-0.4, -0.7, -0.3))
    target = VolumeTarget(volume)
    assert isinstance(target, Target)
    low = torch.tensor(volume.origin, dtype=torch.float64)
    high = low + torch.tensor(volume.spacing, dtype=torch.float64) * torch.tensor([4, 5, 6])
    own = low + (high - low) * torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own = own[plane(own) > -0.05]  # deeper, the walls of the grid may be nearer
    boxed = target.normalization.apply(own).to(device, dtype)
    expected = (plane(own) * target.normalization.scale).to(device, dtype)
    torch.testing.assert_close(target.sdf(boxed), expected, **tolerance(dtype, scale=10))


def test_the_box_is_put_around_the_solid():
    center = (0.2, -0.1, 0.0)
    target = VolumeTarget(sampled(lambda p: sphere(p, radius=0.5, center=center), (41,) * 3, (0.05,) * 3))
    assert target.normalization.center == pytest.approx(center, abs=1e-3)
    assert target.normalization.scale == pytest.approx(1.8, rel=5e-3)
    torch.testing.assert_close(target.bounds[1], torch.full((3,), 0.9, dtype=torch.float64), rtol=0, atol=5e-3)
    points = torch.rand(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    torch.testing.assert_close(target.sdf(points), sphere(points, radius=0.9), rtol=0, atol=0.02)


def test_a_grid_at_an_angle_holds_the_same_solid():
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    plain = sampled(lambda p: box(p, half=(0.6, 0.4, 0.3)))
    axes = tuple(tuple(row) for row in turn.tolist())
    origin = tuple((torch.tensor(plain.origin, dtype=torch.float64) @ turn).tolist())
    target = VolumeTarget(Volume(plain.values, plain.spacing, origin, axes))
    own = 0.8 * (2 * torch.rand(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) - 1)
    placed = target.normalization.apply(own @ turn)
    assert target.bounds.abs().max() < 0.9 + 1e-9
    inside = placed[box(own, half=(0.6, 0.4, 0.3)) < 0]
    assert ((inside > target.bounds[0]) & (inside < target.bounds[1])).all()
    reference = VolumeTarget(plain)
    expected = reference.sdf(reference.normalization.apply(own)) / reference.normalization.scale
    torch.testing.assert_close(target.sdf(placed) / target.normalization.scale, expected)


def test_gradients():
    target = VolumeTarget(sampled(lambda p: box(p, half=(0.5, 0.4, 0.3))))
    points = 1.6 * torch.rand(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.8
    values, gradient = target.value_and_gradient(points)
    torch.testing.assert_close(values, target.sdf(points))
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    numeric = [(target.sdf(points + s) - target.sdf(points - s)) / 2e-6 for s in step]
    torch.testing.assert_close(gradient, torch.stack(numeric, 1), rtol=1e-4, atol=1e-4)
    assert torch.autograd.gradcheck(target.sdf, points[:5].requires_grad_())


def test_outside_the_grid_the_field_grows_by_the_distance():
    target = VolumeTarget(sampled(lambda p: sphere(p, radius=0.5), dtype=torch.float32))
    wall = target.normalization.apply(torch.tensor([[1.0, 0.0, 0.0]]))
    beyond = wall + torch.tensor([[0.5, 0.0, 0.0]])
    torch.testing.assert_close(target.sdf(beyond), target.sdf(wall) + 0.5)


def test_a_solid_that_leaves_the_grid_is_cut_off():
    target = VolumeTarget(sampled(lambda p: sphere(p, radius=1.2)))
    own = torch.tensor([[1.001, 0, 0], [0.999, 0, 0], [0.9, 0, 0]], dtype=torch.float64)
    values = target.sdf(target.normalization.apply(own)) / target.normalization.scale
    torch.testing.assert_close(values, torch.tensor([0.001, -0.001, -0.1], dtype=torch.float64))
    assert target.normalization.center == pytest.approx((0, 0, 0), abs=1e-12)


def test_nothing_or_all_of_it_inside():
    shape = (4, 3, 2)
    for sign in (1, -1):
        target = VolumeTarget(Volume(torch.full(shape, float(sign))))
        assert target.normalization.scale == pytest.approx(1.8 / 3)
        assert (target.sdf(torch.zeros(1, 3)) * sign > 0).all()


def test_values_that_are_not_finite():
    values = torch.zeros(3, 3, 3)
    values[1, 1, 1] = float("nan")
    with pytest.raises(InputError, match="volume: want finite values, got 1 of 27"):
        VolumeTarget(Volume(values))


def angles(field, points, volume):
    """Degrees between the gradients of a volume and of the field that it holds."""
    target = VolumeTarget(volume)
    _, gradient = target.value_and_gradient(target.normalization.apply(points))
    with torch.enable_grad():
        own = points.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(field(own).sum(), own)
    return torch.rad2deg(torch.arccos(torch.cosine_similarity(gradient, wanted).clamp(-1, 1)))


def test_gradients_of_smooth_and_of_noisy_values_are_smooth(generator):
    def ball(points):
        return sphere(points, radius=0.7)

    exact = sampled(ball)
    noise = 0.01 * torch.randn(exact.values.shape, generator=generator, dtype=torch.float64)
    noisy = Volume(exact.values + noise, exact.spacing, exact.origin)
    points = torch.nn.functional.normalize(torch.randn(500, 3, generator=generator, dtype=torch.float64), dim=1) * 0.7
    assert angles(ball, points, exact).max() < 1  # up to 4 by the gradient of the trilinear values
    assert angles(ball, points, noisy).mean() < 5  # 9


def test_gradients_beside_sharp_edges_are_those_of_the_faces():
    def block(points):
        return box(points, half=(0.63, 0.55, 0.44))

    points = torch.tensor([[0.62, 0.0, 0.1], [0.35, 0.55, -0.15], [0.4, 0.3, 0.44]], dtype=torch.float64)
    assert angles(block, points, sampled(block)).max() < 1e-3


def test_gradients_at_the_ends_of_a_grid(dtype, device):
    values = torch.linspace(-1, 2, 4, dtype=dtype)[:, None, None] * torch.ones(1, 3, 2, dtype=dtype)
    target = VolumeTarget(Volume(values + 0.2 * values.square()))
    points = torch.tensor([[0.0, 0.0, 0.0], [3.0, 2.0, 1.0], [1.5, 1.0, 0.5]], device=device)
    value, gradient = target.value_and_gradient(target.normalization.apply(points).to(dtype))
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    assert value.dtype == gradient.dtype == dtype
