"""The activations that carry the atoms of a spec, seen while a model runs."""

import contextlib
import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffmatch.matching.weights.evaluate import outputs
from diffmatch.matching.weights.layout import Layout, Moved, Product, Segments, moved
from diffmatch.matching.weights.spec import PermutationSpec

__all__ = ["Site", "record_activations"]


@dataclass(frozen=True)
class Site:
    """Where activations were seen: at which use of which weight, before or after it, and the atoms they carry.

    Attributes:
        parameter: the weight.
        use: how often the weight had been used before.
        reads: whether the weight reads the activations; else it writes them.
        start: first index of the part of the axis.
        units: the atoms, row-major.
    """

    parameter: str
    use: int
    reads: bool
    start: int
    units: tuple[Moved, ...]

    @property
    def atoms(self) -> set[str]:
        """Names of the atoms."""
        return {unit.atom for unit in self.units}


def record_activations(
    model: nn.Module,
    state: Mapping[str, Tensor],
    inputs: Any,
    spec: PermutationSpec,
    *,
    only: Collection[Site] | None = None,
) -> dict[Site, Tensor]:
    """What goes into and comes out of the linear layers and convolutions of a model.

    Weights are recognised by their memory wherever an operation meets them, so that modules and functional calls are
    seen alike. Positions in an image or a sequence count as samples.

    Args:
        model: any module, in the mode it is to be run in.
        state: the tensors it runs with.
        inputs: of one batch.
        spec: what each axis of the weights is made of.
        only: the sites to keep; all if None.

    Returns:
        Activations by site, shape (units, samples).
    """
    recorder = _Recorder(state, spec, only)
    with torch.no_grad(), _products_in_sight(model), recorder:
        outputs(model, state, inputs)
    return recorder.found


@contextlib.contextmanager
def _products_in_sight(model: nn.Module) -> Iterator[None]:
    """Without fused attention and the recurrent layers of oneDNN, which hide the products inside."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with contextlib.ExitStack() as stack:
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")  # this context asks for a setting of Intel GPUs
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Recorder(TorchDispatchMode):
    """Sees every operation on tensors and keeps what the weights of a state read and write."""

    def __init__(self, state: Mapping[str, Tensor], spec: PermutationSpec, only: Collection[Site] | None) -> None:
        super().__init__()
        self.spec, self.only = spec, only
        self.found: dict[Site, Tensor] = {}
        self.uses: dict[str, int] = {}
        self.weights: dict[int, tuple[str, Tensor]] = {}
        for name in spec.layouts:
            if state[name].ndim > 1:
                self.weights.setdefault(state[name].untyped_storage()._cdata, (name, state[name]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket.__name__
        if operation == "convolution":
            self._convolution(args, result)
        elif operation == "mm":
            self._product(args[0], args[1], result)
        elif operation == "addmm":
            self._product(args[1], args[2], result)
        elif operation == "bmm" and args[1].stride(0) == 0:
            self._product(args[0], args[1][0], result)
        elif operation == "linear":
            self._product(args[0], args[1].mT, result)
        return result

    def _product(self, x: Tensor, weight: Tensor, y: Tensor) -> None:
        known = self.weights.get(weight.untyped_storage()._cdata)
        if known is None or known[1].ndim != 2:
            return
        name, whole = known
        offset = int(weight.storage_offset()) - int(whole.storage_offset())
        first = divmod(offset, whole.stride(0)) if whole.stride(0) > whole.stride(1) else (0, 0)
        for order in ((1, 0), (0, 1)):
            if weight.stride() == tuple(whole.stride(axis) for axis in order):
                use = self._use(name)
                self._keep(name, use, order[0], first[order[0]], weight.shape[0], x, -1, reads=True)
                self._keep(name, use, order[1], first[order[1]], weight.shape[1], y, -1, reads=False)
                return

    def _convolution(self, args: Any, y: Tensor) -> None:
        x, weight, transposed, groups = args[0], args[1], args[6], args[8]
        known = self.weights.get(weight.untyped_storage()._cdata)
        if known is None or known[1].shape != weight.shape:
            return
        name = known[0]
        use = self._use(name)
        reading, writing = (0, 1) if transposed else (1, 0)
        # Of several groups one axis of the weight has the units of each group only.
        if groups == 1 or transposed:
            self._keep(name, use, reading, 0, weight.shape[reading], x, 1, reads=True)
        if groups == 1 or not transposed:
            self._keep(name, use, writing, 0, weight.shape[writing], y, 1, reads=False)

    def _use(self, name: str) -> int:
        self.uses[name] = self.uses.get(name, -1) + 1
        return self.uses[name]

    def _keep(
        self, name: str, use: int, axis: int, start: int, size: int, x: Tensor, x_axis: int, *, reads: bool
    ) -> None:
        for first, part in _parts(self.spec.layouts[name][axis]):
            units = tuple(moved(part))
            if not units or not start <= first <= first + part.size <= start + size:
                continue
            site = Site(name, use, reads, first, units)
            if self.only is None or site in self.only:
                own = x.detach().narrow(x_axis, first - start, part.size).movedim(x_axis, -1)
                self.found[site] = _units_first(own, part)


def _parts(layout: Layout, start: int = 0) -> Iterator[tuple[int, Layout]]:
    """The parts of an axis that follow each other, by their first index; without products of segments."""
    if isinstance(layout, Segments):
        for part in layout.parts:
            yield from _parts(part, start)
            start += part.size
    elif not isinstance(layout, Product) or not any(isinstance(f, Segments) for f in _factors(layout)):
        yield start, layout


def _factors(layout: Layout) -> list[Layout]:
    if isinstance(layout, Product):
        return [leaf for factor in layout.factors for leaf in _factors(factor)]
    return [layout]


def _units_first(x: Tensor, layout: Layout) -> Tensor:
    """Activations whose last axis has a layout as (units, samples); what is fixed on that axis counts as samples."""
    factors = _factors(layout)
    x = x.reshape(-1, *(factor.size for factor in factors))
    own = [i + 1 for i, factor in enumerate(factors) if isinstance(factor, Moved)]
    rest = [i for i in range(x.ndim) if i not in own]
    return x.permute(*own, *rest).reshape(math.prod(x.shape[i] for i in own), -1)
