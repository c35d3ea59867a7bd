"""Which node of one graph is which node of another: affinities from whatever the graphs carry, and their matching."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffmatch.matching.graphs import Graph
from diffmatch.matching.graphs.convert import as_graph
from diffmatch.matching.quadratic.affinity import one_hot_plan
from diffmatch.matching.quadratic.graph_affinity import GraphAffinity, graph_affinity
from diffmatch.matching.quadratic.solve import chosen_solver, match_affinity

__all__ = ["GraphMatch", "match_graphs"]


@dataclass(frozen=True, eq=False)
class GraphMatch:
    """Two graphs matched.

    Attributes:
        assignment: node of the second graph for each of the first, -1 for none, shape (n,), int64.
        scores: for each node of the first, how well its edges agree with those of its partner, between 0 (not at all,
            or no partner) and 1, shape (n,): the affinity of its edges with their images, over the total weight of its
            own or its partner's edges, whichever is larger.
        value: objective of the assignment.
        plan: what was rounded to it, shape (n, m).
        graph_a: the first graph.
        graph_b: the second graph.
        solver: that was used.
        steps: rounds of it.
        converged: it stopped by its own rule.
    """

    assignment: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]
    value: Float[Tensor, ""]
    plan: Float[Tensor, "n m"]
    graph_a: Graph
    graph_b: Graph
    solver: str
    steps: int
    converged: Bool[Tensor, ""]

    @property
    def matches(self) -> Int64[Tensor, "k 2"]:
        """Numbers of the matched nodes, a row a match."""
        rows = (self.assignment >= 0).nonzero()[:, 0]
        return torch.stack([rows, self.assignment[rows]], dim=1)


def match_graphs(
    graph_a: Any,
    graph_b: Any,
    *,
    solver: str = "auto",
    width: float = 0.11,
    edge_bonus: float = 3.0,
    feature_weight: float = 1.0,
    restarts: int = 1,
    polish: bool = True,
    generator: torch.Generator | None = None,
) -> GraphMatch:
    """Match the nodes of two graphs so that edges and distances agree; each node has at most one partner.

    See :func:`.graph_affinity` for what is compared. All nodes of the smaller graph get a partner; `scores` tells which
    matches to trust. The result carries no gradients.

    Args:
        graph_a: a :class:`.Graph`, a networkx graph, a torch-geometric ``Data``, positions (n, d) (joined by
            Delaunay's triangulation), or an adjacency matrix (n, n): what is square is taken as such.
        graph_b: the second graph; it may have more or fewer nodes.
        solver: of :func:`.match_affinity`.
        width: tolerance of the comparison of distances and weights, relative to their means.
        edge_bonus: how much more pairs that are edges count than other pairs, where there are positions.
        feature_weight: of the node features against all edges of a node.
        restarts: how many starts, of which the best end is kept; where many nodes have no true partner, eight starts
            find clearly more than one (measured on points of images).
        polish: improve the assignment by exchanges.
        generator: source of the starts, on the device of the graphs.

    Raises:
        InputError: an argument that is no graph, or graphs that do not fit each other.

    Examples:
        >>> points = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
        >>> match_graphs(points, points.flip(0)).assignment.tolist()
        [7, 6, 5, 4, 3, 2, 1, 0]
    """
    a, b = _graph(graph_a, "graph_a"), _graph(graph_b, "graph_b")
    with torch.no_grad():
        comparison = graph_affinity(a, b, width=width, edge_bonus=edge_bonus, feature_weight=feature_weight)
        affinity = comparison.affinity
        name = chosen_solver(affinity) if solver == "auto" else solver
        found = match_affinity(affinity, solver=name, restarts=restarts, polish=polish, generator=generator)
        scores = _scores(comparison, found.assignment)
    return GraphMatch(
        assignment=found.assignment,
        scores=scores,
        value=found.value,
        plan=found.plan,
        graph_a=a,
        graph_b=b,
        solver=name,
        steps=found.steps,
        converged=found.converged,
    )


def _graph(graph: Any, argument: str) -> Graph:
    if not isinstance(graph, Graph) and hasattr(graph, "__array__"):
        points = torch.as_tensor(graph)
        if points.dim() == 2 and points.shape[0] != points.shape[1]:
            return Graph.from_points(points if points.is_floating_point() else points.to(torch.get_default_dtype()))
    return as_graph(graph, argument=argument)


def _scores(comparison: GraphAffinity, assignment: Tensor) -> Tensor:
    """Agreement of the edges of each node with those of its partner, over the larger total of the two."""
    affinity = comparison.affinity
    partner = assignment.clamp_min(0)
    if not affinity.shape[1]:
        return comparison.totals_a * 0
    agreed = affinity.product(one_hot_plan(assignment, affinity)).gather(1, partner[:, None])[:, 0]
    total = torch.maximum(comparison.totals_a, comparison.totals_b[partner])
    scores = agreed / total.clamp_min(torch.finfo(total.dtype).tiny)
    return torch.where(assignment >= 0, scores, 0).clamp(0, 1)
