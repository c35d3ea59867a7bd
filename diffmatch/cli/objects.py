"""Functions of the user's own that a command names as ``module:function``."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["call_named", "named_object"]


def named_object(argument: str, text: str) -> Any:
    """What a module that can be imported from the current folder calls so.

    Args:
        argument: the option, for messages.
        text: ``module:name``; dots in the name go on into attributes.

    Raises:
        InputError: another form, or the module or the name is missing or cannot be imported.
    """
    from diffmatch.errors import InputError

    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise InputError(argument, "module:function", repr(text))
    try:
        with _current_folder_importable():
            found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # user code may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise InputError(argument, "a module that can be imported", f"{module_name!r} ({reason})") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(argument, f"a name in module {module_name!r}", repr(name))
        found = getattr(found, part)
    return found


def call_named(argument: str, text: str) -> Any:
    """What such a function returns when it is called without arguments.

    Raises:
        InputError: it cannot be found or called, or raises.
    """
    from diffmatch.errors import InputError

    function = named_object(argument, text)
    if not callable(function):
        raise InputError(argument, "a function without arguments", f"{text!r} ({type(function).__name__})")
    try:
        with _current_folder_importable():
            return function()
    except Exception as error:
        raise InputError(
            argument, "a function that can be called without arguments", f"{text!r} ({type(error).__name__}: {error})"
        ) from error


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the module may have been written a moment ago
    try:
        yield
    finally:
        sys.path.remove(folder)
