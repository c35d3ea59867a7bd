import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.matching.keypoints import candidates as module
from diffmatch.matching.keypoints.candidates import Frames, find_candidates, find_support, nearest_pairs
from diffmatch.matching.keypoints.record import Keypoints


def unit_rows(count, width, generator, dtype=torch.float64):
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator, dtype=dtype), dim=-1)


def random_keypoints(count, generator, dtype=torch.float64):
    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(count, *shape, generator=generator, dtype=dtype)

    return Keypoints.of(
        uniform(0, 300, 2),
        unit_rows(count, 16, generator, dtype),
        image_size=(300, 300),
        scale=uniform(1, 6),
        orientation=uniform(-math.pi, math.pi),
        score=uniform(0.01, 0.1),
    )


def moved(keypoints, *, turn, scale, shift=(0.0, 0.0)):
    """The same keypoints after a similarity of the image."""
    cos, sin = math.cos(turn), math.sin(turn)
    rotation = torch.tensor([[cos, -sin], [sin, cos]], dtype=keypoints.positions.dtype)
    positions = scale * keypoints.positions @ rotation.T + torch.tensor(shift, dtype=keypoints.positions.dtype)
    return Keypoints.of(
        positions,
        keypoints.descriptors,
        image_size=(900, 900),
        scale=scale * keypoints.scale,
        orientation=keypoints.orientation + turn,
        score=keypoints.score,
    )


@given(m=st.integers(0, 12), n=st.integers(0, 12), k=st.integers(1, 14), seed=st.integers(0, 1000))
def test_nearest_pairs_are_those_of_brute_force(m, n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = unit_rows(m, 8, generator), unit_rows(n, 8, generator)
    pairs, ranks = nearest_pairs(a, b, k=k)
    similarity = (a @ b.T).tolist()
    wanted = {}
    for i in range(m):
        for j in range(n):
            rank_a = sum(similarity[i][other] > similarity[i][j] for other in range(n))
            rank_b = sum(similarity[other][j] > similarity[i][j] for other in range(m))
            if min(rank_a, rank_b) < k:
                wanted[i, j] = (min(rank_a, k), min(rank_b, k))
    found = dict(zip(map(tuple, pairs.T.tolist()), map(tuple, ranks.T.tolist()), strict=True))
    assert found == wanted
    assert list(found) == sorted(found)


def test_many_descriptors_are_compared_in_parts(monkeypatch, generator):
    a, b = unit_rows(23, 8, generator), unit_rows(17, 8, generator)
    whole = nearest_pairs(a, b, k=3)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 5)
    for x, y in zip(whole, nearest_pairs(a, b, k=3), strict=True):
        assert torch.equal(x, y)


def test_no_neighbour_is_refused(generator):
    a = unit_rows(3, 8, generator)
    with pytest.raises(InputError, match="k: want at least 1, got 0"):
        nearest_pairs(a, a, k=0)


def test_masked_rows_are_dropped_whatever_they_hold(generator):
    points = random_keypoints(20, generator)
    mask = torch.ones(20, dtype=torch.bool)
    mask[[3, 19]] = False
    dirty = {
        name: torch.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, torch.nan)
        for name in ("positions", "scale", "orientation", "score", "descriptors")
        for value in [getattr(points, name)]
    }
    clean, padded = points.select(mask), Keypoints(**dirty, mask=mask, image_size=points.image_size)
    for name in ("positions", "log_scale", "orientation", "score", "descriptors", "spacing"):
        assert torch.equal(getattr(Frames.of([clean]), name), getattr(Frames.of([padded]), name))


def graph(first, second, k=4, neighbors=6):
    a, b = Frames.of(first), Frames.of(second)
    candidates = find_candidates(a, b, k=k)
    seeds = (candidates.rank_a == 0) & (candidates.rank_b == 0)
    return a, b, candidates, find_support(a, b, candidates, seeds, neighbors=neighbors)


def test_candidates_of_a_batch_are_those_of_its_pairs(generator):
    first = [random_keypoints(count, generator) for count in (9, 0, 14)]
    second = [random_keypoints(count, generator) for count in (7, 5, 11)]
    _, _, packed, support = graph(first, second)
    start_a = start_b = begin = edges = 0
    for number, (x, y) in enumerate(zip(first, second, strict=True)):
        _, _, single, alone = graph([x], [y])
        rows = packed.pair == number
        assert packed.counts[number] == len(single.a)
        assert torch.equal(packed.a[rows] - start_a, single.a)
        assert torch.equal(packed.b[rows] - start_b, single.b)
        assert torch.equal(packed.rank_a[rows], single.rank_a)
        part = slice(edges, edges + len(alone.source))
        assert torch.equal(support.source[part] - begin, alone.source)
        torch.testing.assert_close(support.geometry[part], alone.geometry)
        start_a, start_b, begin = start_a + x.count, start_b + y.count, begin + len(single.a)
        edges += len(alone.source)
    assert edges == len(support.source)


def test_a_similarity_leaves_no_error(generator):
    points = random_keypoints(60, generator)
    _, _, candidates, support = graph([points], [moved(points, turn=2.0, scale=1.7, shift=(5.0, -3.0))])
    right = candidates.a == candidates.b
    edges = right[support.source] & right[support.target]
    assert int(edges.sum()) > 200
    torch.testing.assert_close(support.geometry[edges, :4], torch.zeros_like(support.geometry[edges, :4]))
    torch.testing.assert_close(support.offset_a[edges], support.offset_b[edges])


def test_support_does_not_change_with_the_images_pose(generator):
    a, b = random_keypoints(40, generator), random_keypoints(40, generator)
    _, _, _, before = graph([a], [b], neighbors=40)
    turned = [moved(a, turn=-0.7, scale=0.4)], [moved(b, turn=3.0, scale=2.5, shift=(100.0, 7.0))]
    _, _, _, after = graph(*turned, neighbors=40)
    assert len(before.source) > 20
    keys = [sorted(zip(s.source.tolist(), s.target.tolist(), strict=True)) for s in (before, after)]
    assert keys[0] == keys[1]
    order = [torch.argsort(s.source * 10_000 + s.target) for s in (before, after)]
    for name in ("geometry", "offset_a", "offset_b"):
        torch.testing.assert_close(getattr(before, name)[order[0]], getattr(after, name)[order[1]])


def test_the_kernel_finds_what_tensors_find(generator):
    points = random_keypoints(80, generator)
    a, b = Frames.of([points]), Frames.of([moved(points, turn=1.0, scale=1.2)])
    candidates = find_candidates(a, b, k=5)
    seeds = (candidates.rank_a == 0) | (candidates.rank_b == 1)
    near_a = module._nearest_seeds(a, candidates.a, candidates, seeds, 12)
    near_b = module._nearest_seeds(b, candidates.b, candidates, seeds, 12)
    found = [
        set(zip(*(x.tolist() for x in search(a, b, candidates, near_a, near_b, 1.0, 1.0)), strict=True))
        for search in (module._agreeing, module._agreeing_compiled)
    ]
    assert len(found[0]) > 300
    assert found[0] == found[1]


def test_only_seeds_support(generator):
    points = random_keypoints(50, generator)
    _, _, candidates, support = graph([points], [points])
    seeds = (candidates.rank_a == 0) & (candidates.rank_b == 0)
    assert bool(seeds[support.source].all())
    none = find_support(Frames.of([points]), Frames.of([points]), candidates, torch.zeros_like(seeds), neighbors=6)
    assert len(none.source) == 0
    assert none.geometry.shape == (0, 6)


def test_selected_support_is_numbered_anew(generator):
    points = random_keypoints(30, generator)
    _, _, candidates, support = graph([points], [points])
    keep = torch.rand(len(candidates.a), generator=generator) < 0.6
    part, rows = support.select(keep), keep.nonzero()[:, 0]
    wanted = [(int(s), int(t)) for s, t in zip(support.source, support.target, strict=True) if keep[s] and keep[t]]
    assert list(zip(rows[part.source].tolist(), rows[part.target].tolist(), strict=True)) == wanted
    assert len(candidates.select(keep).a) == int(keep.sum())
