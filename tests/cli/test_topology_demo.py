"""The topology job of the demo at reduced size."""

import json

import pytest

from diffmatch.cli.demos import topology as job
from diffmatch.cli.demos.settings import DemoSettings
from diffmatch.report import Report

pytest.importorskip("plotly")
pytest.importorskip("trimesh")


def test_the_job_finds_one_hole_and_closes_another(tmp_path, monkeypatch):
    for name, value in {"_RESOLUTION": 24, "_STEPS": 8}.items():
        monkeypatch.setattr(job, name, value)
    report = Report("Demo")
    metrics = {m.name: m.value for m in job.run(report, DemoSettings(tmp_path, "cpu", 0, None, False))}
    assert metrics["longest loop over the next"] > 3
    assert (metrics["holes of the block"], metrics["holes of its mesh"]) == (3, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"topology.json", "topology.glb", "topology.mesh.json"}
    assert json.loads((tmp_path / "topology.mesh.json").read_text())["topology"]["agree"]
    assert len(json.loads((tmp_path / "topology.json").read_text())["degrees"]["1"]["births"]) > 10
    assert "The mesh agrees" in report.html()
