"""Persistent homology and topological losses."""

from diffmatch.topology.alpha import alpha_persistence
from diffmatch.topology.betti_numbers import TopologyCertificate, betti_numbers, certify_topology
from diffmatch.topology.critical_sets import critical_set_gradient
from diffmatch.topology.cubical import cubical_persistence, cubical_persistence_batch
from diffmatch.topology.descriptors import (
    pad_diagrams,
    persistence_entropy,
    persistence_image,
    persistence_landscape,
    persistence_silhouette,
)
from diffmatch.topology.diagram import Diagram, Persistence
from diffmatch.topology.distances import bottleneck_distance, sliced_wasserstein_distance, wasserstein_distance
from diffmatch.topology.gradients import blurred_gradient, diffeomorphic_gradient
from diffmatch.topology.losses import betti_loss, total_persistence
from diffmatch.topology.losses_points import connectivity_loss, topological_autoencoder_loss
from diffmatch.topology.lower_star import graph_persistence, mesh_persistence
from diffmatch.topology.modules import PersistenceImage, PersistenceLandscape, PersistenceSilhouette
from diffmatch.topology.rips import rips_persistence, rips_persistence_batch
from diffmatch.topology.surgery import TopologyChange, change_topology

__all__ = [
    "Diagram",
    "Persistence",
    "PersistenceImage",
    "PersistenceLandscape",
    "PersistenceSilhouette",
    "TopologyCertificate",
    "TopologyChange",
    "alpha_persistence",
    "betti_loss",
    "betti_numbers",
    "blurred_gradient",
    "bottleneck_distance",
    "certify_topology",
    "change_topology",
    "connectivity_loss",
    "critical_set_gradient",
    "cubical_persistence",
    "cubical_persistence_batch",
    "diffeomorphic_gradient",
    "graph_persistence",
    "mesh_persistence",
    "pad_diagrams",
    "persistence_entropy",
    "persistence_image",
    "persistence_landscape",
    "persistence_silhouette",
    "rips_persistence",
    "rips_persistence_batch",
    "sliced_wasserstein_distance",
    "topological_autoencoder_loss",
    "total_persistence",
    "wasserstein_distance",
]
