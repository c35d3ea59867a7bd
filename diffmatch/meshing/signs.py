"""What the signs of a field say of its surface before it is extracted: where it would be open, what is too small."""

import logging

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from diffmatch.meshing.grid import Grid

__all__ = ["walled", "without_specks"]

logger = logging.getLogger(__name__)


def walled(grid: Grid, sdf: Float[Tensor, " nodes"]) -> Float[Tensor, " nodes"]:
    """The field with the boundary of the grid outside, so that the surface closes within it."""
    boxed = sdf.reshape(grid.node_shape).clone()
    for axis in range(3):
        for end in (0, -1):
            boxed.select(axis, end).clamp_(min=min(grid.spacing))
    return boxed.flatten()


def without_specks(grid: Grid, sdf: Float[Tensor, " nodes"], *, smallest: int) -> Float[Tensor, " nodes"]:
    """The field with the bodies and cavities of fewer than ``smallest`` nodes turned to the sign around them."""
    inside = (sdf < 0).reshape(grid.node_shape).cpu().numpy()
    # The surface separates inside corners that share only a face diagonal, so bodies connect along grid edges alone,
    # and what lies outside connects along diagonals too.
    bodies, n_bodies = ndimage.label(inside)
    voids, n_voids = ndimage.label(~np.pad(inside, 1), np.ones((3, 3, 3)))
    small_bodies = _small(bodies, n_bodies, smallest)
    small_voids = _small(voids, n_voids, smallest)[1:-1, 1:-1, 1:-1]
    specks = small_bodies | small_voids
    if not specks.any():
        return sdf
    logger.warning("left out bodies or cavities of fewer than %d nodes: %d nodes in all", smallest, specks.sum())
    return torch.where(torch.from_numpy(specks).flatten().to(sdf.device), -sdf, sdf)


def _small(labels: np.ndarray, n: int, smallest: int) -> np.ndarray:
    """Where the labelled parts other than the largest have fewer elements than ``smallest``."""
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    sizes[0] = smallest  # the complement is not a part
    small = sizes < smallest
    if n:
        small[1 + sizes[1:].argmax()] = False
    return np.asarray(small[labels])
