"""The demo's graphs: landmarks of the machine part, seen by two cameras."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffmatch.cli.demos.settings import DemoSettings

if TYPE_CHECKING:
    from diffmatch.report import Metric, Report

__all__ = ["run"]

_LANDMARKS, _STRANGERS = 40, 6
_RESTARTS = 8
_TURN = 10.0  # degrees between the cameras
_NOISE = 0.005  # of the positions in a picture; the part is 1.8 long


def run(report: "Report", settings: DemoSettings) -> "list[Metric]":
    """Match the landmarks: graph.json with the assignment."""
    from diffmatch.cli.graph import write_assignment
    from diffmatch.matching import match_graphs
    from diffmatch.matching.graphs import Graph
    from diffmatch.report import Metric
    from diffmatch.report.graph_match import add_graph_match

    generator = torch.Generator().manual_seed(settings.seed)
    landmarks = _landmarks(generator)
    pictures = [_picture(landmarks, turn=turn, generator=generator) for turn in (-_TURN / 2, _TURN / 2)]
    shuffle = torch.randperm(_LANDMARKS + _STRANGERS, generator=generator)
    truth = shuffle.argsort()[:_LANDMARKS]
    a, b = (Graph.from_points(points.to(settings.device)) for points in (pictures[0], pictures[1][shuffle]))

    match = match_graphs(
        a, b, restarts=_RESTARTS, generator=torch.Generator(settings.device).manual_seed(settings.seed)
    )
    write_assignment(settings.folder / "graph.json", match, a, b)
    found = match.assignment[:_LANDMARKS].cpu() == truth
    report.add_section("Graphs: landmarks of the part in two pictures")
    report.add_text(
        f"{_LANDMARKS} points of the part's surface and {_STRANGERS} strangers in each of two pictures, "
        f"{_TURN:g} degrees apart, joined to graphs by Delaunay's triangulation. "
        "Only positions are compared; the order is shuffled."
    )
    report.add_text(f"{int(found.sum())} of the {_LANDMARKS} landmarks found themselves.")
    add_graph_match(report, match, a, b, names=("first picture", "second picture"))
    return [Metric("right matches", 100 * found.double().mean().item(), "%", "landmarks found in the other picture")]


def _landmarks(generator: torch.Generator) -> Tensor:
    """Points of the part's surface, spread as far from each other as they go, shape (n, 3)."""
    from diffmatch.meshing import Grid, marching_cubes
    from diffmatch.meshing.shapes import demo_part

    grid = Grid.cube(32)
    surface = marching_cubes(grid, demo_part(grid.nodes())).vertices
    chosen = [int(torch.randint(len(surface), (), generator=generator))]
    distance = torch.full((len(surface),), math.inf)
    while len(chosen) < _LANDMARKS:
        distance = torch.minimum(distance, torch.linalg.vector_norm(surface - surface[chosen[-1]], dim=1))
        chosen.append(int(distance.argmax()))
    return surface[chosen]


def _picture(points: Tensor, *, turn: float, generator: torch.Generator) -> Tensor:
    """Points as a camera far away sees them, half from above, with noise and strangers among them, shape (m, 2)."""
    angle, tilt = math.radians(turn), math.radians(30)
    x, y, z = points.unbind(1)
    across = math.cos(angle) * x - math.sin(angle) * y
    depth = math.sin(angle) * x + math.cos(angle) * y
    seen = torch.stack([across, math.cos(tilt) * z + math.sin(tilt) * depth], dim=1)
    noise = _NOISE * torch.randn(seen.shape, generator=generator)
    low, high = seen.amin(0), seen.amax(0)
    strangers = low + (high - low) * torch.rand(_STRANGERS, 2, generator=generator)
    return torch.cat([seen + noise, strangers])
