"""What may be permuted in a model without changing its function, and what may not and why."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.io import write_bytes_atomic
from diffmatch.matching.weights.layout import Fixed, Layout, Moved, Product, Segments, children, layout_from_json, moved

__all__ = ["Atom", "FrozenAxis", "PermutationSpec"]

_BY_HAND = "fixed in the spec written by hand"


@dataclass(frozen=True)
class Atom:
    """A set of units that move together.

    Attributes:
        name: the parameter axis that it was found on first.
        size: number of units.
        parents: atoms on whose index the permutation may depend: the inner permutation of a head is its head's own.
    """

    name: str
    size: int
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrozenAxis:
    """Indices of a parameter axis that must not move, and why."""

    parameter: str
    axis: int
    size: int
    reason: str


@dataclass(frozen=True)
class PermutationSpec:
    """The permutations that leave a model's function as it is.

    Attributes:
        atoms: by name.
        layouts: for each entry of the state dict, the layout of each of its axes.
        buffers: the entries that are permuted but not learned, such as running statistics.
        checked: the function was compared under random permutations.
    """

    atoms: dict[str, Atom]
    layouts: dict[str, tuple[Layout, ...]]
    buffers: frozenset[str] = field(default_factory=frozenset)
    checked: bool = False

    @classmethod
    def by_hand(
        cls,
        state: Mapping[str, Tensor],
        axes: Mapping[str, Sequence[str | None]],
        *,
        buffers: Iterable[str] = (),
    ) -> "PermutationSpec":
        """A spec written by hand.

        Args:
            state: the state dict that it is for; the shapes are read.
            axes: for each entry with something to permute, one name of an atom (or None) an axis. Entries that are not
                named stay as they are.
            buffers: names of those entries that are not learned.

        Raises:
            InputError: a name or number of axes does not fit the state, or an atom has two sizes.

        Examples:
            >>> import torch
            >>> state = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)).state_dict()
            >>> spec = PermutationSpec.by_hand(
            ...     state, {"0.weight": ("h", None), "0.bias": ("h",), "1.weight": (None, "h")}
            ... )
            >>> spec.atoms["h"].size
            5
        """
        atoms: dict[str, Atom] = {}
        layouts: dict[str, tuple[Layout, ...]] = {}
        for name in axes:
            if name not in state:
                raise InputError("axes", "names of the state", repr(name))
        for name, tensor in state.items():
            named = axes.get(name, [None] * tensor.ndim)
            if len(named) != tensor.ndim:
                raise InputError(f"axes[{name!r}]", f"{tensor.ndim} entries, one an axis", str(len(named)))
            layout: list[Layout] = []
            for atom, size in zip(named, tensor.shape, strict=True):
                if atom is None:
                    layout.append(Fixed(size, _BY_HAND))
                    continue
                known = atoms.setdefault(atom, Atom(atom, size))
                if known.size != size:
                    raise InputError(f"axes[{name!r}]", f"size {known.size} for atom {atom!r}", str(size))
                layout.append(Moved(atom, size))
            layouts[name] = tuple(layout)
        return cls(atoms, layouts, frozenset(buffers))

    @property
    def frozen(self) -> list[FrozenAxis]:
        """What must not move, axis by axis."""
        return [
            FrozenAxis(name, axis, part.size, part.reason)
            for name, layouts in self.layouts.items()
            for axis, layout in enumerate(layouts)
            for part in _fixed(layout)
            if part.size > 1
        ]

    def touched(self, atom: str) -> list[tuple[str, int]]:
        """The entries of the state dict and their axes that an atom moves."""
        return [
            (name, axis)
            for name, layouts in self.layouts.items()
            for axis, layout in enumerate(layouts)
            if any(leaf.atom == atom for leaf in moved(layout))
        ]

    def parents(self) -> dict[str, tuple[str, ...]]:
        """Parents of each atom."""
        return {name: atom.parents for name, atom in self.atoms.items()}

    def without(self, names: Iterable[str], reason: str) -> "PermutationSpec":
        """The spec with some atoms fixed for a reason."""
        gone = set(names)
        layouts = {
            name: tuple(_fix(layout, gone, reason) for layout in layouts) for name, layouts in self.layouts.items()
        }
        atoms = {
            name: replace(atom, parents=tuple(p for p in atom.parents if p not in gone))
            for name, atom in self.atoms.items()
            if name not in gone
        }
        return replace(self, atoms=atoms, layouts=layouts)

    def __str__(self) -> str:
        number = {name: f"#{k}" for k, name in enumerate(self.atoms)}
        lines = [f"{len(self.atoms)} atoms, function {'checked' if self.checked else 'not checked'}"]
        for atom in self.atoms.values():
            each = f" for each of {', '.join(number[p] for p in atom.parents)}" if atom.parents else ""
            lines.append(f"{number[atom.name]:>5}  {atom.size} units{each}: {atom.name}")
        lines.append("entries that move")
        for name, layouts in self.layouts.items():
            if any(True for layout in layouts for _ in moved(layout)):
                shown = ", ".join(_shown(layout, number) for layout in layouts)
                lines.append(f"       {name} ({shown}){' (not learned)' if name in self.buffers else ''}")
        lines.append("what is fixed, and why")
        lines.extend(f"       {f.parameter} axis {f.axis}: {f.size}, {f.reason}" for f in self.frozen)
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists, strings and numbers."""
        return {
            "atoms": [[atom.name, atom.size, list(atom.parents)] for atom in self.atoms.values()],
            "layouts": {name: [layout.to_json() for layout in layouts] for name, layouts in self.layouts.items()},
            "buffers": sorted(self.buffers),
            "checked": self.checked,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the spec as JSON, whole or not at all."""
        write_bytes_atomic(path, json.dumps(self.to_json(), indent=1).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PermutationSpec":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is not a spec.
        """
        try:
            data = json.loads(Path(path).read_text())
            atoms = {name: Atom(name, size, tuple(parents)) for name, size, parents in data["atoms"]}
            layouts = {name: tuple(map(layout_from_json, found)) for name, found in data["layouts"].items()}
            return cls(atoms, layouts, frozenset(data["buffers"]), data["checked"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("path", "a permutation spec in JSON", f"{path} ({error})") from error


def _fixed(layout: Layout) -> list[Fixed]:
    if isinstance(layout, Fixed):
        return [layout]
    return [part for child in children(layout) for part in _fixed(child)]


def _fix(layout: Layout, atoms: set[str], reason: str) -> Layout:
    if isinstance(layout, Moved):
        return Fixed(layout.size, reason) if layout.atom in atoms else layout
    if isinstance(layout, Product):
        return Product(tuple(_fix(factor, atoms, reason) for factor in layout.factors))
    if isinstance(layout, Segments):
        return Segments(tuple(_fix(part, atoms, reason) for part in layout.parts))
    return layout


def _shown(layout: Layout, number: Mapping[str, str]) -> str:
    if isinstance(layout, Moved):
        return number[layout.atom]
    if isinstance(layout, Product):
        return " * ".join(f"({_shown(f, number)})" if children(f) else _shown(f, number) for f in layout.factors)
    if isinstance(layout, Segments):
        return " | ".join(_shown(part, number) for part in layout.parts)
    return str(layout.size)
