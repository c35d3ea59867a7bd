"""`diffmatch demo`: each job once, on what the package makes itself, with one report."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diffmatch.cli.demos.settings import DemoSettings
from diffmatch.cli.options import DEFAULTS, JobOptions, check_outputs, resolve_device
from diffmatch.cli.table import metric_table

if TYPE_CHECKING:
    from diffmatch.report import Metric, Report

__all__ = ["JOBS", "demo"]


def _job(name: str) -> "Callable[[Report, DemoSettings], list[Metric]]":
    """The job of a module of :mod:`diffmatch.cli.demos`, imported when it runs: `diffmatch --help` needs no torch."""

    def run(report: "Report", settings: DemoSettings) -> "list[Metric]":
        metrics: list[Metric] = importlib.import_module(f"diffmatch.cli.demos.{name}").run(report, settings)
        return metrics

    return run


JOBS = {name: _job(name) for name in ("mesh", "match", "graph", "merge", "topology")}


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder for the files; made if needed.")] = Path(
        "out"
    ),
    job: JobOptions = DEFAULTS,
) -> None:
    """Run each job on what the package makes itself, and write one HTML report (report.html) of all.

    The mesh job fits a machine part with sharp edges and through holes: out.glb, and what was measured in out.json.
    The match job finds a picture again in one taken from the side: matches.npz. The graph job matches landmarks of the
    part: graph.json. The merge job trains two networks, aligns and merges them: merge.safetensors. The topology job
    finds the hole in a ring of points and closes one of a block: topology.json, topology.glb. A job whose extra is not
    installed is left out, by name.
    """
    from diffmatch.errors import MissingExtraError, require

    job.check()
    require("plotly", extra="report")
    _make_folder(output)
    page = job.report or output / "report.html"
    check_outputs({"report": page, "output": output / "out.glb"}, inputs={})

    from diffmatch.report import Report, environment

    settings = DemoSettings(output, resolve_device(job.device), job.seed, job.optimizer, progress=not job.quiet)
    report = Report("diffmatch demo", summary="Each job once, on what the package makes itself.")
    for name, run in JOBS.items():
        try:
            metrics = run(report, settings)
        except MissingExtraError as missing:
            report.add_text(f"Left out: {name}; {missing}")
            if not job.quiet:
                print(f"{name}\nleft out: {missing}")
            continue
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
