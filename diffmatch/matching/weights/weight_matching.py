"""Permutations that bring the weights of one model as close to another's as coordinate ascent can."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffmatch.errors import InputError, check_positive
from diffmatch.matching.weights.ascent import RememberingAlignment, Structure, ascend, inner_product, packed
from diffmatch.matching.weights.frank_wolfe import frank_wolfe_starts
from diffmatch.matching.weights.permute import Permutations, check_state, full_permutations
from diffmatch.matching.weights.spec import PermutationSpec

__all__ = ["WeightMatch", "learned_names", "match_weights", "norm_products", "ready_tensors", "weight_objective"]


@dataclass(frozen=True)
class WeightMatch:
    """An alignment of two models.

    Attributes:
        permutations: to be applied to the second model.
        objective: what was maximised; of weights, the inner product of the first model's learned ones and the permuted
            second's.
        initial: the same before.
        sweeps: passes over the atoms, of the start that was kept.
        converged: no single atom could improve the objective any more.
    """

    permutations: Permutations
    objective: float
    initial: float
    sweeps: int
    converged: bool


def match_weights(
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    spec: PermutationSpec,
    *,
    start: Mapping[str, Tensor] | None = None,
    frank_wolfe: bool | None = None,
    restarts: int = 0,
    max_sweeps: int = 100,
    tol: float = 1e-7,
    generator: torch.Generator | None = None,
) -> WeightMatch:
    """Align the units of a model with another's by their weights.

    Maximises f(π) = Σ_k ⟨A_k, (π·B)_k⟩ over the permutations of a spec, each learned tensor counted once, which is to
    minimise the distance of the weights. For one atom f is linear, so that its best permutation is an assignment of the
    Gram matrix of its units; the atoms take turns until none improves. An atom is looked at again only after another in
    one of its tensors has changed. Where inner permutations belong to an outer index, such as those of attention heads,
    both levels are solved together: every pair of heads by its best inner assignment, and the heads by these values.

    The problem is NP-hard and the result depends on the start and the order. A residual stream, which many tensors hold
    in place, is where this shows: there a second start comes from a relaxation to doubly stochastic matrices (ascent
    after Frank and Wolfe from their centre), and the larger objective wins.

    Args:
        state_a: state dict of the model that stays.
        state_b: state dict of the model that is aligned; integers and buffers do not count.
        spec: what may move.
        start: permutations to begin with; identity if None.
        frank_wolfe: whether to start from a relaxation too; None where there is a residual stream. It costs several
            times the ascent.
        restarts: further runs from ``start`` in random orders.
        max_sweeps: largest number of passes over the atoms.
        tol: smallest gain that counts, relative to Σ_k ‖A_k‖ ‖B_k‖.
        generator: source of the orders, on the CPU; None for a fixed seed.

    Returns:
        The permutations and the objective they reach.

    Raises:
        InputError: the states do not fit the spec or hold NaN or infinity.

    References:
        Ainsworth, Hayase, Srinivasa 2023, "Git Re-Basin", section 3.2.
    """
    check_state("state_a", state_a, spec)
    check_state("state_b", state_b, spec)
    check_positive("max_sweeps", float(max_sweeps))
    check_positive("tol", tol, allow_zero=True)
    names = learned_names(state_a, spec)
    a, b = ready_tensors("state_a", state_a, names), ready_tensors("state_b", state_b, names)
    total, least_gain = math.fsum(inner_product(a[name], b[name]) for name in names), tol * norm_products(a, b)
    (a, b), moving = packed([a, b], spec, names)
    structure = Structure(moving)
    constant = total - math.fsum(inner_product(a[name], b[name]) for name in structure.names)

    def run(begin: Permutations, order: torch.Generator | None = None) -> WeightMatch:
        alignment = RememberingAlignment(structure, a, b, begin, least_gain)
        initial = alignment.objective()
        sweeps, converged = ascend(alignment, max_sweeps=max_sweeps, generator=order)
        reached = alignment.objective()
        return WeightMatch(alignment.permutations, constant + reached, constant + initial, sweeps, converged)

    first = full_permutations(spec, start or {})
    best = run(first)
    others: list[tuple[Permutations, torch.Generator | None]] = []
    if frank_wolfe or (frank_wolfe is None and structure.has_stream):
        others.append((frank_wolfe_starts([a, b], structure.spec, [structure.identity, first])[1], None))
    generator = generator or torch.Generator().manual_seed(0)
    others += [(first, generator)] * restarts
    for begin, order in others:
        found = run(begin, order)
        if found.objective > best.objective:
            best = replace(found, initial=best.initial)
    return best


def weight_objective(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], spec: PermutationSpec) -> float:
    """Σ_k ⟨A_k, B_k⟩ over the learned tensors that a spec describes, each counted once, summed in float64."""
    return math.fsum(inner_product(state_a[name], state_b[name]) for name in learned_names(state_a, spec))


def learned_names(state: Mapping[str, Tensor], spec: PermutationSpec) -> list[str]:
    """The entries that count: learned, real, and each memory once."""
    found: dict[object, str] = {}
    for name in spec.layouts:
        tensor = state[name]
        if name not in spec.buffers and tensor.is_floating_point():
            found.setdefault((tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape)), name)
    return list(found.values())


def ready_tensors(argument: str, state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Some tensors of a state, contiguous and in single precision at least.

    Raises:
        InputError: one of them holds NaN or infinity.
    """
    found = {}
    for name in names:
        tensor = state[name].detach()
        if not torch.isfinite(tensor).all():
            raise InputError(f"{argument}[{name!r}]", "finite values", "NaN or infinity")
        found[name] = (tensor if tensor.dtype == torch.float64 else tensor.float()).contiguous()
    return found


def norm_products(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Σ_k ‖A_k‖ ‖B_k‖, the scale of the objective."""
    return math.fsum(_norm(tensor) * _norm(b[name]) for name, tensor in a.items())


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
