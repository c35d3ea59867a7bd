"""`diffmatch graph`: which node of one graph is which node of another."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

from diffmatch.cli.options import DEFAULTS, JobOptions, check_outputs, resolve_device
from diffmatch.cli.outcome import write_json
from diffmatch.cli.table import metric_table

if TYPE_CHECKING:
    from diffmatch.matching import GraphMatch
    from diffmatch.matching.graphs import Graph
    from diffmatch.matching.graphs.edges import EdgeSet

__all__ = ["describe_match", "graph", "write_assignment"]

_SUFFIXES = (".json", ".npz")


def graph(
    first: Annotated[str, Parameter(help="A graph file: .graphml, .gml, .json (node-link) or .npz.")],
    second: Annotated[str, Parameter(help="The graph file to match it with.")],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="File for the assignment: .json or .npz.")],
    solver: Annotated[str, Parameter(help="Of the quadratic problem; auto takes what suits it.")] = "auto",
    edges: Annotated[
        str,
        Parameter(help="file, or made from positions: delaunay, knn, complete; auto makes them where there are none."),
    ] = "auto",
    feature: Annotated[
        tuple[str, ...], Parameter(help="A node attribute that matched nodes should share; can be given repeatedly.")
    ] = (),
    restarts: Annotated[int, Parameter(help="Starts of the solver, of which the best end is kept.")] = 8,
    metrics: Annotated[
        Path | None, Parameter(help="Where to write what was measured; OUTPUT.metrics.json by default.")
    ] = None,
    job: JobOptions = DEFAULTS,
) -> None:
    """Match the nodes of two graphs by their edges, positions and attributes.

    Writes the assignment with a score for each match, what was measured and, if asked for, an HTML report with both
    graphs drawn and the matches between them.
    """
    from diffmatch.errors import InputError, check_choice

    job.check()
    if job.optimizer is not None:
        raise InputError(
            "optimizer", "none: graphs are matched by a solver (--solver), not by a gradient fit", job.optimizer
        )
    check_choice("edges", edges, ("auto", "file", *_edge_sets()))
    if output.suffix.lower() not in _SUFFIXES:
        raise InputError("output", f"a file that ends in {', '.join(_SUFFIXES)}", repr(str(output)))
    metrics = metrics or output.with_suffix(".metrics.json")
    check_outputs(
        {"output": output, "metrics": metrics, "report": job.report}, inputs={"first": first, "second": second}
    )
    device = resolve_device(job.device)

    import torch

    from diffmatch.matching import match_graphs

    a, b = (
        _with_edges(_read(path, feature, name).to(device=device), edges, name)
        for path, name in ((first, "first"), (second, "second"))
    )
    match = match_graphs(
        a, b, solver=solver, restarts=restarts, generator=torch.Generator(device).manual_seed(job.seed)
    )
    write_assignment(output, match, a, b)
    write_json(metrics, describe_match(match, a, b, names=(first, second), device=device))
    if job.report is not None:
        words = ["graph", first, second, "-o", str(output), "--solver", solver, "--edges", edges]
        words += [word for name in feature for word in ("--feature", name)]
        words += ["--restarts", str(restarts), "--seed", str(job.seed), "--device", device]
        _write_report(job.report, match, a, b, names=(first, second), device=device, command=["diffmatch", *words])
    if not job.quiet:
        from diffmatch.report.graph_match import graph_match_metrics

        print(metric_table(graph_match_metrics(match, a, b)))
        print(f"{output}: {len(match.matches)} matches by {match.solver}")


def _edge_sets() -> tuple[str, ...]:
    from diffmatch.matching.graphs.edges import EDGE_SETS

    return tuple(name for name in EDGE_SETS if name != "radius")  # a radius has a unit that the two need not share


def _read(path: str, features: tuple[str, ...], argument: str) -> "Graph":
    from diffmatch.matching.graphs import read_graph

    return read_graph(path, features=features, argument=argument)


def _with_edges(graph: "Graph", edges: str, argument: str) -> "Graph":
    """The graph with the edges that were asked for."""
    import dataclasses

    from diffmatch.errors import InputError
    from diffmatch.matching.graphs.edges import point_edges

    if edges == "file" or (edges == "auto" and (graph.edge_count or graph.positions is None)):
        return graph
    if graph.positions is None:
        raise InputError(argument, f"a graph with positions for --edges {edges}", "one without")
    made = point_edges(graph.positions, edges=cast("EdgeSet", "delaunay" if edges == "auto" else edges))
    return dataclasses.replace(graph, edges=made, weights=None, edge_features=None, directed=False)


def describe_match(
    match: "GraphMatch", a: "Graph", b: "Graph", *, names: tuple[str, str], device: str
) -> dict[str, Any]:
    """What is written beside an assignment: its measures, the graphs and the versions."""
    from diffmatch.report.environment import environment
    from diffmatch.report.graph_match import graph_match_metrics

    return {
        "graphs": [
            {"file": name, "nodes": graph.node_count, "edges": graph.edge_count}
            for name, graph in zip(names, (a, b), strict=True)
        ],
        "solver": match.solver,
        "metrics": {metric.name: metric.value for metric in graph_match_metrics(match, a, b)},
        "environment": environment(device),
    }


def write_assignment(output: Path, match: "GraphMatch", a: "Graph", b: "Graph") -> None:
    """The assignment: arrays (npz), or the matched names with their scores (JSON)."""
    if output.suffix.lower() == ".json":
        pairs = match.matches.tolist()
        scores = match.scores.tolist()
        rows = [{"first": _name(a, i), "second": _name(b, j), "score": scores[i]} for i, j in pairs]
        write_json(output, {"assignment": match.assignment.tolist(), "matches": rows})
        return
    import io

    import numpy as np

    from diffmatch.io import write_bytes_atomic

    buffer = io.BytesIO()
    arrays = (tensor.cpu().numpy() for tensor in (match.assignment, match.scores, match.matches))
    np.savez(buffer, **dict(zip(("assignment", "scores", "matches"), arrays, strict=True)))  # type: ignore[arg-type]
    write_bytes_atomic(output, buffer.getvalue(), argument="output")


def _name(graph: "Graph", node: int) -> str | int:
    return node if graph.names is None else graph.names[node]


def _write_report(
    path: Path,
    match: "GraphMatch",
    a: "Graph",
    b: "Graph",
    *,
    names: tuple[str, str],
    device: str,
    command: list[str],
) -> None:
    from diffmatch.report import Report, environment
    from diffmatch.report.graph_match import add_graph_match

    shown = Path(names[0]).name, Path(names[1]).name
    report = Report(f"{shown[0]} matched with {shown[1]}", summary=f"{len(match.matches)} matches by {match.solver}.")
    add_graph_match(report, match, a, b, names=shown)
    report.add_section("How it was made")
    report.add_settings({"solver": match.solver, **environment(device)}, command=command)
    report.write(path)
