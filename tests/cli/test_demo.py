"""`diffmatch demo` around stand-ins for its jobs."""

import pytest

from diffmatch.cli import demo as demo_module
from diffmatch.cli import main
from diffmatch.errors import MissingExtraError
from diffmatch.report import Metric

pytest.importorskip("plotly")


@pytest.fixture
def jobs(monkeypatch):
    seen = []

    def job(name):
        def run(report, settings):
            seen.append((name, settings))
            report.add_section(f"Section of {name}")
            (settings.folder / f"{name}.txt").write_text(name)
            return [Metric(f"figure of {name}", 0.5, "box")]

        return run

    monkeypatch.setattr(demo_module, "JOBS", {"one": job("one"), "two": job("two")})
    return seen


def test_every_job_has_its_section_in_one_report(jobs, tmp_path, capsys):
    folder = tmp_path / "a" / "b"
    assert main(["demo", "-o", str(folder), "--seed", "5", "--device", "cpu", "--optimizer", "adam"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["one.txt", "report.html", "two.txt"]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.index("Section of one") < text.index("Section of two") < text.index("How it was made")
    assert f"diffmatch demo -o {folder} --seed 5 --device cpu --optimizer adam" in text
    shown = capsys.readouterr().out
    assert "one\nfigure of one  0.5  box\ntwo\nfigure of two  0.5  box\n" in shown
    assert f"report: {folder / 'report.html'}" in shown
    for _, settings in jobs:
        assert (settings.seed, settings.device, settings.optimizer) == (5, "cpu", "adam")


def test_the_report_can_lie_elsewhere_and_nothing_need_be_said(jobs, tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path), "--report", str(tmp_path / "other.html"), "--quiet"]) == 0
    assert (tmp_path / "other.html").exists()
    assert not (tmp_path / "report.html").exists()
    assert capsys.readouterr().out == ""
    assert not jobs[0][1].progress


def test_a_place_that_is_no_folder_is_refused_before_the_work(jobs, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "-o", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(
        "diffmatch: error: output: want a folder that exists or can be made, got "
    )
    assert jobs == []


def test_a_job_whose_extra_is_missing_is_left_out_by_name(jobs, tmp_path, capsys, monkeypatch):
    def needy(report, settings):
        raise MissingExtraError("needs the package 'cv2': pip install 'diffmatch-torch[images]'")

    monkeypatch.setitem(demo_module.JOBS, "needy", needy)
    assert main(["demo", "-o", str(tmp_path)]) == 0
    assert "needy\nleft out: needs the package 'cv2'" in capsys.readouterr().out
    assert "Left out: needy" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [name for name, _ in jobs] == ["one", "two"]


def test_all_jobs_are_part_of_the_demo():
    assert demo_module.JOBS.keys() == {"mesh", "match", "graph", "merge", "topology"}
