"""The levels of one axis: at which of them each value enters, and where the coordinate of a level is read."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_same_device
from diffmatch.topology.multiparameter.measure import check_levels
from diffmatch.topology.radix import argsort, ordered_keys
from diffmatch.topology.vertex_pairs import filtration_values

__all__ = ["Axis", "Levels", "make_axes", "value_axis"]

Levels = int | tuple[Float[Tensor, " s"], Float[Tensor, " t"]] | None
"""None for every value, a number of quantiles, or the levels themselves."""


@dataclass(frozen=True)
class Axis:
    """One axis of a grid of levels.

    Attributes:
        index: level at which each value enters, shape (n,), int32; `size` for those that never do.
        source: what coordinates are read from, with gradients, shape (m,).
        entries: entry of the source at each level, shape (size,).
    """

    index: Int[Tensor, " n"]
    source: Float[Tensor, " m"]
    entries: Int[Tensor, " size"]

    @property
    def size(self) -> int:
        """Number of levels."""
        return len(self.entries)

    def coordinates(self, at: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        """The values at levels, differentiable in the source."""
        return self.source.gather(0, self.entries[at])

    def array(self) -> np.ndarray:
        """The index for the compiled loops."""
        array: np.ndarray = self.index.cpu().numpy()
        return array


def make_axes(argument: str, values: Float[Tensor, "2 n"], levels: Levels) -> tuple[Axis, Axis]:
    """The two axes of a function with two values.

    Args:
        argument: name of the values for messages.
        values: shape (2, n).
        levels: None for a level a value, ties being broken by the index; a number for that many quantiles among the
            values of each axis; or the increasing levels of both axes.

    Raises:
        InputError: NaN or -inf, or levels that are none.
    """
    filtration_values(argument, values, superlevel=False)
    if isinstance(levels, tuple):
        if len(levels) != 2:
            raise InputError("levels", "two tensors, one an axis", f"{len(levels)} of them")
        for own in levels:
            check_levels("levels", own)
            check_same_device("levels", own, values.device)
        return _given(values[0], levels[0]), _given(values[1], levels[1])
    if levels is not None and (not isinstance(levels, int) or levels < 1):
        raise InputError("levels", "a number >= 1, two tensors or None", repr(levels))
    return value_axis(values[0], levels), value_axis(values[1], levels)


def _given(values: Tensor, levels: Tensor) -> Axis:
    data = _wide(values)
    index = torch.searchsorted(levels.detach().to(data.dtype), data, out_int32=True)
    # +inf never enters, not even at a level of +inf.
    index = torch.where(data.isposinf(), len(levels), index)
    return Axis(index.int(), levels, torch.arange(len(levels), device=values.device))


def value_axis(values: Float[Tensor, " n"], count: int | None) -> Axis:
    """Levels that are values, so that gradients reach them: all, or a number of quantiles.

    Args:
        values: without NaN or -inf, shape (n,).
        count: of quantiles; None for all values, ties being broken by the index.
    """
    data = _wide(values)
    if data.device.type == "cpu":
        order = torch.from_numpy(argsort(ordered_keys(data))).long()
    else:
        order = data.argsort(stable=True)
    finite = len(data) - int(data.isposinf().sum())
    if count is None:
        index = torch.empty(len(data), dtype=torch.int32, device=data.device)
        index[order] = torch.arange(len(data), dtype=torch.int32, device=data.device).clamp_max(finite)
        return Axis(index, values, order[:finite])
    if not finite:
        return Axis(torch.zeros(len(data), dtype=torch.int32, device=data.device), values, order[:0])
    places = torch.linspace(0, finite - 1, count, dtype=torch.float64, device=data.device).round().long()
    if count == 1:
        places = places + finite - 1  # the one level is the last value
    entries = order[places]
    levels = data[entries]
    fresh = torch.ones(len(levels), dtype=torch.bool, device=data.device)
    fresh[1:] = levels[1:] > levels[:-1]
    entries, levels = entries[fresh], levels[fresh]
    return Axis(torch.searchsorted(levels, data, out_int32=True), values, entries)


def _wide(values: Tensor) -> Tensor:
    """Detached values in a precision that all operations know."""
    data = values.detach() if values.dtype == torch.float64 else values.detach().float()
    return data.contiguous()
