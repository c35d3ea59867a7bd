"""The errors that users meet, and the checks that raise them.

Every message states three facts: which argument, what was wanted, what came.
"""

import difflib
import importlib
import math
from collections.abc import Iterable
from types import ModuleType

import torch
from torch import Tensor

__all__ = [
    "InputError",
    "MissingExtraError",
    "check_choice",
    "check_finite",
    "check_floating",
    "check_positive",
    "check_same_device",
    "check_shape",
    "require",
]


class InputError(ValueError):
    """An argument is not what the function can work with.

    Args:
        argument: name of the argument as the caller knows it.
        wanted: what would have been accepted.
        got: what came instead.
    """

    def __init__(self, argument: str, wanted: str, got: str) -> None:
        super().__init__(f"{argument}: want {wanted}, got {got}")
        self.argument, self.wanted, self.got = argument, wanted, got

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        return type(self), (self.argument, self.wanted, self.got)


class MissingExtraError(ImportError):
    """An optional package is needed for this call; the message says which extra brings it."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package where it is used.

    Args:
        module: dotted module name, such as ``"trimesh"``.
        extra: the extra of this distribution that installs it, such as ``"mesh"``.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise MissingExtraError(f'{module} is needed here: pip install "diffmatch-torch[{extra}]"') from error


def check_shape(argument: str, tensor: Tensor, shape: tuple[int | str | None, ...], *, batch: bool = False) -> None:
    """Check the (trailing) shape of a tensor.

    Args:
        argument: name for the message.
        tensor: what to check.
        shape: one entry an axis: an int must match; a string or None matches any size.
        batch: allow any number of leading axes before ``shape``.

    Raises:
        InputError: the shape does not match.
    """
    if not isinstance(tensor, Tensor):
        raise InputError(argument, "a tensor", type(tensor).__name__)
    tail = tuple(tensor.shape)
    if batch and len(tail) >= len(shape):
        tail = tail[len(tail) - len(shape) :]
    fits = len(tail) == len(shape) and all(
        not isinstance(want, int) or want == size for want, size in zip(shape, tail, strict=True)
    )
    if not fits:
        wanted = ", ".join((["*b"] if batch else []) + [str(s) if s is not None else "any" for s in shape])
        raise InputError(argument, f"shape ({wanted})", str(tuple(tensor.shape)))


def check_floating(argument: str, tensor: Tensor) -> None:
    """Check that a tensor is real floating point.

    Raises:
        InputError: it is integer, boolean or complex.
    """
    if not tensor.is_floating_point():
        raise InputError(argument, "a real floating-point dtype", str(tensor.dtype))


def check_finite(argument: str, tensor: Tensor) -> None:
    """Check that no entry is NaN or infinite; reads the values, so it waits for the device.

    Raises:
        InputError: with the number of bad entries.
    """
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise InputError(argument, "finite values", f"{bad} of {tensor.numel()} entries NaN or infinite")


def check_same_device(argument: str, tensor: Tensor, device: torch.device) -> None:
    """Check that a tensor lies on the expected device.

    Raises:
        InputError: it lies elsewhere.
    """
    if tensor.device != device:
        raise InputError(argument, f"device {device}", str(tensor.device))


def check_positive(argument: str, value: float | int, *, allow_zero: bool = False) -> None:
    """Check that a number is finite and positive (or zero where that is allowed).

    Raises:
        InputError: it is not.
    """
    ok = isinstance(value, (int, float)) and math.isfinite(value) and (value >= 0 if allow_zero else value > 0)
    if not ok:
        raise InputError(argument, "a number >= 0" if allow_zero else "a number > 0", repr(value))


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Check that a name is one of the known ones; a near miss is named in the message.

    Raises:
        InputError: it is not.
    """
    known = sorted(choices)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(argument, f"one of {', '.join(known)}", f"{value!r}{hint}")
