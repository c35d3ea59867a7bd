"""The record of keypoints: checks, selection, padded batches."""

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.keypoints import Keypoints


def some(generator, k, **changes):
    positions = torch.rand(k, 2, generator=generator)
    return Keypoints.of(positions, torch.rand(k, 8, generator=generator), image_size=(40, 30), **changes)


def test_what_is_not_given_is_filled_in(generator):
    made = some(generator, 5)
    assert made.scale.tolist() == made.score.tolist() == [1.0] * 5
    assert made.orientation.tolist() == [0.0] * 5
    assert made.mask.all()
    assert made.image_size.tolist() == [40, 30]
    assert (made.kind, made.count) == ("own", 5)


def test_a_batch_and_back(generator):
    images = [some(generator, k, kind="x") for k in (3, 0, 5)]
    batch = Keypoints.stack(images)
    assert batch.positions.shape == (3, 5, 2)
    assert batch.mask.sum(1).tolist() == [3, 0, 5]
    for one, other in zip(images, batch.unstack(), strict=True):
        assert torch.equal(one.positions, other.positions)
        assert torch.equal(one.descriptors, other.descriptors)
        assert other.kind == "x"


def test_selection_and_dtype(generator):
    made = some(generator, 5)
    assert torch.equal(made.select(torch.tensor([4, 0])).positions, made.positions[[4, 0]])
    assert made.select(made.positions[:, 0] > 2).count == 0
    double = made.to(dtype=torch.float64)
    assert double.descriptors.dtype == double.scale.dtype == torch.float64
    assert double.image_size.dtype == torch.int64


@pytest.mark.untyped
def test_what_does_not_fit_is_refused(generator):
    with pytest.raises(InputError, match="scale"):
        some(generator, 5, scale=torch.ones(4))
    with pytest.raises(InputError, match="positions"):
        Keypoints.of(torch.zeros(5, 3), torch.zeros(5, 8), image_size=(1, 1))
    with pytest.raises(InputError, match="floating"):
        Keypoints.of(torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, 8), image_size=(1, 1))
    with pytest.raises(InputError, match="booleans"):
        some(generator, 5, mask=torch.ones(5))
    with pytest.raises(InputError, match="at least one"):
        Keypoints.stack([])
    with pytest.raises(InputError, match="kind 'own'"):
        Keypoints.stack([some(generator, 2), some(generator, 2, kind="x")])
    with pytest.raises(InputError, match="one image"):
        Keypoints.stack([some(generator, 2)]).select(torch.tensor([0]))
