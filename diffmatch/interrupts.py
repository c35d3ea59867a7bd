"""Ctrl-C and SIGTERM, put off to a moment at which everything is consistent."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Interrupts"]

logger = logging.getLogger(__name__)


class Interrupts:
    """Inside this block SIGINT and SIGTERM only leave a note, until :meth:`raise_pending` is called.

    A second signal raises at once. Handlers that the application installed itself are left alone, and outside the main
    thread, where Python allows no handlers, the block does nothing.

    Examples:
        >>> with Interrupts() as interrupts:
        ...     interrupts.raise_pending()  # raises KeyboardInterrupt if Ctrl-C was pressed before
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) is default or signal.getsignal(number) == default:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if error[0] not in (KeyboardInterrupt, SystemExit):  # another error must not swallow the signal
            self.raise_pending()

    def raise_pending(self) -> None:
        """Raise what a signal since the beginning of the block asked for.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after SIGTERM, with the exit status that shells give for it.
        """
        if self.pending == signal.SIGINT:
            raise KeyboardInterrupt
        if self.pending is not None:
            raise SystemExit(128 + self.pending)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending is not None:
            self.raise_pending()
        self.pending = number
        logger.warning("interrupted: finishing the step that is under way (a second signal stops at once)")
