"""Starts for weight matching that favour no order: ascent over doubly stochastic matrices from their centre."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffmatch.matching.weights.ascent import best_assignment, inner_product
from diffmatch.matching.weights.incidence import Incidence, incidences
from diffmatch.matching.weights.layout import Fixed, Layout, Product, Segments, axis_index, moved
from diffmatch.matching.weights.permute import Permutations, apply_permutations
from diffmatch.matching.weights.rematching import rematch
from diffmatch.matching.weights.spec import PermutationSpec

__all__ = ["frank_wolfe_starts", "relaxed_atoms"]

_HELD = "held by the relaxation"
_FIRST_STEP = 0.1
"""Share of the way towards the starts; further, they would settle what the ascent is to find."""


def frank_wolfe_starts(
    states: Sequence[Mapping[str, Tensor]],
    spec: PermutationSpec,
    starts: Sequence[Permutations],
    *,
    towards_starts: bool = False,
    max_steps: int = 60,
    tol: float = 1e-4,
) -> list[Permutations]:
    """Permutations near a maximum of Σ_{i<j} Σ_k ⟨P_i·W_k^i, P_j·W_k^j⟩ over doubly stochastic matrices P.

    The first model stays, and gives the order that all are brought to; the matrices of the others begin at the centre,
    where every entry is equal. A step goes towards the corner that an assignment of each gradient names, as far as the
    objective, a polynomial along the way, is largest. Corners are permutations, so that a step reorders tensors and
    adds them; the only products of matrices are the gradients.

    Held at their start are atoms with parents or children, which are few units each, and those that share an axis with
    another one in a product, or stand on a third axis; the ascent that follows sees to them.

    Args:
        states: of each model the learned tensors that the spec describes.
        spec: of those tensors.
        starts: permutations of each model.
        towards_starts: let the first step go some way towards the starts, and not by the gradient, which at the centre
            knows the means of the units alone.
        max_steps: largest number of steps.
        tol: stop when the gap of Frank and Wolfe falls below this share of the objective.

    Returns:
        For each model the permutations nearest to the matrices reached.

    References:
        Crisostomi et al. 2024, "C²M³: Cycle-Consistent Multi-Model Merging".
    """
    atoms = relaxed_atoms(spec)
    if not atoms:
        return [dict(start) for start in starts]
    free = spec.without(set(spec.atoms) - set(atoms), _HELD)
    held = [
        apply_permutations(state, spec, {name: start[name] for name in spec.atoms if name not in atoms})
        for state, start in zip(states, starts, strict=True)
    ]
    names = [name for name, layouts in free.layouts.items() if any(_atoms_of(layout) for layout in layouts)]
    places = {name: _places(name, free.layouts[name], atoms) for name in names}
    first = apply_permutations(states[0], spec, starts[0])
    base = {name: first[name] for name in names}
    models = [_Model({name: state[name].contiguous() for name in names}, free, places) for state in held[1:]]
    for k in range(max_steps):
        given = towards_starts and k == 0
        if given:
            for model, start in zip(models, starts[1:], strict=True):
                model.aim_at({atom: start[atom] for atom in model.plans})
            gap = math.inf
        else:
            total = {name: torch.stack([base[name], *(m.mixed[name] for m in models)]).sum(0) for name in names}
            gap = sum(model.aim(total) for model in models)
        line = _objective_along(base, models)
        if gap <= tol * abs(line(0.0)):
            break
        step = _FIRST_STEP if given else _largest(line)
        for model in models:
            model.move(step)
    return [dict(starts[0]), *({**start, **m.rounded()} for start, m in zip(starts[1:], models, strict=True))]


@dataclass
class _Model:
    """A model with matrices in the place of permutations.

    Attributes:
        tensors: as they were.
        spec: whose atoms are all relaxed.
        places: of each tensor, for each of its (one or two) axes that are relaxed, where which atoms are.
        plans: the matrices.
        partly: of each tensor, with the matrices applied to one axis only, by that axis.
        mixed: of each tensor, with all applied.
        corners: permutations that the next step goes towards.
        indices: the corners as old indices of the axes of a layout, once asked for.
        line: coefficients of each mixed tensor along the next step, by powers.
        solved: prices and columns of the last assignment of each atom.
    """

    tensors: dict[str, Tensor]
    spec: PermutationSpec
    places: dict[str, dict[int, list[tuple[str, Incidence]]]]
    plans: dict[str, Tensor] = field(init=False)
    partly: dict[str, dict[int, Tensor]] = field(init=False)
    mixed: dict[str, Tensor] = field(init=False)
    corners: dict[str, Tensor] = field(init=False)
    indices: dict[Layout, Tensor] = field(init=False)
    line: dict[str, list[Tensor]] = field(init=False)
    solved: dict[str, tuple[Tensor, Tensor]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        some = next(iter(self.tensors.values()))
        self.plans = {
            name: some.new_full((atom.size, atom.size), 1 / atom.size) for name, atom in self.spec.atoms.items()
        }
        self.partly, self.mixed = {}, {}
        for name, tensor in self.tensors.items():
            axes = self.places[name]
            self.partly[name] = {axis: _averaged(tensor, found) for axis, found in axes.items()}
            first, *second = axes
            self.mixed[name] = self.partly[name][first]
            if second:
                self.mixed[name] = _averaged(self.mixed[name], axes[second[0]])

    def aim(self, total: Mapping[str, Tensor]) -> float:
        """Choose the corners for the sum of all models' mixed tensors; gives the gap."""
        gradients: dict[str, Tensor] = {}
        for name, axes in self.places.items():
            target = total[name] - self.mixed[name]
            for axis, found in axes.items():
                other = next((i for i in axes if i != axis), None)
                tensor = self.tensors[name] if other is None else self.partly[name][other]
                for atom, place in found:
                    x, y = place.matrices(target)[0], place.matrices(tensor)[0].T
                    gradients[atom] = gradients[atom].addmm_(x, y) if atom in gradients else x @ y
        corners = {atom: self._corner(atom, gradient) for atom, gradient in gradients.items()}
        self.aim_at(corners)
        gap = 0.0
        for atom, gradient in gradients.items():
            value = gradient.gather(1, corners[atom][:, None]).sum(dtype=torch.float64)
            gap += float(value) - inner_product(gradient, self.plans[atom])
        return gap

    def aim_at(self, corners: dict[str, Tensor]) -> None:
        """Go towards given corners."""
        self.corners, self.indices = corners, {}
        self._set_line()

    def _corner(self, atom: str, gradient: Tensor) -> Tensor:
        """The best assignment, on the CPU from that of the step before."""
        if gradient.device.type != "cpu":
            return best_assignment(gradient[None])[0][0]
        if atom not in self.solved:
            self.solved[atom] = torch.zeros(len(gradient), dtype=torch.float64), torch.arange(len(gradient))
        prices, columns = self.solved[atom]
        rematch(gradient.numpy(), prices.numpy(), columns.numpy())
        return columns.clone()

    def move(self, step: float) -> None:
        """Go that share of the way to the corners."""
        for atom, chosen in self.corners.items():
            self.plans[atom].mul_(1 - step)
            self.plans[atom].scatter_add_(1, chosen[:, None], self.plans[atom].new_full((len(chosen), 1), step))
        for name, coefficients in self.line.items():
            mixed = coefficients[-1]
            for coefficient in reversed(coefficients[:-1]):
                mixed = torch.add(coefficient, mixed, alpha=step)
            self.mixed[name] = mixed
            if len(self.places[name]) > 1:
                for axis, tensor in self.partly[name].items():
                    self.partly[name][axis] = tensor.lerp(self._turned(name, self.tensors[name], axis), step)

    def rounded(self) -> Permutations:
        """The permutations nearest to the plans."""
        return {atom: best_assignment(plan[None])[0][0].cpu() for atom, plan in self.plans.items()}

    def _set_line(self) -> None:
        """With L the plans and D the corners of two axes, L W Lᵀ → ((1−t) L + t D) W ((1−t) L + t D)ᵀ."""
        self.line = {}
        for name, tensor in self.tensors.items():
            start = self.mixed[name]
            first, *second = self.places[name]
            if not second:
                self.line[name] = [start, self._turned(name, tensor, first) - start]
                continue
            cross = self._turned(name, self.partly[name][second[0]], first)
            cross = cross + self._turned(name, self.partly[name][first], second[0])
            corner = self._turned(name, self._turned(name, tensor, first), second[0])
            self.line[name] = [start, torch.sub(cross, start, alpha=2), start - cross + corner]

    def _turned(self, name: str, tensor: Tensor, axis: int) -> Tensor:
        layout = self.spec.layouts[name][axis]
        if layout not in self.indices:
            none: dict[str, tuple[str, ...]] = dict.fromkeys(self.corners, ())
            self.indices[layout] = axis_index(layout, self.corners, none).to(tensor.device)
        return tensor.index_select(axis, self.indices[layout])


def _objective_along(base: Mapping[str, Tensor], models: Sequence[_Model]) -> np.polynomial.Polynomial:
    """Σ_{i<j} of the inner products of all models' mixed tensors, as a polynomial of the step."""
    powers: list[int] = []
    products: list[Tensor] = []
    for name, tensor in base.items():
        before = [tensor]
        for model in models:
            line = model.line[name]
            for i, x in enumerate(before):
                for j, y in enumerate(line):
                    powers.append(i + j)
                    products.append(torch.dot(x.flatten(), y.flatten()))
            before = _summed(before, line)
    found = np.zeros(5)
    np.add.at(found, powers, torch.stack(products).double().cpu().numpy())
    return np.polynomial.Polynomial(found)


def _summed(x: Sequence[Tensor], y: Sequence[Tensor]) -> list[Tensor]:
    """Coefficients of the sum of two polynomials."""
    shorter, longer = sorted((x, y), key=len)
    return [*(a + b for a, b in zip(shorter, longer, strict=False)), *longer[len(shorter) :]]


def _largest(line: np.polynomial.Polynomial) -> float:
    """Where a polynomial is largest on [0, 1], zero itself excepted."""
    scale = np.abs(line.coef).max()
    roots = np.polynomial.Polynomial(line.coef / scale if scale else line.coef).deriv().trim(1e-14).roots()
    stationary = [float(root.real) for root in roots if abs(root.imag) < 1e-9]
    return max([1.0, *(t for t in stationary if 0 < t < 1)], key=lambda t: float(line(t)))


def _averaged(tensor: Tensor, places: Sequence[tuple[str, Incidence]]) -> Tensor:
    """A tensor with the units of some places replaced by their mean."""
    result = tensor.clone(memory_format=torch.contiguous_format)
    for _, place in places:
        view = torch.as_strided(result, place.sizes, place.strides, place.offset)
        view.copy_(view.mean(0, keepdim=True).expand_as(view))
    return result


def _places(name: str, layouts: tuple[Layout, ...], atoms: Sequence[str]) -> dict[int, list[tuple[str, Incidence]]]:
    """For each axis of a tensor with atoms, where they are on it."""
    found: dict[int, list[tuple[str, Incidence]]] = {}
    for axis in range(len(layouts)):
        own = _atoms_of(layouts[axis])
        alone = tuple(layout if i == axis else Fixed(layout.size) for i, layout in enumerate(layouts))
        here = [(atom, place) for atom in atoms if atom in own for place in incidences(name, alone, atom, ())]
        if here:
            found[axis] = here
    return found


def relaxed_atoms(spec: PermutationSpec) -> list[str]:
    """Atoms without parents or children of which an axis holds one in a product, and a tensor two axes."""
    above = {parent for atom in spec.atoms.values() for parent in atom.parents}
    atoms = [name for name, atom in spec.atoms.items() if not atom.parents and name not in above]
    held: set[str] = set()
    for layouts in spec.layouts.values():
        axes = 0
        for layout in layouts:
            held |= _crowded(layout, set(atoms) - held)
            here = _atoms_of(layout) & set(atoms) - held
            if axes == 2:
                held |= here
            axes += bool(here)
    used = {leaf.atom for layouts in spec.layouts.values() for layout in layouts for leaf in moved(layout)}
    return [name for name in atoms if name not in held and name in used]


def _crowded(layout: Layout, atoms: set[str]) -> set[str]:
    """Of the atoms that a product of an axis multiplies, all but the first."""
    if isinstance(layout, Segments):
        return set().union(*(_crowded(part, atoms) for part in layout.parts))
    if not isinstance(layout, Product):
        return set()
    seen, extra = False, set[str]()
    for factor in layout.factors:
        here = _atoms_of(factor) & atoms
        if seen:
            extra |= here
        else:
            extra |= _crowded(factor, atoms)
        seen = seen or bool(here)
    return extra


def _atoms_of(layout: Layout) -> set[str]:
    return {leaf.atom for leaf in moved(layout)}
