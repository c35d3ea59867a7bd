"""A ring of points with a crowd in its middle: its hole is made larger, with one parameter and with two.

The sum of all loops of a cloud, as bars of the alpha complex, grows fastest if every little gap between neighbours
becomes a loop: points leave the ring. With the density of the cloud as a second parameter, a loop counts for as much as
it is dense: the square root of the radius times a power of the density, integrated over the signed measure of degree 1.
The density holds the ring together, with no other term; the root, under which births weigh more than deaths, wants
loops that begin small. Run ``python examples/topology_annulus.py [FOLDER]``; some ten seconds.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffmatch import fit
from diffmatch.report import Report
from diffmatch.topology import alpha_persistence, total_persistence
from diffmatch.topology.multiparameter import codensity, delaunay_signed_measure

BANDWIDTH = 0.1
COLORS = ("#e5763a", "#3f7fd0")  # of the crowd, of the ring


@dataclass(frozen=True)
class Outcome:
    """What is left of the ring: the share of its points at radii from 0.7 to 1.15, and the two longest bars."""

    share: float
    longest: float
    next: float

    @property
    def repaired(self) -> bool:
        """Whether the ring is whole and one hole stands out."""
        return self.share >= 0.95 and self.longest >= 5 * self.next


def main(
    folder: str | Path = "out", *, n_ring: int = 300, n_crowd: int = 100, steps: int = 100, seed: int = 0
) -> dict[str, Outcome]:
    """Write ``annulus.svg`` and ``annulus.html``, and return what became of the ring under each loss."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = cloud(n_ring, n_crowd, seed)
    clouds = {"at first": start}
    for name, loss in (("one parameter", one_parameter), ("two parameters", two_parameters)):
        clouds[name] = optimized(start, loss, steps)
    outcomes = {name: judged(points, n_crowd) for name, points in clouds.items()}
    rows = [[name, f"{100 * o.share:.0f} %", f"{o.longest:.3f}", f"{o.next:.3f}"] for name, o in outcomes.items()]
    for row in rows:
        print("{}: {} of the ring in place; longest bars {} and {}".format(*row))

    (folder / "annulus.svg").write_text(svg(clouds, n_crowd), encoding="utf-8")
    report = Report("A ring and a crowd", summary=f"{n_ring} points on a ring, {n_crowd} in its middle, {steps} steps.")
    report.add_table(["cloud", "ring in place", "longest bar", "next"], rows, caption="Bars in units of radius.")
    report.write(folder / "annulus.html")
    print(f"wrote {folder}/annulus.svg, annulus.html")
    return outcomes


def cloud(n_ring: int, n_crowd: int, seed: int) -> Tensor:
    """The crowd in a square around the middle, then the ring between the radii 0.85 and 1."""
    generator = torch.Generator().manual_seed(seed)
    crowd = 0.3 * torch.rand(n_crowd, 2, generator=generator) - 0.1
    radius = 0.85 + 0.15 * torch.rand(n_ring, 1, generator=generator)
    angle = 2 * math.pi * torch.rand(n_ring, generator=generator)
    return torch.cat((crowd, radius * torch.stack((angle.cos(), angle.sin()), 1)))


def one_parameter(points: Tensor) -> Tensor:
    """Minus the total length of the bars of degree 1."""
    return -total_persistence(alpha_persistence(points, degrees=(1,), squared=False)) / len(points)


def two_parameters(points: Tensor) -> Tensor:
    """The mean of root(radius) density^(4/3) over the measure: loops shall begin small and end large."""
    thin = codensity(points, bandwidth=BANDWIDTH)
    measure = delaunay_signed_measure(points, thin, degree=1)
    return measure.integrate(lambda p: (p[:, 0] + 1e-6).sqrt() * (-4 / 3 * p[:, 1]).exp()) / len(measure)


def optimized(start: Tensor, loss: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """The cloud after some steps of Adam."""
    points = start.clone().requires_grad_()
    fit([points], lambda: loss(points), optimizer="adam", lr=0.01, steps=steps)
    return points.detach()


def judged(points: Tensor, n_crowd: int) -> Outcome:
    """How whole the ring is, and how much its hole stands out."""
    radius = points[n_crowd:].norm(dim=1)
    bars = [*alpha_persistence(points, degrees=(1,), squared=False)[1].persistence.tolist(), 0.0, 0.0]
    return Outcome(((radius > 0.7) & (radius < 1.15)).double().mean().item(), bars[0], bars[1])


def svg(clouds: dict[str, Tensor], n_crowd: int, *, width: int = 300) -> str:
    """The clouds side by side, under their names."""
    scale, parts = width / 2.8, []
    for place, (name, points) in enumerate(clouds.items()):
        middle = (place + 0.5) * width
        parts.append(f'<text x="{middle:.0f}" y="20" text-anchor="middle">{name}</text>')
        for number, (x, y) in enumerate(points.tolist()):
            at = f'cx="{middle + scale * x:.1f}" cy="{30 + width / 2 - scale * y:.1f}"'
            parts.append(f'<circle {at} r="2" fill="{COLORS[number >= n_crowd]}"/>')
    size = f'width="{len(clouds) * width}" height="{width + 30}"'
    style = 'font-family="sans-serif" font-size="15" fill="#333"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>\n'


if __name__ == "__main__":
    main(*sys.argv[1:])
