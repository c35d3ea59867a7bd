"""A sampled field as a target."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.errors import check_finite
from diffmatch.meshing.targets.normalization import Normalization
from diffmatch.meshing.targets.target import value_and_gradient
from diffmatch.meshing.volumes import Volume

__all__ = ["VolumeTarget"]


class VolumeTarget:
    """A signed distance or level set on a regular grid, interpolated trilinearly.

    The box is put around the solid (the nodes below zero and the crossings beside them), not around the grid. Outside
    the grid the field goes on as the value at the nearest point of the grid plus the distance to it, and a solid that
    reaches the end of the grid is cut off there, so that it stays closed.

    Args:
        volume: the samples, negative inside. Values in another unit than lengths are fine as a level set.

    Raises:
        InputError: a value is not finite.
    """

    def __init__(self, volume: Volume) -> None:
        check_finite("volume", volume.values)
        self.volume = volume
        self._values = volume.values.detach()
        own = _solid_bounds(volume)
        self.normalization = Normalization.of_bounds(own)
        self.bounds: Float[Tensor, "2 3"] = self.normalization.apply(own)

    def sdf(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """The interpolated field, times the scale of the box; differentiable in the points."""
        own = self.normalization.inverse(points)
        own = (own - own.new_tensor(self.volume.origin)) @ own.new_tensor(self.volume.axes).T  # along the grid's axes
        spacing = own.new_tensor(self.volume.spacing)
        low, high = torch.zeros_like(spacing), spacing * (own.new_tensor(self._values.shape) - 1)
        inside = own.clamp(low, high)
        value = self._trilinear(inside / spacing) + torch.linalg.vector_norm(own - inside, dim=-1)
        beyond = torch.maximum(low - own, own - high)  # signed distances to the six walls
        # A true distance is never below minus that to the walls, unless the solid goes through them.
        wall = beyond.amax(-1)
        return torch.maximum(value, wall) * self.normalization.scale

    def value_and_gradient(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """`sdf` and its gradient (discontinuous across the planes of nodes), both without a graph."""
        return value_and_gradient(self.sdf, points)

    def _trilinear(self, position: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Values at positions in units of nodes, within the grid."""
        self._values = self._values.to(position.device)  # moves once, to where the points are
        sizes = torch.tensor(self._values.shape, device=position.device)
        cell = torch.minimum(position.detach().floor().long(), sizes - 2)
        t = position - cell
        i, j, k = cell.unbind(-1)
        value = position.new_zeros(len(position))
        for corner in range(8):
            di, dj, dk = corner & 1, corner >> 1 & 1, corner >> 2 & 1
            x, y, z = (t[:, axis] if d else 1 - t[:, axis] for axis, d in enumerate((di, dj, dk)))
            value = value + x * y * z * self._values[i + di, j + dj, k + dk].to(position.dtype)
        return value


def _solid_bounds(volume: Volume) -> Float[Tensor, "2 3"]:
    """Box around what is below zero, in the volume's coordinates; around the whole grid where nothing or all of it is.

    Of a grid that stands at an angle, the box along the coordinates around the box along the grid.
    """
    values = volume.values.detach().double().cpu()
    inside = values < 0
    ends = (
        _ends(values, inside) if bool(inside.any()) else torch.stack([torch.zeros(3), torch.tensor(values.shape) - 1])
    )
    origin, spacing, axes = (
        torch.tensor(part, dtype=torch.float64) for part in (volume.origin, volume.spacing, volume.axes)
    )
    corners = torch.cartesian_prod(*ends.double().T) * spacing @ axes + origin
    return torch.stack([corners.amin(0), corners.amax(0)])


def _ends(values: Float[Tensor, "nx ny nz"], inside: Bool[Tensor, "nx ny nz"]) -> Float[Tensor, "2 3"]:
    """Lowest and highest place of the solid along each axis, in units of nodes."""
    low, high = [], []
    for axis in range(3):
        layers = torch.nonzero(inside.movedim(axis, 0).flatten(1).any(1)).flatten().double()
        field = values.movedim(axis, 0).flatten(1)
        a, b = field[:-1], field[1:]
        row, column = torch.nonzero((a < 0) != (b < 0), as_tuple=True)
        crossing = row + a[row, column] / (a[row, column] - b[row, column])
        reach = torch.cat([layers, crossing])
        low.append(reach.min())
        high.append(reach.max())
    return torch.stack([torch.stack(low), torch.stack(high)])
