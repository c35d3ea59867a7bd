"""The demo's topology: the hole in a noisy ring of points, and a hole of a block that a mesh was asked to close."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffmatch.cli.demos.settings import DemoSettings
from diffmatch.cli.outcome import Failure, write_json

if TYPE_CHECKING:
    from diffmatch.report import Metric, Report

__all__ = ["run"]

_RING, _STRANGERS = 220, 12
_RESOLUTION, _STEPS = 32, 150
_HOLES = ((-0.5, 0.12), (0.0, 0.16), (0.48, 0.2))  # place along the block, radius


def run(report: "Report", settings: DemoSettings) -> "list[Metric]":
    """Find the ring's hole (topology.json) and close one of three in a block (topology.glb, topology.mesh.json)."""
    return [*_ring(report, settings), *_block(report, settings)]


def _ring(report: "Report", settings: DemoSettings) -> "list[Metric]":
    from diffmatch.cli.topology import compute_persistence, write_diagrams
    from diffmatch.report import Metric
    from diffmatch.report.topology import TopologyData, add_persistence

    data = TopologyData("points", points=_points(torch.Generator().manual_seed(settings.seed)).to(settings.device))
    persistence = compute_persistence(data)
    write_diagrams(settings.folder / "topology.json", persistence, data, [], settings={"kind": "points"})
    report.add_section("Topology: the hole in a ring of points")
    report.add_text(
        f"{_RING} points near a circle and {_STRANGERS} anywhere; balls grow around all of them. One loop lives far "
        "longer than the others: the hole."
    )
    add_persistence(report, persistence, data)
    lengths = persistence[1].persistence.sort(descending=True).values.tolist()
    return [Metric("longest loop over the next", lengths[0] / lengths[1], "", "of the ring of points")]


def _points(generator: torch.Generator) -> Tensor:
    angle = 2 * math.pi * torch.rand(_RING, generator=generator, dtype=torch.float64)
    radius = 1 + 0.08 * torch.randn(_RING, generator=generator, dtype=torch.float64)
    ring = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1)
    return torch.cat((ring, 2.4 * torch.rand(_STRANGERS, 2, generator=generator, dtype=torch.float64) - 1.2))


def _block(report: "Report", settings: DemoSettings) -> "list[Metric]":
    from diffmatch.cli.betti import TopologyEdit
    from diffmatch.cli.mesh import describe_fit
    from diffmatch.meshing.files import write_mesh
    from diffmatch.meshing.fitting import fit_mesh
    from diffmatch.report import Metric
    from diffmatch.report.topology import add_certificate

    edit = TopologyEdit((1, 2, 0), _RESOLUTION)
    result = fit_mesh(
        _field,
        resolution=_RESOLUTION,
        steps=_STEPS,
        device=settings.device,
        seed=settings.seed,
        progress=settings.progress,
        optimizer=settings.optimizer,
        edit_field=edit,
    )
    certificate = edit.certificate(result.mesh)
    described = edit.describe(certificate)
    write_mesh(settings.folder / "topology.glb", result.mesh)
    write_json(
        settings.folder / "topology.mesh.json",
        describe_fit(result, target="block with three holes", device=settings.device) | {"topology": described},
    )
    report.add_section("Mesh: a block that was asked to have two holes of its three")
    report.add_meshes({"fit": result.mesh, "target": result.target_mesh})
    add_certificate(report, described)
    if not certificate.holds:
        raise Failure(edit.sentence(certificate))
    return [
        Metric("holes of the block", edit.before[1], "", "before"),
        Metric("holes of its mesh", certificate.betti[1], "of 2 asked for", "by field and Euler characteristic"),
    ]


def _field(points: Tensor) -> Tensor:
    """A block with three holes, negative inside."""
    from diffmatch.meshing.shapes import box, cylinder, difference

    holes = [cylinder(points, radius=radius, half_height=1.0, center=(x, 0.0, 0.0)) for x, radius in _HOLES]
    return difference(box(points, half=(0.85, 0.5, 0.25)), *holes)
