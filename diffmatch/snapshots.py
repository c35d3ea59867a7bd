"""Copies of parameters that a fit keeps beside them: the last good ones, and their moving average."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["MovingAverage", "Snapshot"]


class Snapshot:
    """The parameters as they last were known to be good, in buffers allocated once.

    Args:
        params: the parameters to copy and to bring back.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = list(params)
        self.values = [torch.empty_like(p, requires_grad=False) for p in self._params]
        self.taken = False

    @torch.no_grad()
    def take(self) -> None:
        """Copy the parameters into the buffers."""
        torch._foreach_copy_(self.values, self._params)
        self.taken = True

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the buffers into the parameters; nothing before the first :meth:`take`."""
        if self.taken:
            torch._foreach_copy_(self._params, self.values)


class MovingAverage:
    """Exponential moving average of parameters, without bias towards its start.

    After t updates it is the mean of the t parameter values with weights proportional to ``decay**age``.

    Args:
        params: the parameters to average.
        decay: weight of a value relative to the next one, in [0, 1).
    """

    def __init__(self, params: Sequence[Tensor], *, decay: float) -> None:
        self._params = list(params)
        self.values = [torch.zeros_like(p, requires_grad=False) for p in self._params]
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters as they are now into the average."""
        self.updates += 1
        weight = (1 - self.decay) / (1 - self.decay**self.updates)
        torch._foreach_lerp_(self.values, self._params, weight)

    @torch.no_grad()
    def apply(self) -> None:
        """Set the parameters to their average; nothing before the first update."""
        if self.updates:
            torch._foreach_copy_(self._params, self.values)
