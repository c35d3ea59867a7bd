"""`diffmatch demo`: each job once, on what the package makes itself, with one report.

A job is a function that adds a section to the report, writes its files and returns its key figures; the demo runs all
that `JOBS` names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diffmatch.cli.options import DEFAULTS, JobOptions, check_outputs, resolve_device
from diffmatch.cli.outcome import Failure, write_json
from diffmatch.cli.table import metric_table

if TYPE_CHECKING:
    from diffmatch.report import Metric, Report

__all__ = ["JOBS", "DemoSettings", "demo"]

_MESH_RESOLUTION, _MESH_STEPS = 64, 200  # about 20 s on two cores


@dataclass(frozen=True)
class DemoSettings:
    """What each job of the demo is run with; ``optimizer`` None leaves the choice to the job."""

    folder: Path
    device: str
    seed: int
    optimizer: str | None
    progress: bool


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder for the files; made if needed.")] = Path(
        "out"
    ),
    job: JobOptions = DEFAULTS,
) -> None:
    """Run each job on what the package makes itself, and write one HTML report (report.html) of all.

    The mesh job fits a machine part with sharp edges and through holes: out.glb, and what was measured in out.json.
    """
    from diffmatch.errors import require

    job.check()
    require("plotly", extra="report")
    _make_folder(output)
    page = job.report or output / "report.html"
    check_outputs({"report": page, "output": output / "out.glb"}, inputs={})

    from diffmatch.report import Report, environment

    settings = DemoSettings(output, resolve_device(job.device), job.seed, job.optimizer, progress=not job.quiet)
    report = Report("diffmatch demo", summary="Each job once, on what the package makes itself.")
    for name, run in JOBS.items():
        metrics = run(report, settings)
        if not job.quiet:
            print(f"{name}\n{metric_table(metrics)}")
    report.add_section("How it was made")
    command = ["diffmatch", "demo", "-o", str(output), "--seed", str(job.seed), "--device", settings.device]
    command += ["--optimizer", job.optimizer] if job.optimizer else []
    report.add_settings({"seed": job.seed, **environment(settings.device)}, command=command)
    report.write(page)
    if not job.quiet:
        print(f"report: {page}")


def _make_folder(folder: Path) -> None:
    from diffmatch.errors import InputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("output", "a folder that exists or can be made", f"{folder} ({error.strerror})") from error


def _mesh_job(report: "Report", settings: DemoSettings) -> "list[Metric]":
    from diffmatch.cli.mesh import describe_fit
    from diffmatch.meshing.files import write_mesh
    from diffmatch.meshing.fitting import fit_mesh
    from diffmatch.meshing.shapes import demo_part
    from diffmatch.report.mesh_fit import add_mesh_fit, key_mesh_metrics

    result = fit_mesh(
        demo_part,
        resolution=_MESH_RESOLUTION,
        steps=_MESH_STEPS,
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
        f"fitted by FlexiCubes on {_MESH_RESOLUTION} cells a side."
    )
    add_mesh_fit(report, result, name="target")
    if result.history.status == "diverged":
        raise Failure(f"the fit of the demo part diverged ({result.history.message})")
    return key_mesh_metrics(result.metrics) if result.metrics is not None else []


JOBS: "dict[str, Callable[[Report, DemoSettings], list[Metric]]]" = {"mesh": _mesh_job}
