"""Functions of the user's own that a command calls by name."""

from typing import Any

__all__ = ["call_named"]


def call_named(argument: str, text: str) -> Any:
    """What such a function returns when it is called without arguments.

    Raises:
        InputError: it cannot be found or called, or raises.
    """
    from diffmatch.errors import InputError
    from diffmatch.named import current_folder_importable, named_object

    function = named_object(text, argument=argument)
    if not callable(function):
        raise InputError(argument, "a function without arguments", f"{text!r} ({type(function).__name__})")
    try:
        with current_folder_importable():
            return function()
    except Exception as error:
        raise InputError(
            argument, "a function that can be called without arguments", f"{text!r} ({type(error).__name__}: {error})"
        ) from error
