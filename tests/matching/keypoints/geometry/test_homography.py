"""Homographies and epipolar geometry by weighted linear fits: planted answers, gradients, degenerate points."""

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.keypoints.geometry import (
    apply_homography,
    corner_error,
    fundamental_8point,
    homography_dlt,
    sampson_distance,
    smallest_eigenvector,
    symmetric_epipolar_distance,
)

TRUE = torch.tensor([[1.1, 0.1, 20.0], [-0.2, 0.9, 10.0], [1e-4, 2e-4, 1.0]], dtype=torch.float64)


def points(generator, *shape):
    return torch.rand(*shape, 2, generator=generator, dtype=torch.float64, device=generator.device) * 500


def two_cameras(generator, n, *, planar=False):
    """Pixels of points in space in two cameras, and the fundamental matrix."""
    skew = torch.tensor([[0.0, -0.1, 0.2], [0.1, 0.0, -0.05], [-0.2, 0.05, 0.0]], dtype=torch.float64)
    rotation, shift = torch.linalg.matrix_exp(skew), torch.tensor([1.0, 0.2, 0.1], dtype=torch.float64)
    space = torch.rand(n, 3, generator=generator, dtype=torch.float64) * 4 - 2
    space[:, 2] = 6 + (0.3 * space[:, 0] if planar else space[:, 2])
    camera = torch.tensor([[500.0, 0.0, 300.0], [0.0, 500.0, 250.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    seen = [p @ camera.T for p in (space, space @ rotation.T + shift)]
    cross = torch.tensor([[0, -shift[2], shift[1]], [shift[2], 0, -shift[0]], [-shift[1], shift[0], 0]]).double()
    inverse = torch.linalg.inv(camera)
    true = inverse.T @ cross @ rotation @ inverse
    return *(p[:, :2] / p[:, 2:] for p in seen), true / true.norm()


def test_dlt_finds_the_planted_homography(generator, dtype):
    truth = TRUE.to(generator.device)
    a = points(generator, 3, 40)
    found = homography_dlt(a.to(dtype), apply_homography(truth.expand(3, 3, 3), a).to(dtype))
    assert found.dtype == dtype
    assert found.shape == (3, 3, 3)
    assert corner_error(found.double(), truth.expand(3, 3, 3), size=(500, 500)).max() < 0.01
    assert (found.double().norm(dim=(1, 2)) - 1).abs().max() < 1e-5


def test_a_match_of_weight_zero_may_be_nan_and_weights_are_repetitions(generator):
    a = points(generator, 12)
    b = apply_homography(TRUE, a) + torch.randn(12, 2, generator=generator, dtype=torch.float64)
    weights = torch.tensor([2.0, *[1.0] * 10, 0.0], dtype=torch.float64)
    hidden_a, hidden_b = a.clone(), b.clone()
    hidden_a[-1], hidden_b[-1] = torch.nan, torch.inf
    repeated = [torch.cat([p[:1], p[:-1]]) for p in (a, b)]
    assert torch.allclose(homography_dlt(hidden_a, hidden_b, weights=weights), homography_dlt(*repeated), atol=1e-9)


def test_gradients_of_the_corner_loss(generator):
    a = points(generator, 7)
    b = (apply_homography(TRUE, a) + torch.randn(7, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    weights = torch.rand(7, generator=generator, dtype=torch.float64).add(0.1).requires_grad_()

    def loss(b, weights):
        return corner_error(homography_dlt(a, b, weights=weights), TRUE, size=(500, 500))

    assert torch.autograd.gradcheck(loss, (b, weights), atol=1e-5)


@pytest.mark.parametrize("off_line", [1e-1, 1e-2])
def test_gradients_near_a_line(generator, off_line):
    """Points that almost lie on one line: the two smallest eigenvalues almost meet."""
    t = torch.linspace(0, 1, 8, dtype=torch.float64)
    noise = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    a = torch.stack([t, 2 * t], dim=1) + off_line * noise
    b = (apply_homography(TRUE, a) + 0.01 * noise.flip(0)).requires_grad_()
    fit = torch.autograd.functional.jacobian(lambda b: homography_dlt(a, b), b)
    step = 1e-7 * torch.randn(8, 2, generator=generator, dtype=torch.float64)
    numeric = homography_dlt(a, b + step) - homography_dlt(a, b - step)
    assert torch.allclose((fit * step).sum(dim=(-2, -1)) * 2, numeric, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("fit", [homography_dlt, fundamental_8point])
@pytest.mark.parametrize("kind", ["line", "point", "unweighted"])
def test_degenerate_points_give_finite_results_and_gradients(generator, fit, kind):
    a = points(generator, 9)
    if kind == "line":
        a = a[:, :1] * torch.tensor([1.0, 2.0], dtype=torch.float64)
    if kind == "point":
        a = torch.full_like(a, 3.0)
    b = a.clone().requires_grad_()
    weights = torch.zeros(9, dtype=torch.float64) if kind == "unweighted" else torch.ones(9, dtype=torch.float64)
    found = fit(a, b, weights=weights)
    assert torch.isfinite(found).all()
    (grad,) = torch.autograd.grad(found.square().sum() + found.sum(), b)
    assert torch.isfinite(grad).all()


def test_a_double_eigenvalue_has_a_finite_gradient():
    matrix = torch.diag(torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)).requires_grad_()
    (grad,) = torch.autograd.grad(smallest_eigenvector(matrix).sum(), matrix)
    assert torch.isfinite(grad).all()
    assert torch.equal(grad, grad.T)


def test_smallest_eigenvector_of_a_batch(generator):
    factor = torch.randn(4, 6, 6, generator=generator, dtype=torch.float64)
    matrix = (factor @ factor.mT).requires_grad_()
    vector = smallest_eigenvector(matrix)
    value = torch.linalg.eigvalsh(matrix)[:, 0]
    assert torch.allclose((matrix @ vector[..., None])[..., 0], value[:, None] * vector, atol=1e-8)
    assert torch.autograd.gradcheck(lambda m: smallest_eigenvector((m + m.mT) / 2), matrix)


def test_eight_points_find_the_planted_matrix(generator):
    a, b, true = two_cameras(generator, 20)
    found = fundamental_8point(a, b)
    assert torch.linalg.svdvals(found)[2] < 1e-12
    sign = torch.sign((found * true).sum())
    assert torch.allclose(found * sign, true, atol=1e-8)
    assert sampson_distance(found, a, b).max() < 1e-12
    assert symmetric_epipolar_distance(found, a, b).max() < 1e-6


@pytest.mark.parametrize("noise", [1.0, 0.1])
def test_gradients_of_the_eight_points(generator, noise):
    """With little noise the points in a plane come near to the case where the matrix is not unique."""
    a, b, _ = two_cameras(generator, 10, planar=noise < 1)
    b = (b + noise * torch.randn(10, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    weights = torch.ones(10, dtype=torch.float64, requires_grad=True)
    target_a, target_b, _ = two_cameras(generator, 12)

    def loss(b, weights):
        return sampson_distance(fundamental_8point(a, b, weights=weights), target_a, target_b).clamp_max(100).mean()

    assert torch.autograd.gradcheck(loss, (b, weights), eps=1e-5, atol=1e-3, rtol=1e-2)


def test_symmetric_distance_is_that_of_points_to_lines(generator):
    a, b, true = two_cameras(generator, 5)
    b = b + torch.randn(5, 2, generator=generator, dtype=torch.float64)
    homogeneous_a, homogeneous_b = (torch.cat([p, torch.ones(5, 1, dtype=torch.float64)], dim=1) for p in (a, b))
    lines_b, lines_a = homogeneous_a @ true.T, homogeneous_b @ true
    distance = [
        ((p * line).sum(1) / line[:, :2].norm(dim=1)).abs()
        for p, line in ((homogeneous_a, lines_a), (homogeneous_b, lines_b))
    ]
    assert torch.allclose(symmetric_epipolar_distance(true, a, b), (distance[0] + distance[1]) / 2)


@pytest.mark.untyped
def test_too_few_matches_and_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="at least 4 matches"):
        homography_dlt(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(InputError, match="at least 8 matches"):
        fundamental_8point(torch.zeros(7, 2), torch.zeros(7, 2))
    with pytest.raises(InputError, match="points_b"):
        homography_dlt(torch.zeros(5, 2), torch.zeros(4, 2))
    with pytest.raises(InputError, match="weights"):
        homography_dlt(torch.zeros(5, 2), torch.zeros(5, 2), weights=torch.ones(4))
    with pytest.raises(InputError, match="floating"):
        homography_dlt(torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, 2))
