"""Several tasks that one merged model is to solve: the task vectors, and the entropy of its answers without labels."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffmatch.errors import InputError
from diffmatch.fitting import fit
from diffmatch.history import History
from diffmatch.matching.weights.evaluate import Batches, check_batches, evaluating, inputs_of, outputs
from diffmatch.matching.weights.interpolation import check_same_entries, tensor_key
from diffmatch.matching.weights.task_vectors import task_arithmetic

__all__ = ["Tasks", "entropy"]

State = Mapping[str, Tensor]


def entropy(logits: Float[Tensor, "*b c"]) -> Float[Tensor, ""]:
    """Mean entropy of the softmax of logits, −Σ_c p_c log p_c, in nats."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


class Tasks:
    """Task vectors of models fine-tuned from one base, and unlabelled batches of each task.

    Args:
        base: state of the model that all were fine-tuned from, without the heads that differ.
        states: one a task, same entries and shapes.
        models: what runs a state: one module for all tasks, or one a task, whose own head is used.
        data: for each task its batches (targets are ignored).

    Attributes:
        vectors: θ_m − θ₀ of each learned tensor, shape (m, \\*shape); a tensor with several names has the first.
        rows: the row of the coefficients that each of these has, in order.
    """

    def __init__(
        self,
        base: State,
        states: Sequence[State],
        models: nn.Module | Sequence[nn.Module],
        data: Sequence[Batches],
    ) -> None:
        check_same_entries([base, *states], "base, states")
        self.base, self.states, self.count = base, states, len(states)
        self.models = [models] * self.count if isinstance(models, nn.Module) else list(models)
        for argument, found in (("models", len(self.models)), ("data", len(data))):
            if found != self.count:
                raise InputError(argument, f"{self.count}, one a state", str(found))
        for m, batches in enumerate(data):
            check_batches(f"data[{m}]", batches)
        self._batches = [_endless(f"data[{m}]", batches) for m, batches in enumerate(data)]
        learned = dict(self.models[0].named_parameters(remove_duplicate=False))
        first: dict[object, str] = {}
        self._names: dict[str, str] = {}  # of each learned entry, the one whose vector it has
        for name, tensor in base.items():
            if name in learned and tensor.is_floating_point():
                self._names[name] = first.setdefault(tensor_key(tensor), name)
        if not self._names:
            raise InputError("base", "entries that are parameters of the model", f"{len(base)} others")
        self.vectors = {
            name: torch.stack([_work(state[name], tensor.device) - _work(tensor, tensor.device) for state in states])
            for name in first.values()
            for tensor in [base[name]]
        }
        self.rows = {name: row for row, name in enumerate(self.vectors)}
        self._start = {name: _work(base[name], base[name].device) for name in self.vectors}

    def coefficients(self, scale: float, *, layerwise: bool) -> Float[Tensor, "l m"]:
        """Equal coefficients to begin with: one row for all tensors, or one a tensor."""
        some = next(iter(self._start.values()))
        return some.new_full((len(self.rows) if layerwise else 1, self.count), scale)

    def merged(self, coefficients: Float[Tensor, "l m"], masks: State | None = None) -> dict[str, Tensor]:
        """θ₀ + Σ_m λ_m (mask ∘ τ_m) of the learned tensors, through which gradients pass."""
        found = {}
        for name, vectors in self.vectors.items():
            row = coefficients[self.rows[name] if len(coefficients) > 1 else 0].to(vectors)
            moved = torch.tensordot(row, vectors, 1)
            found[name] = self._start[name] + (moved if masks is None else masks[name] * moved)
        return {name: found[of].to(self.base[name].dtype) for name, of in self._names.items()}

    def state(self, coefficients: Float[Tensor, "l m"], masks: State | None, scale: float) -> dict[str, Tensor]:
        """All of the merged state: what is not learned, such as running statistics, by task arithmetic."""
        with torch.no_grad():
            learned = self.merged(coefficients, masks)
        others = [name for name in self.base if name not in learned]
        rest: dict[str, Tensor] = {}
        if others:
            parts = [{name: state[name] for name in others} for state in (self.base, *self.states)]
            rest = task_arithmetic(parts[0], parts[1:], scale=scale)
        shared: dict[str, Tensor] = {}  # one tensor for all names of a tied weight
        for name, of in self._names.items():
            shared.setdefault(of, learned[name])
        return {name: shared[self._names[name]] if name in self._names else rest[name] for name in self.base}

    def next_batches(self) -> list[object]:
        """The next inputs of each task; the batches begin again when they end."""
        return [next(batches) for batches in self._batches]

    def entropy(self, state: State, batches: Sequence[object]) -> Tensor:
        """Sum over tasks of the mean entropy of the merged model's answers."""
        total = torch.zeros((), device=next(iter(state.values())).device)
        for model, inputs in zip(self.models, batches, strict=True):
            total = total + entropy(outputs(model, state, inputs))
        return total

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """All models in evaluation mode, and afterwards as they were."""
        with contextlib.ExitStack() as stack:
            for model in self.models:
                stack.enter_context(evaluating(model))
            yield

    def train(
        self, coefficients: Float[Tensor, "l m"], masks: State | None, *, steps: int, lr: float, progress: bool
    ) -> tuple[Float[Tensor, "l m"], History]:
        """The coefficients after so many steps of Adam on the entropy."""
        learned = coefficients.detach().clone().requires_grad_()

        def loss() -> Tensor:
            return self.entropy(self.merged(learned, masks), self.next_batches())

        with self.evaluating():
            history = fit([learned], loss, optimizer="adam", lr=lr, steps=steps, progress=progress)
        return learned.detach(), history

    def by_name(self, coefficients: Float[Tensor, "l m"]) -> dict[str, Tensor]:
        """The coefficients of each learned entry, shape (m,)."""
        single = len(coefficients) == 1
        return {name: coefficients[0 if single else self.rows[of]].clone() for name, of in self._names.items()}


def _work(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().to(device, torch.promote_types(tensor.dtype, torch.float32))


def _endless(argument: str, data: Batches) -> Iterator[object]:
    while True:
        empty = True
        for batch in data:
            empty = False
            yield inputs_of(batch)
        if empty:
            raise InputError(argument, "at least one batch", "none")
