"""Keypoint graphs of two frames: which point is which, from positions alone.

Run ``python examples/match_graphs.py [FOLDER]``; some seconds.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from diffmatch.matching import match_graphs
from diffmatch.matching.graphs import Graph, write_graph
from diffmatch.report import Report
from diffmatch.report.graph_match import add_graph_match, match_svg


def main(folder: str | Path = "out", *, points: int = 30, turn: float = 25.0, seed: int = 0) -> float:
    """Write both graphs, ``frames.html`` and ``frames.svg`` into a folder.

    Args:
        folder: made if needed.
        points: on a ring that turns between the frames.
        turn: by how many degrees.
        seed: of the points, the noise and the order in the second frame.

    Returns:
        The share of points that were found in the second frame.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    # A graph is made of points; its edges join neighbours (Delaunay's triangulation), here and there.
    first, second = frames(points, turn, generator)
    order = torch.randperm(points, generator=generator)
    a, b = Graph.from_points(first), Graph.from_points(second[order])
    write_graph(folder / "frame-1.graphml", a)
    write_graph(folder / "frame-2.graphml", b)  # `diffmatch graph frame-1.graphml frame-2.graphml -o pairs.json`

    # Matches are to keep the distances between points; nobody says which point is which, or how the ring turned.
    match = match_graphs(a, b, restarts=8, generator=generator)  # the best of eight starts
    found = order[match.assignment] == torch.arange(points)
    found &= match.assignment >= 0
    share = found.double().mean().item()
    print(f"{int(found.sum())} of {points} points found by {match.solver}; mean score {match.scores.mean():.2f}")

    report = Report("Two frames", summary=f"A ring of {points} points that turned by {turn:g} degrees.")
    add_graph_match(report, match, a, b, names=("frame 1", "frame 2"))
    report.write(folder / "frames.html")
    (folder / "frames.svg").write_text(match_svg(match, a, b), encoding="utf-8")
    print(f"wrote {folder}/frame-1.graphml, frame-2.graphml, frames.html, frames.svg")
    return share


def frames(count: int, turn: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points on a thick ring, seen from the front before and after it turned, each of shape (count, 2)."""
    around, across = (2 * torch.pi * torch.rand(2, count, generator=generator)).unbind()
    radius = 1 + 0.35 * across.cos()
    ring = torch.stack([radius * around.cos(), radius * around.sin(), 0.35 * across.sin()], dim=1)
    angle = torch.tensor(turn).deg2rad()
    axis = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    noise = 0.005 * torch.randn(2, count, 2, generator=generator)
    return ring[:, :2] + noise[0], (ring @ axis.T)[:, :2] + noise[1]


if __name__ == "__main__":
    main(*sys.argv[1:])
