"""The program `diffmatch` and its sub-commands."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

import diffmatch
from diffmatch.cli.demo import demo
from diffmatch.cli.graph import graph
from diffmatch.cli.match import match
from diffmatch.cli.merge import merge
from diffmatch.cli.mesh import mesh
from diffmatch.cli.outcome import Failure
from diffmatch.cli.topology import topology
from diffmatch.cli.train import train

__all__ = ["app", "main"]

app = App(
    name="diffmatch",
    help="Differentiable geometry and matching: meshes fitted, images and graphs matched, networks merged.",
    version=diffmatch.__version__,
    help_epilogue="Errors in what was asked for end with exit code 2 and one line. DIFFMATCH_DEBUG=1 shows tracebacks.",
)
app.command(mesh)
app.command(match)
app.command(graph)
app.command(merge)
app.command(topology)
app.command(train)
app.command(demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after the program's name; those of this process by default.

    Returns:
        Exit code: 0 done, 1 the work failed, 2 the request cannot be met, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get("DIFFMATCH_DEBUG", "") not in ("", "0")
    try:
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
        command(*bound.args, **bound.kwargs)
        return 0
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        code, message = _outcome(error)
        if debug or not message:
            raise
        print(f"diffmatch: error: {' '.join(message.split())}", file=sys.stderr)
        return code


def _outcome(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an error that is meant for the user; no message for a bug, whose traceback is wanted."""
    notes = getattr(error, "__notes__", [])
    if isinstance(error, KeyboardInterrupt):
        return 130, "; ".join(["interrupted", *notes])
    if isinstance(error, SystemExit):  # what a fit turns SIGTERM into, with a note where it can go on
        return (error.code if isinstance(error.code, int) else 1), "; ".join(["ended", *notes]) if notes else ""
    if isinstance(error, CycloptsError):
        return 2, str(error)
    if isinstance(error, Failure):
        return 1, str(error)
    from diffmatch.errors import InputError, MissingExtraError

    return 2, str(error) if isinstance(error, (InputError, MissingExtraError)) else ""
