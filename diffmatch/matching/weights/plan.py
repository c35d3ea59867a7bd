"""What a merge will take before it begins: what can move, what cannot and why, memory and work."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from diffmatch.matching.weights.ascent import Structure
from diffmatch.matching.weights.incidence import Incidence
from diffmatch.matching.weights.layout import moved
from diffmatch.matching.weights.spec import PermutationSpec

__all__ = ["Held", "MergePlan", "merge_plan"]

_WORK = 4  # bytes of a number while it is compared


@dataclass(frozen=True)
class Held:
    """Axes that stay for one reason: how many, and one of them."""

    reason: str
    axes: int
    example: str


@dataclass(frozen=True)
class MergePlan:
    """What is known of a merge before it begins.

    Attributes:
        atoms: number of sets of units that move.
        units: of all of them, those of an inner atom counted once.
        parameters: number of learned values, tied ones once.
        movable: of these, in tensors that something moves.
        held: what stays and why, the most frequent reason first.
        model_bytes: size of one model as stored.
        largest_pair: bytes of the largest tensor as stored, twice.
        largest_gram: bytes of the largest Gram matrix.
        sweep_flops: multiplications and additions of one pass over the atoms.
        sweep_cubes: Σ n³ over the assignments of one pass.
    """

    atoms: int
    units: int
    parameters: int
    movable: int
    held: list[Held]
    model_bytes: int
    largest_pair: int
    largest_gram: int
    sweep_flops: float
    sweep_cubes: float

    @property
    def movable_percent(self) -> float:
        """Share of the learned values in tensors that something moves."""
        return 100 * self.movable / self.parameters if self.parameters else 0.0


def merge_plan(
    spec: PermutationSpec, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype]
) -> MergePlan:
    """What a pairwise weight matching by a spec will take.

    Args:
        spec: what may be permuted.
        shapes: of each stored tensor, tied ones under one name.
        dtypes: of each of them.
    """
    stored = {name: layouts for name, layouts in spec.layouts.items() if name in shapes}
    learned = [name for name in stored if name not in spec.buffers and dtypes[name].is_floating_point]
    structure = Structure(PermutationSpec(spec.atoms, {name: stored[name] for name in learned}))
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    grams, flops, cubes = [0], 0.0, 0.0
    for name, atom in spec.atoms.items():
        lead = math.prod(spec.atoms[p].size for p in atom.parents)
        rest = sum(_rest(place) for place in structure.places[name])
        if not rest:
            continue
        grams.append(lead * atom.size**2)
        flops += 2.0 * lead * atom.size**2 * rest
        cubes += lead * atom.size**3
        for child in structure.children[name]:
            inner = spec.atoms[child].size
            grams.append((atom.size * inner) ** 2)
            flops += 2.0 * (atom.size * inner) ** 2 * sum(_rest(place) for place in structure.places[child])
            cubes += atom.size**2 * inner**3
    return MergePlan(
        atoms=len(spec.atoms),
        units=sum(atom.size for atom in spec.atoms.values()),
        parameters=sum(sizes[name] for name in learned),
        movable=sum(sizes[name] for name in learned if any(True for a in stored[name] for _ in moved(a))),
        held=_held(spec),
        model_bytes=sum(sizes[name] * dtypes[name].itemsize for name in shapes),
        largest_pair=2 * max((sizes[name] * dtypes[name].itemsize for name in shapes), default=0),
        largest_gram=_WORK * max(grams),
        sweep_flops=flops,
        sweep_cubes=cubes,
    )


def _rest(place: Incidence) -> int:
    """Numbers a unit has there for each index of its parents."""
    return math.prod(place.sizes[place.n_parents + 1 :])


def _held(spec: PermutationSpec) -> list[Held]:
    found: dict[str, list[str]] = {}
    for axis in spec.frozen:
        found.setdefault(axis.reason, []).append(f"{axis.parameter} axis {axis.axis}")
    every = [Held(reason, len(axes), axes[0]) for reason, axes in found.items()]
    return sorted(every, key=lambda held: -held.axes)
