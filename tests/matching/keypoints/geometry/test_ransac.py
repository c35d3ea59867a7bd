"""Robust fits on tensors: planted models among wrong matches, batches, padding, gradients."""

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.keypoints.geometry import apply_homography, corner_error, ransac

TRUE = torch.tensor([[1.1, 0.1, 20.0], [-0.2, 0.9, 10.0], [1e-4, 2e-4, 1.0]], dtype=torch.float64)


def matches(generator, n, *, wrong, noise=0.5):
    a = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 600
    b = apply_homography(TRUE, a) + noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    bad = torch.arange(n) < wrong
    b[bad] = torch.rand(wrong, 2, generator=generator, dtype=torch.float64) * 600
    return a, b, ~bad


def test_half_wrong_matches(generator):
    a, b, good = matches(generator, 400, wrong=200)
    found = ransac(a, b, model="homography", generator=generator)
    assert corner_error(found.model, TRUE, size=(600, 600)) < 0.5
    assert (found.inliers & good).sum() >= 195
    assert (found.inliers & ~good).sum() <= 2
    assert found.count == found.inliers.sum()


def test_a_batch_with_padding_is_each_alone(generator):
    one, two = matches(generator, 120, wrong=30), matches(generator, 80, wrong=20)
    a, b = (
        torch.nn.utils.rnn.pad_sequence([one[i], two[i]], batch_first=True, padding_value=torch.nan) for i in (0, 1)
    )
    mask = torch.arange(120) < torch.tensor([[120], [80]])
    found = ransac(a, b, model="homography", mask=mask, generator=generator)
    assert found.model.shape == (2, 3, 3)
    assert corner_error(found.model, TRUE.expand(2, 3, 3), size=(600, 600)).max() < 1.5
    assert not found.inliers[1, 80:].any()
    assert (found.inliers[1, 20:80]).sum() >= 55


def test_fundamental_matrix_among_wrong_matches(generator):
    space = torch.rand(300, 3, generator=generator, dtype=torch.float64) * 4 - 2
    space[:, 2] += 6
    moved = space + torch.tensor([1.0, 0.3, 0.2], dtype=torch.float64)
    a, b = (p[:, :2] / p[:, 2:] * 500 + 300 for p in (space, moved))
    b = b + 0.2 * torch.randn(300, 2, generator=generator, dtype=torch.float64)
    b[:100] = torch.rand(100, 2, generator=generator, dtype=torch.float64) * 600
    found = ransac(a, b, model="fundamental", threshold=1.5, generator=generator)
    assert found.inliers[100:].sum() >= 195
    assert found.inliers[:100].sum() <= 12
    assert torch.linalg.svdvals(found.model)[2] < 1e-9


def test_the_last_fit_is_differentiable(generator):
    a, b, _ = matches(generator, 60, wrong=15)
    b.requires_grad_()
    found = ransac(a, b, model="homography", samples=256, generator=generator)
    (grad,) = torch.autograd.grad(corner_error(found.model, TRUE, size=(600, 600)), b)
    assert torch.isfinite(grad).all()
    assert (grad.norm(dim=1)[found.weights == 0] == 0).all()
    assert (grad.norm(dim=1)[found.weights > 0.1] > 0).all()


def test_equal_seeds_give_equal_bits(generator):
    a, b, _ = matches(generator, 100, wrong=50)
    runs = [ransac(a, b, model="homography", samples=128, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(runs[0].model, runs[1].model)


def test_scores_guide_the_samples(generator):
    """Four in five matches wrong, but known to be doubtful: few samples are enough."""
    a, b, good = matches(generator, 200, wrong=160)
    scores = torch.where(good, 1.0, 0.02).double()
    found = ransac(a, b, model="homography", samples=64, scores=scores, generator=generator)
    assert corner_error(found.model, TRUE, size=(600, 600)) < 2


def test_points_in_one_place_are_no_reason_to_stop(generator):
    a = torch.zeros(10, 2)
    found = ransac(a, a, model="homography", samples=16, generator=generator)
    assert torch.isfinite(found.model).all()


@pytest.mark.untyped
def test_bad_arguments_are_refused():
    a = torch.zeros(10, 2)
    with pytest.raises(InputError, match="at least 4"):
        ransac(a[:3], a[:3], model="homography")
    with pytest.raises(InputError, match="model"):
        ransac(a, a, model="homografy")
    with pytest.raises(InputError, match="threshold"):
        ransac(a, a, model="homography", threshold=0.0)
