"""Diagrams as vectors: landscapes, images, silhouettes and entropy, differentiable and batched."""

from diffmatch.topology.descriptors.entropy import persistence_entropy as persistence_entropy
from diffmatch.topology.descriptors.image import persistence_image as persistence_image
from diffmatch.topology.descriptors.landscape import persistence_landscape as persistence_landscape
from diffmatch.topology.descriptors.points import pad_diagrams as pad_diagrams
from diffmatch.topology.descriptors.silhouette import persistence_silhouette as persistence_silhouette

__all__ = [
    "pad_diagrams",
    "persistence_entropy",
    "persistence_image",
    "persistence_landscape",
    "persistence_silhouette",
]
