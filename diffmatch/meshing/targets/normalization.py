"""The box that every fit works in."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_shape

__all__ = ["BOX_SIDE", "Normalization"]

BOX_SIDE = 1.8  # the longest side of a target in the domain [-1, 1]^3: a tenth of the domain stays free around it


@dataclass(frozen=True)
class Normalization:
    """A shift and a uniform scale from a target's own coordinates to the box, and back.

    Attributes:
        center: point of the target that goes to the origin.
        scale: factor from the target's unit to the box; lengths and signed distances grow by it.
    """

    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0

    @staticmethod
    def of_bounds(bounds: Float[Tensor, "2 3"]) -> "Normalization":
        """The map that centres an axis-parallel box and makes its longest side 1.8.

        Args:
            bounds: low and high corner, shape (2, 3).

        Raises:
            InputError: the box is a point, inside out or not finite.
        """
        check_shape("bounds", bounds, (2, 3))
        low, high = bounds.detach().double().cpu()
        side = float((high - low).max())
        if not (bool(torch.isfinite(bounds).all()) and side > 0 and bool((low <= high).all())):
            raise InputError("bounds", "a low and a high corner apart from each other", str(bounds.tolist()))
        x, y, z = ((low + high) / 2).tolist()
        return Normalization((x, y, z), BOX_SIDE / side)

    def apply(self, points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """From the target's coordinates to the box."""
        return (points - points.new_tensor(self.center)) * self.scale

    def inverse(self, points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """From the box to the target's coordinates."""
        return points / self.scale + points.new_tensor(self.center)
