"""The examples run at reduced size, and write what they say."""

import importlib.util
import struct
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from diffmatch.meshing import mesh_validity, read_mesh

FOLDER = Path(__file__).resolve().parent.parent / "examples"
BACKGROUND = 255

pytest.importorskip("trimesh")
pytest.importorskip("igl")
pytest.importorskip("plotly")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pixels(path: Path) -> np.ndarray:
    """The picture in a PNG file as `encode_png` writes it: RGB, each row minus the one above, in one chunk."""
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    start = content.index(b"IDAT") + 4
    rows = np.frombuffer(zlib.decompress(content[start : content.index(b"IEND") - 8]), np.uint8)
    return rows.reshape(height, -1)[:, 1:].cumsum(axis=0, dtype=np.uint8).reshape(height, width, 3)


def test_each_example_has_a_paragraph_and_a_test(repository):
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    assert names == [
        "attributes",
        "fit_part",
        "match_graphs",
        "match_images",
        "merge_models",
        "optimize_field",
        "topology_annulus",
        "topology_circle",
    ]
    page = (repository / "docs/examples.md").read_text()
    assert all(f"python examples/{name}.py" in page for name in names)


def test_fit_part(tmp_path, capsys):
    example("fit_part").main(tmp_path / "new", resolution=24, steps=25, width=160)
    folder = tmp_path / "new"
    assert sorted(path.name for path in folder.iterdir()) == ["part.glb", "part.html", "part.png"]
    validity = mesh_validity(read_mesh(folder / "part.glb"))
    assert validity.watertight
    assert validity.bodies == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {words[0]: [float(word) for word in words[1:]] for words in lines if words[0] in ("faces", "mean")}
    assert table["faces"][1] == validity.faces
    assert table["mean"][1] < 0.5 * table["mean"][0]  # the fit is nearer than marching cubes
    picture = pixels(folder / "part.png")
    assert picture.shape == (120, 320, 3)
    left, right = picture[:, :160], picture[:, 160:]
    for half in (left, right):
        assert 0.15 < (half != BACKGROUND).any(2).mean() < 0.7
    assert (left != right).any()
    assert "A machine part" in (folder / "part.html").read_text()


def test_optimize_field(tmp_path, capsys):
    history = example("optimize_field").main(tmp_path, resolution=12, steps=240, width=120)
    files = ["drop-1.png", "drop-240.png", "drop-30.png", "drop.ply"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files  # no checkpoint is left
    assert history.terms.keys() == {"area", "volume", "deviation", "signs"}
    assert history.terms["area"][0] > 1.3
    assert 0.99 < history.terms["area"][-1] < 1.1  # nothing is below a ball, up to the volume that was given away
    assert history.terms["volume"][-1] < 0.01
    mesh = read_mesh(tmp_path / "drop.ply")
    assert mesh_validity(mesh).genus == 0
    ring = 2 * np.pi**2 * 0.5 * 0.28**2
    assert abs(float(mesh.volume) / ring - 1) < 0.2  # a coarse grid begins with less
    start, end = (pixels(tmp_path / f"drop-{step}.png") for step in (1, 240))
    assert start.shape == end.shape == (90, 120, 3)
    assert (start != end).any(2).mean() > 0.05
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines[::2]] == ["step 1: genus 1", "step 240: genus 0"]


def test_attributes(tmp_path, capsys):
    module = example("attributes")
    module.main(tmp_path, resolution=16, steps=40, width=120)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ring.glb", "ring.ply", "ring.png"]
    for name in ("ring.ply", "ring.glb"):
        mesh = read_mesh(tmp_path / name)
        assert mesh_validity(mesh).genus == 1
        wanted = module.stripes(mesh.vertices)
        assert (mesh.vertex_attributes[:, :3] - wanted).abs().mean() < 0.1 < (wanted - 0.5).abs().mean()
    colours = pixels(tmp_path / "ring.png").reshape(-1, 3).astype(int)
    assert all((colours[:, i] > colours.sum(1) * 0.45).sum() > 20 for i in range(3))  # red, green and blue parts
    assert "error of the colours" in capsys.readouterr().out


def test_match_graphs(tmp_path, capsys):
    pytest.importorskip("networkx")
    share = example("match_graphs").main(tmp_path, points=20, turn=10.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "frame-1.graphml",
        "frame-2.graphml",
        "frames.html",
        "frames.svg",
    ]
    assert share > 0.8
    assert f"{round(20 * share)} of 20 points found" in capsys.readouterr().out
    assert (tmp_path / "frames.svg").read_text().startswith("<svg")


def test_topology_annulus(tmp_path):
    outcomes = example("topology_annulus").main(tmp_path, n_ring=60, n_crowd=20, steps=5)
    assert outcomes.keys() >= {"one parameter", "two parameters"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annulus.html", "annulus.svg"]


def test_topology_circle(tmp_path, capsys):
    points = example("topology_circle").main(tmp_path, n_points=60, steps=80, width=60)
    assert (points.norm(dim=1) > 0.5).all()
    assert pixels(tmp_path / "circle.png").shape == (60, 120, 3)
    assert "longest bars at the end" in capsys.readouterr().out


def test_match_images(tmp_path):
    pytest.importorskip("cv2")
    example("match_images").main(tmp_path, width=240)


def test_merge_models(tmp_path):
    before, after = example("merge_models").main(tmp_path, points=600, width=48, epochs=20)
    assert after < 0.5 * before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.html", "spirals.safetensors"]


def test_examples_are_seeded(tmp_path):
    run = example("optimize_field").main
    for name in ("one", "two"):
        run(tmp_path / name, resolution=8, steps=8, width=16)
    assert (tmp_path / "one/drop.ply").read_bytes() == (tmp_path / "two/drop.ply").read_bytes()
