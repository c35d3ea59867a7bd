"""The affinity of two graphs, from whatever both carry: positions, edges, weights, features."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_positive, check_same_device
from diffmatch.matching.graphs import Graph
from diffmatch.matching.quadratic.affinity import Affinity, EdgeAffinity, KroneckerAffinity, SumAffinity
from diffmatch.matching.quadratic.factors import gaussian_factors

__all__ = ["GraphAffinity", "graph_affinity"]


@dataclass(frozen=True, eq=False)
class GraphAffinity:
    """The affinity of two graphs, and what a perfect partner would bring.

    Attributes:
        affinity: the quadratic form.
        totals_a: affinity of each node's edges with themselves, shape (n,).
        totals_b: of the second graph, shape (m,).
    """

    affinity: Affinity
    totals_a: Float[Tensor, " n"]
    totals_b: Float[Tensor, " m"]


def graph_affinity(
    graph_a: Graph, graph_b: Graph, *, width: float = 0.11, edge_bonus: float = 3.0, feature_weight: float = 1.0
) -> GraphAffinity:
    """Compare pairs of nodes of two graphs.

    Where both have positions, all pairs of nodes are compared by their distances in units of the mean distance, with
    the kernel ``exp(-(d - d')^2 / (2 width^2))``, and pairs that are edges in both graphs count ``1 + edge_bonus``
    times; translation, rotation, reflection and scale make no difference. Without positions, edges are compared with
    edges: by their weights in units of the mean weight, with the same kernel, or as equal where one graph has no
    weights. Edge features, where both have as many, add a Gaussian of their differences, and node features give
    affinities of single matches, both with unit variance of each feature as the scale.

    Args:
        graph_a: n nodes.
        graph_b: m nodes.
        width: tolerance of distances and weights, relative to their means.
        edge_bonus: extra weight of edges among all pairs.
        feature_weight: a match of equal node features counts as this share of all edges of an average node.

    Raises:
        InputError: graphs on two devices, or numbers of features that differ.
    """
    check_same_device("graph_b", graph_b.edges, graph_a.device)
    check_positive("width", width)
    check_positive("edge_bonus", edge_bonus, allow_zero=True)
    check_positive("feature_weight", feature_weight, allow_zero=True)
    dtype = torch.promote_types(graph_a.dtype, graph_b.dtype)
    dtype = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    a, b = graph_a.to(dtype=dtype), graph_b.to(dtype=dtype)
    placed = a.positions is not None and b.positions is not None
    build = _distances if placed else _edges
    first, second = build(a, b, width, edge_bonus)
    symmetric = not (a.directed or b.directed)
    unary = None
    totals_a, totals_b = (_degrees(factors.square().sum(0)) for factors in (first, second))
    if feature_weight and a.features is not None and b.features is not None:
        alike = _alike(a.features, b.features, "features", 1.0)
        scale = feature_weight * torch.minimum(totals_a.mean(), totals_b.mean())
        unary = scale * alike
    affinity: Affinity = KroneckerAffinity(first, second, unary, symmetric=symmetric)
    if a.edge_features is not None and b.edge_features is not None:
        alike = _alike(a.edge_features, b.edge_features, "edge_features", 1.0)
        nothing = first.new_zeros(affinity.shape)
        affinity = SumAffinity(affinity, EdgeAffinity(a.edges, b.edges, alike, nothing))
        totals_a = totals_a + _degrees(a.adjacent().to(dtype))
        totals_b = totals_b + _degrees(b.adjacent().to(dtype))
    return GraphAffinity(affinity, totals_a, totals_b)


def _distances(a: Graph, b: Graph, width: float, edge_bonus: float) -> tuple[Tensor, Tensor]:
    """Factors of all pairs, and of the edges once more."""
    tables = [_relative(graph.positions) for graph in (a, b) if graph.positions is not None]
    features = gaussian_factors(*tables, width=width)
    both = []
    for graph, table in zip((a, b), features, strict=True):
        table = table * (1 - torch.eye(graph.node_count, dtype=table.dtype, device=table.device))
        both.append(torch.cat([table, edge_bonus**0.5 * table * graph.adjacent()]) if edge_bonus else table)
    return both[0], both[1]


def _edges(a: Graph, b: Graph, width: float, edge_bonus: float) -> tuple[Tensor, Tensor]:
    """Factors of the edges alone."""
    if a.weights is None or b.weights is None:
        return a.adjacent().to(a.dtype)[None], b.adjacent().to(b.dtype)[None]
    weights = [
        weights / weights.abs().mean().clamp_min(torch.finfo(weights.dtype).tiny) for weights in (a.weights, b.weights)
    ]
    features = gaussian_factors(*weights, width=width)
    tables = [graph.dense(table.T).permute(2, 0, 1) for graph, table in zip((a, b), features, strict=True)]
    return tables[0], tables[1]


def _degrees(matrix: Tensor) -> Tensor:
    """Half of what leaves and half of what enters each node."""
    return (matrix.sum(0) + matrix.sum(1)) / 2


def _relative(positions: Tensor) -> Tensor:
    """Distances of all pairs in units of their mean."""
    distances = torch.cdist(positions, positions)
    n = len(distances)
    mean = distances.sum() / max(n * (n - 1), 1)
    return distances / mean.clamp_min(torch.finfo(distances.dtype).tiny)


def _alike(a: Tensor, b: Tensor, name: str, width: float) -> Tensor:
    """Gaussian of the differences of rows, in standard deviations of the columns."""
    if a.shape[1] != b.shape[1]:
        raise InputError(f"graph_b.{name}", f"{a.shape[1]} columns, as in graph_a", str(b.shape[1]))
    spread = torch.cat([a, b]).std(0, correction=0).clamp_min(torch.finfo(a.dtype).tiny)
    return torch.exp(-0.5 * (torch.cdist(a / spread, b / spread) / width) ** 2)
