"""Permutations learned as doubly stochastic matrices, by gradients through entropic transport."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffmatch.errors import InputError, check_choice, check_positive
from diffmatch.fitting import fit
from diffmatch.matching.transport import sinkhorn
from diffmatch.matching.weights.ascent import Structure, best_assignment
from diffmatch.matching.weights.evaluate import Batches, LossFunction
from diffmatch.matching.weights.frank_wolfe import relaxed_atoms
from diffmatch.matching.weights.layout import Layout, Moved, Segments, children, moved
from diffmatch.matching.weights.midpoint import LearnedMatch, Midpoint
from diffmatch.matching.weights.permute import Permutations, apply_permutations, check_state, full_permutations
from diffmatch.matching.weights.spec import PermutationSpec
from diffmatch.matching.weights.weight_matching import check_finite, learned_names, ready_tensors

__all__ = ["match_sinkhorn", "soft_permutations", "soft_state"]

_NOISE = 0.1
"""Of the first scores; at the identity itself a small temperature leaves no gradient."""


def match_sinkhorn(
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    spec: PermutationSpec,
    *,
    objective: Literal["weights", "midpoint", "random"] = "weights",
    model: nn.Module | None = None,
    data: Batches | None = None,
    loss: LossFunction = F.cross_entropy,
    start: Mapping[str, Tensor] | None = None,
    steps: int = 100,
    lr: float = 0.1,
    temperatures: tuple[float, float] = (1.0, 0.05),
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> LearnedMatch:
    """Align the units of a model with another's by gradient descent on soft permutations.

    Each atom has scores X, and P, the entropic transport plan of largest ⟨X, P⟩ + τ H(P) with ones as row and column
    sums, stands in for its permutation. The scores begin at the identity with some noise, τ falls geometrically, and in
    the end an assignment of X gives permutations. Gradients pass through P by the implicit function theorem
    (:func:`diffmatch.matching.sinkhorn`), so that their cost does not grow with the number of Sinkhorn's steps.

    Atoms that depend on others or multiply another on an axis (heads and what is inside them) keep their start. Weight
    matching reaches smaller distances in a fraction of the time; this is for losses that it cannot serve.

    Args:
        state_a: state dict of the model that stays.
        state_b: state dict of the model that is aligned.
        spec: what may move.
        objective: ``"weights"``, the squared distance of the weights; ``"midpoint"``, the loss of the mean of A and
            P·B; ``"random"``, the loss at a place between them drawn anew in each step.
        model: runs what is between, for the last two; it is neither changed nor moved.
        data: batches of inputs and targets, one a step, for the last two.
        loss: mean loss of a batch from outputs and targets.
        start: permutations to begin with; identity if None.
        steps: of Adam on the scores.
        lr: its learning rate.
        temperatures: τ at the first and at the last step.
        generator: source of the noise, on the CPU; None for a fixed seed.
        progress: show a bar on a terminal.

    Returns:
        The permutations of both models, those of the second the found ones or the start, whichever has the smaller
        squared distance (``"weights"``) or loss of the mean on all data.

    Raises:
        InputError: an argument does not fit the others, or data are needed and there are none.

    References:
        Peña et al. 2023, "Re-basin via implicit Sinkhorn differentiation"; Eisenberger et al. 2022, "A unified
        framework for implicit Sinkhorn differentiation".
    """
    check_choice("objective", objective, ("weights", "midpoint", "random"))
    check_state("state_a", state_a, spec)
    check_state("state_b", state_b, spec)
    check_positive("steps", steps)
    for value in temperatures:
        check_positive("temperatures", value)
    if objective != "weights" and (model is None or data is None):
        raise InputError("model, data", f"both for objective={objective!r}", "None")
    generator = generator or torch.Generator().manual_seed(0)
    begun = full_permutations(spec, start or {})
    learned = learned_names(state_a, spec)
    names = Structure(PermutationSpec(spec.atoms, {name: spec.layouts[name] for name in learned})).names
    check_finite("state_a", state_a, names)
    check_finite("state_b", state_b, names)
    moved_b = apply_permutations(state_b, spec, begun)
    a, b = ready_tensors(state_a, names), ready_tensors(moved_b, names)
    atoms = relaxed_atoms(PermutationSpec(spec.atoms, {name: spec.layouts[name] for name in names}))
    if not atoms:
        raise InputError("spec", "an atom that can be relaxed", "none")
    scores = {atom: _first_scores(spec.atoms[atom].size, a, generator) for atom in atoms}
    middle = None
    if objective != "weights":
        assert model is not None
        assert data is not None
        middle = Midpoint(model, [state_a, moved_b], spec, data, loss)
    distance = float(sum((a[name] - b[name]).square().sum() for name in names)) or 1.0

    def loss_of_scores(step: int) -> Tensor:
        share = step / max(steps - 1, 1)
        tau = temperatures[0] ** (1 - share) * temperatures[1] ** share
        soft = soft_state(b, spec.layouts, soft_permutations(scores, tau))
        if middle is None:
            return torch.stack([(a[name] - soft[name]).square().sum() for name in names]).sum() / distance
        t = float(torch.rand((), generator=generator)) if objective == "random" else 0.5
        return middle.next_loss({name: torch.lerp(a[name], soft[name], t) for name in names})

    history = fit(list(scores.values()), loss_of_scores, optimizer="adam", lr=lr, steps=steps, progress=progress)
    identity = full_permutations(spec, {})
    hard = {atom: best_assignment(x.detach()[None])[0][0].cpu() for atom, x in scores.items()}
    found = full_permutations(spec, {**begun, **{atom: begun[atom][hard[atom]] for atom in atoms}})

    def judged(permutations: Permutations) -> float:
        if middle is None:
            moved = apply_permutations(state_b, spec, permutations)
            return float(sum((a[name].double() - moved[name]).square().sum() for name in names))
        relative = {atom: hard[atom] for atom in atoms} if permutations is found else {}
        return middle.mean_loss([identity, relative])

    initial, reached = judged(begun), judged(found)
    if reached > initial:
        found, reached = begun, initial
    return LearnedMatch([identity, found], reached, initial, history)


def soft_permutations(scores: Mapping[str, Tensor], tau: float) -> dict[str, Tensor]:
    """The doubly stochastic matrices P of largest ⟨X, P⟩ + τ H(P), problems of one size together.

    Args:
        scores: X of each atom, shape (n, n).
        tau: temperature.
    """
    by_size: dict[int, list[str]] = {}
    for atom, x in scores.items():
        by_size.setdefault(len(x), []).append(atom)
    found: dict[str, Tensor] = {}
    for size, atoms in by_size.items():
        plans = sinkhorn(-torch.stack([scores[atom] for atom in atoms]), eps=tau, adjoint="implicit").plan
        found.update(zip(atoms, (plans * size).unbind(0), strict=True))
    return found


def soft_state(
    tensors: Mapping[str, Tensor], layouts: Mapping[str, tuple[Layout, ...]], plans: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors with matrices applied where permutations would be.

    Args:
        tensors: by name.
        layouts: of their axes.
        plans: the matrix of each atom, shape (n, n); atoms without one stay.
    """
    found = {}
    for name, tensor in tensors.items():
        for axis, layout in enumerate(layouts[name]):
            tensor = _mixed(tensor, axis, layout, plans)
        found[name] = tensor
    return found


def _mixed(tensor: Tensor, axis: int, layout: Layout, plans: Mapping[str, Tensor]) -> Tensor:
    if not any(leaf.atom in plans for leaf in moved(layout)):
        return tensor
    if isinstance(layout, Moved):
        mixed: Tensor = torch.tensordot(plans[layout.atom].to(tensor.dtype), tensor, ([1], [axis]))
        return mixed.movedim(0, axis)
    if isinstance(layout, Segments):
        parts = tensor.split([part.size for part in layout.parts], axis)
        return torch.cat([_mixed(x, axis, part, plans) for x, part in zip(parts, layout.parts, strict=True)], axis)
    factors = children(layout)
    tensor = tensor.unflatten(axis, [factor.size for factor in factors])
    for i, factor in enumerate(factors):
        tensor = _mixed(tensor, axis + i, factor, plans)
    return tensor.flatten(axis, axis + len(factors) - 1)


def _first_scores(size: int, tensors: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    some = next(iter(tensors.values()))
    noise = _NOISE * torch.randn(size, size, generator=generator, dtype=torch.float64)
    return (torch.eye(size, dtype=torch.float64) + noise).to(some).requires_grad_()
