"""What a report shows of persistent homology."""

import numpy as np
import pytest
import torch

from diffmatch.report import Report
from diffmatch.report.topology import TopologyData, _betti_curve, add_certificate, add_persistence, persistence_metrics
from diffmatch.topology import alpha_persistence, cubical_persistence, graph_persistence, mesh_persistence

pytest.importorskip("plotly")

CORNERS = torch.tensor([[0.0, 0, 0], [1, 0, 1], [0, 1, 2], [1, 1, 3]])
FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


def field(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def shown(persistence, data):
    report = Report("Topology")
    add_persistence(report, persistence, data)
    return report.html()


@pytest.mark.parametrize("superlevel", [False, True])
def test_curves_count_what_is_alive(superlevel):
    values = field(7, 6)
    persistence = cubical_persistence(values, superlevel=superlevel)
    for diagram, of_degree in zip(persistence, range(2), strict=True):
        levels, counts = _betti_curve(diagram, superlevel, -5.0, 5.0)
        assert levels[0] == -5
        for level in np.linspace(-2.5, 2.5, 21):
            at = np.searchsorted(levels, level, side="right") - 1
            assert counts[at] == persistence.betti(float(level))[of_degree]


@pytest.mark.parametrize(
    ("persistence", "data"),
    [
        (cubical_persistence(field(5, 6)), TopologyData("field", values=field(5, 6))),
        (cubical_persistence(field(5, 6, 4)), TopologyData("field", values=field(5, 6, 4))),
        (cubical_persistence(torch.zeros(3, 3)), TopologyData("field", values=torch.zeros(3, 3))),
        (alpha_persistence(field(12, 2)), TopologyData("points", points=field(12, 2))),
        (alpha_persistence(field(12, 3)), TopologyData("points", points=field(12, 3))),
        (mesh_persistence(CORNERS[:, 2], FACES), TopologyData("mesh", CORNERS[:, 2], CORNERS, faces=FACES)),
        (
            graph_persistence(CORNERS[:, 2], FACES[:, :2]),
            TopologyData("graph", CORNERS[:, 2], CORNERS, edges=FACES[:, :2]),
        ),
    ],
    ids=["image", "volume", "constant", "plane", "space", "mesh", "graph"],
)
def test_all_kinds_of_data_are_drawn(persistence, data):
    page = shown(persistence, data)
    assert page.count('class="plot"') == 4
    assert "components: longest" in page


def test_metrics_count_and_add_up():
    persistence = cubical_persistence(torch.tensor([[3.0, 1, 4], [1, 5, 9], [2, 6, 5]]))
    values = {metric.name: metric.value for metric in persistence_metrics(persistence)}
    assert values["components: bars"] == 2
    assert values["components: longest"] == 2
    assert values["components: total"] == 3
    assert values["loops: longest"] is None


@pytest.mark.parametrize("agree", [True, False])
def test_a_certificate_says_whether_the_mesh_agrees(agree):
    report = Report("Mesh")
    topology = {
        "asked": [1, None, 0],
        "before": [2, 0, 0],
        "moves": ["joined two pieces"],
        "changed_nodes": 5,
        "betti": [1, 0, 0],
        "betti_top_cells": [1, 0, 0],
        "mesh_euler": 2 if agree else 4,
        "expected_euler": 2,
        "mesh_components": 1,
        "expected_components": 1,
        "agree": agree,
        "doubts": [] if agree else ["the mesh has Euler characteristic 4, the field asks for 2"],
    }
    add_certificate(report, topology)
    page = report.html()
    assert ("DISAGREES" in page) != agree
    assert "1, any, 0" in page
    assert ("Euler characteristic 4" in page) != agree
