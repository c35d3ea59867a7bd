"""How a command ends when it does not end well, and what it leaves beside its output."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Failure", "resumable", "write_json"]


class Failure(RuntimeError):
    """The work was done as asked and failed, such as a fit that diverged; exit code 1, without a traceback."""


@contextlib.contextmanager
def resumable(checkpoint: Path | None) -> Iterator[None]:
    """Tell an interruption how to go on: a note on the exception, where there is a checkpoint."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if checkpoint is not None and checkpoint.exists():
            error.add_note(f"the same command goes on from {checkpoint}")
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write measurements as JSON; what JSON has no number for (NaN, infinities) becomes null.

    Raises:
        InputError: the place cannot be written.
    """
    from diffmatch.io import write_bytes_atomic

    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(path, f"{text}\n".encode(), argument="metrics")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
