"""Input files that exist, and output files that are whole: the old one or the new one, never half of either."""

import contextlib
import glob
import itertools
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from diffmatch.errors import InputError

__all__ = ["atomic_write", "check_writable", "existing_file", "write_bytes_atomic"]

_PREFIX = ".diffmatch"
_STALE_SECONDS = 24 * 3600.0
_counter = itertools.count()
_open_here: set[Path] = set()


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, argument: str = "output") -> Iterator[Path]:
    """Write a file under a temporary name and rename it when it is complete.

    The temporary file lies in the same folder, is named for this process, and ends in the full name of the target, so
    that writers that look at the suffix do the right thing. On leaving the block it is flushed to the disk and renamed
    over the target; if the block raises, it is removed and the old file stays. What a killed run left behind for the
    same target is removed on the way in. A symbolic link keeps pointing where it points: its target is written.

    Args:
        path: the file to write. An existing file's permissions are kept; a new file gets the usual ones.
        argument: name for error messages, as the user knows it.

    Yields:
        The temporary path, to be created by the block.

    Raises:
        InputError: the folder is missing or not writable, or ``path`` is a folder, a device or write-protected.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "out.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     (Path(folder) / "out.txt").read_text()
        'whole'
    """
    target = _writable_target(path, argument)
    _remove_leftovers(target)
    temporary = _temporary_name(target)
    _open_here.add(temporary)
    try:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        _flush(temporary)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)  # still there only when something above raised
        _open_here.discard(temporary)


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes, *, argument: str = "output") -> None:
    """Write bytes to a file, whole or not at all; see :func:`atomic_write`."""
    with atomic_write(path, argument=argument) as temporary:
        temporary.write_bytes(data)


def existing_file(path: str | os.PathLike[str], *, argument: str = "path") -> Path:
    """A path, if a file is there.

    Raises:
        InputError: nothing is there, or a folder.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(argument, "an existing file", f"{'the folder ' if path.is_dir() else ''}{str(path)!r}")
    return path


def check_writable(path: str | os.PathLike[str], *, argument: str = "output") -> None:
    """Refuse an output path now rather than after hours of work.

    Creates and removes a temporary file beside the target, which also finds read-only file systems and quotas.

    Args:
        path: the file that is to be written later; it is not touched.
        argument: name for the error message.

    Raises:
        InputError: the file could not be written.
    """
    target = _writable_target(path, argument)
    _remove_leftovers(target)
    probe = _temporary_name(target)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise InputError(argument, "a writable folder", f"{target.parent} ({error.strerror})") from error


def _writable_target(path: str | os.PathLike[str], argument: str) -> Path:
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(argument, "the name of a file", f"the folder {os.fspath(path)!r}")
    if not target.parent.is_dir():
        raise InputError(argument, "a writable folder", f"{target.parent}, which does not exist")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(argument, "a writable folder", f"{target.parent} without permission to write")
    if target.exists() and not (target.is_file() and os.access(target, os.W_OK)):
        raise InputError(argument, "an ordinary file that may be overwritten", str(target))
    return target


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _temporary_name(target: Path) -> Path:
    return target.with_name(f"{_PREFIX}-{_host()}-{os.getpid()}-{next(_counter)}.{target.name}")


def _remove_leftovers(target: Path) -> None:
    """Remove temporary files of dead processes for this target (on other hosts: those a day old)."""
    for leftover in target.parent.glob(f"{_PREFIX}-*.{glob.escape(target.name)}"):
        parts = leftover.name.removesuffix(f".{target.name}").split("-")
        if leftover not in _open_here and len(parts) == 4 and _is_dead(leftover, host=parts[1], process=parts[2]):
            with contextlib.suppress(OSError):  # another process may have been faster
                leftover.unlink()


def _is_dead(leftover: Path, *, host: str, process: str) -> bool:
    if host == _host() and os.name == "posix" and process.isdecimal():  # elsewhere, kill(pid, 0) would really kill
        if int(process) == os.getpid():  # an earlier process with our number, since it is not open here
            return True
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False
    try:
        return time.time() - leftover.stat().st_mtime > _STALE_SECONDS
    except OSError:
        return False


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where folders can be flushed."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems refuse
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
