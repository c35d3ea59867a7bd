"""How alike two models are, layer by layer, before and after their units were aligned."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from diffmatch.matching.weights.ascent import inner_product
from diffmatch.matching.weights.singular_vectors import SingularAlignment, singular_alignment
from diffmatch.matching.weights.spec import PermutationSpec
from diffmatch.matching.weights.weight_matching import learned_names

__all__ = ["LayerAlignment", "layer_alignment"]

_MOST_WORK = 2e9
"""Σ m n min(m, n) over the matrices, above which their singular vectors would take minutes."""


@dataclass(frozen=True)
class LayerAlignment:
    """Two models' weights of one layer, each figure before and after alignment.

    Attributes:
        name: the entry of the state dict.
        cosine: of the angle between the two as vectors; 1 is the same direction.
        leading: agreement of the leading singular vectors (R_γ, γ = 0.3); None where the model is large.
        weighted: agreement of all singular vectors, weighted by singular values; None likewise.
        spectrum: relative distance of the singular values, which a permutation leaves as it is; None likewise.
    """

    name: str
    cosine: tuple[float, float]
    leading: tuple[float, float] | None
    weighted: tuple[float, float] | None
    spectrum: float | None


def layer_alignment(
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    aligned_b: Mapping[str, Tensor],
    spec: PermutationSpec,
) -> list[LayerAlignment]:
    """Compare the learned matrices (kernels as out × rest) of two models.

    Args:
        state_a: the model that stays.
        state_b: the other one.
        aligned_b: the other one, its units permuted.
        spec: names what is learned.
    """
    names = [name for name in learned_names(state_a, spec) if state_a[name].ndim > 1 and state_a[name].numel()]
    work = sum(state_a[n].numel() * min(len(state_a[n]), state_a[n][0].numel()) for n in names)
    both: list[SingularAlignment] = []
    if names and work <= _MOST_WORK:
        both = [singular_alignment(state_a, state, spec) for state in (state_b, aligned_b)]
    found = []
    for i, name in enumerate(names):
        a, b = state_a[name].detach(), state_b[name].detach()
        length = (inner_product(a, a) * inner_product(b, b)) ** 0.5
        before, after = (inner_product(a, x.detach()) / length if length else 0.0 for x in (b, aligned_b[name]))
        leading = weighted = spectrum = None
        if both:
            leading = float(both[0].agreement[i]), float(both[1].agreement[i])
            weighted = float(both[0].weighted[i]), float(both[1].weighted[i])
            spectrum = float(both[0].spectra[i])
        found.append(LayerAlignment(name, (before, after), leading, weighted, spectrum))
    return found
