"""The merge job of the demo at reduced size."""

import json

import pytest
import torch

from diffmatch.cli.demos import merge as job
from diffmatch.cli.demos.settings import DemoSettings
from diffmatch.matching.weights.checkpoint_files import open_checkpoint
from diffmatch.matching.weights.file_merge import read_permutations
from diffmatch.report import Report

pytest.importorskip("plotly")


def test_the_job_merges_two_nets_and_shows_that_it_helps(tmp_path, monkeypatch):
    for name, value in {"_TRAIN": 900, "_TEST": 300, "_EPOCHS": 5, "_WIDTH": 64}.items():
        monkeypatch.setattr(job, name, value)
    report = Report("Demo")
    metrics = {m.name: m.value for m in job.run(report, DemoSettings(tmp_path, "cpu", 0, None, False))}
    assert metrics["barrier"] < 0.5 * metrics["barrier before"]
    assert metrics["accuracy merged"] > metrics["accuracy of their average"] + 5
    assert json.loads((tmp_path / "merge.json").read_text()) == pytest.approx(metrics)
    assert {path.name for path in tmp_path.iterdir()} == {
        "merge.json",
        "merge.safetensors",
        "merge.permutations.safetensors",
        "net-a.safetensors",
        "net-b.safetensors",
    }
    assert set(open_checkpoint(tmp_path / "merge.safetensors")) == set(open_checkpoint(tmp_path / "net-a.safetensors"))
    assert len(read_permutations(tmp_path / "merge.permutations.safetensors")) == 2
    assert "Merge: two nets that learned the same shapes" in report.html()


def test_the_shapes_are_of_all_kinds_and_seeded():
    first, second = (job.drawn_shapes(400, torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert first[0].shape == (400, 144)
    assert first[1].bincount().tolist() == pytest.approx([400 / 6] * 6, abs=40)
    means = torch.stack([first[0][first[1] == kind].mean(0) for kind in range(len(job.SHAPES))])
    assert torch.pdist(means).min() > 1  # no two kinds look alike on average
