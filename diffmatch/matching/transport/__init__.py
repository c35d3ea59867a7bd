"""Optimal transport: entropic in many forms, and exact, behind one result object."""

from diffmatch.matching.transport.divergence import sinkhorn_divergence
from diffmatch.matching.transport.dustbin import sinkhorn_dustbin
from diffmatch.matching.transport.exact import exact_transport
from diffmatch.matching.transport.gumbel import gumbel_sinkhorn
from diffmatch.matching.transport.points import sinkhorn_points
from diffmatch.matching.transport.result import ConvergenceError, TransportResult
from diffmatch.matching.transport.sinkhorn import sinkhorn
from diffmatch.matching.transport.sparse import sinkhorn_sparse

__all__ = [
    "ConvergenceError",
    "TransportResult",
    "exact_transport",
    "gumbel_sinkhorn",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_dustbin",
    "sinkhorn_points",
    "sinkhorn_sparse",
]
