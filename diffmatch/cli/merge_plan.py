"""The plan that `diffmatch merge` prints before it begins."""

import time

import torch

from diffmatch.cli.merge_inputs import MergeInputs, available_memory, memory_needed, shown_size
from diffmatch.matching.assignment import assign
from diffmatch.matching.weights.plan import MergePlan

__all__ = ["plan_text"]

_SWEEPS = 3  # that weight matching usually takes
_PROBE = 256


def plan_text(plan: MergePlan, inputs: MergeInputs) -> str:
    """What moves, what stays and why, memory and time, as lines."""
    checked = "function checked" if inputs.spec.checked else "function not checked"
    lines = [
        f"{len(inputs.checkpoints)} models of {shown_size(plan.model_bytes)}, {plan.parameters:,} learned numbers each",
        f"{plan.atoms} {'set' if plan.atoms == 1 else 'sets'} of units can be permuted ({checked}); "
        f"{plan.movable_percent:.1f} % of the numbers are in tensors that move",
    ]
    for held in plan.held:
        axes = "1 axis" if held.axes == 1 else f"{held.axes} axes"
        lines.append(f"  stays: {axes}, such as {held.example}: {held.reason}")
    if inputs.streamed:
        memory = shown_size(1.5 * (plan.largest_pair + plan.largest_gram))
        lines.append(f"on disk, tensor by tensor: up to about {memory} of memory besides the program's own")
    else:
        needed, there = memory_needed(inputs.checkpoints), available_memory()
        lines.append(f"in memory: up to about {shown_size(needed)} of {shown_size(there)} available")
    seconds = _expected_seconds(plan) * (len(inputs.checkpoints) - 1)
    lines.append(f"weight matching: about {_shown_seconds(seconds)} for {_SWEEPS} sweeps")
    return "\n".join(lines)


def _expected_seconds(plan: MergePlan) -> float:
    """Of weight matching, by the speed of a small product and a small assignment here and now."""
    x = torch.rand(_PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
    product, solution = _seconds(lambda: x @ x), _seconds(lambda: assign(x))
    return _SWEEPS * (plan.sweep_flops * product / (2 * _PROBE**3) + plan.sweep_cubes * solution / _PROBE**3)


def _seconds(run: object) -> float:
    """The shortest of three runs after one to warm up."""
    assert callable(run)
    run()
    found = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)


def _shown_seconds(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
