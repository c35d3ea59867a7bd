"""`diffmatch topology`: persistence diagrams of fields, images, points, graphs and meshes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diffmatch.cli.options import DEFAULTS, JobOptions, check_outputs, resolve_device
from diffmatch.cli.outcome import write_json
from diffmatch.cli.table import metric_table

if TYPE_CHECKING:
    from diffmatch.report.topology import TopologyData
    from diffmatch.topology import Persistence
    from diffmatch.topology.multiparameter import SignedMeasure

__all__ = ["compute_measures", "compute_persistence", "topology", "write_diagrams"]

_SUFFIXES = (".json", ".npz")


def topology(
    data: Annotated[
        str,
        Parameter(
            help="A field (.npy, .npz, an image, .nii), points (.xyz, .npy, .npz, .ply), a graph (.graphml, .gml, "
            ".json, .npz) or a mesh."
        ),
    ],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="File for the diagrams: .json or .npz.")],
    kind: Annotated[str, Parameter(help="auto, field, points, graph or mesh.")] = "auto",
    degrees: Annotated[str | None, Parameter(help="Which to compute, such as 0,1; without it, all.")] = None,
    construction: Annotated[
        str, Parameter(help="Of fields: V connects pixels through faces, T through corners too.")
    ] = "V",
    superlevel: Annotated[bool, Parameter(help="From high values to low ones.", negative=())] = False,
    min_persistence: Annotated[float, Parameter(help="Bars of this length and shorter are left out.")] = 0.0,
    filtration: Annotated[str, Parameter(help="Of points: alpha or rips (lengths, not squares).")] = "alpha",
    values: Annotated[
        str | None,
        Parameter(help="Of graphs and meshes: an attribute, or x, y, z; without it, the last coordinate."),
    ] = None,
    second: Annotated[
        str | None,
        Parameter(
            help="A second parameter: an image of the same shape, a kernel's bandwidth for the density of points, "
            "or as --values."
        ),
    ] = None,
    metrics: Annotated[
        Path | None, Parameter(help="Where to write what was measured; OUTPUT.metrics.json by default.")
    ] = None,
    job: JobOptions = DEFAULTS,
) -> None:
    """Compute the persistent homology of a field, an image, points, a graph or a mesh.

    Writes the diagrams with the places of all births and deaths, what was measured and, if asked for, an HTML report
    with diagram, barcode, Betti curves and the critical points drawn on the data.
    """
    from diffmatch.errors import InputError, check_choice, check_positive

    job.check()
    if job.optimizer is not None:
        raise InputError("optimizer", "none: nothing is fitted here", job.optimizer)
    check_choice("construction", construction, ("V", "T"))
    check_choice("filtration", filtration, ("alpha", "rips"))
    check_positive("min_persistence", min_persistence, allow_zero=True)
    wanted = _parse_degrees(degrees)
    if output.suffix.lower() not in _SUFFIXES:
        raise InputError("output", f"a file that ends in {', '.join(_SUFFIXES)}", repr(str(output)))
    metrics = metrics or output.with_suffix(".metrics.json")
    check_outputs({"output": output, "metrics": metrics, "report": job.report}, inputs={"data": data})
    device = resolve_device(job.device)

    from diffmatch.cli.topology_inputs import read_data
    from diffmatch.report.topology import persistence_metrics

    read = read_data(data, kind=kind, values=values)
    persistence = compute_persistence(
        read.to(device),
        degrees=wanted,
        construction=construction,
        superlevel=superlevel,
        min_persistence=min_persistence,
        filtration=filtration,
    )
    measures = [] if second is None else compute_measures(read, data, second, superlevel=superlevel)
    settings = {"kind": read.kind, "superlevel": superlevel, "min_persistence": min_persistence}
    if read.kind == "field":
        settings["construction"] = construction
    if read.kind == "points":
        settings["filtration"] = filtration
    write_diagrams(output, persistence, read, measures, settings=settings)
    write_json(metrics, _describe(persistence, data=data, settings=settings, device=device))
    if job.report is not None:
        words = ["topology", data, "-o", str(output), "--kind", read.kind, "--device", device]
        words += ["--construction", construction, "--filtration", filtration]
        words += ["--superlevel"] if superlevel else []
        words += ["--min-persistence", str(min_persistence)]
        given = {"degrees": degrees, "values": values, "second": second}
        words += [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        _write_report(job.report, read, persistence, measures, data=data, settings=settings, device=device, words=words)
    if not job.quiet:
        print(metric_table(persistence_metrics(persistence)))
        print(f"{output}: {sum(len(diagram) for diagram in persistence)} bars of {read.kind} data")


def compute_persistence(
    data: "TopologyData",
    *,
    degrees: tuple[int, ...] | None = None,
    construction: str = "V",
    superlevel: bool = False,
    min_persistence: float = 0.0,
    filtration: str = "alpha",
) -> "Persistence":
    """The diagrams of data of any kind.

    Raises:
        InputError: an option that its kind does not have.
    """
    from diffmatch import topology as library
    from diffmatch.errors import InputError

    if data.kind == "points":
        assert data.points is not None
        if superlevel:
            raise InputError("superlevel", "no --superlevel with points: distances grow", "it")
        if filtration == "rips":
            return library.rips_persistence(data.points, degrees=degrees or (0, 1), min_persistence=min_persistence)
        return library.alpha_persistence(data.points, degrees=degrees, squared=False, min_persistence=min_persistence)
    assert data.values is not None
    options: dict[str, Any] = {"degrees": degrees, "superlevel": superlevel, "min_persistence": min_persistence}
    if data.kind == "field":
        return library.cubical_persistence(data.values, construction=construction, **options)  # type: ignore[arg-type]
    if data.kind == "graph":
        assert data.edges is not None
        return library.graph_persistence(data.values, data.edges, **options)
    assert data.faces is not None
    return library.mesh_persistence(data.values, data.faces, **options)


def compute_measures(data: "TopologyData", path: str, second: str, *, superlevel: bool) -> "list[SignedMeasure]":
    """The Hilbert signed measures of two parameters, degrees 0 and, for images and points in the plane, 1.

    Raises:
        InputError: there is no second parameter of this form, or data of this kind has none.
    """
    import torch

    from diffmatch.cli.topology_inputs import second_values
    from diffmatch.errors import InputError
    from diffmatch.topology import multiparameter

    if superlevel:
        raise InputError("superlevel", "no --superlevel with --second", "both")
    other = second_values(second, data, path)
    if data.kind == "points":
        assert data.points is not None
        if data.points.shape[1] != 2:
            return [multiparameter.rips_signed_measure(data.points, other)]
        return [multiparameter.delaunay_signed_measure(data.points, other, degree=degree) for degree in (0, 1)]
    assert data.values is not None
    both = torch.stack((data.values.to(other), other))
    if data.kind == "field":
        return [multiparameter.image_signed_measure(both, degree=degree) for degree in (0, 1)]
    if data.kind == "graph":
        assert data.edges is not None
        return [multiparameter.graph_signed_measure(both, data.edges)]
    assert data.faces is not None
    return [multiparameter.mesh_signed_measure(both, data.faces)]


def _parse_degrees(text: str | None) -> tuple[int, ...] | None:
    from diffmatch.errors import InputError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError("degrees", "whole numbers with commas, such as 0,1", repr(text))
    return tuple(sorted({int(part) for part in parts}))


def write_diagrams(
    output: Path,
    persistence: "Persistence",
    data: "TopologyData",
    measures: "list[SignedMeasure]",
    *,
    settings: dict[str, Any],
) -> None:
    """The bars by degree, finite ones first, then the essential ones, without a death.

    JSON: lists, in which the death of an essential class and its place are null. npz: arrays ``births_0``,
    ``deaths_0`` (infinite), ``birth_index_0``, ``death_index_0`` (-1), and so on for the other degrees.
    """
    if output.suffix.lower() == ".json":
        content = {
            **settings,
            **({"shape": list(data.values.shape)} if data.kind == "field" and data.values is not None else {}),
            "degrees": {str(diagram.degree): _bar_lists(diagram) for diagram in persistence},
        }
        if measures:
            content["signed_measures"] = [
                {"degree": m.degree, "points": m.points.tolist(), "weights": m.weights.tolist()} for m in measures
            ]
        write_json(output, content)
        return
    import io
    import math

    import numpy as np

    from diffmatch.io import write_bytes_atomic

    arrays: dict[str, Any] = {}
    for diagram in persistence:
        endless = np.full(len(diagram.essential_births), -math.inf if persistence.superlevel else math.inf)
        index = diagram.death_index.cpu().numpy()
        parts = {
            "births": (diagram.births.cpu().numpy(), diagram.essential_births.cpu().numpy()),
            "deaths": (diagram.deaths.cpu().numpy(), endless),
            "birth_index": (diagram.birth_index.cpu().numpy(), diagram.essential_index.cpu().numpy()),
            "death_index": (index, np.full((len(endless), *index.shape[1:]), -1)),
        }
        arrays |= {f"{name}_{diagram.degree}": np.concatenate(pair) for name, pair in parts.items()}
    for measure in measures:
        arrays[f"measure_points_{measure.degree}"] = measure.points.cpu().numpy()
        arrays[f"measure_weights_{measure.degree}"] = measure.weights.cpu().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes_atomic(output, buffer.getvalue(), argument="output")


def _bar_lists(diagram: Any) -> dict[str, list[Any]]:
    endless = [None] * len(diagram.essential_births)
    return {
        "births": diagram.births.tolist() + diagram.essential_births.tolist(),
        "deaths": diagram.deaths.tolist() + endless,
        "birth_index": diagram.birth_index.tolist() + diagram.essential_index.tolist(),
        "death_index": diagram.death_index.tolist() + endless,
    }


def _describe(persistence: "Persistence", *, data: str, settings: dict[str, Any], device: str) -> dict[str, Any]:
    from diffmatch.report.environment import environment
    from diffmatch.report.topology import persistence_metrics

    return {
        "data": data,
        "settings": settings,
        "metrics": {metric.name: metric.value for metric in persistence_metrics(persistence)},
        "environment": environment(device),
    }


def _write_report(
    path: Path,
    read: "TopologyData",
    persistence: "Persistence",
    measures: "list[SignedMeasure]",
    *,
    data: str,
    settings: dict[str, Any],
    device: str,
    words: list[str],
) -> None:
    from diffmatch.report import Report, environment
    from diffmatch.report.topology import add_measures, add_persistence

    bars = sum(len(diagram) for diagram in persistence)
    report = Report(f"Persistent homology of {Path(data).name}", summary=f"{bars} bars of {read.kind} data.")
    add_persistence(report, persistence, read)
    if measures:
        report.add_section("Two parameters")
        add_measures(report, measures)
    report.add_section("How it was made")
    report.add_settings({**settings, **environment(device)}, command=["diffmatch", *words])
    report.write(path)
