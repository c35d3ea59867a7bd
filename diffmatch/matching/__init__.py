"""Transport, assignment and graph matching."""

from diffmatch.matching.assignment import AssignmentResult as AssignmentResult
from diffmatch.matching.assignment import assign as assign
from diffmatch.matching.graph_matching import GraphMatch as GraphMatch
from diffmatch.matching.graph_matching import match_graphs as match_graphs
from diffmatch.matching.transport import ConvergenceError as ConvergenceError
from diffmatch.matching.transport import TransportResult as TransportResult
from diffmatch.matching.transport import exact_transport as exact_transport
from diffmatch.matching.transport import gumbel_sinkhorn as gumbel_sinkhorn
from diffmatch.matching.transport import sinkhorn as sinkhorn
from diffmatch.matching.transport import sinkhorn_divergence as sinkhorn_divergence
from diffmatch.matching.transport import sinkhorn_dustbin as sinkhorn_dustbin
from diffmatch.matching.transport import sinkhorn_points as sinkhorn_points
from diffmatch.matching.transport import sinkhorn_sparse as sinkhorn_sparse

__all__ = [
    "AssignmentResult",
    "ConvergenceError",
    "GraphMatch",
    "TransportResult",
    "assign",
    "exact_transport",
    "gumbel_sinkhorn",
    "match_graphs",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_dustbin",
    "sinkhorn_points",
    "sinkhorn_sparse",
]
