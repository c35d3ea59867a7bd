"""A Python callable or a network as a target."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffmatch.errors import InputError
from diffmatch.meshing.targets.normalization import BOX_SIDE, Normalization
from diffmatch.meshing.targets.target import value_and_gradient

__all__ = ["FieldTarget"]


class FieldTarget:
    """A scalar field in space as a target, evaluated in chunks.

    Args:
        field: maps points (n, 3) to values (n,) or (n, 1), each from its own point, negative inside. An ``nn.Module``
            gets the points on the device and in the dtype of its first floating parameter and is not trained.
        bounds: low and high corner, in the field's coordinates, of a box that holds the solid. The default,
            [-0.9, 0.9]^3, leaves the coordinates as they are.
        chunk: most points in one call of the field.

    Raises:
        InputError: ``field`` cannot be called, the bounds make no box, or ``chunk`` is not positive.
    """

    def __init__(
        self,
        field: Callable[[Tensor], Tensor],
        bounds: Float[Tensor, "2 3"] | Sequence[Sequence[float | int]] | None = None,
        *,
        chunk: int = 1 << 17,
    ) -> None:
        if not callable(field):
            raise InputError("field", "a callable of points (n, 3)", type(field).__name__)
        if chunk < 1:
            raise InputError("chunk", "a number of points >= 1", str(chunk))
        self.field = field
        self._chunk = chunk
        half = BOX_SIDE / 2
        own = _box_tensor(((-half,) * 3, (half,) * 3) if bounds is None else bounds)
        self.normalization = Normalization() if bounds is None else Normalization.of_bounds(own)
        self.bounds: Float[Tensor, "2 3"] = self.normalization.apply(own)

    def sdf(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """The field, times the scale of the box; differentiable in the points where they require it.

        Raises:
            InputError: the field returned something else than n finite numbers.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and points.requires_grad):
            parts = [self._values(part) for part in points.split(self._chunk)]
        return torch.cat(parts) if parts else points.new_zeros(0)

    def value_and_gradient(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """`sdf` and its gradient by automatic differentiation, both without a graph.

        Raises:
            InputError: as `sdf`; or the gradient is not finite.
        """
        parts = [value_and_gradient(self._values, part) for part in points.split(self._chunk)]
        if not parts:
            return points.new_zeros(0), points.new_zeros(0, 3)
        values, gradient = (torch.cat(column) for column in zip(*parts, strict=True))
        bad = int((~torch.isfinite(gradient)).any(1).sum())
        if bad:
            raise InputError("field", "a finite gradient", f"{bad} of {len(points)} NaN or infinite")
        return values, gradient

    def _values(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        n = len(points)
        inputs = self.normalization.inverse(points)
        values: Any = self.field(_like_parameters(inputs, self.field))
        if not isinstance(values, Tensor):
            raise InputError("field", f"a tensor of shape ({n},) or ({n}, 1)", type(values).__name__)
        if tuple(values.shape) not in ((n,), (n, 1)):
            raise InputError("field", f"values of shape ({n},) or ({n}, 1)", f"shape {tuple(values.shape)}")
        if not values.is_floating_point():
            raise InputError("field", "floating-point values", str(values.dtype))
        good = torch.isfinite(values.detach()).reshape(n)
        if not bool(good.all()):
            first = inputs[int((~good).to(torch.uint8).argmax())].tolist()
            where = ", ".join(f"{x:.3g}" for x in first)
            raise InputError("field", "finite values", f"{int((~good).sum())} of {n} NaN or infinite, as at ({where})")
        return (values.reshape(n) * self.normalization.scale).to(points)


def _like_parameters(points: Tensor, field: object) -> Tensor:
    if isinstance(field, nn.Module):
        for tensor in field.parameters():
            if tensor.is_floating_point():
                return points.to(tensor)
    return points


def _box_tensor(bounds: Any) -> Tensor:
    try:
        box = torch.as_tensor(bounds, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("bounds", "a low and a high corner", repr(bounds)) from error
    if box.shape != (2, 3):
        raise InputError("bounds", "shape (2, 3)", str(tuple(box.shape)))
    return box
