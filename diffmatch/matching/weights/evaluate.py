"""A model run with the tensors of a state: its outputs, its mean loss over batches."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from diffmatch.errors import InputError

__all__ = [
    "Batches",
    "LossFunction",
    "check_batches",
    "check_model_state",
    "entry",
    "evaluating",
    "inputs_of",
    "mean_loss",
    "outputs",
    "size_of",
    "targets_of",
    "untied",
    "without_rounding",
]

Batches = Iterable[Any]
"""Batches that can be gone through more than once, such as a DataLoader or a list. A batch is a pair of inputs and
targets, or the inputs alone where no targets are needed; inputs are a tensor, a tuple of positional arguments or a
mapping of named ones."""

LossFunction = Callable[[Any, Any], Tensor]
"""From outputs and targets to their mean loss, a scalar."""


def check_batches(argument: str, data: Batches) -> None:
    """Check that batches can be gone through again and again.

    Raises:
        InputError: they cannot be iterated, or only once.
    """
    try:
        once = iter(data) is data
    except TypeError:
        raise InputError(argument, "batches to iterate over, such as a DataLoader", type(data).__name__) from None
    if once:
        raise InputError(argument, "batches that can be gone through more than once, such as a list", "an iterator")


def check_model_state(argument: str, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check that a state fits a model.

    Raises:
        InputError: listing entries that the model lacks, that are missing, or whose shapes differ.
    """
    own = model.state_dict()
    wrong = [f"no {name}" for name in own if name not in state]
    wrong += [f"{name}, which the model lacks" for name in state if name not in own]
    wrong += [
        f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(argument, "the entries and shapes of the model", ", ".join(wrong[:8]) + more)


def entry(module: str, part: str) -> str:
    """Name in the state dict of a part of a module; the module itself has the name ""."""
    return f"{module}.{part}" if module else part


class without_rounding(TorchDispatchMode):
    """Within it floating-point tensors are cast to double where a model casts them to less.

    Some models compute their norms in single precision whatever they are given; rounding would hide whether two ways of
    computing agree.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        dtype = given.get("dtype")
        casts = func is torch.ops.aten._to_copy.default and dtype is not None and dtype.is_floating_point
        if casts and args[0].is_floating_point():
            given = {**given, "dtype": torch.float64}
        return func(*args, **given)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the modes that were before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def inputs_of(batch: Any) -> Any:
    """The inputs of a batch, with or without targets."""
    return batch[0] if isinstance(batch, list | tuple) and len(batch) == 2 else batch


def targets_of(batch: Any) -> Any:
    """The targets of a batch.

    Raises:
        InputError: the batch has none.
    """
    if not (isinstance(batch, list | tuple) and len(batch) == 2):
        raise InputError("data", "batches that are pairs of inputs and targets", type(batch).__name__)
    return batch[1]


def size_of(inputs: Any) -> int:
    """Number of samples: the first axis of the first tensor."""
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise InputError("data", "batches that hold tensors", type(inputs).__name__)


def outputs(model: nn.Module, state: Mapping[str, Tensor], inputs: Any) -> Any:
    """What a model returns with the tensors of a state in place of its own.

    Gradients pass to the state. Entries that the state leaves out are the model's own, tied ones need to be given once;
    inputs are moved to the device of the state.

    Args:
        model: any module.
        state: tensors by name.
        inputs: a tensor, a tuple of positional arguments or a mapping of named ones.
    """
    device = next((tensor.device for tensor in state.values()), None)
    if device is not None:
        inputs = _to(inputs, device)
    once = _tied_once(model, state)
    if isinstance(inputs, Mapping):
        return functional_call(model, once, (), dict(inputs))
    return functional_call(model, once, tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,))


def mean_loss(
    model: nn.Module, state: Mapping[str, Tensor], data: Batches, loss: LossFunction, *, temperature: float = 1.0
) -> float:
    """Mean loss of a model in evaluation mode, without gradients; a batch counts by its number of samples.

    Args:
        model: any module.
        state: the tensors it runs with.
        data: pairs of inputs and targets.
        loss: mean loss of a batch.
        temperature: by which the outputs are divided.

    Raises:
        InputError: there are no batches, or the loss is no scalar.
    """
    device = next(iter(state.values())).device
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    with evaluating(model), torch.no_grad():
        for batch in data:
            inputs, targets = inputs_of(batch), _to(targets_of(batch), device)
            found = outputs(model, state, inputs)
            value = loss(found if temperature == 1 else found / temperature, targets)
            if not isinstance(value, Tensor) or value.numel() != 1:
                shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError("loss", "a function that returns a scalar tensor", str(shown))
            n = size_of(inputs)
            total, count = total + n * value.double().reshape(()), count + n
    if not count:
        raise InputError("data", "at least one batch", "none")
    return float(total) / count


def untied(model: nn.Module) -> set[Tensor]:
    """The parameters that have one name, so that changing one changes nothing else."""
    names: dict[Tensor, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter] = names.get(parameter, 0) + 1
    return {parameter for parameter, count in names.items() if count == 1}


def _to(tree: Any, device: torch.device) -> Any:
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)


def _tied_once(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with one name for each tensor of the model, since a functional call refuses several."""
    first: dict[Tensor, str] = {}
    once = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if name in state and first.setdefault(tensor, name) == name:
            once[name] = state[name]
    return once
