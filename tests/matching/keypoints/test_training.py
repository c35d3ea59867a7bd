import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.keypoints.matcher import Matcher, MatcherConfig, Scored
from diffmatch.matching.keypoints.scenes import Scenes, SceneSettings
from diffmatch.matching.keypoints.synthetic import label_pairs
from diffmatch.matching.keypoints.training import TrainingSettings, matcher_loss, train_matcher, validate

pytest.importorskip("cv2")

SMALL = MatcherConfig(candidates=4, neighbors=10, width=16, message_width=12, layers=(1, 1))


@pytest.fixture(scope="module")
def scenes():
    settings = SceneSettings(views=2, max_keypoints=150, long_side=(200, 220), max_tilt=20.0, seed=3)
    made = Scenes.made(6, size=(220, 160), settings=settings)
    kept = [made.scene(number) for number in range(4)]
    made.scene = kept.__getitem__
    return made


def settings(**changes):
    small = {"steps": 16, "pairs": 2, "scenes": 3, "validation_scenes": 2, "validate_every": 8, "lr": 1e-2}
    return TrainingSettings(**{**small, "keypoints": (150, 150), **changes})


def network():
    torch.manual_seed(0)
    return Matcher(SMALL)


def test_training_lowers_the_loss_and_finds_matches(scenes):
    matcher, seen = network(), []
    before = validate(matcher, scenes, 2)
    history = train_matcher(
        matcher, scenes, scenes, settings=settings(), progress=False, on_validation=lambda *x: seen.append(x)
    )
    after = validate(matcher, scenes, 2)
    assert history.status == "completed"
    assert sum(history.loss[-5:]) < 0.8 * sum(history.loss[:5])
    assert set(history.terms) == {"layers", "assignment"}
    assert [step for step, _ in seen] == [8, 16]
    assert after.loss < before.loss
    assert after.correct > 5
    assert after.precision > 0.6
    assert 0 < after.found <= 1


def test_an_interrupted_training_goes_on_to_the_same_bits(scenes, tmp_path):
    whole, halves = network(), network()
    train_matcher(whole, scenes, scenes, settings=settings(steps=6), progress=False)
    options = {"settings": settings(steps=6), "progress": False, "checkpoint": tmp_path / "t"}
    assert train_matcher(halves, scenes, scenes, max_seconds=1e-6, **options).status == "timed out"
    halves = network()
    assert train_matcher(halves, scenes, scenes, **options).steps == 6
    for x, y in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(x, y)


def test_half_precision_trains(scenes):
    matcher = network()
    history = train_matcher(
        matcher, scenes, scenes, settings=settings(steps=3), autocast=torch.bfloat16, progress=False
    )
    assert history.status == "completed"
    exact = network()
    wanted = train_matcher(exact, scenes, scenes, settings=settings(steps=3), progress=False)
    assert history.loss[0] == pytest.approx(wanted.loss[0], rel=0.02)
    assert history.loss == pytest.approx(wanted.loss, rel=0.15)  # after steps in slightly different directions


def test_the_loss_is_lowest_for_the_truth(scenes):
    a, b = scenes.scene(0)
    with torch.no_grad():
        scored = network().score_pairs([a.keypoints], [b.keypoints])
    labels = label_pairs(a, b, torch.stack((scored.candidates.a, scored.candidates.b)))

    @torch.no_grad()
    def total(logits):
        layers = [(which, logits[which]) for which, _ in scored.logits]
        said = Scored(
            scored.candidates,
            layers,
            logits,
            torch.ones_like(scored.left),
            scored.bin_score,
            scored.counts_a,
            scored.counts_b,
        )
        return float(sum(matcher_loss(said, [(a, b)]).values()))

    truth = torch.where(labels == 1, 12.0, -12.0)
    unsure = torch.where(labels == -1, -truth, truth)
    assert int((labels == 1).sum()) > 20
    assert total(truth) < 0.6  # several right candidates of one keypoint share it
    assert total(torch.zeros_like(truth)) > total(truth) + 0.3
    assert total(-truth) > 5.0
    assert total(unsure) < total(truth) + 1.0  # logits of what cannot be judged count in the assignment only


def test_pairs_without_keypoints_have_a_loss(scenes):
    a, b = scenes.scene(0)
    empty = copy.copy(a)
    object.__setattr__(empty, "keypoints", a.keypoints.select(torch.zeros(0, dtype=torch.int64)))
    object.__setattr__(empty, "plane", a.plane[:0])
    matcher = network()
    terms = matcher_loss(matcher.score_pairs([empty.keypoints], [b.keypoints]), [(empty, b)])
    assert all(bool(term.isfinite()) for term in terms.values())


@pytest.mark.parametrize("changes", [{"steps": 0}, {"pairs": 0}, {"keypoints": (9, 3)}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        settings(**changes)


@pytest.mark.slow
def test_two_processes_stay_equal(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        """
import sys, torch
from pathlib import Path
from diffmatch.matching.keypoints.matcher import Matcher, MatcherConfig
from diffmatch.matching.keypoints.scenes import Scenes, SceneSettings
from diffmatch.matching.keypoints.synthetic import label_pairs
from diffmatch.matching.keypoints.training import TrainingSettings, train_matcher

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
made = SceneSettings(views=2, max_keypoints=80, long_side=(150, 170), max_tilt=10.0)
scenes = Scenes.made(4, size=(160, 120), settings=made)
torch.manual_seed(0)
matcher = Matcher(MatcherConfig(candidates=3, neighbors=6, width=8, message_width=8, layers=(1, 1)))
settings = TrainingSettings(steps=2, pairs=1, scenes=2, keypoints=(80, 80))
seen, scene = [], scenes.scene
scenes.scene = lambda number: (seen.append(number), scene(number))[1]
before = [p.detach().clone() for p in matcher.parameters()]
train_matcher(matcher, scenes, scenes, settings=settings, progress=False)
after = [p.detach() for p in matcher.parameters()]
rank = torch.distributed.get_rank()
torch.save({"pairs": seen, "before": before, "after": after}, Path(sys.argv[1]) / f"{rank}.pt")
torch.distributed.destroy_process_group()
"""
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["pairs"] != second["pairs"]
    for x, y, z in zip(first["after"], second["after"], first["before"], strict=True):
        assert torch.equal(x, y)
        assert x.numel() == 1 or not torch.equal(x, z)
