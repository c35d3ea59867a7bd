"""What a report shows of a merge."""

import json
from types import SimpleNamespace

import pytest
import torch

from diffmatch.matching.weights.layers import LayerAlignment
from diffmatch.matching.weights.plan import Held
from diffmatch.report import Report
from diffmatch.report.merge import add_merge, add_plan, barrier_figure, layers_figure, merge_metrics

pytest.importorskip("plotly")


def barrier(losses: list[float], value: float) -> SimpleNamespace:
    return SimpleNamespace(lambdas=torch.linspace(0, 1, len(losses)), losses=torch.tensor(losses), barrier=value)


def outcome(**changes) -> SimpleNamespace:
    layers = [
        LayerAlignment("in <1>", (0.01, 0.5), (0.02, 0.6), (0.0, 0.4), 0.03),
        LayerAlignment("huge", (0.02, 0.7), None, None, None),
    ]
    found = {
        "barrier": barrier([0.1, 0.2, 0.3], 0.25),
        "barrier_before": barrier([0.1, 2.2, 0.3], 2.0),
        "losses": [0.1, 0.3],
        "loss": 0.21,
        "objectives": [(1.0, 5.0), (2.0, 6.0)],
        "differences": [1e-15, 3e-15],
        "layers": layers,
        "candidates": [("identity", "none", 3.0, 2.2), ("weights", "none", 11.0, 0.21)],
        "notes": ["A note & more."],
    }
    return SimpleNamespace(**(found | changes))


def test_the_key_figures():
    values = {metric.name: metric.value for metric in merge_metrics(outcome())}
    assert values == {
        "barrier": 0.25,
        "barrier before": 2.0,
        "loss of the models": 0.2,
        "loss merged": 0.21,
        "agreement before": 3.0,
        "agreement": 11.0,
        "change by permuting": 3e-15,
    }
    without = merge_metrics(outcome(barrier=None, barrier_before=None, differences=None))
    assert [metric.name for metric in without] == ["agreement before", "agreement"]


def test_the_page_has_pictures_tables_and_notes():
    report = Report("Merge")
    add_merge(report, outcome())
    page = report.html()
    for text in (
        "Loss of weighted averages",
        "leading singular vectors",
        "in &lt;1&gt;",
        "What was tried",
        "note &amp; more",
    ):
        assert text in page
    assert "the barrier is 2 as they are and 0.25 aligned" in page
    report = Report("Merge")
    add_merge(report, outcome(barrier=None, barrier_before=None, layers=[], candidates=[]))
    assert 'class="plot"' not in report.html()


def test_figures_draw_what_was_measured():
    figure = json.loads(barrier_figure(outcome().barrier, outcome().barrier_before).to_json())
    assert [line["name"] for line in figure["data"]] == ["as they are", "aligned"]
    assert figure["data"][0]["y"] == pytest.approx([0.1, 2.2, 0.3])
    several = json.loads(barrier_figure(barrier([0.2, 0.5], 0.3), barrier([0.2, 2.0], 1.8)).to_json())
    assert {bar["type"] for bar in several["data"]} == {"bar"}
    leading = json.loads(layers_figure(outcome().layers, "leading", title="R").to_json())
    assert [bar["x"] for bar in leading["data"]] == [["in <1>"], ["in <1>"]]  # what was not measured is left out
    assert [bar["y"] for bar in leading["data"]] == [[0.02], [0.6]]
    many = [LayerAlignment(str(i), (0.0, 1.0), None, None, None) for i in range(500)]
    assert len(json.loads(layers_figure(many, "cosine", title="cosine").to_json())["data"][0]["x"]) <= 60


def test_what_stays_and_why():
    report = Report("Plan")
    held = [Held("an axis of the model's output", 2, "head.weight axis 0")]
    add_plan(report, SimpleNamespace(atoms=3, movable_percent=97.25, parameters=12345, held=held))
    page = report.html()
    for text in ("3 sets of units", "97.2 %", "12,345", "head.weight axis 0", "an axis of the model&#x27;s output"):
        assert text in page
