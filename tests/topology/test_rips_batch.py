"""Batches of point clouds: the same as one by one, padding that does not matter, gradients, messages."""

import math

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.topology import rips_persistence, rips_persistence_batch

SIZES = (12, 0, 1, 9, 15)


@pytest.fixture
def clouds(generator):
    return torch.rand(len(SIZES), max(SIZES), 2, generator=generator, dtype=torch.float64)


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def same(ours, theirs):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(ours, theirs, strict=True)
        for name in ("births", "deaths", "birth_index", "death_index", "essential_births", "essential_index")
    )


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", ["plain", "weights", "vertex_values", "precomputed"])
def test_each_cloud_has_the_diagrams_that_it_has_alone(clouds, kind):
    counts = torch.tensor(SIZES)
    data = torch.cdist(clouds, clouds) if kind == "precomputed" else clouds
    if kind == "precomputed":
        data = (data + data.mT) / 2
        data.diagonal(dim1=1, dim2=2).zero_()
    values = {kind: clouds[..., 0]} if kind in ("weights", "vertex_values") else {}
    options = {"metric": "precomputed"} if kind == "precomputed" else {}
    padded = data.clone()
    for row, size in zip(padded, SIZES, strict=True):
        row[size:] = math.nan
        if kind == "precomputed":
            row[:, size:] = math.nan
    found = rips_persistence_batch(padded, counts=counts, **values, **options)
    for i, (own, size) in enumerate(zip(found, SIZES, strict=True)):
        cut = data[i, :size, :size] if kind == "precomputed" else data[i, :size]
        assert same(own, rips_persistence(cut, **{k: v[i, :size] for k, v in values.items()}, **options))


def test_without_counts_all_points_are_there(clouds):
    found = rips_persistence_batch(clouds, degrees=(1,), threshold=0.4, min_persistence=0.01)
    assert all(
        same(own, rips_persistence(cloud, degrees=(1,), threshold=0.4, min_persistence=0.01))
        for own, cloud in zip(found, clouds, strict=True)
    )
    assert rips_persistence_batch(clouds[:0]) == []


def test_gradients_stay_in_their_clouds(clouds):
    sizes = (6, 0, 1, 5)
    points, counts = clouds[:4, :6].clone().requires_grad_(), torch.tensor(sizes)

    def loss(x):
        found = rips_persistence_batch(x, counts=counts)
        return torch.stack([d.deaths.square().sum() - d.births.sum() for own in found for d in own]).sum()

    assert torch.autograd.gradcheck(loss, points)
    (slope,) = torch.autograd.grad(loss(points), points)
    assert all((row[size:] == 0).all() for row, size in zip(slope, sizes, strict=True))
    assert all(row.abs().sum() > 0 for row, size in zip(slope, sizes, strict=True) if size > 1)


@pytest.mark.untyped
def test_messages(clouds):
    cases = [
        ({"counts": torch.tensor(SIZES) + 1}, "counts: want integers from 0 to 15"),
        ({"counts": torch.ones(5)}, "counts: want integers from 0 to 15"),
        ({"counts": torch.tensor([1])}, r"counts: want shape \(5\)"),
        ({"weights": clouds[0, :, 0]}, r"weights: want shape \(5, 15\)"),
        ({"metric": "cosine"}, "metric"),
        ({"degrees": ()}, "degrees"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            rips_persistence_batch(clouds, **options)
    with pytest.raises(InputError, match="points"):
        rips_persistence_batch(clouds[0])
    with pytest.raises(InputError, match="points: want finite values"):
        rips_persistence_batch(clouds / 0)
