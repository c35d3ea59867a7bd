"""`diffmatch mesh` for real, on small grids."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from diffmatch.cli import main
from diffmatch.meshing.files import read_mesh

pytest.importorskip("trimesh")
pytest.importorskip("igl")

FIELDS = """
import torch

def ball(points):
    return points.norm(dim=-1) - 0.6

def everywhere_positive(points):
    return points.norm(dim=-1) + 1.0
"""
CUBE = """v 0 0 0
v 3 0 0
v 3 2 0
v 0 2 0
v 0 0 1
v 3 0 1
v 3 2 1
v 0 2 1
f 4 3 2 1
f 5 6 7 8
f 1 2 6 5
f 2 3 7 6
f 3 4 8 7
f 4 1 5 8
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with targets good and bad."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.obj").write_text(CUBE)
    (tmp_path / "fields_for_test.py").write_text(FIELDS)
    (tmp_path / "broken_for_test.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "empty.obj").write_text("# nothing\n")
    (tmp_path / "nan.obj").write_text(CUBE.replace("v 3 2 1", "v nan 2 1"))
    (tmp_path / "garbage.stl").write_bytes(b"no mesh at all")
    np.save(tmp_path / "rank2.npy", np.zeros((4, 4)))
    np.save(tmp_path / "positive.npy", np.ones((8, 8, 8)))
    axis = np.linspace(-1, 1, 24)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    np.savez(tmp_path / "ball.npz", sdf=np.sqrt(x**2 + y**2 + z**2) - 0.7, spacing=axis[1] - axis[0], origin=-1.0)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "low", "high"),
    [
        ("block.obj", (0, 0, 0), (3, 2, 1)),
        ("ball.npz", (-0.7,) * 3, (0.7,) * 3),
        ("fields_for_test:ball", (-0.6,) * 3, (0.6,) * 3),
    ],
)
def test_every_kind_of_target_becomes_a_watertight_mesh_in_its_own_place(folder, target, low, high, capsys):
    assert main(["mesh", target, "-o", "out.ply", "--resolution", "16", "--steps", "10", "--device", "cpu"]) == 0
    vertices = read_mesh("out.ply").vertices.numpy()
    np.testing.assert_allclose(vertices.min(axis=0), low, atol=0.12)
    np.testing.assert_allclose(vertices.max(axis=0), high, atol=0.12)
    content = json.loads((folder / "out.json").read_text())
    assert content["metrics"]["watertight"] is True
    assert content["metrics"]["bodies"] == 1
    assert not (folder / "out.ply.checkpoint").exists()
    assert "watertight" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_file(folder):
    words = ["mesh", "block.obj", "--resolution", "8", "--steps", "5", "--device", "cpu", "--quiet", "--seed", "3"]
    assert main([*words, "-o", "one.obj"]) == main([*words, "-o", "two.obj"]) == 0
    assert (folder / "one.obj").read_bytes() == (folder / "two.obj").read_bytes()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["missing.obj"], ["missing.obj"]),
        (["empty.obj"], ["mesh"]),
        (["nan.obj"], ["finite"]),
        (["garbage.stl"], ["garbage.stl"]),
        (["rank2.npy"], ["shape"]),
        (["positive.npy"], ["changes sign"]),
        (["fields_for_test:everywhere_positive"], ["changes sign"]),
        (["fields_for_test:no_such_name"], ["no_such_name"]),
        (["broken_for_test:field"], ["module", "a_module_that_is_not_there"]),
        (["block.obj", "--resolution", "0"], ["resolution: want a number of cells of at least 1"]),
        (["block.obj", "--resolution", "100000"], ["resolution", "GiB"]),
        (["block.obj", "--resolution", "99999999999999999999"], ["resolution", "GiB"]),
        (["block.obj", "--optimizer", "adamm"], ["optimizer", "did you mean 'adam"]),
        (["block.obj", "-o", "no/such/folder/out.obj"], ["output: want a writable folder"]),
        (["block.obj", "-o", "out.doc"], ["output: want a file that ends in"]),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder, words, parts, capsys):
    before = sorted(folder.iterdir())
    output = [] if "-o" in words else ["-o", "out.obj"]
    assert main(["mesh", *words, *output]) == 2
    error = capsys.readouterr().err
    assert error.startswith("diffmatch: error: ")
    assert error.count("\n") == 1
    assert all(part in error for part in parts), error
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_an_interrupted_run_goes_on_to_the_bits_of_one_that_was_not(folder):
    words = ["mesh", "block.obj", "--resolution", "8", "--steps", "200", "--device", "cpu", "-o"]
    command = [sys.executable, "-m", "diffmatch", *words]
    checkpoint = folder / "out.obj.checkpoint"
    running = subprocess.Popen([*command, "out.obj"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=120)
    assert running.returncode == 130, error
    assert error.splitlines()[-1] == "diffmatch: error: interrupted; the same command goes on from out.obj.checkpoint"
    assert not (folder / "out.obj").exists()
    assert main([*words, "out.obj"]) == main([*words, "whole.obj"]) == 0
    assert (folder / "out.obj").read_bytes() == (folder / "whole.obj").read_bytes()
    assert not checkpoint.exists()


def test_points_with_colours_become_a_coloured_mesh(folder):
    normals = np.random.default_rng(0).normal(size=(1500, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    np.savez(folder / "cloud.npz", points=0.8 * normals, normals=normals, colors=(normals + 1) / 2)
    words = ["mesh", "cloud.npz", "-o", "out.glb", "--resolution", "12", "--steps", "4", "--quiet", "--device", "cpu"]
    assert main(words) == 0
    made = read_mesh(folder / "out.glb")
    assert json.loads((folder / "out.json").read_text())["metrics"]["watertight"]
    assert abs(made.vertex_attributes[:, :3].numpy() - (made.vertices.numpy() / 0.8 + 1) / 2).mean() < 0.05
    assert main([*words, "--no-attributes"]) == 0
    assert read_mesh(folder / "out.glb").vertex_attributes is None
