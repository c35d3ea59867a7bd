"""Permutations that bring the weights of several models together, consistent around every cycle."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmatch.errors import InputError, check_positive
from diffmatch.matching.weights.ascent import Alignment, Structure, first_looks, inner_product, packed
from diffmatch.matching.weights.frank_wolfe import frank_wolfe_starts
from diffmatch.matching.weights.layout import moved
from diffmatch.matching.weights.permute import (
    Permutations,
    apply_permutations,
    check_state,
    compose,
    full_permutations,
    inverse_permutations,
)
from diffmatch.matching.weights.remembering import RememberingAlignment
from diffmatch.matching.weights.spec import PermutationSpec
from diffmatch.matching.weights.weight_matching import check_finite, learned_names, norm_products, ready_tensors

__all__ = ["ManyMatch", "match_many"]


_RELAXED_STEPS = 4
"""More gain little and take longer than what follows."""


@dataclass(frozen=True)
class ManyMatch:
    """An alignment of several models.

    Attributes:
        permutations: to be applied to each model, the identity for the first, whose order is the common one.
        objective: inner product of the learned weights, summed over all pairs of models.
        initial: the same before.
        rounds: passes over the models.
        converged: no single atom of a single model could improve the objective any more.
    """

    permutations: list[Permutations]
    objective: float
    initial: float
    rounds: int
    converged: bool

    def between(self, spec: PermutationSpec, source: int, target: int) -> Permutations:
        """What takes one model to the order of another; around any cycle these compose to the identity.

        Args:
            spec: of the models.
            source: number of the model that is permuted.
            target: number of the model whose order it gets.
        """
        return compose(spec, self.permutations[source], inverse_permutations(spec, self.permutations[target]))


def match_many(
    states: Sequence[Mapping[str, Tensor]],
    spec: PermutationSpec,
    *,
    start: Sequence[Mapping[str, Tensor]] | None = None,
    frank_wolfe: bool = True,
    max_rounds: int = 100,
    tol: float = 1e-5,
    generator: torch.Generator | None = None,
) -> ManyMatch:
    """Align the units of several models with each other by their weights.

    Every model is permuted into one common order, so that the map from one to another goes through it and maps around
    a cycle compose to the identity. Maximises Σ_{i<j} Σ_k ⟨(π_i·W^i)_k, (π_j·W^j)_k⟩, which is to minimise the distance
    of the models from their mean.

    The permutations begin near a maximum over doubly stochastic matrices of all models and atoms at once (ascent after
    Frank and Wolfe), whose first step goes some way towards what first looks of each model at those before it find, as
    in :func:`match_weights`. Then the models take turns, in random order: the atoms of one are improved against the sum
    of the others until nothing improves. Gram matrices are kept, and brought up to date by the units that move.

    Args:
        states: state dicts of the models, two at least.
        spec: what may move.
        start: permutations to begin with, one dict a model; if None, what the first looks find.
        frank_wolfe: whether to begin with the relaxation; what ``start`` holds then counts for the first model and for
            the atoms that the relaxation leaves out.
        max_rounds: largest number of passes over the models.
        tol: smallest gain that counts, relative to the sum over the pairs of models of Σ_k ‖W_k^i‖ ‖W_k^j‖. Smaller
            ones are many with several models, and add little.
        generator: source of the orders, on the CPU; None for a fixed seed.

    Returns:
        Permutations of every model, of which those of the first are the identity.

    Raises:
        InputError: there are fewer than two states, or they do not fit the spec or hold NaN or infinity.

    References:
        Crisostomi et al. 2024, "C²M³: Cycle-Consistent Multi-Model Merging"; Ainsworth, Hayase, Srinivasa 2023, "Git
        Re-Basin", appendix A.10.
    """
    if len(states) < 2:
        raise InputError("states", "two states or more", str(len(states)))
    if start is not None and len(start) != len(states):
        raise InputError("start", f"{len(states)} dicts, one a model", str(len(start)))
    check_positive("max_rounds", float(max_rounds))
    check_positive("tol", tol, allow_zero=True)
    for m, state in enumerate(states):
        check_state(f"states[{m}]", state, spec)
    names = learned_names(states[0], spec)
    tensors = [ready_tensors(state, names) for state in states]
    pairs = [(i, j) for i in range(len(states)) for j in range(i)]
    still = [name for name in names if not any(True for layout in spec.layouts[name] for _ in moved(layout))]
    constant = math.fsum(inner_product(tensors[i][name], tensors[j][name]) for i, j in pairs for name in still)
    tensors, moving = packed(tensors, spec, names)
    scale = norm_products(tensors)
    if not math.isfinite(scale + constant):
        for m, state in enumerate(states):
            check_finite(f"states[{m}]", state, names)
    structure = Structure(moving)
    least_gain = tol * scale * 2 / len(states)  # a step of one model changes the products of its pairs only
    begun = [full_permutations(spec, permutations) for permutations in start or [{}] * len(states)]
    initial = constant + _objective(_moved(tensors, structure, begun))
    if start is None:
        begun = _first_looks(tensors, structure, begun, least_gain)
    if frank_wolfe:
        begun = frank_wolfe_starts(
            tensors, structure.spec, begun, towards_starts=start is None, max_steps=_RELAXED_STEPS
        )
    models = _company(tensors, structure, begun, least_gain)
    rounds, converged = _take_turns(models, max_rounds, generator or torch.Generator().manual_seed(0))
    home = inverse_permutations(spec, models[0].permutations)
    permutations = [compose(spec, model.permutations, home) for model in models]
    return ManyMatch(permutations, constant + _objective([m.b for m in models]), initial, rounds, converged)


def _first_looks(
    tensors: Sequence[dict[str, Tensor]], structure: Structure, begun: Sequence[Permutations], least_gain: float
) -> list[Permutations]:
    """Each model in turn by first looks at the sum of those before."""
    found, total = [begun[0]], tensors[0]
    for own, start in zip(tensors[1:], begun[1:], strict=True):
        alignment = Alignment(structure, total, own, start, least_gain)
        first_looks(alignment)
        found.append(alignment.permutations)
        total = _sum([total, alignment.b])
    return found


def _company(
    tensors: Sequence[dict[str, Tensor]], structure: Structure, begun: Sequence[Permutations], least_gain: float
) -> list[RememberingAlignment]:
    """The models as permuted, each to be brought close to the sum of the others."""
    moved_all = _moved(tensors, structure, begun)
    total = _sum(moved_all)
    models = []
    for own, start, moved_own in zip(tensors, begun, moved_all, strict=True):
        others = {name: total[name] - tensor for name, tensor in moved_own.items()}
        models.append(RememberingAlignment(structure, others, own, start, least_gain))
    for model in models:
        model.company = [other for other in models if other is not model]
    return models


def _take_turns(models: list[RememberingAlignment], max_rounds: int, generator: torch.Generator) -> tuple[int, bool]:
    """Improve the models in turn until no atom of any can improve; the passes made, and whether that came about."""
    s = models[0].structure
    names = [name for name in s.spec.atoms if s.occurs(name)]
    dirty = [set(names) for _ in models]
    for count in range(max_rounds):
        for m in torch.randperm(len(models), generator=generator).tolist():
            for name in names:
                if name not in dirty[m]:
                    continue
                dirty[m].discard(name)
                changed = models[m].improve(name)
                if s.children[name] and models[m].improve_jointly(name):
                    changed = True
                if changed:
                    near = {name, *s.neighbours[name]}
                    for k, waiting in enumerate(dirty):
                        # Linear in one atom, a step of a model is the best there is for it.
                        settled = k == m and name not in s.curved and not s.children[name]
                        waiting |= near - {name} if settled else near
        if not any(dirty):
            return count + 1, True
    return max_rounds, False


def _moved(
    tensors: Sequence[dict[str, Tensor]], structure: Structure, permutations: Sequence[Permutations]
) -> list[dict[str, Tensor]]:
    return [apply_permutations(own, structure.spec, p) for own, p in zip(tensors, permutations, strict=True)]


def _objective(states: Sequence[Mapping[str, Tensor]]) -> float:
    """Sum over all pairs of the inner products of the models as permuted."""
    values = []
    before = dict(states[0])
    for state in states[1:]:
        values += [inner_product(before[name], tensor) for name, tensor in state.items()]
        before = _sum([before, state])
    return math.fsum(values)


def _sum(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]).sum(0) for name in states[0]}
