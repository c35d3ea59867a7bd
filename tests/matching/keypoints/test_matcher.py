import math

import pytest
import torch
from safetensors.torch import save_file

from diffmatch.errors import InputError
from diffmatch.matching.keypoints.candidates import Frames, Support, find_candidates
from diffmatch.matching.keypoints.evidence import affine_fit, describe_nodes, rival_shares
from diffmatch.matching.keypoints.matcher import Matcher, MatcherConfig, match_keypoints
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.weights import load_matcher, save_matcher, shipped_matcher

KIND = "rootsift"


def planted(
    count, generator, *, extra=0, turn=0.0, scale=1.0, noise=0.02, width=128, dtype=torch.float32
) -> tuple[Keypoints, Keypoints, torch.Tensor]:
    """Two images whose first keypoints match after a shuffle, and the partner of each in b; the others are noise."""

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def unit(rows):
        return torch.nn.functional.normalize(rows, dim=-1)

    total = count + extra
    cos, sin = math.cos(turn), math.sin(turn)
    rotation = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    positions, sizes, angles = 400 * draw(total, 2), 1 + 4 * draw(total), 2 * math.pi * draw(total)
    descriptors = unit(draw(total, width) ** 4)
    there = scale * positions @ rotation.T
    there[count:] = 400 * scale * draw(extra, 2)
    other = unit((descriptors + noise * draw(total, width)).clamp(min=0))
    other[count:] = unit(draw(extra, width) ** 4)
    order = torch.randperm(total, generator=generator)
    a = Keypoints.of(positions, descriptors, image_size=(400, 400), scale=sizes, orientation=angles, kind=KIND)
    b = Keypoints.of(
        there, other, image_size=(400, 400), scale=scale * sizes, orientation=angles + turn, kind=KIND
    ).select(order)
    return a.to(dtype=dtype), b.to(dtype=dtype), torch.argsort(order)[:count]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Matcher(MatcherConfig(candidates=4, neighbors=8, width=16, message_width=8)).eval()


def test_shipped_weights_find_a_planted_match(generator):
    a, b, partner = planted(150, generator, extra=50, turn=2.0, scale=1.5)
    pairs, scores = match_keypoints(a, b)
    right = partner[pairs[:, 0].clamp(max=149)] == pairs[:, 1]
    assert pairs.dtype == torch.int64
    assert len(pairs) >= 140
    assert float(right.float().mean()) > 0.97
    assert bool((scores > 0).all() and (scores <= 1).all())
    assert len(pairs[:, 0].unique()) == len(pairs[:, 1].unique()) == len(pairs)


def test_an_image_matches_itself(generator):
    a, _, _ = planted(120, generator)
    pairs, _ = match_keypoints(a, a)
    assert len(pairs) >= 115
    assert torch.equal(pairs[:, 0], pairs[:, 1])


def test_unrelated_images_hardly_match(generator):
    a, b, _ = planted(0, generator, extra=150)
    pairs, _ = match_keypoints(a, b)
    assert len(pairs) <= 5


@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 5), (5, 0), (1, 1), (1, 5)])
def test_few_keypoints_give_few_matches(m, n, generator, network):
    a, _, _ = planted(m, generator)
    b, _, _ = planted(n, generator)
    pairs, scores = match_keypoints(a, b, weights=network, threshold=0.0)
    assert pairs.shape == (len(scores), 2)
    assert pairs.dtype == torch.int64
    assert scores.dtype == torch.float32
    assert len(pairs) <= min(m, n)


def test_rows_count_the_padding(generator, network):
    a, b, _ = planted(30, generator)
    mask = torch.ones(30, dtype=torch.bool)
    mask[:4] = False
    masked = Keypoints(a.positions, a.scale, a.orientation, a.score, a.descriptors, mask, a.image_size, kind=KIND)
    pairs, scores = match_keypoints(masked, b, weights=network, threshold=0.0)
    alone, wanted = match_keypoints(a.select(mask), b, weights=network, threshold=0.0)
    assert torch.equal(pairs, alone + torch.tensor([4, 0]))
    torch.testing.assert_close(scores, wanted)


@pytest.mark.parametrize("early_exit", [False, True])
def test_a_padded_batch_is_its_images_one_by_one(early_exit, generator):
    sizes = ((80, 20), (45, 0), (60, 70))
    cases = [planted(count, generator, extra=extra, turn=0.3 * count) for count, extra in sizes]
    firsts, seconds = [a for a, _, _ in cases], [b for _, b, _ in cases]
    matcher = shipped_matcher()
    batch = matcher(dirty(Keypoints.stack(firsts)), dirty(Keypoints.stack(seconds)), early_exit=early_exit)
    for number, (a, b) in enumerate(zip(firsts, seconds, strict=True)):
        single = matcher(a, b, early_exit=early_exit)
        rows = batch.candidates.pair == number
        torch.testing.assert_close(batch.final[rows], single.final, rtol=1e-5, atol=1e-5)
        found, wanted = batch.assignment(number), single.assignment(0)
        torch.testing.assert_close(found.plan, wanted.plan, rtol=1e-5, atol=1e-5)
        assert torch.equal(found.matches(0.3)[0], wanted.matches(0.3)[0])


def dirty(batch):
    """The same batch with NaN in the padding."""
    changed = {}
    for name in ("positions", "scale", "orientation", "score", "descriptors"):
        tensor = getattr(batch, name)
        bad = ~batch.mask.reshape(*batch.mask.shape, *[1] * (tensor.ndim - 2))
        changed[name] = tensor.masked_fill(bad, torch.nan)
    return Keypoints(**changed, mask=batch.mask, image_size=batch.image_size, kind=batch.kind)


def test_logits_do_not_change_with_the_images_pose(generator, network):
    network.double()
    a, b, _ = planted(60, generator, extra=20, dtype=torch.float64)
    turned, _, _ = planted(1, generator, dtype=torch.float64)
    cos, sin = math.cos(1.3), math.sin(1.3)
    rotation = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    turned = Keypoints.of(
        2.5 * b.positions @ rotation.T + 40.0,
        b.descriptors,
        image_size=(900, 900),
        scale=2.5 * b.scale,
        orientation=b.orientation + 1.3,
        score=b.score,
        kind=KIND,
    )
    before, after = network(a, b), network(a, turned)
    assert torch.equal(before.candidates.a, after.candidates.a)
    torch.testing.assert_close(before.final, after.final)


def test_gradients_reach_the_descriptors(generator, network):
    a, b, _ = planted(40, generator)
    leaves = [x.descriptors.clone().requires_grad_() for x in (a, b)]
    a, b = (
        Keypoints.of(x.positions, leaf, image_size=(400, 400), scale=x.scale, orientation=x.orientation, kind=KIND)
        for x, leaf in zip((a, b), leaves, strict=True)
    )
    pairs, scores = match_keypoints(a, b, weights=network, threshold=0.0)
    scores.sum().backward()
    for side, leaf in enumerate(leaves):
        assert bool(leaf.grad.isfinite().all())
        assert bool((leaf.grad[pairs[:, side]].abs().sum(-1) > 0).all())


def test_what_describes_candidates_is_differentiable(generator):
    a, b, _ = planted(6, generator, width=8, noise=0.3, dtype=torch.float64)
    frames_a, frames_b = Frames.of([a]), Frames.of([b])
    candidates = find_candidates(frames_a, frames_b, k=3)

    def described(x, y):
        parts = [
            Frames(f.positions, f.log_scale, f.orientation, f.score, rows, f.spacing, f.counts)
            for f, rows in ((frames_a, x), (frames_b, y))
        ]
        return describe_nodes(*parts, candidates)

    inputs = (frames_a.descriptors.clone().requires_grad_(), frames_b.descriptors.clone().requires_grad_())
    assert torch.autograd.gradcheck(described, inputs)


def star(offsets, landed):
    """Support of one candidate by others at some offsets."""
    count = len(offsets)
    return Support(
        torch.arange(1, count + 1), torch.zeros(count, dtype=torch.int64), torch.zeros(count, 6), offsets, landed
    )


def test_the_fit_finds_a_planted_affine_map(generator):
    offsets = 5 * torch.randn(40, 2, generator=generator, dtype=torch.float64)
    linear = torch.tensor([[1.2, 0.3], [-0.1, 0.8]], dtype=torch.float64)
    shift = torch.tensor([0.7, -0.4], dtype=torch.float64)
    units, weight = torch.zeros(41, 2, dtype=torch.float64), torch.ones(40, dtype=torch.float64)
    fit = affine_fit(star(offsets, offsets @ linear.T + shift), weight, units, ridge=1e-9)
    assert float(fit[0, 1]) == pytest.approx(math.log(float(shift.norm()) + 0.01), abs=1e-2)
    assert float(fit[0, 5]) == pytest.approx(float((linear - torch.eye(2)).norm()), abs=1e-2)
    assert float(fit[0, 4]) == pytest.approx(math.log(1e-3), abs=0.2)
    assert not fit[1:].any()


def test_the_fit_is_differentiable(generator):
    offsets = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    landed = (offsets + 0.2 * torch.randn(5, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    weight = torch.rand(5, generator=generator, dtype=torch.float64).requires_grad_()
    units = torch.zeros(6, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w, y: affine_fit(star(offsets, y), w, units)[:1], (weight, landed))


def test_rivals_share_with_staying_alone(generator):
    a, b, _ = planted(7, generator)
    candidates = find_candidates(Frames.of([a]), Frames.of([b]), k=3)
    score = torch.randn(len(candidates.a), generator=generator)
    shares = rival_shares(score, candidates, (7, 7))
    for row in range(7):
        own = candidates.a == row
        held = torch.softmax(torch.cat((shares[own, 0], torch.zeros(1))), 0)[:-1]
        torch.testing.assert_close(shares[own, 1].exp(), held)


def test_the_assignment_has_its_marginals(generator, network):
    a, b, _ = planted(50, generator, extra=10)
    assignment = network(a, b).assignment(0, tol=1e-7, max_steps=3000)
    for rows, alone in ((assignment.a, assignment.alone_a), (assignment.b, assignment.alone_b)):
        total = alone.index_add(0, rows, assignment.plan)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-3, atol=1e-3)


def test_early_exit_leaves_the_second_round_out(generator):
    torch.manual_seed(0)
    a, b, _ = planted(40, generator)
    config = {"candidates": 4, "neighbors": 8, "width": 16, "message_width": 8}
    always, never = (Matcher(MatcherConfig(**config, decided=share)).eval() for share in (1.1, 0.0))
    never.load_state_dict(always.state_dict())
    assert len(always(a, b, early_exit=True).logits) == 2
    assert len(always(a, b).logits) == len(never(a, b, early_exit=True).logits) == 5


def test_another_kind_or_a_batch_is_refused(generator, network):
    a, b, _ = planted(5, generator)
    own = Keypoints.of(a.positions, a.descriptors, image_size=(9, 9))
    with pytest.raises(InputError, match="keypoints_a: want descriptors of kind 'rootsift', got 'own'"):
        match_keypoints(own, b, weights=network)
    with pytest.raises(InputError, match="keypoints of one image"):
        match_keypoints(Keypoints.stack([a]), Keypoints.stack([b]), weights=network)


def test_values_that_do_not_fit_are_refused(generator, network):
    a, b, _ = planted(5, generator)
    narrow, _, _ = planted(5, generator, width=64)
    with pytest.raises(InputError, match="keypoints_b: want descriptors of 128 numbers, as of keypoints_a, got 64"):
        match_keypoints(a, narrow, weights=network)
    a.positions[2, 0] = torch.nan
    with pytest.raises(InputError, match=r"keypoints_a.positions: want finite values, got 1 of 10"):
        match_keypoints(a, b, weights=network)


def test_weights_come_back_from_a_file(tmp_path, generator, network):
    save_matcher(tmp_path / "m.safetensors", network, card={"steps": 3})
    again, card = load_matcher(tmp_path / "m.safetensors")
    a, b, _ = planted(20, generator)
    assert card == {"steps": 3}
    assert again.config == network.config
    assert torch.equal(network(a, b).final, again(a, b).final)


def test_wrong_files_are_refused(tmp_path, network):
    with pytest.raises(InputError, match="which is not there"):
        load_matcher(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="weights: want a safetensors file"):
        load_matcher(tmp_path / "bad.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="holds something else"):
        load_matcher(tmp_path / "other.safetensors")


@pytest.mark.parametrize("settings", [{"width": 0}, {"candidates": 0}, {"layers": (1, 0)}])
def test_impossible_shapes_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        MatcherConfig(**settings)


def test_the_shipped_file_is_small_and_says_where_it_comes_from():
    from importlib.resources import files

    path = files("diffmatch.matching.keypoints") / "data" / "matcher_rootsift.safetensors"
    _, card = load_matcher(path)
    assert path.stat().st_size < 20e6
    assert {"images", "licence", "steps", "seconds", "validation"} <= card.keys()
