"""`diffmatch train matcher`: a very short training from end to end, and what is refused before any work."""

import json

import pytest

from diffmatch.cli.train import train
from diffmatch.errors import InputError
from diffmatch.matching.keypoints.weights import load_matcher

cv2 = pytest.importorskip("cv2")


def run(*words):
    command, bound, _ = train.parse_args(["matcher", *map(str, words)], print_error=False, exit_on_error=False)
    command(*bound.args, **bound.kwargs)


def test_a_tiny_training_leaves_weights_and_a_log(tmp_path, capsys):
    out, card = tmp_path / "m.safetensors", tmp_path / "card.json"
    card.write_text(json.dumps({"images": "made"}))
    run("--preset", "tiny", "-o", out, "--steps", 2, "--pairs", 1, "--scenes", 2, "--card", card)
    matcher, about = load_matcher(out)
    assert matcher.config.width == 32
    assert about["images"] == "made"
    assert about["steps"] == 2
    log = json.loads(out.with_suffix(".json").read_text())
    assert log["status"] == "completed"
    assert len(log["loss"]) == 2
    assert [entry["step"] for entry in log["validation"]] == [0, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "m.json", "card.json"}
    assert "2 steps" in capsys.readouterr().out


def test_pictures_are_split_by_name(tmp_path):
    from diffmatch.cli.train import _files, _split

    names = [f"{number}.png" for number in range(60)]
    for name in [*names, "notes.txt"]:
        (tmp_path / name).write_bytes(b"")
    found = _files(tmp_path)
    assert sorted(path.name for path in found) == sorted(names)
    training, held = _split(found, least=2)
    assert not set(training) & set(held)
    assert len(training) + len(held) == 60
    assert 2 <= len(held) <= 10
    listed = tmp_path / "list.txt"
    listed.write_text("3.png\n\n1.png\n")
    assert [path.name for path in _files(listed)] == ["3.png", "1.png"]


def test_what_cannot_be_is_refused(tmp_path):
    out = tmp_path / "m.safetensors"
    (tmp_path / "list.txt").write_text("missing.jpg\n")
    (tmp_path / "card.json").write_text("[1]")
    for words, message in (
        (["-o", out], "pictures: want a folder or a list"),
        (["--preset", "tiny", "-o", tmp_path / "m.pt"], "output: want a file that ends in .safetensors"),
        ([tmp_path, "--preset", "tiny", "-o", out], "pictures: want none with --preset tiny"),
        ([tmp_path / "list.txt", "-o", out], "pictures: want files that exist"),
        ([tmp_path / "none.txt", "-o", out], "pictures: want a folder, or a text file"),
        ([tmp_path, "-o", out], "pictures: want at least 10, got 0"),
        (["--preset", "tiny", "-o", out, "--card", tmp_path / "card.json"], "card: want a JSON file with an object"),
        (["--preset", "tiny", "-o", out, "--steps", 0], "steps: want at least 1"),
        (["--preset", "tiny", "-o", out, "--lr", -1], "lr: want a number > 0"),
    ):
        with pytest.raises(InputError, match=message):
            run(*words)
    assert not out.exists()
