"""The graph that the matching works on, as tensors."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_floating, check_same_device, check_shape
from diffmatch.matching.graphs.edges import EdgeSet, both_directions, point_edges

__all__ = ["Graph", "check_graph"]

G = TypeVar("G", bound="Graph")  # typing.Self, which annotation checks of single methods cannot resolve


@dataclass(frozen=True, eq=False)
class Graph:
    """A simple graph: no two edges have the same ends in the same order; an edge may join a node with itself.

    Construction checks shapes, dtypes and devices, never values; :func:`check_graph` checks those, where data enters.

    Attributes:
        edges: tail and head of each edge, shape (2, e), int64. An undirected graph holds each edge in both directions,
            with the same weight and features (one from a node to itself once), as torch-geometric does.
        node_count: number of nodes.
        positions: where the nodes are, shape (n, d), floating; any unit.
        features: other numbers at the nodes, shape (n, f), floating.
        weights: one number an edge, such as a length or a strength, shape (e,), floating; 1 where None.
        edge_features: other numbers at the edges, shape (e, k), floating.
        names: one distinct name a node; their numbers where None.
        directed: the direction of the edges has a meaning.

    Raises:
        InputError: a shape, dtype or device does not fit.

    Examples:
        >>> triangle = Graph.from_edges([(0, 1), (1, 2), (2, 0)])
        >>> triangle.node_count, triangle.edge_count
        (3, 6)
    """

    edges: Int64[Tensor, "2 e"]
    node_count: int
    positions: Float[Tensor, "n d"] | None = field(default=None, kw_only=True)
    features: Float[Tensor, "n f"] | None = field(default=None, kw_only=True)
    weights: Float[Tensor, " e"] | None = field(default=None, kw_only=True)
    edge_features: Float[Tensor, "e k"] | None = field(default=None, kw_only=True)
    names: tuple[str, ...] | None = field(default=None, kw_only=True)
    directed: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_shape("edges", self.edges, (2, "e"))
        if self.edges.dtype != torch.int64:
            raise InputError("edges", "int64 indices", str(self.edges.dtype))
        if self.node_count < 0:
            raise InputError("node_count", "a number >= 0", str(self.node_count))
        e, n = self.edge_count, self.node_count
        for name, shape in (
            ("positions", (n, "d")),
            ("features", (n, "f")),
            ("weights", (e,)),
            ("edge_features", (e, "k")),
        ):
            tensor = getattr(self, name)
            if tensor is not None:
                check_shape(name, tensor, shape)
                check_floating(name, tensor)
                check_same_device(name, tensor, self.edges.device)
        if self.names is not None and len(self.names) != n:
            raise InputError("names", f"one for each of {n} nodes", str(len(self.names)))

    @staticmethod
    def from_edges(
        edges: Int[Tensor, "2 e"] | Sequence[tuple[int, int]],
        *,
        node_count: int | None = None,
        positions: Float[Tensor, "n d"] | None = None,
        features: Float[Tensor, "n f"] | None = None,
        weights: Float[Tensor, " e"] | None = None,
        edge_features: Float[Tensor, "e k"] | None = None,
        names: Sequence[str] | None = None,
        directed: bool = False,
    ) -> "Graph":
        """A graph from a list of edges, each given once or in both directions.

        Args:
            edges: pairs of node numbers, or shape (2, e).
            node_count: by default as many as have positions, features or names, else as the edges name.
            positions: shape (n, d).
            features: shape (n, f).
            weights: one an edge as given.
            edge_features: one row an edge as given.
            names: of the nodes.
            directed: keep the edges as they are; else the missing directions are added.

        Raises:
            InputError: wrong shapes, a node that is not there, an edge given twice.
        """
        if isinstance(edges, Tensor):
            pairs = edges.to(torch.int64)
        else:
            pairs = torch.tensor([tuple(pair) for pair in edges], dtype=torch.int64).reshape(-1, 2).T
            known = next((t for t in (positions, features, weights, edge_features) if t is not None), pairs)
            pairs = pairs.to(known.device)
        sized = [len(part) for part in (positions, features, names) if part is not None]
        if node_count is None:
            node_count = sized[0] if sized else (int(pairs.max()) + 1 if pairs.numel() else 0)
        graph = Graph(
            pairs,
            node_count,
            positions=positions,
            features=features,
            weights=weights,
            edge_features=edge_features,
            names=None if names is None else tuple(names),
            directed=True,
        )
        check_graph(graph, argument="edges")
        if directed:
            return graph
        index, source = both_directions(pairs, node_count)
        for name, values in (("weights", weights), ("edge_features", edge_features)):
            if values is not None and not torch.equal(
                values, values[_other_direction(pairs, index, source, node_count)]
            ):
                raise InputError(name, "one value an edge, or directed=True", "another one for its other direction")
        return dataclasses.replace(
            graph,
            edges=index,
            weights=None if weights is None else weights[source],
            edge_features=None if edge_features is None else edge_features[source],
            directed=False,
        )

    @staticmethod
    def from_points(
        points: Float[Tensor, "n d"],
        *,
        edges: EdgeSet = "delaunay",
        k: int = 6,
        radius: float | None = None,
        features: Float[Tensor, "n f"] | None = None,
        names: Sequence[str] | None = None,
    ) -> "Graph":
        """A graph of points; its edges are without weights, the matching takes their lengths.

        Args:
            points: shape (n, d).
            edges: ``"delaunay"``, ``"knn"``, ``"radius"`` or ``"complete"``; see :func:`point_edges`.
            k: neighbours a node, for ``"knn"``.
            radius: largest length, for ``"radius"``, in the unit of the points.
            features: other numbers at the nodes, shape (n, f).
            names: of the nodes.

        Raises:
            InputError: wrong shape or dtype, points that are not finite, an unknown edge set.
        """
        return Graph(
            point_edges(points, edges=edges, k=k, radius=radius),
            len(points),
            positions=points,
            features=features,
            names=None if names is None else tuple(names),
        )

    @staticmethod
    def from_adjacency(
        adjacency: Shaped[Tensor, "n n"],
        *,
        positions: Float[Tensor, "n d"] | None = None,
        features: Float[Tensor, "n f"] | None = None,
        names: Sequence[str] | None = None,
    ) -> "Graph":
        """A graph of a square matrix; entries that are not zero are edges, and their weights unless all are one.

        Args:
            adjacency: row is tail, column head, shape (n, n); undirected where it is symmetric. Gradients reach it.
            positions: shape (n, d).
            features: shape (n, f).
            names: of the nodes.

        Raises:
            InputError: not square, or not finite.
        """
        check_shape("adjacency", adjacency, ("n", "n"))
        if adjacency.shape[0] != adjacency.shape[1]:
            raise InputError("adjacency", "shape (n, n)", str(tuple(adjacency.shape)))
        check_finite("adjacency", adjacency)
        values = adjacency if adjacency.is_floating_point() else adjacency.to(torch.get_default_dtype())
        index = values.detach().nonzero().T.contiguous()
        weights = values[index[0], index[1]]
        plain = not values.requires_grad and bool((weights == 1).all())
        return Graph(
            index,
            len(values),
            positions=positions,
            features=features,
            weights=None if plain else weights,
            names=None if names is None else tuple(names),
            directed=not torch.equal(values.detach(), values.detach().T),
        )

    @property
    def edge_count(self) -> int:
        """Number of columns of ``edges``; an undirected edge counts twice."""
        return self.edges.shape[1]

    @property
    def device(self) -> torch.device:
        """Where all tensors of the graph are."""
        return self.edges.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers that the graph carries; the default dtype if it carries none."""
        parts = [t.dtype for t in (self.positions, self.features, self.weights, self.edge_features) if t is not None]
        kind = torch.get_default_dtype() if not parts else parts[0]
        for other in parts[1:]:
            kind = torch.promote_types(kind, other)
        return kind

    @property
    def node_names(self) -> tuple[str, ...]:
        """The names, or the numbers of the nodes as text."""
        return self.names if self.names is not None else tuple(str(number) for number in range(self.node_count))

    def lengths(self) -> Float[Tensor, " e"]:
        """Distance between the ends of each edge; the gradient at length zero is zero.

        Raises:
            InputError: the graph has no positions.
        """
        if self.positions is None:
            raise InputError("graph", "a graph with positions", "one without")
        tail, head = self.edges
        length: Tensor = torch.linalg.vector_norm(self.positions[head] - self.positions[tail], dim=1)
        return length

    def dense(self, values: Float[Tensor, "e *k"] | None = None) -> Float[Tensor, "n n *k"]:
        """Values of the edges as a square matrix, zero where there is no edge; differentiable.

        Args:
            values: one entry an edge; by default the weights, or ones.
        """
        if values is None:
            values = self.weights if self.weights is not None else self.edges.new_ones(self.edge_count).to(self.dtype)
        matrix = values.new_zeros((self.node_count, self.node_count, *values.shape[1:]))
        return matrix.index_put((self.edges[0], self.edges[1]), values)

    def adjacent(self) -> Bool[Tensor, "n n"]:
        """Which nodes are joined by an edge, as a square matrix."""
        matrix = self.edges.new_zeros((self.node_count, self.node_count), dtype=torch.bool)
        return matrix.index_put((self.edges[0], self.edges[1]), matrix.new_ones(()))

    def to(self: G, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> G:
        """The same graph elsewhere, or in another precision."""
        place = torch.device(device) if device is not None else self.device
        moved = {
            name: tensor.to(device=place, dtype=dtype or tensor.dtype)
            for name in ("positions", "features", "weights", "edge_features")
            if (tensor := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, edges=self.edges.to(place), **moved)

    def subgraph(self: G, nodes: Int64[Tensor, " m"] | Sequence[int]) -> G:
        """Some of the nodes, in the order given, with the edges between them; so it also renumbers a graph.

        Args:
            nodes: node numbers, each at most once.

        Raises:
            InputError: a number that is not there, or twice.
        """
        chosen = torch.as_tensor(nodes, dtype=torch.int64, device=self.device)
        if chosen.numel() and not (int(chosen.min()) >= 0 and int(chosen.max()) < self.node_count):
            raise InputError("nodes", f"numbers from 0 to {self.node_count - 1}", str(chosen.tolist()))
        if len(chosen.unique()) != len(chosen):
            raise InputError("nodes", "each node at most once", "one twice")
        place = self.edges.new_full((self.node_count,), -1)
        place[chosen] = torch.arange(len(chosen), device=self.device)
        ends = place[self.edges]
        kept = (ends >= 0).all(0)

        def pick(tensor: Tensor | None, index: Tensor) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return dataclasses.replace(
            self,
            edges=ends[:, kept],
            node_count=len(chosen),
            positions=pick(self.positions, chosen),
            features=pick(self.features, chosen),
            weights=pick(self.weights, kept),
            edge_features=pick(self.edge_features, kept),
            names=None if self.names is None else tuple(self.names[i] for i in chosen.tolist()),
        )


def _other_direction(
    given: Int64[Tensor, "2 e"], index: Int64[Tensor, "2 m"], source: Int64[Tensor, " m"], n: int
) -> Int64[Tensor, " e"]:
    """For each edge as given, the edge as given whose values its two directions take: itself or an earlier one."""
    return source[torch.searchsorted(index[0] * n + index[1], given[0] * n + given[1])]


def check_graph(graph: Graph, *, argument: str = "graph") -> None:
    """Check the values of a graph; reads them, so it waits for the device.

    Args:
        graph: what to check.
        argument: name for the message.

    Raises:
        InputError: an edge names a node that is not there, stands twice, or lacks its other direction in an
            undirected graph; a number is not finite; two nodes have one name.
    """
    n, edges = graph.node_count, graph.edges
    if edges.numel() and not (int(edges.min()) >= 0 and int(edges.max()) < n):
        wanted = f"edges between nodes 0 to {n - 1}" if n else "no edges, as there are no nodes"
        raise InputError(argument, wanted, f"nodes {int(edges.min())} to {int(edges.max())}")
    key = edges[0] * n + edges[1]
    if len(key.unique()) != len(key):
        raise InputError(argument, "no two edges with the same ends (merge parallel ones)", "an edge that stands twice")
    if not graph.directed and not torch.equal(key.sort().values, (edges[1] * n + edges[0]).sort().values):
        raise InputError(argument, "both directions of each edge, or directed=True", "an edge in one direction only")
    for name in ("positions", "features", "weights", "edge_features"):
        tensor = getattr(graph, name)
        if tensor is not None:
            check_finite(f"{argument}.{name}", tensor)
    if graph.names is not None and len(set(graph.names)) != n:
        twice = next(name for name in graph.names if graph.names.count(name) > 1)
        raise InputError(f"{argument}.names", "distinct names", f"{twice!r} more than once")
