"""`diffmatch train`: weights of the networks that the other jobs use."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from diffmatch.cli.options import DEFAULTS, JobOptions, check_outputs, resolve_device
from diffmatch.cli.outcome import Failure, resumable, write_json
from diffmatch.cli.table import metric_table

if TYPE_CHECKING:
    from diffmatch.history import History
    from diffmatch.matching.keypoints.matcher import MatcherConfig
    from diffmatch.matching.keypoints.scenes import Scenes
    from diffmatch.matching.keypoints.training import TrainingSettings, Validation
    from diffmatch.report import Metric

__all__ = ["train"]

train = App(name="train", help="Train the networks that the other jobs use.")

Preset = Literal["tiny", "standard"]
Precision = Literal["float32", "bfloat16", "float16"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_VALIDATION_SHARE = 20
"""One picture in so many is kept for validation."""


@train.command
def matcher(
    pictures: Annotated[
        Path | None,
        Parameter(help="A folder of pictures, or a text file with one path a line; without it, pictures are made."),
    ] = None,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="The weights: a .safetensors file.")],
    preset: Annotated[
        Preset, Parameter(help="standard, or tiny: a trial of a few minutes on pictures that are made.")
    ] = "standard",
    steps: Annotated[int | None, Parameter(help="Of the optimizer.")] = None,
    pairs: Annotated[int | None, Parameter(help="Pairs of views a step, on each process.")] = None,
    scenes: Annotated[int | None, Parameter(help="Scenes that the pairs are drawn from.")] = None,
    lr: Annotated[float | None, Parameter(help="Largest learning rate.")] = None,
    precision: Annotated[Precision, Parameter(help="Of the network's products.")] = "float32",
    cache: Annotated[
        Path | None, Parameter(help="Folder that keeps the scenes, for later trainings; OUTPUT.scenes by default.")
    ] = None,
    workers: Annotated[int, Parameter(help="Threads that make scenes.")] = 1,
    card: Annotated[Path | None, Parameter(help="JSON file with what the model card should say besides.")] = None,
    checkpoint: Annotated[
        Path | None, Parameter(help="Where to keep the state of the training; OUTPUT.checkpoint by default.")
    ] = None,
    resume: Annotated[
        bool, Parameter(help="Go on from the checkpoint if there is one.", negative="--no-resume")
    ] = True,
    metrics: Annotated[Path | None, Parameter(help="Where to write the log; OUTPUT.json by default.")] = None,
    job: JobOptions = DEFAULTS,
) -> None:
    """Train the keypoint matcher on synthetic views of pictures.

    Writes the weights with a model card, and a log (JSON) with the loss and the validations. Under torchrun every
    process trains on other pairs. A training that was interrupted goes on when the same command is given again.
    """
    job.check()
    _check_files(output, pictures, preset, card)
    cache = cache or output.with_name(f"{output.name}.scenes")
    checkpoint = checkpoint or output.with_name(f"{output.name}.checkpoint")
    metrics = metrics or output.with_suffix(".json")
    check_outputs(
        {"output": output, "metrics": metrics, "checkpoint": checkpoint, "report": job.report},
        inputs={"pictures": str(pictures or ""), "card": str(card or "")},
    )
    device = resolve_device(job.device)
    config, settings = _settings(preset, job.seed, {"steps": steps, "pairs": pairs, "scenes": scenes, "lr": lr})
    extra = json.loads(card.read_text(encoding="utf-8")) if card is not None else {}

    import torch

    from diffmatch.matching.keypoints.matcher import Matcher
    from diffmatch.matching.keypoints.training import train_matcher, validate
    from diffmatch.matching.keypoints.weights import save_matcher

    training, held = _scenes(pictures, preset, cache, job.seed)
    with _processes(device) as (rank, world), resumable(checkpoint):
        if preset == "standard":
            held.prepare(range(settings.validation_scenes), workers=workers, progress=not job.quiet and rank == 0)
            numbers = range(rank, settings.scenes, world)
            training.prepare(numbers, workers=workers, progress=not job.quiet and rank == 0)
        torch.manual_seed(job.seed)
        network = Matcher(config).to(device)
        log = [{"step": 0, **asdict(validate(network, held, settings.validation_scenes))}]
        begun = time.perf_counter()
        history = train_matcher(
            network,
            training,
            held,
            settings=settings,
            optimizer=job.optimizer or "adamw",
            autocast=None if precision == "float32" else getattr(torch, precision),
            checkpoint=checkpoint if world == 1 else f"{checkpoint}.{rank}",
            resume=resume,
            progress=not job.quiet,
            on_validation=lambda step, result: log.append({"step": step, **asdict(result)}),
        )
        last = validate(network, held, settings.validation_scenes)
        log.append({"step": history.steps, "averaged weights": True, **asdict(last)})
        if rank:
            return
        about = {
            **extra,
            "pictures": len(training.pictures),
            "steps": history.steps,
            "pairs a step": settings.pairs * world,
            "seconds": round(history.seconds, 1),
            "validation": asdict(last),
        }
        save_matcher(output, network, card=about)
        write_json(metrics, _log(history, log, about, settings, device, time.perf_counter() - begun))
        if job.report is not None:
            _write_report(job.report, history, last, settings, device)
    if history.status == "diverged":
        raise Failure(f"the training diverged ({history.message}); {output} holds its last good state")
    for file in [checkpoint, *(Path(f"{checkpoint}.{k}") for k in range(world))]:
        file.unlink(missing_ok=True)
    if not job.quiet:
        print(metric_table(_metrics(last)))
        print(f"{output}: {history.steps} steps in {history.seconds:.1f} s")


def _check_files(output: Path, pictures: Path | None, preset: Preset, card: Path | None) -> None:
    from diffmatch.errors import InputError

    if output.suffix != ".safetensors":
        raise InputError("output", "a file that ends in .safetensors", repr(str(output)))
    if pictures is None and preset == "standard":
        raise InputError("pictures", "a folder or a list of pictures (or --preset tiny)", "none")
    if pictures is not None and preset == "tiny":
        raise InputError("pictures", "none with --preset tiny, which makes its own", repr(str(pictures)))
    if card is not None:
        try:
            if not isinstance(json.loads(card.read_text(encoding="utf-8")), dict):
                raise ValueError("not an object")
        except (OSError, ValueError) as error:
            raise InputError("card", "a JSON file with an object", f"{str(card)!r} ({error})") from error


def _settings(preset: Preset, seed: int, given: dict[str, Any]) -> "tuple[MatcherConfig, TrainingSettings]":
    """Shape of the network and course of the training: the preset's, with what was given."""
    from diffmatch.errors import check_positive
    from diffmatch.matching.keypoints.matcher import MatcherConfig
    from diffmatch.matching.keypoints.training import TrainingSettings

    if given["lr"] is not None:
        check_positive("lr", given["lr"])
    chosen = {name: value for name, value in given.items() if value is not None}
    if preset == "standard":
        return MatcherConfig(), TrainingSettings(**{"seed": seed, **chosen})
    small: dict[str, Any] = {"steps": 500, "scenes": 32, "validation_scenes": 12, "validate_every": 100, "lr": 5e-3}
    settings = TrainingSettings(**{**small, "keypoints": (256, 256), "seed": seed, **chosen})
    return MatcherConfig(width=32, message_width=24), settings


def _scenes(pictures: Path | None, preset: Preset, cache: Path, seed: int) -> "tuple[Scenes, Scenes]":
    """What to train on, and what to validate on."""
    from diffmatch.matching.keypoints.scenes import Scenes, SceneSettings

    if pictures is None:
        tiny = (
            SceneSettings(views=2, max_keypoints=256, long_side=(300, 340), max_tilt=20.0, seed=seed + kind)
            for kind in (0, 1)
        )
        return Scenes.made(40, settings=next(tiny)), Scenes.made(12, settings=next(tiny))
    settings = SceneSettings(seed=seed)
    files, held = _split(_files(pictures), least=settings.views + 1)
    return Scenes(files, cache, settings=settings), Scenes(held, cache, settings=settings)


def _files(pictures: Path) -> list[Path]:
    """The pictures of a list in its order, or those of a folder in one that their names fix and that mixes subfolders.

    What lies around a scene is taken from the pictures that follow, so that neighbours should not look alike.
    """
    from diffmatch.errors import InputError

    if pictures.is_dir():
        found = [path for path in pictures.rglob("*") if path.suffix.lower() in _SUFFIXES]
        found.sort(key=lambda path: (_digest(path, "order"), path))
    else:
        try:
            lines = pictures.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("pictures", "a folder, or a text file of paths", f"{str(pictures)!r} ({error})") from error
        found = [pictures.parent / line.strip() for line in lines if line.strip()]
    missing = [str(path) for path in found if not path.is_file()]
    if missing:
        raise InputError("pictures", "files that exist", f"{missing[0]!r} and {len(missing) - 1} others that do not")
    return found


def _split(files: list[Path], *, least: int) -> tuple[list[Path], list[Path]]:
    """Pictures to train on, and one in twenty to validate on, chosen by the hash of the name."""
    from diffmatch.errors import InputError

    if len(files) < 2 * least:
        raise InputError("pictures", f"at least {2 * least}", str(len(files)))
    held = [path for path in files if _digest(path) % _VALIDATION_SHARE == 0]
    held += [path for path in files if path not in held][: max(0, least - len(held))]
    return [path for path in files if path not in held], held


def _digest(path: Path, salt: str = "") -> int:
    return int(hashlib.sha1((salt + path.name).encode()).hexdigest(), 16)


@contextmanager
def _processes(device: str) -> Iterator[tuple[int, int]]:
    """Join the other processes that torchrun has started, if it has; yields rank and number."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield torch.distributed.get_rank(), torch.distributed.get_world_size()
    finally:
        torch.distributed.destroy_process_group()


def _log(
    history: "History",
    validations: list[dict[str, Any]],
    about: dict[str, Any],
    settings: "TrainingSettings",
    device: str,
    seconds: float,
) -> dict[str, Any]:
    from diffmatch.report.environment import environment

    return {
        "card": about,
        "status": history.status,
        "message": history.message,
        "seconds of this call": seconds,
        "validation": validations,
        "loss": history.loss,
        "terms": history.terms,
        "settings": asdict(settings),
        "environment": environment(device),
    }


def _metrics(result: "Validation") -> "list[Metric]":
    from diffmatch.report import Metric

    return [
        Metric("validation loss", result.loss, "", "on pictures that were not trained on"),
        Metric("precision", 100 * result.precision, "%", "share of the matches that are right"),
        Metric("right matches", result.correct, "a pair", "on the same pairs"),
        Metric("found", 100 * result.found, "%", "share of the right candidates that were matched"),
    ]


def _write_report(
    path: Path, history: "History", result: "Validation", settings: "TrainingSettings", device: str
) -> None:
    from diffmatch.report import Report, environment

    summary = f"{history.steps} steps in {history.seconds:.0f} s; {history.message or history.status}."
    report = Report("Keypoint matcher", summary=summary)
    report.add_section("Training")
    report.add_metrics(_metrics(result))
    if history.steps:
        report.add_curves(history, caption="The loss of each step, and its terms.")
    report.add_settings({**asdict(settings), **environment(device)})
    report.write(path)
