"""Whether the permutations of a spec leave a model's function as it is, tried out on random weights and inputs."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from diffmatch.matching.weights.evaluate import without_rounding
from diffmatch.matching.weights.permute import apply_permutations, random_permutations
from diffmatch.matching.weights.spec import PermutationSpec

__all__ = ["check_spec"]

logger = logging.getLogger(__name__)

TOLERANCE = 1e-9
"""Largest difference of outputs in float64, relative to the largest output."""
_GUILTY = "moving it changes the function (found by the check)"


def check_spec(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> PermutationSpec:
    """Compare a model with its permuted self in float64, and fix the atoms that change its outputs.

    Where the model computes in less precision, it is made to compute in float64 too. Weights and running statistics are
    drawn at random, since the ones and zeros of a fresh norm would hide an error. If the outputs differ, the guilty
    atoms are found by bisection: first they lose their dependence on parents, and if that does not help they are fixed.

    Args:
        spec: what to try.
        model: the model that it is for; it is copied and not changed.
        example_inputs: positional inputs; shapes, dtypes and the range of integers are used, not the values.
        example_kwargs: inputs by name.
        generator: source of randomness, on the CPU.

    Returns:
        The spec that holds, marked as checked.
    """
    trial = _Trial(spec, model, example_inputs, example_kwargs or {}, generator or torch.Generator().manual_seed(0))
    found = spec
    for _ in range(len(spec.atoms) + 1):
        if trial.holds(found, found.atoms):
            return replace(found, checked=True)
        guilty = _bisect(trial, found, list(found.atoms))
        dependent = [name for name in guilty if found.atoms[name].parents]
        if dependent:
            atoms = {n: replace(a, parents=() if n in dependent else a.parents) for n, a in found.atoms.items()}
            found = replace(found, atoms=atoms)
            continue
        logger.warning("the function changes when these move, so they are fixed: %s", ", ".join(guilty))
        found = found.without(guilty, _GUILTY)
    return replace(found, checked=True)


class _Trial:
    """A copy of the model with random weights, and its outputs."""

    def __init__(
        self,
        spec: PermutationSpec,
        model: nn.Module,
        inputs: Any,
        kwargs: Mapping[str, Any],
        generator: torch.Generator,
    ) -> None:
        self.generator = generator
        self.model = copy.deepcopy(model).to("cpu").double().eval()
        self.state = _random_state(self.model, spec, generator)
        positional = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
        self.inputs = [
            pytree.tree_map(lambda x: _random_like(x, generator), (positional, dict(kwargs))) for _ in range(2)
        ]
        self.reference = self._outputs(self.state)

    def holds(self, spec: PermutationSpec, atoms: Any) -> bool:
        """Whether moving some atoms leaves the outputs as they are."""
        permutations = random_permutations(spec, generator=self.generator)
        moved = apply_permutations(self.state, spec, {name: permutations[name] for name in atoms})
        return all(_close(x, y) for x, y in zip(self._outputs(moved), self.reference, strict=True))

    def _outputs(self, state: dict[str, Tensor]) -> list[Tensor]:
        self.model.load_state_dict(state)
        with torch.no_grad(), without_rounding():
            results = [self.model(*args, **kwargs) for args, kwargs in self.inputs]
        return [leaf.double() for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]


def _close(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape or not torch.equal(x.isfinite(), y.isfinite()):
        return False
    x, y = x.nan_to_num(0, 0, 0), y.nan_to_num(0, 0, 0)
    scale = float(y.abs().max()) if y.numel() else 0.0
    return not y.numel() or float((x - y).abs().max()) <= TOLERANCE * scale


def _bisect(trial: _Trial, spec: PermutationSpec, atoms: list[str]) -> list[str]:
    """Atoms to fix so that the others may move; where only a combination is guilty, all of it."""
    if len(atoms) == 1:
        return atoms
    halves: Sequence[list[str]] = (atoms[: len(atoms) // 2], atoms[len(atoms) // 2 :])
    guilty = [name for half in halves if not trial.holds(spec, half) for name in _bisect(trial, spec, half)]
    return guilty or atoms


def _random_state(model: nn.Module, spec: PermutationSpec, generator: torch.Generator) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            state[name] = seen[id(tensor)]
            continue
        value = tensor.detach().clone()
        if value.is_floating_point() and name in parameters:
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            fan_in = max(value.numel() // max(value.shape[0], 1), 1) if value.ndim > 1 else 1
            value = noise / fan_in**0.5 if value.ndim > 1 else 1 + 0.3 * noise
        elif value.is_floating_point() and name in spec.buffers:
            # A variance must stay positive, and a mean may as well be.
            value = value.abs() + torch.rand(value.shape, generator=generator, dtype=value.dtype)
        state[name] = seen[id(tensor)] = value
    return state


def _random_like(x: Any, generator: torch.Generator) -> Any:
    if not isinstance(x, Tensor):
        return x
    if x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)
    if x.dtype == torch.bool or not x.numel() or x.is_meta:
        return x.cpu() if not x.is_meta else torch.zeros(x.shape, dtype=x.dtype)
    return torch.randint(0, int(x.max()) + 1, x.shape, generator=generator, dtype=x.dtype)
