"""`diffmatch demo`: each job once, on what the package makes itself, with one report."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmatch.cli.demos import graph, merge, mesh
from diffmatch.cli.demos.settings import DemoSettings
from diffmatch.cli.options import DEFAULTS, JobOptions, check_outputs, resolve_device
from diffmatch.cli.table import metric_table

__all__ = ["JOBS", "demo"]

JOBS = {"mesh": mesh.run, "graph": graph.run, "merge": merge.run}


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder for the files; made if needed.")] = Path(
        "out"
    ),
    job: JobOptions = DEFAULTS,
) -> None:
    """Run each job on what the package makes itself, and write one HTML report (report.html) of all.

    The mesh job fits a machine part with sharp edges and through holes: out.glb, and what was measured in out.json.
    The graph job matches its landmarks between two pictures: graph.json. The merge job trains two networks, aligns and
    merges them: merge.safetensors, its permutations beside it, and what was measured in merge.json.
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
