"""The mean of models as a function of how they are aligned: what the alignments that learn from a loss share."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diffmatch.errors import InputError
from diffmatch.history import History
from diffmatch.matching.weights.evaluate import (
    Batches,
    LossFunction,
    check_batches,
    check_model_state,
    evaluating,
    inputs_of,
    outputs,
    size_of,
    targets_of,
)
from diffmatch.matching.weights.permute import Permutations, apply_permutations
from diffmatch.matching.weights.spec import PermutationSpec

__all__ = ["LearnedMatch", "Midpoint"]


@dataclass(frozen=True)
class LearnedMatch:
    """An alignment that was learned from a loss.

    Attributes:
        permutations: to be applied to each model; the first keeps those that it began with.
        loss: of the permutations that were kept: the least of those tried.
        initial: of those that it began with.
        history: of the fit.
    """

    permutations: list[Permutations]
    loss: float
    initial: float
    history: History


class Midpoint:
    """The loss of means of models, on batches that come round again and again.

    Batch norm normalises by the batch, since the statistics of a mean are not the mean of the statistics; dropout is
    off.

    Args:
        model: any module; it is neither changed nor moved.
        states: the models as they are.
        spec: what may move.
        data: pairs of inputs and targets.
        loss: mean loss of a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[Mapping[str, Tensor]],
        spec: PermutationSpec,
        data: Batches,
        loss: LossFunction,
    ) -> None:
        check_batches("data", data)
        for m, state in enumerate(states):
            check_model_state(f"states[{m}]", model, state)
        self.model, self.states, self.spec, self.data, self.loss = model, states, spec, data, loss
        self._batches = itertools.chain.from_iterable(itertools.repeat(data))
        if next(iter(data), None) is None:
            raise InputError("data", "at least one batch", "none")
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._buffers = {name: tensor for name, tensor in states[0].items() if name not in parameters}
        self._still = {
            name: torch.stack([state[name].detach() for state in states]).mean(0)
            for name, tensor in states[0].items()
            if name in parameters and tensor.is_floating_point()
        }

    def next_loss(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Loss of the mean model on the next batch, some of its tensors given, the others the mean of the models'."""
        return self._loss(tensors, next(self._batches))

    def mean_loss(self, permutations: Sequence[Permutations]) -> float:
        """Loss of the mean of the permuted models on all data."""
        moved = [apply_permutations(state, self.spec, p) for state, p in zip(self.states, permutations, strict=True)]
        mean = {name: torch.stack([state[name] for state in moved]).mean(0) for name in self._still}
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self.data:
                n = size_of(inputs_of(batch))
                total, count = total + n * float(self._loss(mean, batch)), count + n
        return total / count

    def _loss(self, tensors: Mapping[str, Tensor], batch: Any) -> Tensor:
        state = {**self._still, **{name: tensor.clone() for name, tensor in self._buffers.items()}, **tensors}
        device = next(iter(state.values())).device
        with evaluating(self.model), _batch_statistics(self.model):
            found = outputs(self.model, state, inputs_of(batch))
        return self.loss(found, targets_of(batch).to(device))


@contextlib.contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.training = True
    try:
        yield
    finally:
        for norm in norms:
            norm.training = False
