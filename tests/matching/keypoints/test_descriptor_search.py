"""Nearest descriptors against all distances: in blocks, compiled and by torch, and when keypoints are added."""

import numpy as np
import pytest
import torch

from diffmatch.matching.keypoints import Keypoints
from diffmatch.matching.keypoints import descriptor_search as search
from diffmatch.matching.keypoints.descriptor_search import extend_nearest, nearest_descriptors
from diffmatch.matching.keypoints.row_kernels import update_nearest


def keypoints(n, seed, *, dtype=torch.float32, mask=None):
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.nn.functional.normalize(torch.randn(n, 16, generator=generator, dtype=torch.float64), dim=1)
    if mask is not None:
        descriptors[~mask] = torch.nan
    positions = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 500
    return Keypoints.of(positions.to(dtype), descriptors.to(dtype), image_size=(500, 500), mask=mask)


@pytest.fixture(params=["compiled", "torch"])
def small_blocks(request, monkeypatch):
    """Blocks so small that there are many, by the kernel and by torch."""
    monkeypatch.setattr(search, "_CPU_ROWS", 7)
    monkeypatch.setattr(search, "_CPU_COLUMNS", 33)
    monkeypatch.setattr(search, "_CHUNK", 200)
    if request.param == "torch":
        monkeypatch.setattr(search, "_COMPILED", ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("small_blocks")
def test_the_nearest_of_all(dtype):
    a, b = keypoints(30, 0, dtype=dtype), keypoints(100, 1, dtype=dtype)
    near = nearest_descriptors(a, b, k=5)
    distance = torch.cdist(a.descriptors, b.descriptors)
    torch.testing.assert_close(near.distance, distance.sort(dim=1).values[:, :5], atol=1e-3, rtol=0)
    assert torch.equal(near.index, distance.argsort(dim=1)[:, :5])
    assert torch.equal(near.back, distance.argmin(dim=0))
    torch.testing.assert_close(near.back_distance, distance.amin(dim=0), atol=1e-3, rtol=0)


@pytest.mark.usefixtures("small_blocks")
def test_padding_is_never_near():
    real = torch.arange(60) % 3 > 0
    a, b = keypoints(60, 0, mask=real), keypoints(60, 1, mask=real)
    near = nearest_descriptors(a, b, k=4)
    assert real[near.index[real]].all()
    assert real[near.back[real]].all()
    alone = nearest_descriptors(a.select(real), b.select(real), k=4)
    torch.testing.assert_close(near.distance[real], alone.distance)


@pytest.mark.usefixtures("small_blocks")
def test_added_keypoints_meet_those_that_were_there():
    a, b = keypoints(80, 0), keypoints(90, 1)
    known = nearest_descriptors(a.select(torch.arange(30)), b.select(torch.arange(40)), k=3)
    near = extend_nearest(known, a, b, among_new=False)
    distance = torch.cdist(a.descriptors, b.descriptors)
    everything = extend_nearest(known, a, b)
    assert torch.equal(everything.index, distance.argsort(dim=1)[:, :3])
    assert torch.equal(everything.back, distance.argmin(dim=0))
    distance[30:, 40:] = torch.inf
    torch.testing.assert_close(near.distance, distance.sort(dim=1).values[:, :3], atol=1e-3, rtol=0)
    assert torch.equal(near.index, distance.argsort(dim=1)[:, :3])
    assert torch.equal(near.back, distance.argmin(dim=0))


def test_of_equal_numbers_the_first_stays():
    values, index = np.full((1, 2), -np.inf), np.zeros((1, 2), np.int32)
    best, back = np.full(40, -np.inf), np.zeros(40, np.int32)
    update_nearest(np.zeros((1, 40)), 0, 0, values, index, best, back)
    update_nearest(np.zeros((1, 40)), 0, 0, values, index, best, back)
    assert index.tolist() == [[0, 1]]
    assert not back.any()
