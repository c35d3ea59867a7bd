"""The gallery of the guide to meshes is made by one command, and again in part."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
PAGE = "before\n<!-- gallery -->old<!-- end of gallery -->\nbetween\n<!-- points -->\n<!-- end of points -->\nafter\n"


@pytest.fixture
def gallery():
    sys.path.insert(0, str(FOLDER))
    import mesh_gallery

    yield mesh_gallery
    sys.path.remove(str(FOLDER))


def test_tables_and_pictures(gallery, tmp_path, monkeypatch):
    pytest.importorskip("igl")
    page = tmp_path / "meshing.md"
    page.write_text(PAGE)
    monkeypatch.setenv("DIFFMATCH_DATA", str(tmp_path))
    monkeypatch.setattr(gallery, "N_POINTS", 1500)
    small = ["--out", str(tmp_path), "--resolution", "8", "--steps", "2"]
    assert gallery.main([*small, "demo part", "block"]) == 0
    assert (tmp_path / "mesh-demo-part.png").read_bytes().startswith(b"\x89PNG")
    assert gallery.main([*small, "--points", "demo part"]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- gallery -->\n| shape |")
    assert text.endswith("<!-- end of points -->\nafter\n")
    assert "old" not in text
    assert "![demo part: target, marching cubes, fit, distance](mesh-demo-part.png)" in text
    assert "| demo part | marching cubes |" in text
    rows = json.loads((tmp_path / "mesh-gallery.json").read_text())
    assert set(rows) == {"demo part"}
    assert rows["demo part"]["points"]["mean"] > 0
    row = text.split("<!-- points -->")[1].splitlines()[3]
    assert row.startswith("| demo part | ")
