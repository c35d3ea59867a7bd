"""Permutations that pair the units of two models by what they do on the same data."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffmatch.errors import InputError, check_choice
from diffmatch.matching.weights.activations import Site, record_activations
from diffmatch.matching.weights.ascent import Alignment, Structure, ascend
from diffmatch.matching.weights.evaluate import (
    Batches,
    check_model_state,
    evaluating,
    inputs_of,
)
from diffmatch.matching.weights.layout import Fixed, Layout, Product
from diffmatch.matching.weights.permute import check_state, full_permutations, random_permutations
from diffmatch.matching.weights.spec import PermutationSpec
from diffmatch.matching.weights.weight_matching import WeightMatch

__all__ = ["match_activations"]

logger = logging.getLogger(__name__)

_SWEEPS = 100
_RESTARTS = 10
"""Random starts where inner indices are entangled: with them 20 of 20 random nets with grouped heads were solved."""
_CONSTANT = 1e-12
"""Share of the variance in the mean square below which a unit counts as constant."""


def match_activations(
    model: nn.Module,
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    spec: PermutationSpec,
    data: Batches,
    *,
    cost: Literal["correlation", "inner"] = "correlation",
    start: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> WeightMatch:
    """Align the units of a model with another's by their activations on the same inputs.

    Both models run on every batch. Each atom is looked at where layers read it, after the nonlinearity; one that no
    layer reads, such as the inner index of queries and keys, where layers write it. Means, variances and products of
    all pairs of units are summed in float64, independent of how the data are cut into batches, and the permutations
    maximise the sum of the correlations (or inner products) of the pairs, over all places that show an atom. That is an
    assignment an atom, without sweeps, but for indices inside others (heads), which are solved together.

    It needs one pass over some hundred samples. It may also serve as the start of :func:`match_weights`; which of the
    three merges best differs from net to net, so try them where there are data, as :func:`merge` does.

    Args:
        model: runs both states, in evaluation mode; it is neither changed nor moved.
        state_a: state dict of the model that stays.
        state_b: state dict of the model that is aligned.
        spec: what may move.
        data: batches of inputs; targets are ignored.
        cost: ``"correlation"``, or ``"inner"`` for the inner product of raw activations, which weighs strong units more
            and minimises the squared difference of the activations.
        start: permutations that atoms keep which no activation shows, and that win ties; identity if None.
        generator: source of the restarts where several inner indices share an outer one (members and entries of groups
            of heads), on the CPU; None for a fixed seed.

    Returns:
        The permutations; the objective is the sum of correlations (or mean inner products) of the pairs.

    Raises:
        InputError: an argument does not fit the others, there are no data, or an activation is NaN or infinite.

    References:
        Li, Yosinski, Clune, Lipson, Hopcroft 2016, "Convergent learning"; Ainsworth, Hayase, Srinivasa 2023, "Git
        Re-Basin", section 3.1.
    """
    check_choice("cost", cost, ("correlation", "inner"))
    for argument, state in (("state_a", state_a), ("state_b", state_b)):
        check_model_state(argument, model, state)
        check_state(argument, state, spec)
    first = full_permutations(spec, start or {})
    moments = _moments(model, state_a, state_b, spec, data)
    layouts: dict[str, tuple[Layout, ...]] = {}
    a, b = {}, {}
    for k, (site, found) in enumerate(moments.items()):
        # With π·B in the place of the second model, Σ_i C[i, π(i)] = ⟨1, π·Cᵀ⟩: a weight of its own, as it were.
        name, size = f"{k}", len(found.mean_a)
        units = site.units[0] if len(site.units) == 1 else Product(site.units)
        layouts[name] = (units, Fixed(size))
        a[name] = torch.eye(size, dtype=torch.float64, device=found.mean_a.device)
        b[name] = found.similarity(cost).T.contiguous()
    structure = Structure(PermutationSpec(spec.atoms, layouts))
    hidden = [name for name in spec.atoms if not structure.occurs(name)]
    if hidden:
        logger.info("no activation shows %s: kept as given", ", ".join(hidden))
    scale = sum(float(found.similarity(cost).diagonal().abs().sum()) for found in moments.values())
    alignment = Alignment(structure, a, b, first, 1e-12 * scale)
    initial = alignment.objective()
    sweeps, converged = ascend(alignment, max_sweeps=_SWEEPS)
    for parent in structure.entangled():
        alignment = _restarted(alignment, parent, generator or torch.Generator().manual_seed(0))
    return WeightMatch(alignment.permutations, alignment.objective(), initial, sweeps, converged)


def _restarted(alignment: Alignment, parent: str, generator: torch.Generator) -> Alignment:
    """The best of an alignment and some in which the children of an atom began at random."""
    structure, best = alignment.structure, alignment.objective()
    children = structure.children[parent]
    for _ in range(_RESTARTS):
        drawn = random_permutations(structure.spec, generator=generator)
        begin = {**alignment.permutations, **{child: drawn[child] for child in children}}
        trial = Alignment(structure, alignment.a, alignment.original, begin, alignment.least_gain)
        ascend(trial, max_sweeps=_SWEEPS, atoms=[parent, *children])
        if trial.objective() > best + alignment.least_gain:
            alignment, best = trial, trial.objective()
    return alignment


@dataclass
class _Moments:
    """Statistics of two models' units over samples, updated batch by batch without cancellation.

    Attributes:
        count: number of samples.
        mean_a: mean of each unit, shape (u,), float64.
        mean_b: the same of the second model.
        square_a: summed squares of what is off the mean, shape (u,).
        square_b: the same of the second model.
        product: summed products of the same, shape (u, u).
    """

    count: int
    mean_a: Tensor
    mean_b: Tensor
    square_a: Tensor
    square_b: Tensor
    product: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "_Moments":
        """Those of one batch, shape (u, samples) each."""
        x, y = x.double(), y.double()
        mean_x, mean_y = x.mean(1), y.mean(1)
        x, y = x - mean_x[:, None], y - mean_y[:, None]
        return cls(x.shape[1], mean_x, mean_y, x.square().sum(1), y.square().sum(1), x @ y.T)

    def add(self, other: "_Moments") -> None:
        """Take in further samples (Chan, Golub, LeVeque 1983)."""
        total = self.count + other.count
        share, weight = other.count / total, self.count * other.count / total
        off_a, off_b = other.mean_a - self.mean_a, other.mean_b - self.mean_b
        self.square_a += other.square_a + weight * off_a.square()
        self.square_b += other.square_b + weight * off_b.square()
        self.product += other.product
        self.product.addr_(off_a, off_b, alpha=weight)
        self.mean_a += share * off_a
        self.mean_b += share * off_b
        self.count = total

    def similarity(self, cost: str) -> Tensor:
        """What pairs of units have in common, shape (u, u); a constant unit correlates with none."""
        if cost == "inner":
            return self.product / self.count + torch.outer(self.mean_a, self.mean_b)
        scales = []
        for square, mean in ((self.square_a, self.mean_a), (self.square_b, self.mean_b)):
            varies = square > _CONSTANT * (square + self.count * mean.square())
            scales.append(torch.where(varies, square.rsqrt(), 0))
        return self.product * scales[0][:, None] * scales[1]


def _moments(
    model: nn.Module,
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    spec: PermutationSpec,
    data: Batches,
) -> dict[Site, _Moments]:
    moments: dict[Site, _Moments] = {}
    chosen: set[Site] | None = None
    with evaluating(model):
        for batch in data:
            inputs = inputs_of(batch)
            found_a = record_activations(model, state_a, inputs, spec, only=chosen)
            chosen = _chosen(found_a) if chosen is None else chosen
            found_b = record_activations(model, state_b, inputs, spec, only=chosen)
            for site in chosen:
                new = _Moments.of(found_a[site], found_b[site])
                if not torch.isfinite(new.square_a.sum() + new.square_b.sum()):
                    raise InputError("data", "finite activations", f"NaN or infinity at {site.parameter}")
                if site in moments:
                    moments[site].add(new)
                else:
                    moments[site] = new
    if chosen is None:
        raise InputError("data", "at least one batch", "none")
    return moments


def _chosen(found: Mapping[Site, Tensor]) -> set[Site]:
    """Places where atoms are read; where they are written for those that are not."""
    reading = {site for site in found if site.reads}
    shown = {atom for site in reading for atom in site.atoms}
    return reading | {site for site in found if not site.reads and not site.atoms <= shown}
