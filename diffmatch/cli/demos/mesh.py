"""The demo's mesh: a machine part with sharp edges and through holes, fitted to its field."""

from typing import TYPE_CHECKING

from diffmatch.cli.demos.settings import DemoSettings
from diffmatch.cli.outcome import Failure, write_json

if TYPE_CHECKING:
    from diffmatch.report import Metric, Report

__all__ = ["run"]

_RESOLUTION, _STEPS = 64, 200  # about 20 s on two cores


def run(report: "Report", settings: DemoSettings) -> "list[Metric]":
    """Fit the part: out.glb, and what was measured in out.json."""
    from diffmatch.cli.mesh import describe_fit
    from diffmatch.meshing.files import write_mesh
    from diffmatch.meshing.fitting import fit_mesh
    from diffmatch.meshing.shapes import demo_part
    from diffmatch.report.mesh_fit import add_mesh_fit, key_mesh_metrics

    result = fit_mesh(
        demo_part,
        resolution=_RESOLUTION,
        steps=_STEPS,
        device=settings.device,
        seed=settings.seed,
        progress=settings.progress,
        optimizer=settings.optimizer,
    )
    write_mesh(settings.folder / "out.glb", result.mesh)
    write_json(settings.folder / "out.json", describe_fit(result, target="demo part", device=settings.device))
    report.add_section("Mesh: a machine part")
    report.add_text(
        "The field of a pillow block, with sharp edges and through holes, "
        f"fitted by FlexiCubes on {_RESOLUTION} cells a side."
    )
    add_mesh_fit(report, result, name="target")
    if result.history.status == "diverged":
        raise Failure(f"the fit of the demo part diverged ({result.history.message})")
    return key_mesh_metrics(result.metrics) if result.metrics is not None else []
