"""Objects of the user's own that are named as ``module:name``."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from diffmatch.errors import InputError

__all__ = ["current_folder_importable", "named_object"]


def named_object(text: str, *, argument: str) -> Any:
    """What a module that can be imported from the current folder calls so.

    Args:
        text: ``module:name``; dots in the name go on into attributes.
        argument: name for error messages.

    Raises:
        InputError: another form, or the module or the name is missing or cannot be imported.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise InputError(argument, "module:function", repr(text))
    try:
        with current_folder_importable():
            found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # user code may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise InputError(argument, "a module that can be imported", f"{module_name!r} ({reason})") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(argument, f"a name in module {module_name!r}", repr(name))
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def current_folder_importable() -> Iterator[None]:
    """Let modules of the current folder be imported, as they are when Python runs a script in it."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the module may have been written a moment ago
    try:
        yield
    finally:
        sys.path.remove(folder)
