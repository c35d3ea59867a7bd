"""Models merged into one: aligned, averaged, repaired, with the best of several ways chosen where there are data."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffmatch.errors import InputError, check_choice
from diffmatch.matching.weights.activation_matching import match_activations
from diffmatch.matching.weights.barrier import Barrier, barrier_curve, mean_barrier
from diffmatch.matching.weights.evaluate import (
    Batches,
    LossFunction,
    check_batches,
    check_model_state,
    evaluating,
    inputs_of,
    mean_loss,
    outputs,
    targets_of,
)
from diffmatch.matching.weights.interpolation import average_states, check_same_entries, check_weights
from diffmatch.matching.weights.many_models import match_many
from diffmatch.matching.weights.permute import Permutations, apply_permutations, check_state, identity_permutations
from diffmatch.matching.weights.repair import Repair, has_batch_norm, mend, repairable_layers
from diffmatch.matching.weights.spec import PermutationSpec
from diffmatch.matching.weights.straight_through import match_straight_through
from diffmatch.matching.weights.weight_matching import match_weights, weight_objective

__all__ = ["Candidate", "MergeResult", "merge"]

State = Mapping[str, Tensor]

METHODS = ("auto", "identity", "weights", "activations", "activations+weights", "straight-through")
_TRIED = ("identity", "weights", "activations", "activations+weights")
"""By ``"auto"`` where there are data; then :data:`_LOOSE` and the best of them are refined."""
_LOOSE = "activations"
"""Agrees least with the weights, and so leaves most to the refinement."""
_REFINED = "+straight-through"


@dataclass(frozen=True)
class Candidate:
    """One way of merging that was tried.

    Attributes:
        method: how the units were aligned.
        repair: what was done to the average.
        objective: sum of the inner products of the aligned models' learned weights over all pairs.
        loss: of the merged model on the data, None without.
    """

    method: str
    repair: Repair
    objective: float
    loss: float | None


@dataclass(frozen=True)
class MergeResult:
    """A merged model and how it was made.

    Attributes:
        state: of the merged model.
        permutations: that were applied, one dict a model; the first model's are the identity.
        method: the alignment that was chosen.
        repair: the repair that was chosen.
        barrier: loss on the way between the aligned models; None without data.
        candidates: all that was tried, in the order of trying.
        notes: what to know about the result, in sentences.
    """

    state: dict[str, Tensor]
    permutations: list[Permutations]
    method: str
    repair: Repair
    barrier: Barrier | None
    candidates: list[Candidate]
    notes: list[str]


def merge(
    states: Sequence[State],
    spec: PermutationSpec,
    *,
    model: nn.Module | None = None,
    data: Batches | None = None,
    method: str = "auto",
    permutations: Sequence[Mapping[str, Tensor]] | None = None,
    weights: Sequence[float] | None = None,
    repair: Repair | Literal["auto"] = "auto",
    loss: LossFunction = F.cross_entropy,
    points: int = 11,
    generator: torch.Generator | None = None,
    progress: Callable[[str], object] | None = None,
) -> MergeResult:
    """Merge trained models into one.

    The models are aligned, averaged, and, where there are data, repaired. With a model and data several alignments and
    repairs are tried, the most promising are refined, and the one with the smallest loss of the merged model is taken.
    Without data the weights alone decide and nothing is repaired, which is of no use for models with batch norm.

    Args:
        states: state dicts, two at least.
        spec: what may be permuted, from :func:`permutation_spec`.
        model: runs the states; it is neither changed nor moved. Needed with ``data``.
        data: batches of inputs and targets, a few thousand samples. They choose among candidates, so that a fair
            measurement of the merged model needs others.
        method: how to align: ``"identity"`` (not at all), ``"weights"`` (:func:`match_weights`, of more than two
            models :func:`match_many`), ``"activations"`` (:func:`match_activations`), ``"activations+weights"`` (the
            second started from the first) or ``"straight-through"`` (:func:`match_straight_through`). ``"auto"`` tries
            the first four, and refines the third and the best by the last, which takes a training of some dozen steps
            each; where the average is no worse than the models, or the loss has no gradient, it does not.
        permutations: one dict a model, applied instead of looking for any.
        weights: shares of the models in the average; equal if None.
        repair: ``"auto"``, ``"none"``, ``"reset"`` (:func:`reset_batch_norm`) or ``"repair"`` (:func:`repair`).
        loss: mean loss of a batch from outputs and targets.
        points: places of the barrier curve between two models.
        generator: source of randomness, on the CPU.
        progress: called with a line at the start of each stage.

    Returns:
        The merged state, on the devices and with the dtypes of the first, and how it was made.

    Raises:
        InputError: the states do not fit each other, the spec or the model, or an argument needs data that is missing.
    """
    _check(states, spec, model, data, method, permutations, repair)
    shares = check_weights(weights, len(states))
    report = progress or _silent
    notes: list[str] = []
    search = _Search(states, spec, model, data, loss, shares, _repairs(repair, model, states[0], data, notes), report)
    for name, found in _alignments(states, spec, model, data, method, permutations, loss, generator, report):
        search.consider(name, found)
    if method == "auto" and permutations is None:
        search.refine()
    best = search.best
    barrier = None
    if model is not None and data is not None:
        report("barrier")
        barrier = _barrier(model, best, data, loss, points, shares)
    chosen = best.candidate
    return MergeResult(best.state, best.permutations, chosen.method, chosen.repair, barrier, search.candidates, notes)


@dataclass
class _Search:
    """Candidates as they are tried, and the best so far."""

    states: Sequence[State]
    spec: PermutationSpec
    model: nn.Module | None
    data: Batches | None
    loss: LossFunction
    shares: list[float]
    repairs: list[Repair]
    report: Callable[[str], object]
    candidates: list[Candidate] = field(default_factory=list)
    found: dict[str, list[Permutations]] = field(default_factory=dict)
    trials: list["_Trial"] = field(default_factory=list)

    @property
    def best(self) -> "_Trial":
        """The best so far, which alone is kept whole."""
        return self.trials[0]

    def consider(self, name: str, found: list[Permutations]) -> None:
        """Average the models as permuted, with every repair."""
        self.found[name] = found
        aligned = [apply_permutations(s, self.spec, moved) for s, moved in zip(self.states, found, strict=True)]
        mean, objective = average_states(aligned, weights=self.shares), _objective(aligned, self.spec)
        for kind in self.repairs:
            state, value = mean, None
            if self.model is not None and self.data is not None:
                self.report(f"loss of the average, aligned by {name}, repair {kind}")
                state = mend(kind, self.model, mean, aligned, self.data, weights=self.shares)
                value = mean_loss(self.model, state, self.data, self.loss)
            self.candidates.append(Candidate(name, kind, objective, value))
            trial = _Trial(self.candidates[-1], state, aligned, found)
            if not self.trials or trial.beats(self.best):
                self.trials = [trial]

    def refine(self) -> None:
        """Go on by the loss itself, where the best average is worse than the models."""
        model, data, reached = self.model, self.data, self.best.candidate.loss
        if model is None or data is None or reached is None:
            return
        own = [share * mean_loss(model, s, data, self.loss) for s, share in zip(self.states, self.shares, strict=True)]
        if not reached > sum(own) or not _has_gradient(model, self.states[0], data, self.loss):
            return
        for name in dict.fromkeys([_LOOSE, self.best.candidate.method]):
            self.report(f"straight-through estimator from {name}")
            learned = match_straight_through(
                model, self.states, self.spec, data, loss=self.loss, start=self.found[name], progress=False
            )
            self.consider(name + _REFINED, learned.permutations)


def _has_gradient(model: nn.Module, state: State, data: Batches, loss: LossFunction) -> bool:
    """Whether the loss can be followed downhill; a share of errors cannot."""
    batch = next(iter(data))
    learned = {name for name, own in model.named_parameters(remove_duplicate=False) if own.is_floating_point()}
    tensors = {name: tensor.detach().requires_grad_(name in learned) for name, tensor in state.items()}
    with evaluating(model), torch.enable_grad():
        value = loss(outputs(model, tensors, inputs_of(batch)), targets_of(batch).to(next(iter(state.values())).device))
    return value.requires_grad


@dataclass(frozen=True)
class _Trial:
    """A candidate with what it takes to be the result."""

    candidate: Candidate
    state: dict[str, Tensor]
    aligned: list[dict[str, Tensor]]
    permutations: list[Permutations]

    def beats(self, other: "_Trial") -> bool:
        """Whether it has a smaller loss, or, without data, a larger objective; a loss that is NaN never wins."""
        own, best = self.candidate, other.candidate
        if own.loss is None or best.loss is None:
            return own.objective > best.objective
        return own.loss < best.loss or (math.isnan(best.loss) and not math.isnan(own.loss))


def _check(
    states: Sequence[State],
    spec: PermutationSpec,
    model: nn.Module | None,
    data: Batches | None,
    method: str,
    permutations: Sequence[Mapping[str, Tensor]] | None,
    repair: str,
) -> None:
    check_choice("method", method, METHODS)
    check_choice("repair", repair, ("auto", "none", "reset", "repair"))
    if len(states) < 2:
        raise InputError("states", "two states or more", str(len(states)))
    check_same_entries(states)
    for m, state in enumerate(states):
        check_state(f"states[{m}]", state, spec)
    if permutations is not None and len(permutations) != len(states):
        raise InputError("permutations", f"{len(states)} dicts, one a model", str(len(permutations)))
    if data is not None:
        check_batches("data", data)
        if model is None:
            raise InputError("model", "the model that the data are for", "None")
        check_model_state("states[0]", model, states[0])
        return
    if repair in ("reset", "repair"):
        raise InputError("data", f"batches to measure for repair={repair!r}", "None")
    if method.startswith(("activations", "straight")):
        raise InputError("data", f"batches to run the models on for method={method!r}", "None")


def _repairs(
    repair: str, model: nn.Module | None, state: State, data: Batches | None, notes: list[str]
) -> list[Repair]:
    """The repairs to try, and a note where one is wanted that cannot be made."""
    if model is None or data is None:
        if any(name.endswith("running_var") for name in state):
            notes.append("The statistics of batch norm are averages: reset them (reset_batch_norm) before use.")
        return ["none"]
    if repair != "auto":
        return [cast(Repair, repair)]
    found: list[Repair] = ["none"]
    if has_batch_norm(model):
        found.append("reset")
    if repairable_layers(model, state, data):
        found.append("repair")
    return found


def _alignments(
    states: Sequence[State],
    spec: PermutationSpec,
    model: nn.Module | None,
    data: Batches | None,
    method: str,
    permutations: Sequence[Mapping[str, Tensor]] | None,
    loss: LossFunction,
    generator: torch.Generator | None,
    report: Callable[[str], object],
) -> Iterator[tuple[str, list[Permutations]]]:
    """The alignments to try, by name."""
    identity = identity_permutations(spec)
    if permutations is not None:
        yield "given", [{**identity, **given} for given in permutations]
        return
    wanted = (method,) if method != "auto" else _TRIED if data is not None else ("weights",)
    if "identity" in wanted:
        yield "identity", [identity] * len(states)
    if "weights" in wanted:
        report("weight matching")
        yield "weights", _by_weights(states, spec, None, generator)
    if model is None or data is None:
        return
    if "straight-through" in wanted:
        report("straight-through estimator")
        yield "straight-through", match_straight_through(model, states, spec, data, loss=loss).permutations
    if not {"activations", "activations+weights"} & {*wanted}:
        return
    report("activation matching")
    others = (match_activations(model, states[0], b, spec, data, generator=generator) for b in states[1:])
    starts = [identity, *(found.permutations for found in others)]
    if "activations" in wanted:
        yield "activations", starts
    if "activations+weights" in wanted:
        report("weight matching from the activations")
        yield "activations+weights", _by_weights(states, spec, starts, generator)


def _by_weights(
    states: Sequence[State],
    spec: PermutationSpec,
    start: list[Permutations] | None,
    generator: torch.Generator | None,
) -> list[Permutations]:
    """Weight matching of two models, or of all together; where a start is given, from there alone."""
    if len(states) > 2:
        return match_many(states, spec, start=start, frank_wolfe=start is None, generator=generator).permutations
    first, second = states
    if start is None:
        found = match_weights(first, second, spec, generator=generator)
    else:
        found = match_weights(first, second, spec, start=start[1], frank_wolfe=False, generator=generator)
    return [identity_permutations(spec), found.permutations]


def _objective(states: Sequence[State], spec: PermutationSpec) -> float:
    return sum(weight_objective(a, b, spec) for a, b in itertools.combinations(states, 2))


def _barrier(
    model: nn.Module, best: _Trial, data: Batches, loss: LossFunction, points: int, shares: list[float]
) -> Barrier:
    if len(best.aligned) > 2:
        return mean_barrier(model, best.aligned, data, mean=best.state, weights=shares, loss=loss)
    a, b = best.aligned
    return barrier_curve(model, a, b, data, loss=loss, points=points, repair=best.candidate.repair)


def _silent(_: str) -> None:
    return None
