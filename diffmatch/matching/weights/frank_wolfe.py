"""A start for weight matching that favours no order: ascent over doubly stochastic matrices from their centre."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from diffmatch.matching.assignment import assign
from diffmatch.matching.weights.incidence import Incidence, incidences
from diffmatch.matching.weights.permute import Permutations, apply_permutations
from diffmatch.matching.weights.spec import PermutationSpec

__all__ = ["frank_wolfe_start"]


def frank_wolfe_start(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    spec: PermutationSpec,
    start: Permutations,
    *,
    max_steps: int = 60,
    tol: float = 1e-4,
) -> Permutations:
    """Permutations near a maximum of Σ_k ⟨A_k, P·B_k⟩ over doubly stochastic matrices P of all atoms at once.

    Atoms with parents or children keep their start; they are few units each, and the ascent that follows sees to them.

    Args:
        a: the learned tensors of the first model that atoms move.
        b: those of the second.
        spec: of those tensors.
        start: permutations of the atoms that are held.
        max_steps: largest number of steps.
        tol: stop when the gap of Frank and Wolfe falls below this share of the objective.

    Returns:
        The permutations nearest to the matrices reached.

    References:
        Crisostomi et al. 2024, "C²M³: Cycle-Consistent Multi-Model Merging".
    """
    above = {parent for atom in spec.atoms.values() for parent in atom.parents}
    atoms = [name for name, atom in spec.atoms.items() if not atom.parents and name not in above]
    held = apply_permutations(b, spec, {name: start[name] for name in spec.atoms if name not in atoms})
    relaxed = _Relaxed(a, {name: tensor.contiguous() for name, tensor in held.items()}, spec, atoms)
    first = next(iter(a.values()))
    plans = {
        name: torch.full(
            (spec.atoms[name].size,) * 2, 1 / spec.atoms[name].size, dtype=first.dtype, device=first.device
        )
        for name in atoms
    }
    for _ in range(max_steps):
        gradients = {name: relaxed.gradient(name, plans) for name in atoms}
        corners = {name: assign(gradient, maximize=True).plan for name, gradient in gradients.items()}
        gap = math.fsum(float((gradients[n] * (corners[n] - plans[n])).sum()) for n in atoms)
        value = relaxed.value(plans)
        if gap <= tol * abs(value):
            break
        step = _best_step(relaxed, plans, corners)
        plans = {name: torch.lerp(plans[name], corners[name], step) for name in atoms}
    found = dict(start)
    found.update({name: assign(plan, maximize=True).assignment for name, plan in plans.items()})
    return found


class _Relaxed:
    """The objective with matrices in the place of permutations."""

    def __init__(
        self, a: Mapping[str, Tensor], b: Mapping[str, Tensor], spec: PermutationSpec, atoms: list[str]
    ) -> None:
        self.a, self.b = a, b
        self.places: dict[str, dict[str, list[Incidence]]] = {
            atom: {
                name: found for name, layouts in spec.layouts.items() if (found := incidences(name, layouts, atom, ()))
            }
            for atom in atoms
        }

    @property
    def degree(self) -> int:
        """Degree of the objective along a line."""
        counts = [sum(len(places.get(name, [])) for places in self.places.values()) for name in self.a]
        return min(max(counts, default=1), 4)

    def gradient(self, atom: str, plans: Mapping[str, Tensor]) -> Tensor:
        """Derivative of the objective by the matrix of an atom."""
        total: Tensor | None = None
        for name, places in self.places[atom].items():
            moved = self._moved(name, plans, without=atom)
            for place in places:
                gram = place.matrices(self.a[name])[0] @ place.matrices(moved)[0].T
                total = gram if total is None else total.add_(gram)
        assert total is not None
        return total

    def value(self, plans: Mapping[str, Tensor]) -> float:
        """The objective."""
        return math.fsum(float((self.a[name].double() * self._moved(name, plans)).sum()) for name in self.a)

    def _moved(self, name: str, plans: Mapping[str, Tensor], *, without: str | None = None) -> Tensor:
        tensor = self.b[name]
        for atom, by_tensor in self.places.items():
            if atom == without:
                continue
            for place in by_tensor.get(name, []):
                view = torch.as_strided(tensor, place.sizes, place.strides, place.offset)
                mixed = tensor.clone()
                target = torch.as_strided(mixed, place.sizes, place.strides, place.offset)
                target.copy_(torch.tensordot(plans[atom], view, 1))
                tensor = mixed
        return tensor


def _best_step(relaxed: _Relaxed, plans: Mapping[str, Tensor], corners: Mapping[str, Tensor]) -> float:
    """Where the objective, a polynomial along the line, is largest on [0, 1]."""
    points = np.linspace(0.0, 1.0, relaxed.degree + 1)
    values = [relaxed.value({n: torch.lerp(plans[n], corners[n], float(t)) for n in plans}) for t in points]
    polynomial = np.polynomial.Polynomial.fit(points, values, relaxed.degree)
    stationary = [float(root.real) for root in polynomial.deriv().roots() if abs(root.imag) < 1e-9]
    candidates = [1.0, *(t for t in stationary if 0 < t < 1)]
    return max(candidates, key=lambda t: float(polynomial(t)))
