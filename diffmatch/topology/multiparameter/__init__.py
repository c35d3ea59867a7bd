"""Two-parameter persistence: signed measures, distances between them and vectors of them.

A signed measure holds the Hilbert function (the ranks of homology of what has entered by two levels) or the Euler
characteristic of a bifiltration as points with integer weights. Functions ``*_signed_measure`` make one from images,
graphs, meshes and point clouds; its points are gathered from the input, so that losses on them have gradients.
"""

from diffmatch.topology.multiparameter.distances import signed_sliced_distance, signed_transport_distance
from diffmatch.topology.multiparameter.graphs import graph_signed_measure, mesh_signed_measure
from diffmatch.topology.multiparameter.images import image_signed_measure
from diffmatch.topology.multiparameter.landscape import multiparameter_landscape
from diffmatch.topology.multiparameter.measure import SignedMeasure
from diffmatch.topology.multiparameter.points import (
    codensity,
    degree_rips_signed_measure,
    delaunay_signed_measure,
    rips_signed_measure,
)
from diffmatch.topology.multiparameter.rank import RankInvariant, graph_rank_invariant, image_rank_invariant
from diffmatch.topology.multiparameter.vectors import signed_convolution, sliced_vector

__all__ = [
    "RankInvariant",
    "SignedMeasure",
    "codensity",
    "degree_rips_signed_measure",
    "delaunay_signed_measure",
    "graph_rank_invariant",
    "graph_signed_measure",
    "image_rank_invariant",
    "image_signed_measure",
    "mesh_signed_measure",
    "multiparameter_landscape",
    "rips_signed_measure",
    "signed_convolution",
    "signed_sliced_distance",
    "signed_transport_distance",
    "sliced_vector",
]
