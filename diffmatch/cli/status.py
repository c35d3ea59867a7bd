"""One line on the terminal that says what is being done; nothing where there is no terminal."""

import shutil
import sys

__all__ = ["Status"]


class Status:
    """A line that is written over.

    Args:
        wanted: whether to show it at all.
    """

    def __init__(self, wanted: bool) -> None:
        self.shown = wanted and sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        """Replace the line."""
        if self.shown:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave an empty line."""
        self("")
