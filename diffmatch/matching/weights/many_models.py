"""Permutations that bring the weights of several models together, consistent around every cycle."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmatch.errors import InputError, check_positive
from diffmatch.matching.weights.ascent import Alignment, Structure, ascend, inner_product, packed
from diffmatch.matching.weights.frank_wolfe import frank_wolfe_starts
from diffmatch.matching.weights.layout import moved
from diffmatch.matching.weights.permute import (
    Permutations,
    check_state,
    compose,
    full_permutations,
    inverse_permutations,
)
from diffmatch.matching.weights.spec import PermutationSpec
from diffmatch.matching.weights.weight_matching import learned_names, norm_products, ready_tensors

__all__ = ["ManyMatch", "match_many"]


_RELAXED_STEPS = 16
"""More gain little: with 8, 16 and 60, three MLPs ended at 592.8, 593.3 and 594.1, in 3.3, 3.6 and 7.1 s."""


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
    tol: float = 1e-7,
    generator: torch.Generator | None = None,
) -> ManyMatch:
    """Align the units of several models with each other by their weights.

    Every model is permuted into one common order, so that the map from one to another goes through it and maps around
    a cycle compose to the identity. Maximises Σ_{i<j} Σ_k ⟨(π_i·W^i)_k, (π_j·W^j)_k⟩, which is to minimise the distance
    of the models from their mean.

    The permutations begin near a maximum over doubly stochastic matrices of all models and atoms at once (ascent after
    Frank and Wolfe). Then the models take turns, in random order: the atoms of one are improved against the sum of the
    others, as in :func:`match_weights`, until nothing improves. A pass costs as many products of matrices as there are
    models, not pairs.

    Args:
        states: state dicts of the models, two at least.
        spec: what may move.
        start: permutations to begin with, one dict a model; identity if None.
        frank_wolfe: whether to begin with the relaxation; what ``start`` holds then counts for the first model and for
            the atoms that the relaxation leaves out.
        max_rounds: largest number of passes over the models.
        tol: smallest gain that counts, relative to the sum over the pairs of models of Σ_k ‖W_k^i‖ ‖W_k^j‖.
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
    tensors = [ready_tensors(f"states[{m}]", state, names) for m, state in enumerate(states)]
    pairs = [(i, j) for i in range(len(states)) for j in range(i)]
    still = [name for name in names if not any(True for layout in spec.layouts[name] for _ in moved(layout))]
    constant = math.fsum(inner_product(tensors[i][name], tensors[j][name]) for i, j in pairs for name in still)
    # A step of one model changes the products of its pairs only.
    least_gain = tol * math.fsum(norm_products(tensors[i], tensors[j]) for i, j in pairs) * 2 / len(states)

    tensors, moving = packed(tensors, spec, names)
    structure = Structure(moving)
    begun = [full_permutations(spec, permutations) for permutations in start or [{}] * len(states)]
    models = [Alignment(structure, {}, own, first, least_gain) for own, first in zip(tensors, begun, strict=True)]
    initial = _objective(models)
    if frank_wolfe:
        begun = frank_wolfe_starts(tensors, structure.spec, begun, max_steps=_RELAXED_STEPS)
        models = [Alignment(structure, {}, own, first, least_gain) for own, first in zip(tensors, begun, strict=True)]
    rounds, converged = _take_turns(models, max_rounds, generator or torch.Generator().manual_seed(0))
    home = inverse_permutations(spec, models[0].permutations)
    permutations = [compose(spec, model.permutations, home) for model in models]
    return ManyMatch(permutations, constant + _objective(models), constant + initial, rounds, converged)


def _take_turns(models: list[Alignment], max_rounds: int, generator: torch.Generator) -> tuple[int, bool]:
    """Improve the models against the sum of the others until none changes; passes, and whether that came about."""
    total = _sum([model.b for model in models])
    unchanged, previous = 0, -1
    for count in range(max_rounds):
        for m in torch.randperm(len(models), generator=generator).tolist():
            if m == previous:  # just done, against the same sum
                continue
            model = models[m]
            others = {name: total[name] - tensor for name, tensor in model.b.items()}
            model.against(others)
            before = model.permutations
            ascend(model, max_sweeps=1)
            changed = model.permutations is not before
            unchanged = 0 if changed else unchanged + 1
            previous = m
            if changed:
                total = {name: others[name] + tensor for name, tensor in model.b.items()}
            if unchanged == len(models):
                return count + 1, True
    return max_rounds, False


def _objective(models: Sequence[Alignment]) -> float:
    """Sum over all pairs of the inner products of the models as permuted."""
    values = []
    before = dict(models[0].b)
    for model in models[1:]:
        values += [inner_product(before[name], tensor) for name, tensor in model.b.items()]
        before = _sum([before, model.b])
    return math.fsum(values)


def _sum(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]).sum(0) for name in states[0]}
