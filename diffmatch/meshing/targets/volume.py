"""A sampled field as a target."""

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffmatch.errors import check_finite
from diffmatch.meshing.targets.normalization import Normalization
from diffmatch.meshing.targets.target import value_and_gradient
from diffmatch.meshing.volumes import Volume

__all__ = ["VolumeTarget"]

CURVED = 0.05
"""Median second difference at the surface, over the first, from which gradients are those of smooth or noisy values."""


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
        return self._field(points, smooth=False)

    def value_and_gradient(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """`sdf` and its direction of steepest ascent, both without a graph.

        The gradient of what is interpolated jumps across the planes of nodes, by much where the values are noisy. So
        where they bend or scatter at most of the surface, it is interpolated itself, from central differences at the
        nodes. Where they are mostly linear, as in distances to flat faces, that would only round edges off.
        """
        return value_and_gradient(lambda x: self._field(x, smooth=self._bends), points)

    @cached_property
    def _bends(self) -> bool:
        """Whether values are mostly curved or noisy where the field changes sign."""
        ratios = []
        values = self._values.double()
        for axis in range(3):
            low, middle, high = (values.narrow(axis, start, max(values.shape[axis] - 2, 0)) for start in range(3))
            beside = (low < 0) != (high < 0)
            low, middle, high = low[beside], middle[beside], high[beside]
            ratios.append(2 * (low - 2 * middle + high).abs() / (high - low).abs())
        found = torch.cat(ratios)
        return len(found) > 0 and float(found.median()) > CURVED

    def _field(self, points: Tensor, *, smooth: bool) -> Tensor:
        own = self.normalization.inverse(points)
        own = (own - own.new_tensor(self.volume.origin)) @ own.new_tensor(self.volume.axes).T  # along the grid's axes
        spacing = own.new_tensor(self.volume.spacing)
        low, high = torch.zeros_like(spacing), spacing * (own.new_tensor(self._values.shape) - 1)
        inside = own.clamp(low, high)
        value = self._trilinear(inside / spacing, smooth=smooth) + torch.linalg.vector_norm(own - inside, dim=-1)
        beyond = torch.maximum(low - own, own - high)  # signed distances to the six walls
        # A true distance is never below minus that to the walls, unless the solid goes through them.
        wall = beyond.amax(-1)
        return torch.maximum(value, wall) * self.normalization.scale

    def _trilinear(self, position: Float[Tensor, "n 3"], *, smooth: bool) -> Float[Tensor, " n"]:
        """Values at positions in units of nodes, within the grid; with ``smooth``, the gradient is interpolated too."""
        self._values = self._values.to(position.device)  # moves once, to where the points are
        sizes = torch.tensor(self._values.shape, device=position.device)
        cell = torch.minimum(position.detach().floor().long(), sizes - 2)
        t = (position.detach() if smooth else position) - cell
        value, gradient = position.new_zeros(len(position)), torch.zeros_like(position)
        for corner in range(8):
            step = (corner & 1, corner >> 1 & 1, corner >> 2 & 1)
            node = cell + torch.tensor(step, device=cell.device)
            x, y, z = (t[:, axis] if d else 1 - t[:, axis] for axis, d in enumerate(step))
            value = value + x * y * z * self._values[node.unbind(-1)].to(position.dtype)
            if smooth:
                gradient = gradient + (x * y * z)[:, None] * self._differences(node, sizes).to(position.dtype)
        # Adds exact zeros: the value stays, and its gradient is the interpolated one.
        return value + ((position - position.detach()) * gradient).sum(-1) if smooth else value

    def _differences(self, node: Int64[Tensor, "n 3"], sizes: Int64[Tensor, " 3"]) -> Float[Tensor, "n 3"]:
        """Central differences at nodes, one-sided at the ends of the grid."""
        columns = []
        for axis in range(3):
            step = torch.zeros_like(sizes)
            step[axis] = 1
            low, high = (node - step).clamp(min=0), torch.minimum(node + step, sizes - 1)
            change = self._values[high.unbind(-1)] - self._values[low.unbind(-1)]
            columns.append(change / (high - low)[:, axis])
        return torch.stack(columns, -1)


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
