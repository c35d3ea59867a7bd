"""Permutations that bring the weights of one model as close to another's as coordinate ascent can."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffmatch.errors import InputError, check_positive
from diffmatch.matching.weights.ascent import Structure, ascend, first_looks, inner_product, packed
from diffmatch.matching.weights.frank_wolfe import frank_wolfe_starts
from diffmatch.matching.weights.layout import moved
from diffmatch.matching.weights.permute import Permutations, check_state, full_permutations
from diffmatch.matching.weights.remembering import RememberingAlignment
from diffmatch.matching.weights.spec import PermutationSpec

__all__ = [
    "WeightMatch",
    "check_finite",
    "learned_names",
    "match_weights",
    "norm_products",
    "ready_tensors",
    "weight_objective",
]


@dataclass(frozen=True)
class WeightMatch:
    """An alignment of two models.

    Attributes:
        permutations: to be applied to the second model.
        objective: what was maximised; of weights, the inner product of the first model's learned ones and the permuted
            second's.
        initial: the same before, of ``start`` or without permutations.
        sweeps: passes over the atoms, of the run that was kept.
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
    frank_wolfe: bool = False,
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

    The problem is NP-hard and the result depends on the start and the order. The order in which a model happens to come
    says nothing, so without a start each atom looks first at those tensors alone whose other atoms have looked before
    it, the inputs and outputs of the model being fixed; the ascent over all tensors begins from there. On trained nets
    that takes fewer sweeps than from the identity and mostly ends higher; of planted permutations of residual nets,
    which the identity mostly misses, it finds all that a relaxation does.

    Args:
        state_a: state dict of the model that stays.
        state_b: state dict of the model that is aligned; integers and buffers do not count.
        spec: what may move.
        start: permutations to begin with; ``{}`` is the identity. If None, what the first looks find.
        frank_wolfe: whether to start from a relaxation to doubly stochastic matrices too (ascent after Frank and Wolfe
            from their centre); the larger objective wins. It costs many times the ascent.
        restarts: further runs in random orders.
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
    a, b = ready_tensors(state_a, names), ready_tensors(state_b, names)
    still = [name for name in names if not any(True for layout in spec.layouts[name] for _ in moved(layout))]
    constant = math.fsum(inner_product(a[name], b[name]) for name in still)
    (a, b), moving = packed([a, b], spec, names)
    scale = norm_products([a, b])
    if not math.isfinite(scale + constant):
        check_finite("state_a", state_a, names)
        check_finite("state_b", state_b, names)
    structure, least_gain = Structure(moving), tol * scale
    initial = full_permutations(spec, start or {})

    def run(begin: Permutations, *, look: bool, order: torch.Generator | None = None) -> WeightMatch:
        alignment = RememberingAlignment(structure, a, b, begin, least_gain)
        before = constant + alignment.objective()
        if look:
            first_looks(alignment, generator=order)
        sweeps, converged = ascend(alignment, max_sweeps=max_sweeps, generator=order)
        return WeightMatch(alignment.permutations, constant + alignment.objective(), before, sweeps, converged)

    found = [run(initial, look=start is None)]
    if frank_wolfe:
        relaxed = frank_wolfe_starts([a, b], structure.spec, [structure.identity, initial])[1]
        found.append(run(relaxed, look=False))
    generator = generator or torch.Generator().manual_seed(0)
    found += [run(initial, look=start is None, order=generator) for _ in range(restarts)]
    return replace(max(found, key=lambda match: match.objective), initial=found[0].initial)


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


def ready_tensors(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Some tensors of a state, contiguous and in single precision at least."""
    tensors = ((name, state[name].detach()) for name in names)
    return {
        name: (tensor if tensor.dtype == torch.float64 else tensor.float()).contiguous() for name, tensor in tensors
    }


def check_finite(argument: str, state: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Check some tensors of a state.

    Raises:
        InputError: one of them holds NaN or infinity.
    """
    for name in names:
        if not torch.isfinite(state[name]).all():
            raise InputError(f"{argument}[{name!r}]", "finite values", "NaN or infinity")


def norm_products(states: Sequence[Mapping[str, Tensor]]) -> float:
    """Σ_{i<j} Σ_k ‖W_k^i‖ ‖W_k^j‖ over the pairs of models, the scale of the objective."""
    norms = [[_norm(tensor) for tensor in state.values()] for state in states]
    return math.fsum(math.fsum(own) ** 2 - math.fsum(norm**2 for norm in own) for own in zip(*norms, strict=True)) / 2


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
