"""The work of `diffmatch merge`: merge in memory or from file to file, verify, measure."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from diffmatch.cli.merge_inputs import MergeInputs
from diffmatch.errors import InputError, check_choice
from diffmatch.matching.weights import (
    Barrier,
    MergeResult,
    PermutationSpec,
    apply_permutations,
    average_states,
    barrier_curve,
    identity_permutations,
    mean_barrier,
    merge,
    reset_batch_norm,
    weight_objective,
)
from diffmatch.matching.weights.checkpoint_files import write_checkpoint
from diffmatch.matching.weights.evaluate import mean_loss, outputs, without_rounding
from diffmatch.matching.weights.file_merge import merge_files
from diffmatch.matching.weights.layers import LayerAlignment, layer_alignment
from diffmatch.matching.weights.permute import Permutations
from diffmatch.matching.weights.repair import has_batch_norm

__all__ = ["TOLERANCE", "MergeOutcome", "merge_in_memory", "merge_streamed", "permuted_difference"]

TOLERANCE = 1e-9
"""Largest difference of a permuted model's outputs in double precision, relative to the largest output."""


@dataclass
class MergeOutcome:
    """A merge and what was measured of it.

    Attributes:
        permutations: one dict a model.
        method: the alignment that was chosen.
        repair: the repair that was chosen.
        objectives: of each model after the first, inner product of its weights with the first one's before and after.
        state: the merged one; None where it was written tensor by tensor.
        candidates: method, repair, objective and loss of each way that was tried.
        barrier: on the way between the aligned models, None without targets.
        barrier_before: on the way between the models as they are.
        losses: of each model.
        loss: of the merged model.
        layers: likeness of the first two models' tensors.
        differences: of each model after the first, between its outputs before and after permuting; None if not run.
        notes: what to know about the result.
        seconds: by stage.
    """

    permutations: list[Permutations]
    method: str
    repair: str
    objectives: list[tuple[float, float]]
    state: dict[str, Tensor] | None = None
    candidates: list[tuple[str, str, float, float | None]] = field(default_factory=list)
    barrier: Barrier | None = None
    barrier_before: Barrier | None = None
    losses: list[float] = field(default_factory=list)
    loss: float | None = None
    layers: list[LayerAlignment] = field(default_factory=list)
    differences: list[float] | None = None
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def verified(self) -> bool:
        """Whether permuting was seen to leave the functions as they are."""
        return self.differences is not None and max(self.differences) <= TOLERANCE


def merge_in_memory(
    inputs: MergeInputs, *, method: str, repair: str, device: str, seed: int, progress: Callable[[str], object]
) -> MergeOutcome:
    """Merge, verify and measure models that fit into memory."""
    began = time.perf_counter()
    model, spec, batches = inputs.model, inputs.spec, inputs.batches
    states = inputs.states(device)
    result: MergeResult = merge(
        states,
        spec,
        model=model,
        data=batches,
        method=method,
        repair=repair,  # type: ignore[arg-type]  # merge() checks it
        loss=inputs.loss,
        generator=torch.Generator().manual_seed(seed),
        progress=progress,
    )
    aligned = [apply_permutations(s, spec, p) for s, p in zip(states, result.permutations, strict=True)]
    pairs = zip(states[1:], aligned[1:], strict=True)
    outcome = MergeOutcome(
        permutations=result.permutations,
        method=result.method,
        repair=result.repair,
        objectives=[(weight_objective(states[0], s, spec), weight_objective(states[0], a, spec)) for s, a in pairs],
        state=result.state,
        candidates=[(c.method, c.repair, c.objective, c.loss) for c in result.candidates],
        barrier=result.barrier,
        layers=layer_alignment(states[0], states[1], aligned[1], spec),
        notes=list(result.notes),
        seconds={"merge": time.perf_counter() - began},
    )
    if batches is None and inputs.inputs is not None:
        _reset(outcome, inputs, repair)
    if inputs.inputs is None:
        outcome.notes.append("There are no inputs to run, so that the permuted models were not compared.")
    else:
        progress("verifying")
        began = time.perf_counter()
        outcome.differences = [
            permuted_difference(model, s, spec, p, inputs.inputs)
            for s, p in zip(states[1:], result.permutations[1:], strict=True)
        ]
        outcome.seconds["verify"] = time.perf_counter() - began
    if batches is not None:
        progress("losses")
        began = time.perf_counter()
        _measure(outcome, inputs, states)
        outcome.seconds["measure"] = time.perf_counter() - began
    return outcome


def merge_streamed(
    inputs: MergeInputs,
    output: Path,
    *,
    method: str,
    repair: str,
    checkpoint: Path,
    resume: bool,
    progress: Callable[[str], object],
) -> MergeOutcome:
    """Merge from file to file, by weights alone."""
    check_choice("method", method, ("auto", "identity", "weights"))
    if repair not in ("auto", "none"):
        raise InputError("repair", "auto or none for models that stay on disk", repr(repair))
    began = time.perf_counter()
    given = [identity_permutations(inputs.spec)] * len(inputs.checkpoints) if method == "identity" else None
    result = merge_files(
        inputs.checkpoints,
        inputs.spec,
        output,
        permutations=given,
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
    )
    notes = ["The models stayed on disk: they were not run, neither to verify nor to measure."]
    if any(name.endswith("running_var") for name in inputs.checkpoints[0]):
        notes.append("The statistics of batch norm are averages: reset them (reset_batch_norm) before use.")
    notes += [
        f"Model {m} was still improving after {match.sweeps} sweeps."
        for m, match in enumerate(result.matches, 2)
        if not match.converged
    ]
    return MergeOutcome(
        permutations=result.permutations,
        method="identity" if given else "weights",
        repair="none",
        objectives=[(match.initial, match.objective) for match in result.matches],
        notes=notes,
        seconds={"merge": time.perf_counter() - began},
    )


def write_state(output: Path, outcome: MergeOutcome, inputs: MergeInputs) -> None:
    """Write the merged state in the shards and dtypes of the first checkpoint."""
    assert outcome.state is not None
    like = inputs.checkpoints[0]
    state = {name: outcome.state[name].to("cpu", dtype) for name, dtype in like.dtypes.items()}
    write_checkpoint(output, state, like=like)


def permuted_difference(
    model: nn.Module, state: Mapping[str, Tensor], spec: PermutationSpec, permutations: Permutations, inputs: Any
) -> float:
    """Largest difference that permuting makes to a model's outputs in double precision, relative to the largest one."""
    twin = copy.deepcopy(model).cpu().double().eval()
    inputs = pytree.tree_map(_double, inputs)
    plain = {name: _double(tensor.cpu()) for name, tensor in state.items()}
    with torch.no_grad(), without_rounding():
        wanted, found = (
            [leaf.double() for leaf in pytree.tree_leaves(outputs(twin, s, inputs)) if isinstance(leaf, Tensor)]
            for s in (plain, apply_permutations(plain, spec, permutations))
        )
    differences = [_relative(x, y) for x, y in zip(found, wanted, strict=True)]
    return max(differences, default=0.0)


def _relative(x: Tensor, y: Tensor) -> float:
    if not y.numel():
        return 0.0
    if not torch.equal(x.isfinite(), y.isfinite()):
        return float("inf")
    x, y = x.nan_to_num(0, 0, 0), y.nan_to_num(0, 0, 0)
    return float((x - y).abs().max()) / max(float(y.abs().max()), torch.finfo(torch.float64).tiny)


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _reset(outcome: MergeOutcome, inputs: MergeInputs, repair: str) -> None:
    """Without targets nothing can be chosen, but batch norm can be reset by the inputs that there are."""
    assert outcome.state is not None
    if repair == "auto" and inputs.unlabelled is not None and has_batch_norm(inputs.model):
        outcome.state = reset_batch_norm(inputs.model, outcome.state, inputs.unlabelled)
        outcome.repair = "reset"
        outcome.notes = [note for note in outcome.notes if "reset_batch_norm" not in note]


def _measure(outcome: MergeOutcome, inputs: MergeInputs, states: Sequence[dict[str, Tensor]]) -> None:
    """Losses of the models and of the merged one, and the barrier without alignment."""
    assert outcome.state is not None
    assert inputs.batches is not None
    model, data, loss = inputs.model, inputs.batches, inputs.loss
    outcome.losses = [mean_loss(model, state, data, loss) for state in states]
    outcome.loss = mean_loss(model, outcome.state, data, loss)
    if len(states) == 2:
        kind: Any = outcome.repair
        outcome.barrier_before = barrier_curve(model, states[0], states[1], data, loss=loss, repair=kind)
    else:
        outcome.barrier_before = mean_barrier(model, states, data, mean=average_states(states), loss=loss)
