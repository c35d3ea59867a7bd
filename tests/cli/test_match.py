"""`diffmatch match`: files in and out, batches, errors of one line."""

import json

import numpy as np
import pytest
import torch
from cyclopts import App

import diffmatch.cli.app as program
from diffmatch.cli import main
from diffmatch.cli.match import match
from diffmatch.matching.keypoints import read_matches

pytest.importorskip("plotly")
cv2 = pytest.importorskip("cv2")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The command in a program of its own, whatever else there is."""
    app = App(name="diffmatch")
    app.command(match)
    monkeypatch.setattr(program, "app", app)


@pytest.fixture
def images(tmp_path):
    """Three pictures: one, the same moved, and one with nothing on it."""
    random = np.random.default_rng(0)
    picture = cv2.GaussianBlur(random.integers(0, 256, (220, 260), dtype=np.uint8), (0, 0), 2.5)
    picture = cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX)
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), picture)
    cv2.imwrite(str(folder / "b.png"), picture[12:, 7:])
    cv2.imwrite(str(folder / "c.png"), np.zeros((50, 60), np.uint8))
    return folder


def refused(capsys, words, code=2):
    """The message of a command that ends with an error."""
    assert main(words) == code
    error = capsys.readouterr().err
    assert error.startswith("diffmatch: error: ")
    assert error.count("\n") == 1
    return error


def test_matches_measures_and_a_report_are_written(images, tmp_path, capsys):
    out = tmp_path / "m.npz"
    words = ["match", str(images / "a.png"), str(images / "b.png"), "-o", str(out), "--network", "never"]
    words += ["--intrinsics", "300,300,130,110", "--report", str(tmp_path / "m.html"), "--colmap", str(tmp_path / "c")]
    assert main(words) == 0
    read = read_matches(out)
    shift = read["points_a"] - read["points_b"]
    assert len(shift) > 50
    assert np.allclose(np.median(shift, axis=0), [7, 12], atol=0.05)
    assert read["homography"][:2, 2] == pytest.approx([-7, -12], abs=0.3)
    content = json.loads((tmp_path / "m.json").read_text())
    assert content["pairs"][0]["matches"] == len(shift)
    assert content["pairs"][0]["stages"][0] == "upright"
    assert content["settings"]["seed"] == 0
    page = (tmp_path / "m.html").read_text()
    assert "verified matches" in page
    assert page.count("data:image/svg+xml") == 2
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["a.png.txt", "b.png.txt", "matches.txt"]
    assert "matches" in capsys.readouterr().out


def test_a_folder_is_matched_pair_by_pair(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["match", str(images), "-o", str(out), "--network", "never", "--views", "never", "--quiet"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a_b.npz", "a_c.npz", "b_c.npz", "matches.json"]
    pairs = json.loads((out / "matches.json").read_text())["pairs"]
    assert [entry["matches"] > 0 for entry in pairs] == [True, False, False]
    assert capsys.readouterr().out == ""


def test_one_bad_file_of_many_is_noted(images, tmp_path, capsys):
    (images / "pairs.txt").write_text("a.png b.png\na.png none.png\n")
    error = refused(
        capsys, ["match", str(images / "pairs.txt"), "-o", str(tmp_path / "o"), "--network", "never", "-q"], 1
    )
    assert "1 of 2 pairs" in error
    assert "none.png" in error
    assert (tmp_path / "o/a_b.npz").exists()
    entry = json.loads((tmp_path / "o/matches.json").read_text())["pairs"][1]
    assert "none.png" in entry["error"]


def test_requests_that_cannot_be_met_end_with_one_line(images, tmp_path, capsys):
    a, b = str(images / "a.png"), str(images / "b.png")
    (tmp_path / "text.png").write_text("no picture")
    out = ["-o", str(tmp_path / "m.npz")]
    assert "ends in .npz" in refused(capsys, ["match", a, b, "-o", str(tmp_path / "m.txt")])
    assert "none.png" in refused(capsys, ["match", a, "none.png", *out])
    assert "OpenCV can read" in refused(capsys, ["match", a, str(tmp_path / "text.png"), *out])
    assert "views" in refused(capsys, ["match", a, b, *out, "--views", "some"])
    assert "intrinsics" in refused(capsys, ["match", a, b, *out, "--intrinsics", "1,2"])
    assert "max-keypoints" in refused(capsys, ["match", a, b, *out, "--max-keypoints", "0"])
    assert "a folder or a text file" in refused(capsys, ["match", a, *out])
    assert not (tmp_path / "m.npz").exists()


def test_equal_seeds_give_equal_files(images, tmp_path):
    words = ["match", str(images / "a.png"), str(images / "b.png"), "--network", "never", "-q", "-o"]
    for name in ("one.npz", "two.npz"):
        assert main([*words, str(tmp_path / name)]) == 0
    one, two = (read_matches(tmp_path / name) for name in ("one.npz", "two.npz"))
    assert all(torch.equal(torch.from_numpy(one[k]), torch.from_numpy(two[k])) for k in one)
