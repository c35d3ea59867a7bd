"""Graph files: GraphML, GML and JSON through networkx, and npz."""

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffmatch.errors import InputError, check_choice, require
from diffmatch.io import atomic_write
from diffmatch.matching.graphs.convert import from_networkx, to_networkx
from diffmatch.matching.graphs.graph import Graph, check_graph

__all__ = ["GRAPH_SUFFIXES", "read_graph", "write_graph"]

GRAPH_SUFFIXES = (".graphml", ".gml", ".json", ".npz")
_ARRAYS = ("edges", "adjacency", "positions", "features", "weights", "edge_features", "names", "directed", "node_count")


def read_graph(
    path: str | os.PathLike[str],
    *,
    features: Sequence[str] = (),
    edge_features: Sequence[str] = (),
    weight: str = "weight",
    dtype: torch.dtype = torch.float32,
    argument: str = "graph",
) -> Graph:
    """Read a graph file.

    ``.graphml``, ``.gml`` and ``.json`` (networkx's node-link form) are read by networkx: node attributes ``pos``, or
    ``x``, ``y`` and ``z``, become positions, the edge attribute ``weight`` the weights, other attributes only if they
    are named. ``.npz`` holds arrays: ``edges`` (2, e) or ``adjacency`` (n, n), and, if wanted, ``positions``,
    ``features``, ``weights``, ``edge_features``, ``names``, ``directed`` and ``node_count``. With none of the first two
    and ``positions``, it is a set of points without edges.

    Args:
        path: the file.
        features: node attributes that become features.
        edge_features: edge attributes that become edge features.
        weight: edge attribute that becomes the weights.
        dtype: of the numbers.
        argument: name for error messages.

    Raises:
        InputError: no such file, another format, content that is none of it or makes no simple graph.
        MissingExtraError: networkx is needed and not installed.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(argument, "a file that exists", repr(str(file)))
    suffix = file.suffix.lower()
    if suffix not in GRAPH_SUFFIXES:
        raise InputError(argument, f"a file that ends in {', '.join(GRAPH_SUFFIXES)}", repr(str(file)))
    if suffix == ".npz":
        for name, keys in (("features", features), ("edge_features", edge_features)):
            if keys:
                raise InputError(name, "no names with an npz file, which has arrays", ", ".join(keys))
        return _read_npz(file, dtype, argument)
    networkx = require("networkx", extra="graphs")
    reader: Callable[[], Any] = {
        ".graphml": lambda: networkx.read_graphml(file),
        ".gml": lambda: _read_gml(networkx, file),
        ".json": lambda: _read_json(networkx, file),
    }[suffix]
    try:
        found = reader()
    except (InputError, MemoryError):
        raise
    except Exception as error:  # networkx raises what its parsers do: of XML, of numbers, its own
        raise InputError(argument, f"a {suffix[1:]} file that networkx reads", f"{file} ({_reason(error)})") from error
    return from_networkx(
        found, features=features, edge_features=edge_features, weight=weight, dtype=dtype, argument=argument
    )


def write_graph(path: str | os.PathLike[str], graph: Graph, *, argument: str = "output") -> None:
    """Write a graph file; an existing one is replaced only when the new one is complete.

    Args:
        path: ends in ``.graphml``, ``.gml``, ``.json`` (networkx's node-link form) or ``.npz``. GraphML and GML have no
            lists: positions are written as ``x``, ``y`` and ``z``, other columns under numbered names (``features0``).
        graph: what to write.
        argument: name for error messages.

    Raises:
        InputError: another suffix, a place that cannot be written, or positions with more than three coordinates where
            they are written as x, y, z.
        MissingExtraError: networkx is needed and not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in GRAPH_SUFFIXES:
        raise InputError(argument, f"a file that ends in {', '.join(GRAPH_SUFFIXES)}", repr(os.fspath(path)))
    if suffix == ".npz":
        arrays = {
            name: value.detach().cpu().numpy()
            for name in ("edges", "positions", "features", "weights", "edge_features")
            if (value := getattr(graph, name)) is not None
        }
        arrays |= {"directed": np.array(graph.directed), "node_count": np.array(graph.node_count)}
        if graph.names is not None:
            arrays["names"] = np.array(graph.names, dtype=np.str_)
        with atomic_write(path, argument=argument) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        return
    networkx = require("networkx", extra="graphs")
    made = to_networkx(graph)
    if suffix == ".json":
        text = json.dumps(networkx.node_link_data(made, edges="edges"), ensure_ascii=False, indent=1)
        with atomic_write(path, argument=argument) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
        return
    _flatten(made)
    with atomic_write(path, argument=argument) as temporary:
        (networkx.write_graphml if suffix == ".graphml" else networkx.write_gml)(made, temporary)


def _read_gml(networkx: Any, file: Path) -> Any:
    """With labels as names where the file has them, else with its numbers."""
    try:
        return networkx.read_gml(file)
    except networkx.NetworkXError as error:
        if "label" not in str(error) or "duplicated" in str(error):
            raise
        return networkx.read_gml(file, label="id")


def _read_json(networkx: Any, file: Path) -> Any:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, Mapping) or "nodes" not in content or not {"links", "edges"} & content.keys():
        raise ValueError('no object with "nodes" and "edges" (or "links")')
    return networkx.node_link_graph(dict(content), edges="edges" if "edges" in content else "links")


def _read_npz(file: Path, dtype: torch.dtype, argument: str) -> Graph:
    if not zipfile.is_zipfile(file):
        raise InputError(argument, "an npz file", f"{file}, which is none")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(argument, "an npz file of plain arrays", f"{file} ({_reason(error)})") from error
    for name in arrays:
        check_choice(f"{argument}: array", name, _ARRAYS)
    numbers = {
        name: _number_array(arrays[name], name, dtype, argument)
        for name in ("adjacency", "positions", "features", "weights", "edge_features")
        if name in arrays
    }
    names = tuple(str(name) for name in arrays["names"]) if "names" in arrays else None
    places = {"positions": numbers.get("positions"), "features": numbers.get("features"), "names": names}
    if "adjacency" in arrays:
        for name in ("edges", "weights", "edge_features"):
            if name in arrays:
                raise InputError(argument, "either adjacency or edges with their values", f"adjacency and {name}")
        graph = Graph.from_adjacency(numbers["adjacency"], **places)  # type: ignore[arg-type]
    else:
        ends = arrays.get("edges", np.empty((2, 0), np.int64))
        if not np.issubdtype(ends.dtype, np.integer) or ends.ndim != 2 or ends.shape[0] != 2:
            raise InputError(argument, "edges as whole numbers of shape (2, e)", f"{ends.dtype} {ends.shape}")
        if "edges" not in arrays and "positions" not in arrays:
            raise InputError(argument, "an array named edges, adjacency or positions", ", ".join(arrays) or "no array")
        graph = Graph.from_edges(
            torch.from_numpy(ends.astype(np.int64)),
            node_count=int(arrays["node_count"]) if "node_count" in arrays else None,
            weights=numbers.get("weights"),
            edge_features=numbers.get("edge_features"),
            directed=bool(arrays.get("directed", False)),
            **places,  # type: ignore[arg-type]
        )
    check_graph(graph, argument=argument)
    return graph


def _number_array(array: np.ndarray, name: str, dtype: torch.dtype, argument: str) -> Tensor:
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_) or np.iscomplexobj(array):
        raise InputError(f"{argument}: {name}", "real numbers", str(array.dtype))
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def _flatten(graph: Any) -> None:
    """Turn the lists in a networkx graph into single attributes, in place."""
    for data in [*dict(graph.nodes(data=True)).values(), *(data for _, _, data in graph.edges(data=True))]:
        for key in [key for key, value in data.items() if isinstance(value, list)]:
            values = data.pop(key)
            if key == "pos" and len(values) > 3:
                raise InputError("graph", "positions of at most three coordinates in this format", str(len(values)))
            labels = "xyz" if key == "pos" else [f"{key}{index}" for index in range(len(values))]
            data.update(zip(labels, values, strict=False))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
