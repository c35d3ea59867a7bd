"""Where an atom occurs in the tensors of a state, as strided views with the atom's axis in front."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmatch.matching.weights.layout import Fixed, Layout, Moved, Product, Segments, moved

__all__ = ["Incidence", "incidences"]

Dims = list[tuple[str | None, int, int]]
"""Name of the atom (None where none moves as a whole), size and stride of each factor of an axis."""


@dataclass(frozen=True)
class Incidence:
    """One place of an atom in one tensor.

    Attributes:
        name: the entry of the state dict.
        others: the other atoms in that place.
        sizes: of the view: parents, the atom, the rest.
        strides: of the view, for a contiguous tensor.
        offset: of the view.
        n_parents: number of leading axes.
    """

    name: str
    others: frozenset[str]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    n_parents: int

    def matrices(self, tensor: Tensor) -> Tensor:
        """The units of the atom as rows, shape (parents, size, rest), of a contiguous tensor."""
        view = torch.as_strided(tensor, self.sizes, self.strides, tensor.storage_offset() + self.offset)
        lead = math.prod(self.sizes[: self.n_parents])
        return view.reshape(lead, self.sizes[self.n_parents], -1)


def incidences(name: str, layouts: Sequence[Layout], atom: str, parents: Sequence[str]) -> list[Incidence]:
    """All places of an atom in a tensor.

    Args:
        name: of the tensor.
        layouts: of its axes.
        atom: which atom.
        parents: atoms whose index is to lead, in this order; each is in every place of the atom.
    """
    axis_stride = [math.prod(layout.size for layout in layouts[i + 1 :]) for i in range(len(layouts))]
    if not parents and all(isinstance(layout, Fixed | Moved) for layout in layouts):
        return _whole_axes(name, layouts, atom, axis_stride)
    found = []
    for axis, layout in enumerate(layouts):
        for offset, dims in _places(layout, atom):
            missing = [p for p in parents if p not in [dim[0] for dim in dims]]
            options: list[list[tuple[int, Dims]]] = []
            for other, other_layout in enumerate(layouts):
                if other == axis:
                    options.append([(offset, dims)])
                    continue
                wanted = [p for p in missing if any(leaf.atom == p for leaf in moved(other_layout))]
                places = _places(other_layout, wanted[0]) if wanted else [(0, [_whole(other_layout)])]
                options.append(places)
            inside = {leaf.atom for i, other in enumerate(layouts) if i != axis for leaf in moved(other)}
            for chosen in itertools.product(*options):
                found.append(_view(name, chosen, axis_stride, axis, atom, parents, inside))
    return found


def _whole_axes(name: str, layouts: Sequence[Layout], atom: str, axis_stride: Sequence[int]) -> list[Incidence]:
    """The places of an atom where each axis holds one or none, which is the rule."""
    sizes, found = [layout.size for layout in layouts], []
    for axis, layout in enumerate(layouts):
        if isinstance(layout, Moved) and layout.atom == atom:
            others = frozenset(x.atom for i, x in enumerate(layouts) if i != axis and isinstance(x, Moved))
            size, stride = ((values[axis], *values[:axis], *values[axis + 1 :]) for values in (sizes, axis_stride))
            found.append(Incidence(name, others, size, stride, 0, 0))
    return found


def _view(
    name: str,
    chosen: Sequence[tuple[int, Dims]],
    axis_stride: Sequence[int],
    axis: int,
    atom: str,
    parents: Sequence[str],
    inside: set[str],
) -> Incidence:
    offset = sum(start * stride for (start, _), stride in zip(chosen, axis_stride, strict=True))
    dims = [
        (i, label, size, stride * axis_stride[i]) for i, (_, part) in enumerate(chosen) for label, size, stride in part
    ]
    own = next(k for k, dim in enumerate(dims) if dim[0] == axis and dim[1] == atom)
    lead = [next(k for k, dim in enumerate(dims) if dim[1] == p and k != own) for p in parents]
    order = [*lead, own, *(k for k in range(len(dims)) if k not in lead and k != own)]
    others = (inside | {dim[1] for k, dim in enumerate(dims) if k != own and dim[1]}) - {None}
    return Incidence(
        name,
        frozenset(label for label in others if label),
        tuple(dims[k][2] for k in order),
        tuple(dims[k][3] for k in order),
        offset,
        len(parents),
    )


def _whole(layout: Layout) -> tuple[str | None, int, int]:
    return (layout.atom if isinstance(layout, Moved) else None, layout.size, 1)


def _places(layout: Layout, atom: str) -> list[tuple[int, Dims]]:
    """Offset and factors of each place of an atom on an axis."""
    if isinstance(layout, Moved):
        return [(0, [_whole(layout)])] if layout.atom == atom else []
    if isinstance(layout, Segments):
        starts = itertools.accumulate((part.size for part in layout.parts), initial=0)
        return [
            (start + offset, dims)
            for start, part in zip(starts, layout.parts, strict=False)
            for offset, dims in _places(part, atom)
        ]
    if not isinstance(layout, Product):
        return []
    found: list[tuple[int, Dims]] = []
    for i, factor in enumerate(layout.factors):
        for offset, dims in _places(factor, atom):
            parts: list[Dims] = [[_whole(other)] for other in layout.factors]
            parts[i] = dims
            strides = [math.prod(f.size for f in layout.factors[k + 1 :]) for k in range(len(parts))]
            scaled = [
                (label, size, stride * strides[k]) for k, part in enumerate(parts) for label, size, stride in part
            ]
            found.append((offset * strides[i], scaled))
    return found
