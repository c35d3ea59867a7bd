"""Places to draw a graph at that has none: stress majorisation."""

import numpy as np
from jaxtyping import Float64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from diffmatch.matching.graphs.graph import Graph

__all__ = ["graph_layout"]

_ROUNDS = 60


def graph_layout(graph: Graph, *, start: Float64[np.ndarray, "n 2"] | None = None) -> Float64[np.ndarray, "n 2"]:
    """Places in the plane whose distances follow the numbers of steps between the nodes; deterministic.

    Minimises ``sum_ij (|x_i - x_j| - d_ij)^2 / d_ij^2`` by majorisation (Gansner, Koren, North 2004, equation 6), from
    classical scaling. Takes time and memory that grow with the cube and the square of the number of nodes.

    Args:
        graph: weights and directions are left out; parts that are not joined are laid beside each other.
        start: places to begin from, such as those of a graph that it matches.

    Returns:
        Shape (n, 2), about one apart where joined, centred.
    """
    n = graph.node_count
    if n <= 1:
        return np.zeros((n, 2))
    steps = _steps(graph)
    places = _classical_scaling(steps) if start is None else start.astype(np.float64)
    weight = 1.0 / (steps + np.eye(n)) ** 2 * (1 - np.eye(n))
    laplacian = np.diag(weight.sum(1)) - weight
    inverse = np.linalg.inv(laplacian + 1.0 / n)  # less its constant part, which the centring takes away
    for _ in range(_ROUNDS):
        length = np.linalg.norm(places[:, None] - places[None], axis=-1)
        pull = -weight * steps / np.maximum(length, 1e-9)
        np.fill_diagonal(pull, 0.0)
        np.fill_diagonal(pull, -pull.sum(1))
        places = inverse @ (pull @ places)
        places -= places.mean(0)
    return np.asarray(places)


def _steps(graph: Graph) -> Float64[np.ndarray, "n n"]:
    """Number of edges between each two nodes; between parts of the graph a little more than within them."""
    tail, head = graph.edges.cpu().numpy()
    joined = coo_array((np.ones(len(tail)), (tail, head)), shape=(graph.node_count, graph.node_count))
    steps = np.asarray(shortest_path(joined.tocsr(), directed=False, unweighted=True))
    finite = np.isfinite(steps)
    steps[~finite] = steps[finite].max() / 2 + 2.0
    return steps


def _classical_scaling(steps: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "n 2"]:
    centring = np.eye(len(steps)) - 1.0 / len(steps)
    values, vectors = np.linalg.eigh(-centring @ (steps**2) @ centring / 2)
    places = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 1e-6))
    # Nodes that no distance tells apart would stay in one place for ever.
    angle = 2 * np.pi * np.arange(len(steps)) * 0.381966
    return np.asarray(places + 0.05 * np.stack([np.cos(angle), np.sin(angle)], axis=1))
