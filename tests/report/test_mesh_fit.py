from types import SimpleNamespace

import pytest
import torch

from diffmatch.history import History
from diffmatch.meshing.mesh import Mesh
from diffmatch.meshing.metrics import mesh_metrics
from diffmatch.report import Report, add_mesh_fit
from diffmatch.report.mesh_fit import key_mesh_metrics, list_mesh_metrics, up_axis

pytest.importorskip("plotly")
pytest.importorskip("igl")

VERTICES = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
TARGET = Mesh(VERTICES, FACES)
FIT = Mesh(VERTICES * 1.1, FACES)


@pytest.fixture(scope="module")
def metrics():
    return mesh_metrics(FIT, TARGET, samples=200, edges=True)


def fitted(metrics, target):
    history = History(loss=[2.0, 1.0], lr=[0.1, 0.1], steps=2, status="completed", message="all 2 steps were taken")
    return SimpleNamespace(mesh=FIT, metrics=metrics, history=history, target_mesh=target, settings={})


def test_every_measured_quantity_is_listed_with_words_of_its_own(metrics):
    rows = list_mesh_metrics(metrics)
    measured = metrics.as_dict()
    assert len(rows) == len(measured) - len({"samples", "scale"} & measured.keys())
    assert not {row.name for row in rows} & {name for name in measured if "_" in name}  # all have a readable name
    assert {row.value for row in rows if row.name == "watertight"} == {True}


def test_an_unknown_quantity_is_shown_under_its_own_name():
    assert list_mesh_metrics({"watertight": False, "new_one": 3})[-1].name == "new_one"


def test_the_key_figures_are_part_of_all(metrics):
    every = list_mesh_metrics(metrics)
    few, fewer = key_mesh_metrics(metrics), key_mesh_metrics(metrics, headline=True)
    assert len(fewer) < len(few) < len(every)
    assert all(row in every for row in few + fewer)


@pytest.mark.parametrize(("target", "figures"), [(TARGET, 4), (None, 2)])
def test_a_fit_is_shown_beside_its_target_and_its_error(metrics, target, figures):
    report = Report("Fit")
    add_mesh_fit(report, fitted(metrics, target))
    text = report.html()
    assert text.count('type="application/json"') == figures
    assert ("distance to the target (box)" in text) == (target is not None)
    assert "all 2 steps were taken" in text


def test_a_fit_without_metrics_still_shows(metrics):
    report = Report("Fit")
    add_mesh_fit(report, fitted(None, None))
    assert "headline" not in "".join(report._parts)


def test_up_follows_the_format():
    assert [up_axis(name) for name in ("a.obj", "b.GLB", "c.stl", "d.npy", "module:field")] == ["y", "y", "z", "z", "z"]
