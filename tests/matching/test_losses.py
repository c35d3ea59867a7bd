"""Losses and scores of matchings: by hand, by gradcheck, with NaN in the padding."""

import math

import pytest
import torch
from torch.nn import functional

from diffmatch.errors import InputError
from diffmatch.matching.losses import (
    dustbin_cross_entropy,
    hamming_loss,
    info_nce,
    matching_cross_entropy,
    matching_scores,
    permutation_loss,
)

X = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]], dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)
PARTIAL = torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


def test_permutation_loss_is_binary_cross_entropy_of_the_known_rows():
    wanted = functional.binary_cross_entropy(X, EYE, reduction="sum") / 3
    torch.testing.assert_close(permutation_loss(X, EYE), wanted)
    rows = [0, 2]
    wanted = functional.binary_cross_entropy(X[rows], PARTIAL[rows], reduction="sum") / 2
    torch.testing.assert_close(permutation_loss(X, PARTIAL), wanted)
    assert permutation_loss(EYE, EYE) < 1e-6
    assert permutation_loss(EYE.flip(0), EYE).isfinite()
    assert permutation_loss(EYE.half(), EYE.half()).dtype == torch.float16


def test_hamming_loss_counts_differing_entries():
    swapped = EYE[[1, 0, 2]]
    assert hamming_loss(EYE, EYE) == 0
    assert hamming_loss(swapped, EYE) == pytest.approx(4 / 3)
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(hamming_loss(x, EYE), x)
    assert torch.equal(grad, (1 - 2 * EYE) / 3)


def test_cross_entropy_is_the_mean_over_true_pairs():
    log = X.log()
    assert matching_cross_entropy(log, EYE) == pytest.approx(-sum(math.log(p) for p in (0.7, 0.5, 0.6)) / 3)
    assert matching_cross_entropy(log, PARTIAL) == pytest.approx(-sum(math.log(p) for p in (0.7, 0.6)) / 2)
    assert matching_cross_entropy(torch.full_like(X, -torch.inf), torch.zeros_like(X)) == 0
    assert matching_cross_entropy(torch.full_like(X, -torch.inf), EYE) == torch.inf


def test_dustbin_cross_entropy_has_three_means():
    plan = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(3, 4) / 12  # two rows, three columns, and bins
    target = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    p = plan.tolist()
    wanted = -math.log(p[0][1]) - math.log(p[1][3]) - (math.log(p[2][0]) + math.log(p[2][2])) / 2
    assert dustbin_cross_entropy(plan.log(), target) == pytest.approx(wanted)


@pytest.mark.parametrize("loss", [permutation_loss, hamming_loss, matching_cross_entropy])
def test_padding_does_not_matter(loss):
    plan, target = torch.full((2, 4, 5), torch.nan, dtype=torch.float64), torch.full((2, 4, 5), torch.nan).double()
    plan[0, :3, :3], target[0, :3, :3] = X, EYE
    plan[1, :2, :3], target[1, :2, :3] = X[:2], EYE[:2]
    mask = (torch.arange(4) < torch.tensor([[3], [2]]), torch.arange(5) < torch.tensor([[3], [3]]))
    plan.requires_grad_()
    found = loss(plan, target, mask=mask)
    torch.testing.assert_close(found, torch.stack((loss(X, EYE), loss(X[:2], EYE[:2]))))
    (grad,) = torch.autograd.grad(found.sum(), plan)
    x = X.clone().requires_grad_()
    (alone,) = torch.autograd.grad(loss(x, EYE), x)
    torch.testing.assert_close(grad[0, :3, :3], alone)
    assert not grad[0, 3:].any()
    assert not grad[0, :, 3:].any()


def test_dustbins_ignore_padding():
    plan = torch.full((4, 4), torch.nan, dtype=torch.float64)
    target = torch.full((3, 3), torch.nan, dtype=torch.float64)
    target[:2, :2] = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    plan[:2, :2] = plan[:2, 3] = plan[3, :2] = 0.25
    mask = (torch.tensor([True, True, False]),) * 2
    assert dustbin_cross_entropy(plan.log(), target, mask=mask) == pytest.approx(3 * math.log(4))


@pytest.mark.parametrize("loss", [permutation_loss, hamming_loss, matching_cross_entropy])
def test_gradients(loss):
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, PARTIAL), (x,))


def test_info_nce_of_embeddings_that_belong_together():
    z = torch.eye(4, dtype=torch.float64)
    assert info_nce(z, 3 * z, temperature=0.01) < 1e-8
    assert info_nce(z, z.roll(1, 0), temperature=0.1) > 5
    same = torch.ones(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(info_nce(same, same), torch.full((2,), math.log(5), dtype=torch.float64))


def test_scores_by_hand():
    target = torch.tensor([0, 1, 2, -1, 4])
    scores = matching_scores(torch.tensor([0, 2, -1, 3, 4]), target)
    assert float(scores.accuracy) == pytest.approx(2 / 4)
    assert float(scores.precision) == pytest.approx(2 / 4)
    assert float(scores.f1) == pytest.approx(0.5)
    scores = matching_scores(torch.tensor([0, -1, -1, -1, -1]), target)
    assert [float(x) for x in (scores.accuracy, scores.precision, scores.f1)] == pytest.approx([1 / 4, 1, 2 / 5])
    nothing = torch.full((2, 3), -1)
    assert matching_scores(nothing, nothing).f1.tolist() == [1, 1]
    known = torch.tensor([True, True, False, False, False])
    assert float(matching_scores(torch.tensor([0, 2, -1, 3, 4]), target, known=known).precision) == 0.5


@pytest.mark.untyped
def test_shapes_are_checked():
    with pytest.raises(InputError, match="target: want the shape of the plan"):
        hamming_loss(X, EYE[:2])
    with pytest.raises(InputError, match=r"log_plan: want shape \(\*b, 4, 4\)"):
        dustbin_cross_entropy(X, EYE)
    with pytest.raises(InputError, match="temperature: want a number > 0"):
        info_nce(X, X, temperature=0.0)
    with pytest.raises(InputError, match="target"):
        matching_scores(torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
