"""How an axis of a parameter is made of atoms: products, segments, and parts that stay where they are."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffmatch.errors import InputError

__all__ = ["Fixed", "Layout", "Moved", "Product", "Segments", "axis_index", "layout_from_json", "moved"]


@dataclass(frozen=True)
class Fixed:
    """Indices that must not move, and why."""

    size: int
    reason: str = ""

    def to_json(self) -> Any:
        """As plain lists, strings and numbers."""
        return ["fixed", self.size, self.reason]


@dataclass(frozen=True)
class Moved:
    """The indices of an atom."""

    atom: str
    size: int

    def to_json(self) -> Any:
        """As plain lists, strings and numbers."""
        return ["moved", self.atom, self.size]


@dataclass(frozen=True)
class Product:
    """Row-major combinations of the indices of factors, the last the fastest."""

    factors: tuple["Layout", ...]

    @property
    def size(self) -> int:
        """Number of indices."""
        return math.prod(factor.size for factor in self.factors)

    def to_json(self) -> Any:
        """As plain lists, strings and numbers."""
        return ["product", *(factor.to_json() for factor in self.factors)]


@dataclass(frozen=True)
class Segments:
    """Parts that follow each other."""

    parts: tuple["Layout", ...]

    @property
    def size(self) -> int:
        """Number of indices."""
        return sum(part.size for part in self.parts)

    def to_json(self) -> Any:
        """As plain lists, strings and numbers."""
        return ["segments", *(part.to_json() for part in self.parts)]


Layout = Fixed | Moved | Product | Segments


def layout_from_json(data: Any) -> Layout:
    """The layout that :meth:`to_json` wrote.

    Raises:
        InputError: it was not written by it.
    """
    match data:
        case ["fixed", int(size), str(reason)]:
            return Fixed(size, reason)
        case ["moved", str(atom), int(size)]:
            return Moved(atom, size)
        case ["product", *factors]:
            return Product(tuple(map(layout_from_json, factors)))
        case ["segments", *parts]:
            return Segments(tuple(map(layout_from_json, parts)))
    raise InputError("layout", "fixed, moved, product or segments", repr(data))


def moved(layout: Layout) -> Iterator[Moved]:
    """The atoms on an axis, as often as they occur."""
    if isinstance(layout, Moved):
        yield layout
    for child in children(layout):
        yield from moved(child)


def children(layout: Layout) -> tuple[Layout, ...]:
    """What a layout is made of, one level down."""
    if isinstance(layout, Product):
        return layout.factors
    return layout.parts if isinstance(layout, Segments) else ()


def axis_index(
    layout: Layout,
    permutations: Mapping[str, Tensor],
    parents: Mapping[str, tuple[str, ...]],
    outer: tuple[tuple[str, int], ...] = (),
) -> Tensor:
    """Old index of each new index of an axis.

    Args:
        layout: of the axis.
        permutations: one tensor an atom, shape (\\*sizes of its parents, size), int64.
        parents: of each atom, those on whose (new) index its permutation depends.
        outer: atoms, with their sizes, whose index is a leading axis of the result.

    Returns:
        Shape (\\*n, size), where each of n is the size of an outer atom, or one where nothing depends on it.
    """
    if isinstance(layout, Fixed):
        device = next(iter(permutations.values())).device if permutations else None
        return torch.arange(layout.size, device=device).reshape(*[1] * len(outer), -1)
    if isinstance(layout, Moved):
        own = parents[layout.atom]
        names = [name for name, _ in outer]
        order = sorted(range(len(own)), key=lambda i: names.index(own[i]))
        permutation = permutations[layout.atom].permute(*order, len(own))
        return permutation.reshape(*[size if name in own else 1 for name, size in outer], layout.size)
    if isinstance(layout, Segments):
        offset, found = 0, []
        for part in layout.parts:
            found.append(axis_index(part, permutations, parents, outer) + offset)
            offset += part.size
        lead = torch.broadcast_shapes(*(index.shape[:-1] for index in found))
        return torch.cat([index.expand(*lead, -1) for index in found], -1)
    first, *others = layout.factors
    if not others:
        return axis_index(first, permutations, parents, outer)
    rest = Product(tuple(others))
    head = axis_index(first, permutations, parents, outer)[..., None]
    if isinstance(first, Moved):
        tail = axis_index(rest, permutations, parents, (*outer, (first.atom, first.size)))
    else:
        tail = axis_index(rest, permutations, parents, outer)[..., None, :]
    return (head * rest.size + tail).flatten(-2)
