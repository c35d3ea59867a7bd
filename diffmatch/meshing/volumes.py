"""Scalar fields sampled on regular grids, and their files."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_shape, require
from diffmatch.io import existing_file

__all__ = ["VOLUME_SUFFIXES", "Volume", "holds_volume", "read_volume"]

VOLUME_SUFFIXES = (".npy", ".npz", ".nii", ".nii.gz")
VALUE_KEYS = ("sdf", "values")
_SKEW = 1e-3
"""Largest cosine between two axes of a grid that count as perpendicular; headers hold them in single precision."""

Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Volume:
    """Samples of a scalar field at the nodes of a regular grid, negative inside.

    Attributes:
        values: shape (nx, ny, nz), floating, each axis at least 2 long; node (i, j, k) lies at
            ``origin + i spacing[0] axes[0] + j spacing[1] axes[1] + k spacing[2] axes[2]``.
        spacing: distance of neighbouring nodes along each axis, positive.
        origin: position of node (0, 0, 0).
        axes: unit vectors along i, j and k, perpendicular to each other, of either handedness.

    Raises:
        InputError: a wrong rank, dtype or axis length, or a spacing, an origin or axes that cannot be.
    """

    values: Float[Tensor, "nx ny nz"]
    spacing: Triple = (1.0, 1.0, 1.0)
    origin: Triple = (0.0, 0.0, 0.0)
    axes: tuple[Triple, Triple, Triple] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

    def __post_init__(self) -> None:
        check_shape("values", self.values, ("nx", "ny", "nz"))
        check_floating("values", self.values)
        if min(self.values.shape) < 2:
            raise InputError("values", "at least 2 nodes along each axis", f"shape {tuple(self.values.shape)}")
        if len(self.spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in self.spacing):
            raise InputError("spacing", "three positive numbers", str(self.spacing))
        if len(self.origin) != 3 or not all(math.isfinite(start) for start in self.origin):
            raise InputError("origin", "three finite numbers", str(self.origin))
        axes = np.asarray(self.axes, dtype=np.float64)
        if axes.shape != (3, 3) or not np.abs(axes @ axes.T - np.eye(3)).max() < _SKEW:
            raise InputError("axes", "three unit vectors, perpendicular to each other", str(self.axes))


def holds_volume(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a volume by its name."""
    return Path(path).name.lower().endswith(VOLUME_SUFFIXES)


def read_volume(path: str | os.PathLike[str], *, level: float | None = None) -> Volume:
    """Read a scalar field on a regular grid from numpy's formats or from NIfTI, the one of medical scans.

    Args:
        path: an ``.npy`` file with an array of shape (nx, ny, nz); an ``.npz`` file with such an array under the key
            ``sdf`` or ``values`` or as its only 3-D array, and optionally ``spacing`` (one number, or one an axis),
            ``origin`` and ``axes`` (3, 3), see :class:`Volume`; or ``.nii`` or ``.nii.gz`` with one image, whose
            positions are in the scanner's millimetres.
        level: of a scan whose values are larger inside, as intensities are: the surface is where the value is the
            level. Without it the values are taken as they are, negative inside.

    Returns:
        The volume in its floating dtype; integers become float64, float16 becomes float32.

    Raises:
        InputError: no such file, an unknown suffix, a file that cannot be read, no 3-D array, a dtype that is not a
            real number, an axis shorter than 2, values that are not finite, or axes that are not perpendicular.
        MissingExtraError: a NIfTI file, and nibabel is not installed.
    """
    path = existing_file(path)
    if not holds_volume(path):
        raise InputError("path", f"a volume file ({', '.join(VOLUME_SUFFIXES)})", f"{path.name!r}")
    if level is not None and not math.isfinite(level):
        raise InputError("level", "a finite number", str(level))
    values, place = _nifti(path) if ".nii" in path.name.lower() else _arrays(path)
    if values.ndim != 3:
        raise InputError("path", "an array of shape (nx, ny, nz)", f"shape {values.shape} in {str(path)!r}")
    if values.dtype.kind not in "fiu":
        raise InputError("path", "an array of real numbers", f"dtype {values.dtype} in {str(path)!r}")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise InputError("path", "finite values", f"{bad} of {values.size} NaN or infinite in {str(path)!r}")
    dtype = {"float16": np.float32, "float32": np.float32}.get(values.dtype.name, np.float64)
    field = torch.from_numpy(np.array(values, dtype=dtype))
    return Volume(field if level is None else level - field, **place)


def _arrays(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Values and place of numpy's formats."""
    arrays = _load_arrays(path)
    place: dict[str, Any] = {
        "spacing": _triple("spacing", arrays.get("spacing", 1.0)),
        "origin": _triple("origin", arrays.get("origin", 0.0)),
    }
    if "axes" in arrays:
        axes = arrays["axes"]
        if axes.dtype.kind not in "fiu" or axes.shape != (3, 3):
            raise InputError("axes", "numbers of shape (3, 3)", f"{axes.dtype} of shape {axes.shape}")
        place["axes"] = tuple(tuple(row) for row in axes.astype(np.float64).tolist())
    return _volume_values(arrays, path), place


def _nifti(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Values and place of a NIfTI image, by its affine map from indices to millimetres."""
    nibabel = require("nibabel", extra="scans")
    try:
        image = nibabel.load(path)
        values, affine = np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)
    except Exception as error:  # nibabel, gzip and zlib each have their own for a damaged file
        reason = f"{type(error).__name__}: {error}"
        raise InputError("path", "a readable NIfTI file", f"{str(path)!r} ({reason})") from None
    if values.ndim > 3 and values.shape[3:] == (1,) * (values.ndim - 3):
        values = values.reshape(values.shape[:3])
    columns = affine[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    if not (np.isfinite(affine).all() and (spacing > 0).all()):
        raise InputError("path", "an affine map that is finite and can be inverted", f"{affine.tolist()}")
    axes = (columns / spacing).T
    if np.abs(axes @ axes.T - np.eye(3)).max() < _SKEW:
        u, _, v = np.linalg.svd(axes)  # the nearest axes that are perpendicular to the last bit
        axes = u @ v
    return values, {
        "spacing": tuple(spacing.tolist()),
        "origin": tuple(affine[:3, 3].tolist()),
        "axes": tuple(tuple(row) for row in axes.tolist()),
    }


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name; that of an npy file under the first of the known names."""
    try:
        with path.open("rb") as file:  # numpy leaves it open when it stumbles
            loaded: Any = np.load(file, allow_pickle=False)
            return {VALUE_KEYS[0]: loaded} if isinstance(loaded, np.ndarray) else dict(loaded.items())
    except Exception as error:  # numpy, zipfile and zlib each have their own for a damaged file
        reason = f"{type(error).__name__}: {error}"
        raise InputError("path", f"a readable {path.suffix} file of numbers", f"{str(path)!r} ({reason})") from None


def _volume_values(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    for key in VALUE_KEYS:
        if key in arrays:
            return arrays[key]
    solid = [name for name, array in arrays.items() if array.ndim == 3]
    if len(solid) != 1:
        wanted = f"an array named {' or '.join(VALUE_KEYS)}, or a single 3-D array"
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "no arrays"
        raise InputError("path", wanted, f"{shapes} in {str(path)!r}")
    return arrays[solid[0]]


def _triple(argument: str, value: Any) -> Triple:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.shape not in ((), (1,), (3,)):
        raise InputError(argument, "one number or three", f"{array.dtype} of shape {array.shape}")
    x, y, z = np.broadcast_to(array.astype(np.float64), 3).tolist()
    return x, y, z
