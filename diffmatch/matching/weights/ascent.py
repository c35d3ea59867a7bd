"""Coordinate ascent on Σ_k ⟨A_k, (π·B)_k⟩: atom by atom by assignment, inner permutations with their outer ones."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffmatch.matching.assignment import assign
from diffmatch.matching.assignment.compiled import solve_compiled
from diffmatch.matching.assignment.kernels import SOLVED
from diffmatch.matching.weights.incidence import Incidence, incidences
from diffmatch.matching.weights.layout import Fixed, Layout, Moved, moved
from diffmatch.matching.weights.permute import (
    Permutations,
    compose,
    identity_permutations,
    permute_tensor,
)
from diffmatch.matching.weights.rematching import rematch
from diffmatch.matching.weights.spec import PermutationSpec

__all__ = [
    "Alignment",
    "Structure",
    "ascend",
    "best_assignment",
    "first_looks",
    "inner_product",
    "packed",
]


class Structure:
    """Where the atoms of a spec are in its tensors.

    Attributes:
        spec: of the tensors that an atom moves.
        names: of these.
        parents: of each atom.
        children: atoms whose permutations belong to the indices of this one and of no other.
        places: of each atom.
        neighbours: atoms in a tensor with this one.
        axes: of each atom, the axes that it moves, by tensor.
        curved: atoms on two axes of one tensor, in which the objective is quadratic.
        simple: atoms that stand alone on whole axes, as their neighbours do there, and depend on nothing.
    """

    def __init__(self, spec: PermutationSpec) -> None:
        self.axes: dict[str, dict[str, set[int]]] = {atom: {} for atom in spec.atoms}
        for name, layouts in spec.layouts.items():
            for axis, layout in enumerate(layouts):
                for leaf in moved(layout):
                    self.axes[leaf.atom].setdefault(name, set()).add(axis)
        moving = set().union(*self.axes.values())
        self.names = [name for name in spec.layouts if name in moving]
        self.spec = PermutationSpec(spec.atoms, {name: spec.layouts[name] for name in self.names})
        self.parents = spec.parents()
        self.places = {
            atom: [place for name in axes for place in incidences(name, spec.layouts[name], atom, self.parents[atom])]
            for atom, axes in self.axes.items()
        }
        self.neighbours = {
            atom: {other for place in places for other in place.others} - {atom} for atom, places in self.places.items()
        }
        self.children = {
            atom: [child for child, up in self.parents.items() if up == (atom,) and self.places[child]]
            if not self.parents[atom]
            else []
            for atom in spec.atoms
        }
        self.curved = {atom for atom, axes in self.axes.items() if any(len(each) > 1 for each in axes.values())}
        self.simple = {atom for atom in spec.atoms if self._is_simple(atom)}
        self.identity = identity_permutations(spec)

    def _is_simple(self, atom: str) -> bool:
        plain = all(isinstance(layout, Fixed | Moved) for name in self.axes[atom] for layout in self.spec.layouts[name])
        others = {atom, *self.neighbours[atom]}
        return plain and not others & self.curved and not any(self.parents[x] or self.children[x] for x in others)

    def entangled(self) -> list[str]:
        """Atoms of which several children share a tensor, so that solving for one at a time may get stuck."""
        return [
            atom
            for atom, children in self.children.items()
            if any(place.others & set(children) - {child} for child in children for place in self.places[child])
        ]

    def occurs(self, atom: str) -> bool:
        """Whether an atom moves any of the tensors."""
        return bool(self.places[atom])


@dataclass
class Alignment:
    """A model as permuted so far, in one copy that every step reorders, and the tensors that it is brought close to.

    Attributes:
        structure: where the atoms are.
        a: the tensors that stay.
        original: those that are aligned.
        permutations: the current ones, of ``original``.
        least_gain: smallest increase of the objective that counts.
        b: ``original`` permuted.
    """

    structure: Structure
    a: Mapping[str, Tensor]
    original: Mapping[str, Tensor]
    permutations: Permutations
    least_gain: float
    b: dict[str, Tensor] = field(init=False)
    _rows: dict[Incidence, Tensor] = field(init=False, default_factory=dict)
    _prices: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        s = self.structure
        still = all(torch.equal(self.permutations[atom], own) for atom, own in s.identity.items())
        self.b = {
            name: self.original[name].clone(memory_format=torch.contiguous_format)
            if still
            else permute_tensor(self.original[name], s.spec.layouts[name], self.permutations, s.parents).contiguous()
            for name in s.names
        }

    def against(self, a: Mapping[str, Tensor]) -> None:
        """Go on with other tensors to be brought close to."""
        self.a = a
        self._rows.clear()

    def objective(self) -> float:
        """Σ_k ⟨A_k, (π·B)_k⟩ over the tensors that something moves."""
        return math.fsum(inner_product(self.a[name], self.b[name]) for name in self.structure.names)

    def improve(self, atom: str) -> bool:
        """Give one atom its best permutation, the others held; whether anything changed."""
        chosen, gain = self._best(atom, self._gram(self.structure.places[atom]))
        if gain <= self.least_gain:
            return False
        relative = chosen.reshape(self.structure.identity[atom].shape)
        return self._step({atom: relative}, trusted=atom not in self.structure.curved)

    def look(self, atom: str, places: Sequence[Incidence]) -> None:
        """Give one atom its best permutation by some of its places alone, whatever the others say."""
        chosen, gain = self._best(atom, self._gram(places))
        if gain > self.least_gain:
            self._step({atom: chosen.reshape(self.structure.identity[atom].shape)}, trusted=True)

    def improve_jointly(self, atom: str) -> bool:
        """Pair the indices of an atom by the best inner permutations of its children; whether anything changed."""
        s, children = self.structure, self.structure.children[atom]
        n = s.spec.atoms[atom].size
        own = [place for place in s.places[atom] if not place.others & set(children)]
        score = self._gram(own)[0] if own else torch.zeros(n, n)
        inner: dict[str, Tensor] = {}
        for child in children:
            gram = self._pairs(child, set(children))
            solved = assign(gram, maximize=True)
            inner[child] = solved.assignment
            score = score + solved.value.to(score)
        outer = assign(score, maximize=True).assignment
        rows = torch.arange(n, device=outer.device)
        step = {atom: outer, **{child: inner[child][rows, outer] for child in children}}
        if all(torch.equal(step[name].cpu(), s.identity[name]) for name in step):
            return False
        return self._step(step, trusted=False)

    def _step(self, relative: dict[str, Tensor], *, trusted: bool) -> bool:
        """Reorder the model; a step that is not known to improve is taken back unless it does."""
        s = self.structure
        touched: dict[str, set[int]] = {}
        for atom in relative:
            for name, axes in s.axes[atom].items():
                touched.setdefault(name, set()).update(axes)
        before = {name: self.b[name] for name in touched}
        full = {**s.identity, **{name: permutation.cpu() for name, permutation in relative.items()}}
        for name, axes in touched.items():
            layouts = s.spec.layouts[name]
            self.b[name] = permute_tensor(before[name], layouts, full, s.parents, axes=axes).contiguous()
        if not trusted:
            gain = math.fsum(inner_product(self.a[n], self.b[n]) - inner_product(self.a[n], before[n]) for n in touched)
            if gain <= self.least_gain:
                self.b.update(before)
                return False
        self.permutations = compose(s.spec, self.permutations, full)
        for name in self._prices.keys() & relative.keys():
            self._prices[name] = self._prices[name][relative[name].flatten()]
        return True

    def _best(self, atom: str, gram: Tensor) -> tuple[Tensor, float]:
        """:func:`best_assignment` of a Gram matrix of an atom, from the prices of its last one."""
        if len(gram) > 1 or gram.device.type != "cpu":
            return best_assignment(gram)
        if atom not in self._prices:
            self._prices[atom] = torch.zeros(gram.shape[-1], dtype=torch.float64)
        prices = self._prices[atom]
        chosen = torch.arange(len(prices))
        gain = rematch(gram[0].numpy(), prices.numpy(), chosen.numpy())
        return chosen[None], gain

    def _gram(self, places: Sequence[Incidence], total: Tensor | None = None) -> Tensor:
        """Inner products of the units of both models, shape (parents, n, n), added to those of other places."""
        for place in places:
            x, y = self._rows_of(place), place.matrices(self.b[place.name]).mT
            total = x @ y if total is None else total.baddbmm_(x, y)
        assert total is not None
        return total

    def _rows_of(self, place: Incidence) -> Tensor:
        """The units of the model that stays, unfolded once where that takes a copy."""
        known = self._rows.get(place)
        if known is None:
            known = self._rows[place] = place.matrices(self.a[place.name])
        return known

    def _pairs(self, child: str, children: set[str]) -> Tensor:
        """Gram matrices of a child's units for every pair of parent indices, shape (h, h, n, n).

        A place that several children share counts for each in part, so that it is counted once in all.
        """
        total: Tensor | None = None
        for place in self.structure.places[child]:
            x, y = self._rows_of(place), place.matrices(self.b[place.name])
            h, n, _ = x.shape
            gram = (x.flatten(0, 1) @ y.flatten(0, 1).T).reshape(h, n, h, n).transpose(1, 2)
            gram = gram / (1 + len(place.others & (children - {child})))
            total = gram if total is None else total + gram
        assert total is not None
        return total.contiguous()


def packed(
    states: Sequence[Mapping[str, Tensor]], spec: PermutationSpec, names: Sequence[str]
) -> tuple[list[dict[str, Tensor]], PermutationSpec]:
    """Tensors of several models with all vectors of an atom (biases, scales of norms) as the columns of one matrix.

    Args:
        states: hold the tensors.
        spec: of them.
        names: of those that count.

    Returns:
        The tensors of each model that an atom moves, and the spec of these.
    """
    layouts: dict[str, tuple[Layout, ...]] = {}
    vectors: dict[str, list[str]] = {}
    for name in names:
        own = spec.layouts[name]
        if len(own) == 1 and isinstance(own[0], Moved):
            vectors.setdefault(own[0].atom, []).append(name)
        elif any(True for layout in own for _ in moved(layout)):
            layouts[name] = own
    found = [{name: state[name] for name in layouts} for state in states]
    for atom, columns in vectors.items():
        name = f"vectors of {atom}"
        layouts[name] = (Moved(atom, spec.atoms[atom].size), Fixed(len(columns)))
        for tensors, state in zip(found, states, strict=True):
            tensors[name] = torch.stack([state[column] for column in columns], 1)
    return found, PermutationSpec(spec.atoms, layouts)


def first_looks(alignment: Alignment, *, generator: torch.Generator | None = None) -> None:
    """Let each atom look once, at the tensors alone in which the others have looked or nothing else moves.

    What an atom that has not looked yet holds says nothing about the order of its neighbours. Atoms with parents or
    children wait, and those that no such tensor shows.

    Args:
        alignment: changed in place; the objective may fall.
        generator: for a random order, on the CPU; None for that of the spec.
    """
    s = alignment.structure
    names = [name for name in s.spec.atoms if s.occurs(name)]
    waiting = set(names)
    for i in range(len(names)) if generator is None else torch.randperm(len(names), generator=generator).tolist():
        name = names[i]
        places = [place for place in s.places[name] if not place.others & waiting]
        if places and not s.parents[name] and not s.children[name]:
            alignment.look(name, places)
            waiting.discard(name)


def ascend(
    alignment: Alignment,
    *,
    max_sweeps: int,
    generator: torch.Generator | None = None,
    atoms: Collection[str] | None = None,
) -> tuple[int, bool]:
    """Let the atoms take turns until none improves; one is looked at again only after a neighbour has changed.

    Args:
        alignment: changed in place.
        max_sweeps: largest number of passes over the atoms.
        generator: for random orders, on the CPU; None for the order of the spec.
        atoms: those to begin with; all if None.

    Returns:
        The passes made, and whether no atom could improve any more.
    """
    s = alignment.structure
    names = [name for name in s.spec.atoms if s.occurs(name)]
    dirty = set(names) if atoms is None else set(atoms)
    sweeps = 0
    while dirty and sweeps < max_sweeps:
        order = list(range(len(names)))
        if generator is not None:
            order = torch.randperm(len(names), generator=generator).tolist()
        for name in (names[i] for i in order):
            if name not in dirty:
                continue
            dirty.discard(name)
            changed = alignment.improve(name)
            if s.children[name] and alignment.improve_jointly(name):
                changed = True
            if changed:
                dirty |= s.neighbours[name]
                # Linear in one atom, a step is the best there is; otherwise it may be followed by another.
                if name in s.curved or s.children[name]:
                    dirty.add(name)
        sweeps += 1
    return sweeps, not dirty


def best_assignment(gram: Tensor) -> tuple[Tensor, float]:
    """Best assignment of each matrix, shape (b, n, n), and by how much all together beat the identity."""
    chosen = _solve(gram)
    value = gram.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).sum(dtype=torch.float64)
    return chosen, float(value - gram.diagonal(dim1=-2, dim2=-1).sum(dtype=torch.float64))


def inner_product(x: Tensor, y: Tensor) -> float:
    """⟨x, y⟩ summed in float64."""
    return float(torch.dot(x.flatten().double(), y.flatten().double()))


def _solve(gram: Tensor) -> Tensor:
    if gram.device.type != "cpu":
        return assign(gram, maximize=True).assignment
    # The public function's checks and duals take longer than the work of small problems.
    every = torch.ones(gram.shape[:-1], dtype=torch.bool)
    found = solve_compiled(gram, every, every, maximize=True)
    assert (found.status == SOLVED).all()  # finite and square
    return found.assignment
