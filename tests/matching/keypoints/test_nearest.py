"""Matches by descriptors against brute force; one-to-one; what the ratio test compares with."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.matching.keypoints import Keypoints, match_nearest
from diffmatch.matching.keypoints.nearest import one_to_one


def keypoints(n, seed=0, *, d=16, side=500.0, **changes):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(n, 2, generator=generator) * side
    descriptors = torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)
    return Keypoints.of(positions, descriptors, image_size=(int(side), int(side)), **changes)


def moved(k, order, noise=0.05):
    generator = torch.Generator().manual_seed(1)
    descriptors = k.descriptors[order]
    descriptors = descriptors + noise * torch.randn(descriptors.shape, generator=generator)
    return Keypoints.of(
        k.positions[order] + 5, torch.nn.functional.normalize(descriptors, dim=1), image_size=(500, 500), kind=k.kind
    )


def test_the_permutation_is_found(generator):
    a = keypoints(200)
    order = torch.randperm(200, generator=generator)
    pairs, scores = match_nearest(a, moved(a, order), ratio=0.8)
    assert len(pairs) > 190
    assert torch.equal(order[pairs[:, 1]], pairs[:, 0])
    assert ((scores > 0.2 - 1e-6) & (scores <= 1)).all()
    assert (scores.diff() <= 0).all()


@given(n=st.integers(1, 30), m=st.integers(1, 30), seed=st.integers(0, 99), ratio=st.sampled_from([0.7, 0.9, 1.0]))
def test_mutual_neighbours_with_a_ratio_by_brute_force(n, m, seed, ratio):
    a, b = keypoints(n, seed, d=3), keypoints(m, seed + 1000, d=3)
    distance = torch.cdist(a.descriptors.double(), b.descriptors.double())
    wanted = set()
    for i in range(n):
        first = int(distance[i].argmin())
        far = (b.positions - b.positions[first]).norm(dim=1) > 0
        second = distance[i][far].min() if far.any() else torch.tensor(2.0)
        if int(distance[:, first].argmin()) == i and distance[i, first] / second < ratio - 1e-6:
            wanted.add((i, first))
    pairs, _ = match_nearest(a, b, ratio=ratio, apart=0.0)
    assert wanted <= {tuple(p) for p in pairs.tolist()}
    assert len(pairs) <= len(wanted) + 1  # a quotient that is the ratio up to rounding


def test_the_same_place_again_is_no_rival():
    a = keypoints(50)
    b = moved(a, torch.arange(50), noise=0.01)
    twice = Keypoints.of(b.positions.repeat(2, 1), b.descriptors.repeat(2, 1), image_size=(500, 500))
    assert len(match_nearest(a, twice)[0]) == 50
    assert len(match_nearest(a, twice, apart=0.0)[0]) == 50
    elsewhere = Keypoints.of(torch.cat([b.positions, b.positions + 50]), twice.descriptors, image_size=(600, 600))
    assert len(match_nearest(a, elsewhere)[0]) == 0


def test_identical_images_match_themselves():
    a = keypoints(100)
    pairs, scores = match_nearest(a, a)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert len(pairs) == 100
    assert (scores > 0.99).all()


def test_padding_does_not_matter():
    a, b = keypoints(40), moved(keypoints(40), torch.arange(40))
    pairs, scores = match_nearest(a, b)
    hide = torch.arange(43) < 40
    padded = [
        Keypoints.of(
            torch.cat([k.positions, torch.full((3, 2), torch.nan)]),
            torch.cat([k.descriptors, torch.full((3, 16), torch.nan)]),
            image_size=(500, 500),
            mask=hide,
        )
        for k in (a, b)
    ]
    again, same = match_nearest(*padded)
    assert torch.equal(pairs, again)
    assert torch.allclose(scores, same, atol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0), (1, 1), (1, 2)])
def test_hardly_any_keypoints(n, m):
    pairs, scores = match_nearest(keypoints(n), keypoints(m, 1))
    assert pairs.shape == (len(scores), 2)
    assert pairs.dtype == torch.int64
    assert len(pairs) <= min(n, m)


@given(n=st.integers(0, 40), seed=st.integers(0, 99))
def test_one_to_one_is_greedy(n, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(n, 2, generator=generator) * 6 for _ in range(2))
    scores = torch.rand(n, generator=generator)
    wanted: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(min((a[i] - a[j]).norm(), (b[i] - b[j]).norm()) > 1 for j in wanted):
            wanted.append(i)
    assert one_to_one(a, b, scores).tolist() == wanted


@pytest.mark.untyped
def test_other_descriptors_are_refused():
    with pytest.raises(InputError, match="kind 'x' with 16"):
        match_nearest(keypoints(3, kind="x"), keypoints(3))
    with pytest.raises(InputError, match="with 16 numbers"):
        match_nearest(keypoints(3), keypoints(3, d=8))
    with pytest.raises(InputError, match="ratio"):
        match_nearest(keypoints(3), keypoints(3), ratio=0.0)
    batch = Keypoints.stack([keypoints(3)])
    with pytest.raises(InputError, match="without batch axes"):
        match_nearest(batch, batch)
