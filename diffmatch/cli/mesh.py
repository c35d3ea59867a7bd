"""`diffmatch mesh`: from a target shape or a scalar field to a clean mesh."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diffmatch.cli.betti import TopologyEdit, parse_betti
from diffmatch.cli.options import DEFAULTS, JobOptions, check_outputs, parse_resolution, resolve_device
from diffmatch.cli.outcome import Failure, resumable, write_json
from diffmatch.cli.table import metric_table

__all__ = ["describe_fit", "mesh"]


def mesh(
    target: Annotated[
        str,
        Parameter(
            help="A mesh file, points (.ply, .xyz, .npy, .npz), a volume (.npy, .npz, .nii) or a field as module:name."
        ),
    ],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Mesh file: .obj, .ply, .stl, .glb or .off.")],
    resolution: Annotated[
        str, Parameter(help="Cells of the grid a side; three with commas for a box: 64,96,64.")
    ] = "64",
    steps: Annotated[int | None, Parameter(help="Of the fit; without it, as many as suit the target.")] = None,
    lr: Annotated[float | None, Parameter(help="Learning rate; without it, the one that suits the optimizer.")] = None,
    edge_length: Annotated[
        float, Parameter(help="Weight of equal edge lengths beside distances; .1 is much.", show_default=False)
    ] = 0.0,
    normal_consistency: Annotated[
        float, Parameter(help="Weight of smoothness beside distances; .1 is much.", show_default=False)
    ] = 0.0,
    checkpoint: Annotated[
        Path | None, Parameter(help="Where to keep the state of the fit; OUTPUT.checkpoint by default.")
    ] = None,
    resume: Annotated[
        bool, Parameter(help="Go on from the checkpoint if there is one.", negative="--no-resume")
    ] = True,
    attributes: Annotated[
        bool, Parameter(help="Carry vertex colours and attributes of the target over.", negative="--no-attributes")
    ] = True,
    level: Annotated[
        float | None, Parameter(help="Of a scan: the value at the surface, larger inside. Else negative is inside.")
    ] = None,
    betti: Annotated[
        str | None,
        Parameter(
            help="Pieces, tunnels and cavities that the mesh is to have, such as 1,2,0; any in place of a number."
        ),
    ] = None,
    metrics: Annotated[Path | None, Parameter(help="Where to write what was measured; OUTPUT.json by default.")] = None,
    job: JobOptions = DEFAULTS,
) -> None:
    """Fit a clean, watertight mesh to a target by gradients.

    Writes the mesh, what was measured (JSON) and, if asked for, an HTML report. A fit that was interrupted goes on
    from its checkpoint when the same command is given again. With --betti the topology of the field is changed before
    the fit, and afterwards the mesh is compared with it.
    """
    cells = parse_resolution(resolution)
    wanted = parse_betti(betti)
    job.check()
    _check_numbers(steps, lr, edge_length, normal_consistency)
    _check_suffix(output)
    checkpoint = checkpoint or output.with_name(f"{output.name}.checkpoint")
    metrics = metrics or output.with_suffix(".json")
    check_outputs(
        {"output": output, "metrics": metrics, "checkpoint": checkpoint, "report": job.report},
        inputs={"target": target},
    )
    device = resolve_device(job.device)

    from diffmatch.meshing.files import write_mesh
    from diffmatch.meshing.fitting import fit_mesh

    given = {
        "steps": steps,
        "lr": lr,
        "optimizer": job.optimizer,
        "edge-length": edge_length or None,
        "normal-consistency": normal_consistency or None,
        "level": level,
        "betti": betti,
    }
    edit = None if wanted is None else TopologyEdit(wanted, cells)
    with resumable(checkpoint):
        result = fit_mesh(
            target,
            resolution=cells,
            device=device,
            seed=job.seed,
            checkpoint=checkpoint,
            resume=resume,
            progress=not job.quiet,
            steps=steps,
            lr=lr,
            optimizer=job.optimizer,
            edge_length=edge_length,
            normal_consistency=normal_consistency,
            attributes=attributes,
            level=level,
            edit_field=edit,
        )
        certificate = None if edit is None else edit.certificate(result.mesh)
        write_mesh(output, result.mesh)
        described = describe_fit(result, target=target, device=device)
        if edit is not None and certificate is not None:
            described["topology"] = edit.describe(certificate)
        write_json(metrics, described)
        if job.report is not None:
            words = ["mesh", target, "-o", str(output), "--resolution", resolution, "--seed", str(job.seed)]
            words += [] if attributes else ["--no-attributes"]
            words += [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
            _write_report(
                job.report,
                result,
                target=target,
                device=device,
                command=["diffmatch", *words, "--device", device],
                topology=described.get("topology"),
            )
    if result.history.status == "diverged":
        raise Failure(
            f"the fit diverged ({result.history.message}); {output} holds its last good state; "
            "start again with --no-resume and a smaller --lr"
        )
    checkpoint.unlink(missing_ok=True)
    if not job.quiet:
        _print_summary(result, output)
    if edit is not None and certificate is not None:
        if not certificate.holds:
            raise Failure(edit.sentence(certificate))
        if not job.quiet:
            print(edit.sentence(certificate))


def _check_numbers(steps: int | None, lr: float | None, edge_length: float, normal_consistency: float) -> None:
    from diffmatch.errors import InputError, check_positive

    if steps is not None and steps < 1:
        raise InputError("steps", "a whole number of at least 1", str(steps))
    if lr is not None:
        check_positive("lr", lr)
    check_positive("edge-length", edge_length, allow_zero=True)
    check_positive("normal-consistency", normal_consistency, allow_zero=True)


def _check_suffix(output: Path) -> None:
    from diffmatch.errors import InputError
    from diffmatch.meshing.files import WRITE_SUFFIXES

    if output.suffix.lower() not in WRITE_SUFFIXES:
        raise InputError("output", f"a file that ends in {', '.join(WRITE_SUFFIXES)}", repr(str(output)))


def describe_fit(result: Any, *, target: str, device: str) -> dict[str, Any]:
    """What is written beside a mesh: its measures, how the fit went, settings and versions."""
    from diffmatch.report.environment import environment

    history = result.history
    measured = {} if result.metrics is None else result.metrics.as_dict()
    return {
        "target": target,
        "metrics": measured,
        "fit": {
            "status": history.status,
            "message": history.message,
            "steps": history.steps,
            "seconds": history.seconds,
            "loss": history.loss[-1] if history.loss else None,
        },
        "settings": result.settings,
        "environment": environment(device),
    }


def _write_report(
    path: Path,
    result: Any,
    *,
    target: str,
    device: str,
    command: Sequence[str],
    topology: dict[str, Any] | None,
) -> None:
    from diffmatch.report import Report, add_mesh_fit, environment
    from diffmatch.report.mesh_fit import up_axis

    name = Path(target).name
    history = result.history
    report = Report(
        f"Mesh fitted to {name}",
        summary=f"{history.steps} steps in {history.seconds:.1f} s; {history.message or history.status}.",
    )
    add_mesh_fit(report, result, name="target", up=up_axis(target))
    if topology is not None:
        from diffmatch.report.topology import add_certificate

        add_certificate(report, topology)
    report.add_section("How it was made")
    report.add_settings({**result.settings, **environment(device)}, command=command)
    report.write(path)


def _print_summary(result: Any, output: Path) -> None:
    from diffmatch.report.mesh_fit import key_mesh_metrics

    if result.metrics is not None:
        print(metric_table(key_mesh_metrics(result.metrics)))
    print(f"{output}: {result.history.steps} steps in {result.history.seconds:.1f} s")
