"""How far the singular vectors of two models' layers point the same way: why weight matching works."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_same_device, check_shape
from diffmatch.matching.weights.permute import check_state
from diffmatch.matching.weights.spec import PermutationSpec
from diffmatch.matching.weights.weight_matching import learned_names

__all__ = [
    "SingularAlignment",
    "singular_alignment",
    "singular_vector_agreement",
    "spectrum_distance",
    "weighted_agreement",
]


@dataclass(frozen=True)
class SingularAlignment:
    """The statistics of each layer of two models; a layer is a weight of two axes at least.

    Attributes:
        layers: names of the weights.
        agreement: R_γ of each layer, shape (layers,), float64; :func:`singular_vector_agreement`.
        weighted: the same weighted by singular values, shape (layers,), float64; :func:`weighted_agreement`.
        spectra: relative distance of the singular values, shape (layers,), float64; :func:`spectrum_distance`.
        mean_agreement: R_γ of all layers together, each by its number of leading vectors.
        mean_weighted: the weighted form of all layers together, each by its bound Σ_i s_i t_i.
    """

    layers: list[str]
    agreement: Float[Tensor, " layers"]
    weighted: Float[Tensor, " layers"]
    spectra: Float[Tensor, " layers"]
    mean_agreement: float
    mean_weighted: float


@dataclass(frozen=True)
class _Decomposed:
    """Singular value decompositions of two weights as matrices, W = U diag(s) Vᵀ and W' = Y diag(t) Zᵀ."""

    a: Tensor
    b: Tensor
    u: Tensor
    s: Tensor
    v: Tensor
    y: Tensor
    t: Tensor
    z: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> "_Decomposed":
        check_shape("b", b, tuple(a.shape))
        check_same_device("b", b, a.device)
        if a.ndim < 2 or not a.numel():
            raise InputError("a", "a weight of two axes or more, not empty", str(tuple(a.shape)))
        a, b = (x.detach().double().flatten(1) for x in (a, b))
        u, s, v = torch.linalg.svd(a, full_matrices=False)
        y, t, z = torch.linalg.svd(b, full_matrices=False)
        return cls(a, b, u, s, v, y, t, z)

    def leading(self, gamma: float) -> tuple[int, int]:
        """How many singular values of each are at least γ times the largest."""
        return int((self.s >= gamma * self.s[0]).sum()), int((self.t >= gamma * self.t[0]).sum())

    def agreement(self, gamma: float) -> tuple[Tensor, int]:
        """Sum of (u_i · y_j)(v_i · z_j) over the leading vectors, and the number that would be its largest value."""
        m, n = self.leading(gamma)
        left = self.u[:, :m].T @ self.y[:, :n]
        right = self.v[:m] @ self.z[:n].T
        return (left * right).sum(), min(m, n)

    def weighted(self) -> tuple[Tensor, Tensor]:
        """⟨W, W'⟩ and its bound Σ_i s_i t_i."""
        return (self.a * self.b).sum(), (self.s * self.t).sum()

    def spectra(self) -> Tensor:
        """‖s − t‖ relative to the mean of ‖s‖ and ‖t‖."""
        scale = (self.s.norm() + self.t.norm()) / 2
        return torch.where(scale > 0, (self.s - self.t).norm() / scale, 0.0)


def singular_vector_agreement(a: Tensor, b: Tensor, *, gamma: float = 0.3) -> Float[Tensor, ""]:
    """R_γ: how far the leading singular vectors of two weights agree, on both sides at once.

    With W = Σ_i s_i u_i v_iᵀ and W' = Σ_j t_j y_j z_jᵀ it is the sum of (u_i · y_j)(v_i · z_j) over the i and j whose
    singular value is at least γ times the largest, divided by their number (the smaller of the two). 1 where both span
    the same directions, about 0 where they have nothing to do with each other.

    Args:
        a: weight of shape (out, in, \\*kernel); axes from the second are taken together.
        b: the same of the other model.
        gamma: share of the largest singular value, in [0, 1].

    Returns:
        A scalar, float64.

    References:
        Ito, Yamada, Kumagai 2025, "Analysis of linear mode connectivity via permutation-based weight matching".
    """
    _check_gamma(gamma)
    total, bound = _Decomposed.of(a, b).agreement(gamma)
    return total / bound


def weighted_agreement(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """⟨W, W'⟩ / Σ_i s_i t_i, in [−1, 1]: agreement of all singular vectors, each pair by its singular values.

    The bound is von Neumann's, which no permutation (nor any rotation) of the units exceeds; weight matching raises the
    numerator and leaves the denominator as it is. Zero where a weight is zero.

    Args:
        a: weight of shape (out, in, \\*kernel).
        b: the same of the other model.

    Returns:
        A scalar, float64.
    """
    inner, bound = _Decomposed.of(a, b).weighted()
    return torch.where(bound > 0, inner / bound, 0.0)


def spectrum_distance(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """‖s − t‖ of the singular values of two weights, relative to the mean of ‖s‖ and ‖t‖; zero for permuted weights.

    Args:
        a: weight of shape (out, in, \\*kernel).
        b: the same of the other model.

    Returns:
        A scalar, float64.
    """
    return _Decomposed.of(a, b).spectra()


def singular_alignment(
    state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], spec: PermutationSpec, *, gamma: float = 0.3
) -> SingularAlignment:
    """The statistics of singular vectors for each layer of two models as they are, aligned or not.

    Models trained from different seeds have nearly the same singular values; what differs are the directions. Weight
    matching turns the leading ones towards each other, and a mean of models whose directions agree keeps them.
    Comparing each model with the merged one tells whether it did.

    Args:
        state_a: of one model.
        state_b: of the other.
        spec: names the learned weights.
        gamma: share of the largest singular value from which a direction counts as leading, in [0, 1].

    Raises:
        InputError: the states do not fit the spec, or gamma is out of range.

    References:
        Ito, Yamada, Kumagai 2025, "Analysis of linear mode connectivity via permutation-based weight matching".
    """
    _check_gamma(gamma)
    check_state("state_a", state_a, spec)
    check_state("state_b", state_b, spec)
    layers = [name for name in learned_names(state_a, spec) if state_a[name].ndim > 1 and state_a[name].numel()]
    if not layers:
        raise InputError("spec", "weights of two axes or more", "none")
    pairs = [_Decomposed.of(state_a[name], state_b[name]) for name in layers]
    leading = [pair.agreement(gamma) for pair in pairs]
    inner, bound = (torch.stack(parts) for parts in zip(*(pair.weighted() for pair in pairs), strict=True))
    total, count = torch.stack([x for x, _ in leading]), inner.new_tensor([n for _, n in leading])
    return SingularAlignment(
        layers,
        total / count,
        torch.where(bound > 0, inner / bound, 0.0),
        torch.stack([pair.spectra() for pair in pairs]),
        float(total.sum() / count.sum()),
        float(inner.sum() / bound.sum()) if float(bound.sum()) > 0 else 0.0,
    )


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise InputError("gamma", "a number in [0, 1]", repr(gamma))
