"""Options that the jobs share, and the checks of them that come before any work."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

__all__ = ["DEFAULTS", "JobOptions", "check_outputs", "parse_resolution", "resolve_device"]


@Parameter(name="*")
@dataclass(frozen=True)
class JobOptions:
    """What every job takes."""

    device: Annotated[str, Parameter(help="auto, cpu, cuda, or a card by number such as cuda:0.")] = "auto"
    seed: Annotated[int, Parameter(help="Of all random numbers; the same seed gives the same result.")] = 0
    optimizer: Annotated[str | None, Parameter(help="By name, such as adamw; without it, what suits the job.")] = None
    report: Annotated[Path | None, Parameter(help="Also write an HTML report to this file.")] = None
    quiet: Annotated[
        bool, Parameter(name=["--quiet", "-q"], negative=(), show_default=False, help="Print nothing but errors.")
    ] = False
    debug: Annotated[bool, Parameter(negative=(), show_default=False, help="Show tracebacks of all errors.")] = False

    def check(self) -> None:
        """Refuse what cannot be met, before any work.

        Raises:
            InputError: unknown optimizer, a device that is not there, a seed or a report file that cannot be.
            MissingExtraError: a report is wanted and plotly is not installed.
        """
        from diffmatch.errors import InputError, check_choice, require
        from diffmatch.optim import optimizer_names

        resolve_device(self.device)
        if not 0 <= self.seed < 2**63:
            raise InputError("seed", "a whole number from 0 to 2^63 - 1", str(self.seed))
        if self.optimizer is not None:
            check_choice("optimizer", self.optimizer, optimizer_names())
        if self.report is not None:
            if self.report.suffix.lower() not in (".html", ".htm"):
                raise InputError("report", "a file that ends in .html", repr(str(self.report)))
            require("plotly", extra="report")


DEFAULTS = JobOptions()


def resolve_device(name: str) -> str:
    """The torch device that is meant, such as ``"cuda:0"``.

    Args:
        name: ``auto`` takes the first card where there is one, else the CPU.

    Raises:
        InputError: unknown, or not there.
    """
    import torch

    from diffmatch.errors import InputError

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if count else "cpu"
    if name == "cpu":
        return "cpu"
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise InputError("device", "auto, cpu, cuda or cuda:NUMBER", repr(name))
    number = int(match[1] or 0)
    if number >= count:
        there = f"cpu or cuda:0 to cuda:{count - 1}" if count else "cpu (no CUDA device is available here)"
        raise InputError("device", there, repr(name))
    return f"cuda:{number}"


def parse_resolution(text: str) -> int | tuple[int, int, int]:
    """Cells a side: one number for all axes, or three with commas.

    Raises:
        InputError: another form, or a number below 1.
    """
    from diffmatch.errors import InputError

    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"\s*[1-9]\d*\s*", part) for part in parts):
        raise InputError("resolution", "a number of cells of at least 1, or three with commas as 64,96,64", repr(text))
    if len(parts) == 1:
        return int(text)
    x, y, z = (int(part) for part in parts)
    return x, y, z


def check_outputs(outputs: dict[str, Path | None], *, inputs: dict[str, str]) -> None:
    """Check that every file can be written, and that none would replace another or an input.

    Args:
        outputs: option name to file; None where nothing is written.
        inputs: argument name to what is read, if it is a file at all.

    Raises:
        InputError: naming the option.
    """
    from diffmatch.errors import InputError
    from diffmatch.io import check_writable

    taken = {Path(source).resolve(): name for name, source in inputs.items() if Path(source).is_file()}
    for name, path in outputs.items():
        if path is None:
            continue
        check_writable(path, argument=name)
        other = taken.setdefault(path.resolve(), name)
        if other != name:
            raise InputError(name, f"another file than that of {other}", str(path))
