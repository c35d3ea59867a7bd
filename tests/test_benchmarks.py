"""The benchmarks run, every line of them, at their tiny size; and their harness measures what it says."""

import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
FILES = sorted(FOLDER.glob("bench_*.py"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def harness():
    """The harness, found as the benchmark files find it."""
    sys.path.insert(0, str(FOLDER))
    import harness

    yield harness
    sys.path.remove(str(FOLDER))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_benchmark_runs_at_its_tiny_size(harness, file, device):
    bench = harness.run_file(file, device=device, tiny=True, seconds=0.0)
    assert bench.title
    assert any(row.contender == "diffmatch" for row in bench.rows)
    for row in bench.rows:
        assert math.isfinite(row.median)
        assert row.quality, f"{row.task}: a time without what was reached"
        assert all(math.isfinite(value) for value in row.quality.values())


def test_contenders_are_timed_in_turn(harness):
    order = []
    bench = harness.Bench("b", seconds=0.0)

    def contender(name, pause):
        def run():
            order.append(name)
            time.sleep(pause)
            return len(order)

        return run

    contenders = {"diffmatch": contender("d", 0.001), "peer": contender("p", 0.01), "absent": None}
    ours, peer = bench.compare("t", contenders, size=3, quality=lambda result: {"calls": result})
    assert order[-10:] == ["d", "p"] * 5
    assert (ours.contender, peer.contender, ours.rounds, ours.size) == ("diffmatch", "peer", 5, "3")
    assert 0.001 <= ours.median < 0.01 <= peer.median
    assert ours.quality == {"calls": 2.0}  # of the second warm-up call, outside the clock
    assert bench.rows == [ours, peer]


def test_rounds_end_when_the_seconds_are_spent(harness):
    bench = harness.Bench("b", seconds=0.05)
    (row,) = bench.compare("t", {"diffmatch": lambda: time.sleep(0.004)}, size=0)
    assert 5 <= row.rounds <= 13


def test_parts_of_a_long_benchmark_are_measured_once(harness, tmp_path):
    def measure():
        bench.rows.append(harness.Row("b", "task", "diffmatch", "3", 1.0, 0.0, 5, None, {"loss": 0.1}))
        return {"losses": [1.0, 0.1]}

    bench = harness.Bench("b", folder=tmp_path)
    first = bench.once("part", measure)
    again = harness.Bench("b", folder=tmp_path)
    assert again.once("part", lambda: pytest.fail("measured twice")) == first
    assert again.rows == bench.rows
    alone = bench = harness.Bench("b")
    assert alone.once("part", measure) == first


def test_missing_peer_is_skipped_by_name(harness):
    bench = harness.Bench("b")
    assert bench.peer("no_such_peer") is None
    assert bench.peer("no_such_peer") is None
    assert bench.peer("math") is math
    assert bench.skipped == ["no_such_peer"]
    assert list(bench.versions) == ["math"]


def test_median_and_iqr(harness):
    assert harness.median_and_iqr([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2.0)
    assert harness.median_and_iqr([7.0]) == (7.0, 0.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's high-water mark is read on Linux")
def test_peak_memory_sees_what_is_freed_again(harness):
    peak = harness.peak_memory(lambda: torch.ones(2**26).sum().item(), CPU)
    if peak is None:
        pytest.skip("the high-water mark cannot be reset here")
    assert 0.9 * 2**28 < peak < 1.5 * 2**28


def test_results_are_written(harness, tmp_path):
    bench = harness.Bench("sorting", "Sorts.", tiny=True)
    bench.compare("sort", {"diffmatch": lambda: 1, "peer": lambda: 2}, size=10, quality=lambda r: {"error": r})
    bench.peer("no_such_peer")
    harness.write_results([bench], tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "## sorting\n\nSorts.\n" in page
    assert "### sort\n\n| size | contender |" in page
    assert "| 10 | peer |" in page
    assert "skipped: no_such_peer" in page
    found = json.loads((tmp_path / "results.json").read_text())["sorting"]
    assert [row["quality"] for row in found["rows"]] == [{"error": 1}, {"error": 2}]
    assert found["measured"]["versions"]["torch"] == torch.__version__
    assert found["skipped"] == ["no_such_peer"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_results_of_other_subjects_stay(harness, tmp_path):
    for name, times in (("b", 1), ("a", 1), ("b", 2)):
        bench = harness.Bench(name, tiny=True)
        for n in range(times):
            bench.compare("t", {"diffmatch": lambda: 0}, size=n)
        harness.write_results([bench], tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(name, len(section["rows"])) for name, section in found.items()] == [("a", 1), ("b", 2)]


def test_unknown_subject_is_refused(harness, capsys):
    with pytest.raises(SystemExit, match="2"):
        harness.main(["no_such_subject"])
    assert "no_such_subject" in capsys.readouterr().err
