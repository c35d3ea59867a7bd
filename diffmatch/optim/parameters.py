"""What a fit may change: tensors, parameter groups or a module, brought into one form and checked."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from diffmatch.errors import InputError

__all__ = ["Parameters", "check_parameters", "parameter_groups", "parameter_names"]

Parameters = nn.Module | Tensor | Iterable[Tensor] | Iterable[Mapping[str, Any]]


def parameter_groups(params: Parameters) -> list[dict[str, Any]]:
    """Bring parameters into the form of optimizers: a list of groups, each with a list of tensors.

    Args:
        params: a module (its parameters that require gradients), a tensor, tensors, or group mappings with
            ``"params"`` and settings of their own.

    Returns:
        New dictionaries; the tensors are the caller's.

    Raises:
        InputError: something else came, or a tensor that cannot be fitted.
    """
    groups: list[dict[str, Any]]
    if isinstance(params, nn.Module):
        groups = [{"params": [p for p in params.parameters() if p.requires_grad]}]
    else:
        entries = [params] if isinstance(params, Tensor | Mapping) else list(params)
        if any(isinstance(entry, Mapping) for entry in entries):
            groups = [_group(entry) for entry in entries]
        else:
            groups = [{"params": entries}]
    check_parameters([p for group in groups for p in group["params"]])
    return groups


def check_parameters(params: list[Any]) -> None:
    """Check that these can be fitted: real leaf tensors that require gradients, each once, at least one.

    Raises:
        InputError: naming the first that cannot.
    """
    if not params:
        raise InputError("params", "at least one tensor that requires gradients", "none")
    for index, p in enumerate(params):
        if not isinstance(p, Tensor):
            raise InputError("params", "tensors, parameter groups or a module", f"{type(p).__name__} at {index}")
        if not p.is_floating_point():
            raise InputError("params", "a real floating-point dtype", f"{p.dtype} at {index}")
        if not p.requires_grad:
            raise InputError("params", "tensors that require gradients", f"one without, at {index}")
        if not p.is_leaf:
            raise InputError("params", "leaf tensors (not results of operations)", f"a computed one, at {index}")
    if len({id(p) for p in params}) != len(params):
        raise InputError("params", "each tensor once", "the same tensor twice")


def parameter_names(params: Parameters | None, optimizer: Optimizer) -> dict[int, str]:
    """Names for messages, by ``id`` of the tensor: a module's own names, else the place in the list."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): f"parameter {i} of shape {tuple(p.shape)}" for i, p in enumerate(tensors)}
    if isinstance(params, nn.Module):
        names |= {id(p): f"parameter {name!r}" for name, p in params.named_parameters()}
    return names


def _group(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or "params" not in entry:
        raise InputError("params", 'tensors only, or mappings with "params" only', f"{type(entry).__name__} among them")
    tensors = entry["params"]
    return {**entry, "params": [tensors] if isinstance(tensors, Tensor) else list(tensors)}
