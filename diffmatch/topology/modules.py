"""Descriptors as modules: their grids are buffers, which follow the model to its device and into its state."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.topology.descriptors import persistence_image, persistence_landscape, persistence_silhouette

__all__ = ["PersistenceImage", "PersistenceLandscape", "PersistenceSilhouette"]


class PersistenceLandscape(torch.nn.Module):
    """:func:`diffmatch.topology.persistence_landscape` on a fixed grid.

    Args:
        grid: values of t, shape (t,).
        levels: how many functions.
    """

    grid: Tensor

    def __init__(self, grid: Float[Tensor, " t"], *, levels: int = 5) -> None:
        super().__init__()
        self.register_buffer("grid", grid)
        self.levels = levels

    def forward(
        self, points: Float[Tensor, "*b m 2"], mask: Bool[Tensor, "*b m"] | None = None
    ) -> Float[Tensor, "*b levels t"]:
        """The landscapes of points (birth, death)."""
        return persistence_landscape(points, self.grid, levels=self.levels, mask=mask)


class PersistenceSilhouette(torch.nn.Module):
    """:func:`diffmatch.topology.persistence_silhouette` on a fixed grid.

    Args:
        grid: values of t, shape (t,).
        power: exponent of the weights.
    """

    grid: Tensor

    def __init__(self, grid: Float[Tensor, " t"], *, power: float | int = 1.0) -> None:
        super().__init__()
        self.register_buffer("grid", grid)
        self.power = power

    def forward(
        self, points: Float[Tensor, "*b m 2"], mask: Bool[Tensor, "*b m"] | None = None
    ) -> Float[Tensor, "*b t"]:
        """The silhouettes of points (birth, death)."""
        return persistence_silhouette(points, self.grid, power=self.power, mask=mask)


class PersistenceImage(torch.nn.Module):
    """:func:`diffmatch.topology.persistence_image` on fixed pixels.

    Args:
        birth_edges: edges of the columns, shape (w,).
        length_edges: edges of the rows, shape (h,).
        bandwidth: standard deviation of the Gaussians, in the unit of the points.
        power: exponent of the weights.
    """

    birth_edges: Tensor
    length_edges: Tensor

    def __init__(
        self,
        birth_edges: Float[Tensor, " w"],
        length_edges: Float[Tensor, " h"],
        *,
        bandwidth: float | int,
        power: float | int = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("birth_edges", birth_edges)
        self.register_buffer("length_edges", length_edges)
        self.bandwidth, self.power = bandwidth, power

    def forward(
        self, points: Float[Tensor, "*b m 2"], mask: Bool[Tensor, "*b m"] | None = None
    ) -> Float[Tensor, "*b rows columns"]:
        """The images of points (birth, death)."""
        return persistence_image(
            points, self.birth_edges, self.length_edges, bandwidth=self.bandwidth, power=self.power, mask=mask
        )
