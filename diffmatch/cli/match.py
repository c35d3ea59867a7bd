"""`diffmatch match`: corresponding points of two images, or of many pairs, with their geometry."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diffmatch.cli.options import DEFAULTS, JobOptions, check_outputs, resolve_device
from diffmatch.cli.outcome import Failure, write_json
from diffmatch.cli.table import metric_table

__all__ = ["describe_matches", "match"]


def match(
    first: Annotated[str, Parameter(help="An image, a folder of images, or a text file with two images a line.")],
    second: Annotated[
        str | None, Parameter(help="The other image or folder. Left out for all pairs of a folder, or for a text file.")
    ] = None,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="File .npz; for several pairs a folder.")],
    intrinsics: Annotated[
        str | None,
        Parameter(
            help="fx,fy,cx,cy in pixels (of A, then of B if it differs), or a text file with K: the pose is found."
        ),
    ] = None,
    features: Annotated[str, Parameter(help="sift (OpenCV) or hessian (kornia, slower).")] = "sift",
    max_keypoints: Annotated[int, Parameter(help="Of each image.")] = 4096,
    max_pixels: Annotated[int, Parameter(help="Larger images are shrunk to this many pixels.")] = 2_000_000,
    threshold: Annotated[float, Parameter(help="Pixels within which a match agrees with a geometry.")] = 2.0,
    views: Annotated[str, Parameter(help="Affine views: auto (where few matches verify), always or never.")] = "auto",
    network: Annotated[
        str,
        Parameter(help="Learned matcher: auto (where few matches verify), always (for the ratio test) or never."),
    ] = "auto",
    guided: Annotated[
        bool, Parameter(help="Match again under the geometry that was found.", negative="--no-guided")
    ] = True,
    keep: Annotated[str, Parameter(help="verified, or all: also matches that no geometry confirms.")] = "verified",
    colmap: Annotated[Path | None, Parameter(help="Also write what COLMAP imports into this folder.")] = None,
    metrics: Annotated[Path | None, Parameter(help="Where to write what was measured; OUTPUT.json by default.")] = None,
    job: JobOptions = DEFAULTS,
) -> None:
    """Match the keypoints of images.

    Writes positions and scores of the matches, the homography, the fundamental matrix and, with --intrinsics, the pose
    of the second camera; what was measured (JSON); and, if asked for, an HTML report.
    """
    job.check()
    _check_numbers(max_keypoints, max_pixels, threshold)
    from diffmatch.matching.keypoints.pairs import image_pairs, parse_intrinsics

    pairs = image_pairs(first, second)
    single = second is not None and not Path(first).is_dir()
    metrics = metrics or (output.with_suffix(".json") if single else output / "matches.json")
    device = resolve_device(job.device)
    options = {
        "intrinsics": None if intrinsics is None else parse_intrinsics(intrinsics),
        "features": features,
        "max_keypoints": max_keypoints,
        "max_pixels": max_pixels,
        "threshold": threshold,
        "views": views,
        "network": network,
        "guided": guided,
        "keep": keep,
        "seed": job.seed,
        "device": device,
    }
    _check_output(output, single=single)
    files = [output if single else output / f"{pair.name}.npz" for pair in pairs]
    check_outputs(
        {"output": files[0], "metrics": metrics, "report": job.report}, inputs={"A": first, "B": second or ""}
    )

    from diffmatch.matching.keypoints import write_colmap

    found, failed = _match_all(pairs, files, options, quiet=job.quiet or single)
    write_json(metrics, describe_matches(pairs, found, failed, settings={**options, "intrinsics": intrinsics}))
    if colmap is not None:
        names = sorted({path.name for pair in pairs for path in pair.paths})
        numbers = {name: number for number, name in enumerate(names)}
        done = {(numbers[p.a.name], numbers[p.b.name]): m for p, m in zip(pairs, found, strict=True) if m is not None}
        write_colmap(colmap, names, done)
    if job.report is not None:
        words = ["diffmatch", "match", first, *([second] if second else []), "-o", str(output), "--seed", str(job.seed)]
        _write_report(job.report, pairs, found, words, device)
    if not job.quiet:
        _print_summary(pairs, found, output)
    if failed:
        name, message = next(iter(failed.items()))
        raise Failure(f"{len(failed)} of {len(pairs)} pairs could not be matched; {name}: {message}")


def _check_numbers(max_keypoints: int, max_pixels: int, threshold: float) -> None:
    from diffmatch.errors import InputError, check_positive

    for name, number in (("max-keypoints", max_keypoints), ("max-pixels", max_pixels)):
        if number < 1:
            raise InputError(name, "a whole number of at least 1", str(number))
    check_positive("threshold", threshold)


def _check_output(output: Path, *, single: bool) -> None:
    from diffmatch.errors import InputError

    if single:
        if output.suffix.lower() != ".npz":
            raise InputError("output", "a file that ends in .npz", repr(str(output)))
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("output", "a folder that exists or can be made", f"{output} ({error.strerror})") from error


def _match_all(
    pairs: list[Any], files: list[Path], options: dict[str, Any], *, quiet: bool
) -> tuple[list[Any], dict[str, str]]:
    """Matches of each pair, written as they are found; of several pairs, one that cannot be read is only noted."""
    from tqdm import tqdm

    from diffmatch.errors import InputError
    from diffmatch.matching.keypoints import match_images, write_matches

    found: list[Any] = []
    failed: dict[str, str] = {}
    for pair, file in zip(tqdm(pairs, unit="pair", disable=True if quiet else None), files, strict=True):
        try:
            matches = match_images(pair.a, pair.b, **options)
        except InputError as error:
            if len(pairs) == 1 or error.argument not in ("image_a", "image_b"):
                raise
            failed[pair.name] = str(error)
            found.append(None)
            continue
        write_matches(file, matches)
        found.append(matches)
    return found, failed


def describe_matches(
    pairs: list[Any], found: list[Any], failed: dict[str, str], *, settings: dict[str, Any]
) -> dict[str, Any]:
    """What is written beside the matches: for each pair what was found and how, settings and versions."""
    from diffmatch.report.environment import environment

    described = []
    for pair, matches in zip(pairs, found, strict=True):
        entry: dict[str, Any] = {"a": str(pair.a), "b": str(pair.b)}
        if matches is None:
            entry["error"] = failed[pair.name]
        else:
            entry |= {
                "matches": matches.count,
                "guided": int(matches.guided.sum()),
                "raw_matches": len(matches.raw_scores),
                "keypoints": [matches.keypoints_a.count, matches.keypoints_b.count],
                "planar": matches.planar,
                "homography": None if matches.homography is None else matches.homography.tolist(),
                "fundamental": None if matches.fundamental is None else matches.fundamental.tolist(),
                "pose": None
                if matches.pose is None
                else {"R": matches.pose.rotation.tolist(), "t": matches.pose.translation.tolist()},
                "stages": list(matches.stages),
                "seconds": matches.seconds,
            }
        described.append(entry)
    return {"pairs": described, "settings": settings, "environment": environment(settings["device"])}


def _write_report(path: Path, pairs: list[Any], found: list[Any], command: list[str], device: str) -> None:
    from diffmatch.report import Report, environment
    from diffmatch.report.keypoint_match import add_keypoint_match

    total = sum(m.count for m in found if m is not None)
    several = f"{len(pairs)} pairs of images" if len(pairs) > 1 else f"{pairs[0].a.name} and {pairs[0].b.name}"
    report = Report(f"Matches of {several}", summary=f"{total} verified matches.")
    for pair, matches in zip(pairs, found, strict=True):
        if matches is not None:
            if len(pairs) > 1:
                report.add_section(pair.name)
            add_keypoint_match(report, matches, pair.a, pair.b, names=(pair.a.name, pair.b.name))
    report.add_section("How it was made")
    report.add_settings(environment(device), command=command)
    report.write(path)


def _print_summary(pairs: list[Any], found: list[Any], output: Path) -> None:
    from diffmatch.report.keypoint_match import keypoint_match_metrics

    if len(pairs) == 1 and found[0] is not None:
        print(metric_table(keypoint_match_metrics(found[0])))
    else:
        for pair, matches in zip(pairs, found, strict=True):
            if matches is not None:
                print(f"{pair.name}: {matches.count} matches in {sum(matches.seconds.values()):.1f} s")
    print(f"written: {output}")
