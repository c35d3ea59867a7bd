"""`diffmatch mesh` around a stand-in for the fit: order of the checks, what is written, how it ends."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from diffmatch.cli import main
from diffmatch.errors import InputError
from diffmatch.history import History
from diffmatch.meshing.files import read_mesh
from diffmatch.meshing.mesh import Mesh

pytest.importorskip("trimesh")

VERTICES = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


class Metrics:
    scale = 1.8

    def as_dict(self):
        return {"mean": 0.00125, "watertight": True, "faces": 4, "edge_chamfer": float("nan")}


class Fit:
    """Stands in for `fit_mesh`: remembers how it was called, writes a checkpoint, ends as told."""

    def __init__(self):
        self.calls, self.error, self.status = [], None, "completed"

    def __call__(self, target, **options):
        self.calls.append((target, options))
        if "checkpoint" in options:
            options["checkpoint"].write_bytes(b"state")
        if self.error is not None:
            raise self.error
        message = {"completed": "all 2 steps were taken", "diverged": "step 2: the loss is nan"}[self.status]
        history = History(loss=[2.0, 1.0], lr=[0.1, 0.1], steps=2, seconds=0.5, status=self.status, message=message)
        settings = {"resolution": options["resolution"], "seed": options["seed"]}
        mesh = Mesh(VERTICES, FACES)
        return SimpleNamespace(mesh=mesh, metrics=Metrics(), history=history, target_mesh=None, settings=settings)


@pytest.fixture
def fit(monkeypatch):
    stand_in = Fit()
    module = ModuleType("diffmatch.meshing.fitting")
    module.fit_mesh = stand_in
    monkeypatch.setitem(sys.modules, "diffmatch.meshing.fitting", module)
    return stand_in


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.obj"


def refused(capsys, words):
    """The message of a command that ends with code 2."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("diffmatch: error: ")
    assert error.count("\n") == 1
    return error.removeprefix("diffmatch: error: ").strip()


def test_the_mesh_and_its_measures_are_written_beside_each_other(fit, out, capsys):
    assert main(["mesh", "part.stl", "-o", str(out), "--seed", "7", "--device", "cpu"]) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.json", "out.obj"]  # no checkpoint is left
    assert read_mesh(out).faces.shape == (4, 3)
    content = json.loads(out.with_suffix(".json").read_text())
    assert content["metrics"] == {"mean": 0.00125, "watertight": True, "faces": 4, "edge_chamfer": None}
    assert content["fit"]["steps"] == 2
    assert content["fit"]["loss"] == 1.0
    assert content["settings"] == {"resolution": 64, "seed": 7}
    assert {"torch", "diffmatch", "python", "device"} <= content["environment"].keys()
    shown = capsys.readouterr().out
    assert "mean distance  0.00125  box" in shown
    assert f"{out}: 2 steps in 0.5 s" in shown


def test_what_was_not_given_is_left_to_the_fit(fit, out):
    main(["mesh", "part.stl", "-o", str(out), "--device", "cpu"])
    ((target, options),) = fit.calls
    assert target == "part.stl"
    assert options == {
        "resolution": 64,
        "device": "cpu",
        "seed": 0,
        "checkpoint": out.with_name("out.obj.checkpoint"),
        "resume": True,
        "progress": True,
        "steps": None,
        "lr": None,
        "optimizer": None,
        "edge_length": 0.0,
        "normal_consistency": 0.0,
        "attributes": True,
        "level": None,
        "edit_field": None,
    }


def test_every_option_reaches_the_fit(fit, out, tmp_path, capsys):
    words = ["mesh", "m:f", "--output", str(out), "--resolution", "8,9,10", "--steps", "5", "--lr", "0.02"]
    words += ["--optimizer", "adam", "--seed", "3", "--device", "cpu", "--no-resume", "--quiet", "--level", "0.5"]
    words += ["--checkpoint", str(tmp_path / "c.pt"), "--metrics", str(tmp_path / "measured.json")]
    words += ["--edge-length", "0.01", "--normal-consistency", "0.02"]
    assert main(words) == 0
    options = fit.calls[0][1]
    assert (options["edge_length"], options["normal_consistency"]) == (0.01, 0.02)
    assert options["resolution"] == (8, 9, 10)
    assert (options["steps"], options["lr"], options["optimizer"], options["seed"]) == (5, 0.02, "adam", 3)
    assert options["level"] == 0.5
    assert (options["resume"], options["progress"], options["checkpoint"]) == (False, False, tmp_path / "c.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["measured.json", "out.obj"]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_the_report_holds_the_result_and_the_command(fit, out, tmp_path):
    pytest.importorskip("plotly")
    page = tmp_path / "report.html"
    assert main(["mesh", "my part.stl", "-o", str(out), "--report", str(page), "--lr", "0.5", "--device", "cpu"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Mesh fitted to my part.stl" in text
    assert "0.00125" in text
    assert f"diffmatch mesh &#x27;my part.stl&#x27; -o {out} --resolution 64 --seed 0 --lr 0.5 --device cpu" in text


def test_everything_is_checked_before_the_work_begins(fit, out, tmp_path, capsys):
    (tmp_path / "part.stl").touch()
    target = str(tmp_path / "part.stl")
    folder = tmp_path / "folder.obj"
    folder.mkdir()
    good = ["mesh", target, "-o", str(out)]
    for words, message in [
        ([*good, "--resolution", "0"], "resolution: want a number of cells"),
        ([*good, "--steps", "0"], "steps: want a whole number of at least 1, got 0"),
        ([*good, "--lr", "-1"], "lr: want a number > 0, got -1.0"),
        ([*good, "--lr", "nan"], "lr: want a number > 0, got nan"),
        ([*good, "--edge-length", "-1"], "edge-length: want a number >= 0, got -1.0"),
        ([*good, "--optimizer", "adamx"], "optimizer: want one of"),
        ([*good, "--device", "tpu"], "device: want auto"),
        ([*good, "--seed", "-1"], "seed: want"),
        ([*good, "--report", str(tmp_path / "r.pdf")], "report: want a file that ends in .html"),
        ([*good, "--report", str(tmp_path / "no" / "r.html")], "report: want a writable folder"),
        ([*good, "--metrics", str(out)], "metrics: want another file than that of output"),
        (["mesh", target, "-o", str(tmp_path / "out.xyz")], "output: want a file that ends in .obj, .ply"),
        (["mesh", target, "-o", str(tmp_path / "no" / "out.obj")], "output: want a writable folder"),
        (["mesh", target, "-o", str(folder)], "output: want the name of a file, got the folder"),
        (["mesh", target, "-o", target], "output: want another file than that of target"),
    ]:
        assert refused(capsys, words).startswith(message)
    assert fit.calls == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.obj", "part.stl"]


def test_a_refusal_of_the_fit_is_one_line(fit, out, capsys):
    fit.error = InputError("target", "a file that exists", "'part.stl'")
    assert refused(capsys, ["mesh", "part.stl", "-o", str(out)]) == "target: want a file that exists, got 'part.stl'"
    assert not out.exists()


def test_an_interrupted_fit_keeps_the_checkpoint_and_the_old_output(fit, out, capsys):
    out.write_text("old")
    fit.error = KeyboardInterrupt()
    assert main(["mesh", "part.stl", "-o", str(out)]) == 130
    checkpoint = out.with_name("out.obj.checkpoint")
    message = f"diffmatch: error: interrupted; the same command goes on from {checkpoint}\n"
    assert capsys.readouterr().err == message
    assert out.read_text() == "old"
    assert checkpoint.read_bytes() == b"state"


def test_a_diverged_fit_says_what_was_kept(fit, out, capsys):
    fit.status = "diverged"
    assert main(["mesh", "part.stl", "-o", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("diffmatch: error: the fit diverged (step 2: the loss is nan)")
    assert f"{out} holds its last good state" in error
    assert read_mesh(out).faces.shape == (4, 3)
    assert out.with_name("out.obj.checkpoint").exists()
