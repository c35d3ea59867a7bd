"""Optimizers by name.

To add one: write it in a file of its own beside this one, and add a line to ``_OPTIMIZERS``.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from diffmatch.errors import InputError, check_choice, check_positive
from diffmatch.optim.adahessian import AdaHessian
from diffmatch.optim.adam_uniform import AdamUniform
from diffmatch.optim.dct import DCTAdamW
from diffmatch.optim.eight_bit import Adam8bit, AdamW8bit, Lion8bit, SGD8bit
from diffmatch.optim.exadam import EXAdam
from diffmatch.optim.lion import Lion
from diffmatch.optim.newton import Newton
from diffmatch.optim.parameters import Parameters, check_parameters, parameter_groups
from diffmatch.optim.sophia import SophiaG, SophiaH

__all__ = ["OptimizerSpec", "as_optimizer", "make_optimizer", "optimizer_names", "optimizer_spec"]


@dataclass(frozen=True)
class OptimizerSpec:
    """How an optimizer is made, and what it starts from.

    Args:
        factory: class or function of ``(params, lr=..., **options)``.
        lr: the learning rate when the user names none.
        options: settings that differ from the factory's own defaults.
    """

    factory: Callable[..., Optimizer]
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def option_names(self) -> frozenset[str]:
        """The options that the factory takes, besides the parameters and the learning rate."""
        named = inspect.signature(self.factory).parameters.values()
        return frozenset(p.name for p in named if p.kind is not p.VAR_KEYWORD) - {"self", "params", "lr"}


_OPTIMIZERS: dict[str, OptimizerSpec] = {
    "adafactor": OptimizerSpec(torch.optim.Adafactor, lr=1e-2),
    "adagrad": OptimizerSpec(torch.optim.Adagrad, lr=1e-2),
    "adam": OptimizerSpec(torch.optim.Adam, lr=1e-3),
    "adam8bit": OptimizerSpec(Adam8bit, lr=1e-3),
    "adahessian": OptimizerSpec(AdaHessian, lr=0.15),
    "adam-uniform": OptimizerSpec(AdamUniform, lr=1e-2),
    "adamax": OptimizerSpec(torch.optim.Adamax, lr=2e-3),
    "adamw": OptimizerSpec(torch.optim.AdamW, lr=1e-3),
    "adamw8bit": OptimizerSpec(AdamW8bit, lr=1e-3),
    "dct-adamw": OptimizerSpec(DCTAdamW, lr=1e-3),
    "exadam": OptimizerSpec(EXAdam, lr=3e-4),  # its first steps are up to 16 rates long
    "lbfgs": OptimizerSpec(torch.optim.LBFGS, lr=1.0, options={"line_search_fn": "strong_wolfe"}),
    "lion": OptimizerSpec(Lion, lr=3e-4),
    "lion8bit": OptimizerSpec(Lion8bit, lr=3e-4),
    "nadam": OptimizerSpec(torch.optim.NAdam, lr=2e-3),
    "newton": OptimizerSpec(Newton, lr=1.0),
    "radam": OptimizerSpec(torch.optim.RAdam, lr=1e-3),
    "rmsprop": OptimizerSpec(torch.optim.RMSprop, lr=1e-2),
    "rprop": OptimizerSpec(torch.optim.Rprop, lr=1e-2),
    "sgd": OptimizerSpec(torch.optim.SGD, lr=1e-2, options={"momentum": 0.9}),
    "sgd8bit": OptimizerSpec(SGD8bit, lr=1e-2),
    "sophia-g": OptimizerSpec(SophiaG, lr=1e-3),
    "sophia-h": OptimizerSpec(SophiaH, lr=1e-3),
}

_GROUP_KEYS = frozenset({"params", "lr", "name", "param_names", "initial_lr"})


def optimizer_names() -> tuple[str, ...]:
    """The names that :func:`make_optimizer` knows, sorted.

    Examples:
        >>> "adamw" in optimizer_names()
        True
    """
    return tuple(sorted(_OPTIMIZERS))


def optimizer_spec(name: str) -> OptimizerSpec:
    """The entry of one optimizer.

    Raises:
        InputError: no optimizer has this name; a near miss is named.
    """
    check_choice("optimizer", name, _OPTIMIZERS)
    return _OPTIMIZERS[name]


def make_optimizer(
    name: str,
    params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
    *,
    lr: float | None = None,
    **options: Any,
) -> Optimizer:
    """Make an optimizer by name.

    Args:
        name: one of :func:`optimizer_names`.
        params: tensors, or parameter groups, each a mapping with ``"params"`` and settings of its own.
        lr: learning rate of the groups that bring none; the registry's default where None.
        **options: settings of that optimizer, such as ``betas`` or ``weight_decay``.

    Returns:
        The optimizer over these parameters.

    Raises:
        InputError: unknown name, unknown option, or a value the optimizer refuses.

    Examples:
        >>> x = torch.zeros(3, requires_grad=True)
        >>> make_optimizer("sgd", [x]).param_groups[0]["momentum"]
        0.9
    """
    spec = optimizer_spec(name)
    known = spec.option_names()
    for option in options:
        check_choice("optimizer_options", option, known)
    if lr is not None:
        check_positive("lr", lr, allow_zero=True)
    groups = list(params)
    for group in groups:
        for option in group.keys() - _GROUP_KEYS if isinstance(group, Mapping) else ():
            check_choice("params", option, known)
    # torch writes defaults into the groups it is given; the caller's mappings stay as they are
    groups = [dict(group) if isinstance(group, Mapping) else group for group in groups]
    try:
        return spec.factory(groups, lr=spec.lr if lr is None else lr, **{**spec.options, **options})
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError("optimizer_options", f"settings that {name} accepts", f"an error: {error}") from error


def as_optimizer(
    optimizer: str | Optimizer,
    params: Parameters | None,
    *,
    lr: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Optimizer:
    """The optimizer that was meant: made by name over checked parameters, or the instance that came.

    Args:
        optimizer: a name or an instance.
        params: what to fit; with an instance None or its own parameters.
        lr: learning rate, for a name.
        options: further settings, for a name.

    Raises:
        InputError: see :func:`make_optimizer`; or an instance came with settings or other parameters.
    """
    if not isinstance(optimizer, Optimizer):
        if params is None:
            raise InputError("params", "tensors, parameter groups or a module", "None")
        return make_optimizer(optimizer, parameter_groups(params), lr=lr, **(options or {}))
    for argument, value in (("lr", lr), ("optimizer_options", options)):
        if value is not None:
            raise InputError(argument, "None with an optimizer instance, which has its own", repr(value))
    own = [p for group in optimizer.param_groups for p in group["params"]]
    check_parameters(own)
    if params is not None:
        given = [p for group in parameter_groups(params) for p in group["params"]]
        if {id(p) for p in given} != {id(p) for p in own}:
            raise InputError("params", "None or the parameters of the optimizer instance", "others")
    return optimizer
