"""`diffmatch merge`: trained models, aligned by permutations of their units, become one."""

import contextlib
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diffmatch.cli.options import DEFAULTS, JobOptions, check_outputs, resolve_device
from diffmatch.cli.outcome import Failure, resumable, write_json
from diffmatch.cli.table import metric_table

if TYPE_CHECKING:
    from diffmatch.cli.merge_inputs import MergeInputs
    from diffmatch.cli.merge_job import MergeOutcome
    from diffmatch.matching.weights.plan import MergePlan

__all__ = ["describe_merge", "merge"]

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def merge(
    first: Annotated[str, Parameter(help="The model that stays: .safetensors, .pt, or a folder of shards.")],
    second: Annotated[str, Parameter(help="The model that is brought to it.")],
    /,
    *others: Annotated[str, Parameter(help="Further models.")],
    output: Annotated[
        Path, Parameter(name=["--output", "-o"], help="File that ends in .safetensors; or a folder, if FIRST is one.")
    ],
    model: Annotated[str, Parameter(help="module:function that returns the model, or it and example inputs.")],
    data: Annotated[
        str | None, Parameter(help="module:function that returns batches of (inputs, targets), or of inputs.")
    ] = None,
    loss: Annotated[str, Parameter(help="A name in torch.nn.functional, or module:function.")] = "cross_entropy",
    method: Annotated[
        str, Parameter(help="How to align: identity, weights, activations ...; auto takes what merges best.")
    ] = "auto",
    repair: Annotated[str, Parameter(help="Of the average: none, reset (batch norm), repair or auto.")] = "auto",
    spec: Annotated[
        Path | None, Parameter(help="A permutation spec (JSON), for a model that cannot be traced.")
    ] = None,
    stream: Annotated[
        bool | None,
        Parameter(help="Leave the models on disk, tensor by tensor; by default if they do not fit into memory."),
    ] = None,
    dry_run: Annotated[bool, Parameter(negative=(), show_default=False, help="Print the plan and stop.")] = False,
    checkpoint: Annotated[
        Path | None, Parameter(help="Where a streamed merge keeps its state; OUTPUT.checkpoint by default.")
    ] = None,
    resume: Annotated[
        bool, Parameter(help="Go on from the checkpoint if there is one.", negative="--no-resume")
    ] = True,
    permutations: Annotated[
        Path | None, Parameter(help="Where to write the permutations; OUTPUT.permutations.safetensors by default.")
    ] = None,
    metrics: Annotated[Path | None, Parameter(help="Where to write what was measured; OUTPUT.json by default.")] = None,
    job: JobOptions = DEFAULTS,
) -> None:
    """Merge trained models of one architecture into one.

    Says what can be permuted and what cannot and why, brings each model's units into the order of the first one's,
    averages, repairs where there are data, and verifies that the permuted models compute what they did. Writes the
    merged model, the permutations, what was measured (JSON) and, if asked for, an HTML report.
    """
    from diffmatch.errors import InputError

    job.check()
    if job.optimizer is not None:
        raise InputError("optimizer", "none: models are aligned by assignments, not by a gradient fit", job.optimizer)
    paths = [first, second, *others]
    stem = output.with_suffix("") if output.suffix.lower() == ".safetensors" else output
    files = {
        "permutations": permutations or stem.with_name(f"{stem.name}.permutations.safetensors"),
        "metrics": metrics or stem.with_name(f"{stem.name}.json"),
        "checkpoint": checkpoint or output.with_name(f"{output.name}.checkpoint"),
        "report": job.report,
    }
    single = {"output": output} if output.suffix.lower() == ".safetensors" else {}
    named = {f"model {number}": path for number, path in enumerate(paths, 1)}
    check_outputs({**single, **files}, inputs={**named, **({} if spec is None else {"spec": str(spec)})})
    device = resolve_device(job.device)

    from diffmatch.cli.merge_inputs import load_inputs
    from diffmatch.cli.merge_plan import plan_text
    from diffmatch.matching.weights.plan import merge_plan

    inputs = load_inputs(paths, model=model, data=data, spec=spec, loss=loss, stream=stream, seed=job.seed)
    _check_place(output, inputs, files["checkpoint"], resume=resume)
    layout = inputs.checkpoints[0]
    plan = merge_plan(inputs.spec, layout.shapes, layout.dtypes)
    if not job.quiet:
        print(plan_text(plan, inputs))
    if dry_run:
        return
    with resumable(files["checkpoint"] if inputs.streamed else None), _full_disk(output, files["checkpoint"]):
        outcome = _run(inputs, output, files, method=method, repair=repair, resume=resume, device=device, job=job)
        content = describe_merge(outcome, plan, inputs, models=paths, device=device)
        write_json(_path(files["metrics"]), content)
        if job.report is not None:
            words = ["merge", *paths, "-o", str(output), "--model", model]
            words += ["--data", data, "--loss", loss] if data is not None else []
            words += ["--method", method, "--repair", repair, "--seed", str(job.seed), "--device", device]
            words += ["--spec", str(spec)] if spec is not None else []
            words += ["--stream"] if inputs.streamed else []
            _write_report(job.report, outcome, plan, models=paths, device=device, command=["diffmatch", *words])
    if not job.quiet:
        from diffmatch.report.merge import merge_metrics

        print(metric_table(merge_metrics(outcome)))
        for note in outcome.notes:
            print(note)
        print(f"{output}: {len(paths)} models by {outcome.method}, repair {outcome.repair}")


def _run(
    inputs: "MergeInputs",
    output: Path,
    files: dict[str, Path | None],
    *,
    method: str,
    repair: str,
    resume: bool,
    device: str,
    job: JobOptions,
) -> "MergeOutcome":
    """Merge, verify and write the model and the permutations."""
    from diffmatch.cli.merge_job import merge_in_memory, merge_streamed, write_state
    from diffmatch.cli.status import Status
    from diffmatch.matching.weights.file_merge import write_permutations

    status = Status(not job.quiet)
    try:
        if inputs.streamed:
            state = _path(files["checkpoint"])
            outcome = merge_streamed(
                inputs, output, method=method, repair=repair, checkpoint=state, resume=resume, progress=status
            )
        else:
            outcome = merge_in_memory(
                inputs, method=method, repair=repair, device=device, seed=job.seed, progress=status
            )
            if outcome.differences is not None and not outcome.verified:
                raise Failure(
                    "a permuted model does not compute what it did: outputs differ by "
                    f"{max(outcome.differences):.1e} of the largest; nothing was written"
                )
            status(f"writing {output.name}")
            write_state(output, outcome, inputs)
        write_permutations(_path(files["permutations"]), outcome.permutations, inputs.spec)
    finally:
        status.clear()
    return outcome


def _check_place(output: Path, inputs: "MergeInputs", checkpoint: Path | None, *, resume: bool) -> None:
    """Refuse, before the work, an output that cannot be written or would not fit on the disk."""
    import shutil

    from diffmatch.cli.merge_inputs import shown_size
    from diffmatch.errors import InputError
    from diffmatch.matching.weights.file_merge import check_target

    layout = inputs.checkpoints[0]
    resumed = inputs.streamed and resume and checkpoint is not None and checkpoint.exists()
    check_target(output, layout, resumed=resumed)
    free = shutil.disk_usage(output.absolute().parent).free
    if not resumed and free < layout.nbytes:
        raise InputError("output", f"{shown_size(layout.nbytes)} of free space", shown_size(free))


@contextlib.contextmanager
def _full_disk(output: Path, checkpoint: Path | None) -> Iterator[None]:
    """A full disk is no bug: one line, and the old files are still there."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise
        go_on = f"; the same command goes on from {checkpoint}" if checkpoint and checkpoint.exists() else ""
        raise Failure(
            f"the disk is full ({error.strerror}): {output} was not replaced and nothing half-written is left{go_on}"
        ) from error


def describe_merge(
    outcome: "MergeOutcome", plan: "MergePlan", inputs: "MergeInputs", *, models: Sequence[str], device: str
) -> dict[str, Any]:
    """What is written beside a merged model: how it was made, its measures, what stayed, the versions."""
    from dataclasses import asdict

    from diffmatch.report.environment import environment

    return {
        "models": list(models),
        "method": outcome.method,
        "repair": outcome.repair,
        "streamed": inputs.streamed,
        "objectives": [{"before": before, "after": after} for before, after in outcome.objectives],
        "losses": {"models": outcome.losses, "merged": outcome.loss},
        "barrier": _barrier(outcome.barrier),
        "barrier_before": _barrier(outcome.barrier_before),
        "candidates": [
            dict(zip(("method", "repair", "objective", "loss"), candidate, strict=True))
            for candidate in outcome.candidates
        ],
        "layers": [asdict(layer) for layer in outcome.layers],
        "verification": {"differences": outcome.differences, "passed": outcome.verified},
        "plan": asdict(plan) | {"spec_checked": inputs.spec.checked},
        "notes": outcome.notes,
        "seconds": outcome.seconds,
        "environment": environment(device),
    }


def _barrier(barrier: Any) -> dict[str, Any] | None:
    if barrier is None:
        return None
    return {"barrier": barrier.barrier, "lambdas": barrier.lambdas.tolist(), "losses": barrier.losses.tolist()}


def _write_report(
    path: Path, outcome: "MergeOutcome", plan: "MergePlan", *, models: Sequence[str], device: str, command: list[str]
) -> None:
    from diffmatch.report import Report, environment
    from diffmatch.report.merge import add_merge, add_plan

    names = [Path(name).name for name in models]
    report = Report(
        f"{' and '.join(names)} merged", summary=f"Aligned by {outcome.method}, repaired by {outcome.repair}."
    )
    add_merge(report, outcome)
    report.add_section("What could move")
    add_plan(report, plan)
    report.add_section("How it was made")
    report.add_settings({"method": outcome.method, "repair": outcome.repair, **environment(device)}, command=command)
    report.write(path)


def _path(path: Path | None) -> Path:
    assert path is not None
    return path
