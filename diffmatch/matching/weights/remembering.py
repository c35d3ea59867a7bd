"""Alignments that keep their Gram matrices between looks, alone or in company."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffmatch.matching.weights.ascent import Alignment
from diffmatch.matching.weights.incidence import Incidence
from diffmatch.matching.weights.layout import Moved

__all__ = ["RememberingAlignment"]


@dataclass
class RememberingAlignment(Alignment):
    """An :class:`Alignment` that keeps the Gram matrices of simple atoms from one look to the next.

    After the first sweep few units move in a step. Only these are copied, and the matrices are brought up to date by
    the products of these alone. What a first look has summed is kept too; the other places are added when they count.

    Attributes:
        company: alignments of other models whose ``a`` is a sum that holds this model as permuted, a copy of their own;
            each step of this one is added to it.
    """

    company: Sequence["RememberingAlignment"] = field(default=())
    _grams: dict[str, Tensor] = field(init=False, default_factory=dict)
    _missing: dict[str, list[Incidence]] = field(init=False, default_factory=dict)

    def against(self, a: Mapping[str, Tensor]) -> None:
        """Go on with other tensors to be brought close to."""
        super().against(a)
        self._grams.clear()

    def improve(self, atom: str) -> bool:
        """Give one atom its best permutation, the others held; whether anything changed."""
        if atom not in self.structure.simple:
            return super().improve(atom)
        missing = self._missing.pop(atom, [])
        if atom not in self._grams:
            self._grams[atom] = self._gram(self.structure.places[atom])
        elif missing:
            self._gram(missing, self._grams[atom])
        return self._follow_gram(atom)

    def look(self, atom: str, places: Sequence[Incidence]) -> None:
        """Give one atom its best permutation by some of its places alone, whatever the others say."""
        if atom not in self.structure.simple:
            super().look(atom, places)
            return
        self._grams[atom] = self._gram(places)
        counted = {place.name for place in places}
        self._missing[atom] = [place for place in self.structure.places[atom] if place.name not in counted]
        self._follow_gram(atom)

    def _follow_gram(self, atom: str) -> bool:
        """Give a simple atom the best permutation by its Gram matrix; whether anything changed."""
        chosen, gain = self._best(atom, self._grams[atom])
        if gain <= self.least_gain:
            return False
        self._move(atom, chosen[0])
        return True

    def _step(self, relative: dict[str, Tensor], *, trusted: bool) -> bool:
        """Reorder the model as others do, and forget what depended on it."""
        s = self.structure
        before = {name: self.b[name] for atom in relative for name in s.axes[atom]}
        changed = super()._step(relative, trusted=trusted)
        if changed:
            self._tell_all(before, relative)
        return changed

    def _tell_all(self, before: Mapping[str, Tensor], moved: Mapping[str, Tensor]) -> None:
        """Forget what depended on whole tensors, here and in the company."""
        near = {other for atom in moved for other in (atom, *self.structure.neighbours[atom])}
        for atom in near:
            self._grams.pop(atom, None)
        for other in self.company:
            for name, old in before.items():
                other.a[name].add_(self.b[name] - old)
            other._rows.clear()
            for atom in near:
                other._grams.pop(atom, None)

    def _move(self, atom: str, order: Tensor) -> None:
        """Reorder a simple atom; of its neighbours, whose tensors change, the matrices follow or are forgotten."""
        s = self.structure
        units = (order != torch.arange(len(order), device=order.device)).nonzero().squeeze(1)
        # The company would follow once each, and looks at its own matrices once.
        if len(self.company) * len(units) > len(order):
            before = {name: self.b[name] for name in s.axes[atom]}
            for name, (axis,) in s.axes[atom].items():
                self.b[name] = self.b[name].index_select(axis, order)
            self._tell_all(before, {atom: order})
        else:
            self._move_some(atom, order, units)
        self.permutations = {**self.permutations, atom: self.permutations[atom].index_select(0, order.cpu())}
        if atom in self._prices:
            self._prices[atom] = self._prices[atom].index_select(0, order)

    def _move_some(self, atom: str, order: Tensor, units: Tensor) -> None:
        s = self.structure
        source = order.index_select(0, units)
        for name, (axis,) in s.axes[atom].items():
            followers = [
                (row, layout.atom)
                for row, layout in enumerate(s.spec.layouts[name])
                if row != axis and isinstance(layout, Moved) and self._counts(layout.atom, name)
            ]
            if not followers and not self.company and 2 * len(units) > len(order):
                self.b[name] = self.b[name].index_select(axis, order)
                continue
            old, new = (self.b[name].index_select(axis, index) for index in (units, source))
            self.b[name].index_copy_(axis, units, new)
            for row, other in followers:
                x, change = self.a[name].index_select(axis, units), new - old
                self._grams[other][0].addmm_(_units(x, row), _units(change, row).T)
            for company in self.company:
                company._follow(name, axis, units, new - old)
        if atom in self._grams:
            gram = self._grams[atom][0]
            gram.index_copy_(1, units, gram.index_select(1, source))

    def _follow(self, name: str, axis: int, units: Tensor, change: Tensor) -> None:
        """Some units of a tensor of ``a`` have changed."""
        self.a[name].index_add_(axis, units, change)
        self._rows = {place: rows for place, rows in self._rows.items() if place.name != name}
        for row, layout in enumerate(self.structure.spec.layouts[name]):
            if not isinstance(layout, Moved) or not self._counts(layout.atom, name):
                continue
            gram, x = self._grams[layout.atom][0], _units(change, row)
            if row == axis:
                gram.index_add_(0, units, x @ _units(self.b[name], row).T)
            else:
                gram.addmm_(x, _units(self.b[name].index_select(axis, units), row).T)

    def _counts(self, atom: str, name: str) -> bool:
        """Whether the Gram matrix of an atom is kept and a tensor is part of it."""
        return atom in self._grams and all(place.name != name for place in self._missing.get(atom, ()))


def _units(tensor: Tensor, axis: int) -> Tensor:
    """The indices of an axis as rows."""
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)
