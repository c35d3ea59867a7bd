"""Point clouds, and the files that hold them."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_shape
from diffmatch.meshing.ply import read_ply_vertices

__all__ = ["POINT_SUFFIXES", "PointCloud", "holds_points", "read_points"]

POINT_SUFFIXES = (".ply", ".xyz", ".npz", ".npy")
POINT_KEY = "points"
COLOUR_KEYS = ("attributes", "colors", "colours")


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Points on a surface, such as those of a scan.

    Attributes:
        points: positions, shape (n, 3), floating.
        normals: outward, of any length but zero, shape (n, 3); None where they are not known.
        attributes: values at the points, such as colours in [0, 1], shape (n, d), floating.

    Raises:
        InputError: a shape or dtype does not fit.
    """

    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"] | None = None
    attributes: Float[Tensor, "n d"] | None = None

    def __post_init__(self) -> None:
        check_shape("points", self.points, ("n", 3))
        check_floating("points", self.points)
        if self.normals is not None:
            check_shape("normals", self.normals, (len(self.points), 3))
            check_floating("normals", self.normals)
        if self.attributes is not None:
            check_shape("attributes", self.attributes, (len(self.points), "d"))
            check_floating("attributes", self.attributes)


def holds_points(path: Path) -> bool:
    """Whether a file holds points and not a mesh or a volume; damaged files do not."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".ply":
            return read_ply_vertices(path).n_faces == 0
        if suffix == ".npy":
            return bool(np.load(path, mmap_mode="r", allow_pickle=False).ndim == 2)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return POINT_KEY in arrays
    except Exception:  # the reader of the other kind of file says what is wrong
        return False
    return suffix == ".xyz"


def read_points(path: str | os.PathLike[str]) -> PointCloud:
    """Read points, and normals where the file has them.

    Args:
        path: a ``.ply`` file with the properties x, y, z and, optionally, nx, ny, nz and colours; a text file ``.xyz``
            with 3 or 6 numbers a line, separated by spaces or commas, comments after ``#``; an ``.npy`` file of shape
            (n, 3) or (n, 6); or an ``.npz`` file with arrays ``points``, and optionally ``normals`` and ``attributes``
            (or ``colors``).

    Returns:
        A float64 cloud on the CPU.

    Raises:
        InputError: no such file, an unknown suffix, a file that cannot be read, other shapes, or values that are no
            finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("path", "an existing file", f"{'the folder ' if path.is_dir() else ''}{str(path)!r}")
    readers = {".ply": _from_ply, ".xyz": _from_text, ".npy": _from_table_file, ".npz": _from_arrays}
    if path.suffix.lower() not in readers:
        raise InputError("path", f"a file of points ({', '.join(POINT_SUFFIXES)})", f"{path.name!r}")
    parts = readers[path.suffix.lower()](path)
    return PointCloud(*(None if part is None else _tensor(part, name, path) for name, part in parts.items()))  # type: ignore[arg-type]


Parts = dict[str, np.ndarray | None]


def _from_ply(path: Path) -> Parts:
    vertices = read_ply_vertices(path)
    points = vertices.stacked(("x", "y", "z"))
    if points is None:
        raise InputError("path", "a .ply file with the properties x, y and z", f"{str(path)!r} without")
    extra = vertices.colours() if "red" in vertices.columns else vertices.attributes()
    return {"points": points, "normals": vertices.stacked(("nx", "ny", "nz")), "attributes": extra}


def _from_text(path: Path) -> Parts:
    try:
        with path.open(encoding="utf-8") as file:
            table = np.loadtxt((line.replace(",", " ") for line in file), ndmin=2)
    except ValueError as error:
        raise InputError("path", "3 or 6 numbers a line", f"{str(path)!r} ({error})") from None
    return _columns(table, path)


def _from_table_file(path: Path) -> Parts:
    try:
        return _columns(np.load(path, allow_pickle=False), path)
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("path", "a readable .npy file of numbers", f"{str(path)!r} ({error})") from None


def _from_arrays(path: Path) -> Parts:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file.items())
    except Exception as error:  # numpy, zipfile and zlib each have their own for a damaged file
        reason = f"{type(error).__name__}: {error}"
        raise InputError("path", "a readable .npz file of numbers", f"{str(path)!r} ({reason})") from None
    if POINT_KEY not in arrays:
        raise InputError("path", f"an array named {POINT_KEY}", f"{', '.join(arrays) or 'none'} in {str(path)!r}")
    extra = next((arrays[key] for key in COLOUR_KEYS if key in arrays), None)
    if extra is not None and extra.dtype == np.uint8:
        extra = extra / 255
    return {"points": arrays[POINT_KEY], "normals": arrays.get("normals"), "attributes": extra}


def _columns(table: np.ndarray, path: Path) -> Parts:
    if table.ndim != 2 or table.shape[1] not in (3, 6):
        wanted = "points of shape (n, 3), or with normals (n, 6)"
        raise InputError("path", wanted, f"shape {table.shape} in {str(path)!r}")
    normals = table[:, 3:] if table.shape[1] == 6 else None
    return {"points": table[:, :3], "normals": normals, "attributes": None}


def _tensor(values: np.ndarray, name: str, path: Path) -> Tensor:
    if values.dtype.kind not in "fiu":
        raise InputError("path", f"{name} that are real numbers", f"dtype {values.dtype} in {str(path)!r}")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise InputError("path", f"finite {name}", f"{bad} of {values.size} NaN or infinite in {str(path)!r}")
    return torch.from_numpy(np.array(values, dtype=np.float64))
