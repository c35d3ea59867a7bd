"""Graphs of networkx and torch-geometric, and plain tensors, in and out."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffmatch.errors import InputError, require
from diffmatch.matching.graphs.graph import Graph, check_graph

__all__ = ["as_graph", "from_geometric", "from_networkx", "to_geometric", "to_networkx"]

_AXES = ("x", "y", "z")


def as_graph(graph: Any, *, argument: str = "graph") -> Graph:
    """The graph that was meant, checked.

    Args:
        graph: a :class:`Graph`; a networkx graph; a torch-geometric ``Data``; an adjacency matrix (n, n), as tensor or
            array.
        argument: name for error messages.

    Raises:
        InputError: another type, or values that make no simple graph.
    """
    if isinstance(graph, Graph):
        check_graph(graph, argument=argument)
        return graph
    if hasattr(graph, "is_multigraph") and hasattr(graph, "adjacency"):
        return from_networkx(graph, argument=argument)
    if hasattr(graph, "edge_index") and hasattr(graph, "num_nodes"):
        return from_geometric(graph, argument=argument)
    if isinstance(graph, Tensor) or hasattr(graph, "__array__"):
        try:
            return Graph.from_adjacency(torch.as_tensor(graph))
        except InputError as error:
            raise InputError(argument, f"an adjacency matrix with {error.wanted}", error.got) from error
    wanted = "a Graph, a networkx graph, a torch-geometric Data or a square matrix"
    raise InputError(argument, wanted, type(graph).__name__)


def from_networkx(
    graph: Any,
    *,
    position: str = "pos",
    features: Sequence[str] = (),
    weight: str = "weight",
    edge_features: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    argument: str = "graph",
) -> Graph:
    """A networkx graph as tensors; nodes keep their order, and their names become text.

    Args:
        graph: ``Graph`` or ``DiGraph``; a multigraph without parallel edges.
        position: node attribute that holds the coordinates; where no node has it, ``x``, ``y`` and ``z`` are taken.
        features: node attributes that become columns of ``features``: numbers, or lists of numbers.
        weight: edge attribute that becomes ``weights``; edges without it have weight 1.
        edge_features: edge attributes that become columns of ``edge_features``.
        dtype: of the numbers; the default dtype where None.
        argument: name for error messages.

    Raises:
        InputError: parallel edges, an attribute that some nodes or edges lack or that is not a finite number.
    """
    nodes = dict(graph.nodes(data=True))
    names = tuple(str(name) for name in nodes)
    number = {name: index for index, name in enumerate(nodes)}
    ends = [(number[tail], number[head]) for tail, head in graph.edges()]
    seen = {pair if graph.is_directed() else tuple(sorted(pair)) for pair in ends}
    if len(seen) != len(ends):
        raise InputError(argument, "no parallel edges (merge them first)", f"{len(ends) - len(seen)} of them")
    kind = dtype or torch.get_default_dtype()
    node_data = list(nodes.items())
    edge_data = [(f"{tail}-{head}", data) for tail, head, data in graph.edges(data=True)]

    def table(rows: Sequence[tuple[Any, Mapping[str, Any]]], keys: Sequence[str], what: str) -> Tensor | None:
        if not keys:
            return None
        read = [
            [part for key in keys for part in _numbers(data, key, f"{what} {name}", argument)] for name, data in rows
        ]
        if len({len(row) for row in read}) > 1:
            raise InputError(argument, f"as many numbers in {', '.join(keys)} of each {what}", "different lengths")
        return torch.tensor(read, dtype=kind).reshape(len(rows), len(read[0]) if read else len(keys))

    spatial = [position] if any(position in data for _, data in node_data) else _axes(node_data)
    weights = None
    if any(weight in data for _, data in edge_data):
        weights = table([(name, {weight: 1.0, **data}) for name, data in edge_data], [weight], "edge")
    result = Graph.from_edges(
        torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        node_count=len(nodes),
        positions=table(node_data, spatial, "node"),
        features=table(node_data, features, "node"),
        weights=None if weights is None else weights.flatten(),
        edge_features=table(edge_data, edge_features, "edge"),
        directed=graph.is_directed(),
    )
    named = dataclasses.replace(result, names=names)
    check_graph(named, argument=argument)
    return named


def to_networkx(graph: Graph) -> Any:
    """The graph for networkx: a ``Graph`` or ``DiGraph`` whose nodes are the names, with plain Python attributes.

    Positions become the node attribute ``pos``, weights the edge attribute ``weight``; ``features`` and
    ``edge_features`` become lists of these names.

    Raises:
        MissingExtraError: networkx is not installed.
    """
    networkx = require("networkx", extra="graphs")
    made = networkx.DiGraph() if graph.directed else networkx.Graph()
    names = graph.node_names
    node_values = {"pos": graph.positions, "features": graph.features}
    edge_values = {"weight": graph.weights, "features": graph.edge_features}
    made.add_nodes_from(zip(names, _rows(node_values, graph.node_count), strict=True))
    ends = graph.edges.T.tolist()
    made.add_edges_from(
        (names[tail], names[head], values)
        for (tail, head), values in zip(ends, _rows(edge_values, graph.edge_count), strict=True)
        if graph.directed or tail <= head
    )
    return made


def from_geometric(data: Any, *, argument: str = "graph") -> Graph:
    """A torch-geometric ``Data`` as a graph; shares its tensors.

    ``pos`` becomes the positions, ``x`` the features, ``edge_weight`` the weights, ``edge_attr`` the edge features.
    It is undirected if each edge stands in both directions with the same values.

    Raises:
        InputError: no ``edge_index``, parallel edges, wrong shapes or values.
    """
    if data.edge_index is None:
        raise InputError(argument, "a graph with edge_index", "none")
    attributes, features = data.edge_attr, data.x
    if attributes is not None and attributes.ndim == 1:
        attributes = attributes[:, None]
    if features is not None and features.ndim == 1:
        features = features[:, None]
    graph = Graph(
        data.edge_index,
        int(data.num_nodes),
        positions=data.pos,
        features=_floating(features),
        weights=_floating(getattr(data, "edge_weight", None)),
        edge_features=_floating(attributes),
        directed=True,
    )
    check_graph(graph, argument=argument)
    return dataclasses.replace(graph, directed=not _symmetric(graph))


def to_geometric(graph: Graph) -> Any:
    """The graph as a torch-geometric ``Data``; shares its tensors, and leaves out the names.

    Raises:
        MissingExtraError: torch-geometric is not installed.
    """
    data = require("torch_geometric.data", extra="graphs").Data(
        x=graph.features,
        edge_index=graph.edges,
        edge_attr=graph.edge_features,
        pos=graph.positions,
        num_nodes=graph.node_count,
    )
    if graph.weights is not None:
        data.edge_weight = graph.weights
    return data


def _axes(rows: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[str]:
    """Which of x, y, z the nodes have; coordinates are taken where at least x and y are there."""
    found = [axis for axis in _AXES if any(axis in data for _, data in rows)]
    return found if found[:2] == ["x", "y"] else []


def _numbers(data: Mapping[str, Any], key: str, where: str, argument: str) -> list[float]:
    """The numbers under a key: one, or a list of them, also as the text that file formats make of a list."""
    value = data.get(key)
    if value is None:
        raise InputError(argument, f"the attribute {key!r} at each", f"{where} without it")
    if isinstance(value, str):
        value = value.strip("[]() ").replace(",", " ").split()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    elif isinstance(value, Mapping):
        value = list(value.values())
    try:
        numbers = [float(part) for part in (value if isinstance(value, (list, tuple)) else [value])]
    except (TypeError, ValueError):
        raise InputError(argument, f"numbers as {key!r}", f"{data[key]!r} at {where}") from None
    if not all(math.isfinite(part) for part in numbers):
        raise InputError(argument, f"finite numbers as {key!r}", f"{data[key]!r} at {where}")
    return numbers


def _rows(values: Mapping[str, Tensor | None], count: int) -> list[dict[str, Any]]:
    """One dictionary of plain numbers a node or edge."""
    columns = {name: tensor.detach().tolist() for name, tensor in values.items() if tensor is not None}
    return [{name: column[index] for name, column in columns.items()} for index in range(count)]


def _floating(values: Tensor | None) -> Tensor | None:
    if values is None or values.is_floating_point():
        return values
    return values.to(torch.get_default_dtype())


def _symmetric(graph: Graph) -> bool:
    """Whether each edge stands in both directions with the same values."""
    n = graph.node_count
    forth = (graph.edges[0] * n + graph.edges[1]).argsort()
    back = (graph.edges[1] * n + graph.edges[0]).argsort()
    values = (graph.edges.T, graph.weights, graph.edge_features)
    turned = (graph.edges.flip(0).T, graph.weights, graph.edge_features)
    return all(a is None or b is None or torch.equal(a[forth], b[back]) for a, b in zip(values, turned, strict=True))
