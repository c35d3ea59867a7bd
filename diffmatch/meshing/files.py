"""Meshes and volumes in files."""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_shape, require
from diffmatch.io import write_bytes_atomic
from diffmatch.meshing.interop import ATTRIBUTE_KEY, from_trimesh, is_colour, to_trimesh
from diffmatch.meshing.mesh import Mesh, check_values
from diffmatch.meshing.ply import ply_bytes, read_ply_vertices

__all__ = ["VOLUME_SUFFIXES", "WRITE_SUFFIXES", "Volume", "merge_vertices", "read_mesh", "read_volume", "write_mesh"]

WRITE_SUFFIXES = (".obj", ".ply", ".stl", ".glb", ".off")
VOLUME_SUFFIXES = (".npy", ".npz")
VALUE_KEYS = ("sdf", "values")


@dataclass(frozen=True, eq=False)
class Volume:
    """Samples of a scalar field at the nodes of a regular grid, negative inside.

    Attributes:
        values: shape (nx, ny, nz), floating, each axis at least 2 long; node (i, j, k) lies at
            ``origin + (i, j, k) * spacing``.
        spacing: distance of neighbouring nodes along each axis, positive.
        origin: position of node (0, 0, 0).

    Raises:
        InputError: a wrong rank, dtype or axis length, or a spacing or origin that is no such triple.
    """

    values: Float[Tensor, "nx ny nz"]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        check_shape("values", self.values, ("nx", "ny", "nz"))
        check_floating("values", self.values)
        if min(self.values.shape) < 2:
            raise InputError("values", "at least 2 nodes along each axis", f"shape {tuple(self.values.shape)}")
        if len(self.spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in self.spacing):
            raise InputError("spacing", "three positive numbers", str(self.spacing))
        if len(self.origin) != 3 or not all(math.isfinite(start) for start in self.origin):
            raise InputError("origin", "three finite numbers", str(self.origin))


def read_mesh(path: str | os.PathLike[str]) -> Mesh:
    """Read a mesh from any format that trimesh reads; needs the extra ``mesh``.

    Scenes are concatenated with their transforms applied. Vertices at the same position are merged, since formats
    split them along texture seams (or, as STL, everywhere); see `merge_vertices`.

    Returns:
        A float64 mesh on the CPU, with vertex colours in [0, 1] where the file has them, or the attributes that
        `write_mesh` put there.

    Raises:
        InputError: no such file, an unknown suffix, a file that cannot be read, no faces, vertices that are not finite
            or face indices out of range.
    """
    trimesh = require("trimesh", extra="mesh")
    path = _existing(path)
    known = sorted(f".{name}" for name in trimesh.exchange.load.mesh_formats())
    if path.suffix.lower() not in known:
        raise InputError("path", f"a mesh file ({', '.join(known)})", f"{path.name!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a loader has to say about a file ends in the checks below
            loaded = from_trimesh(trimesh.load(str(path), process=False))
    except InputError as error:
        raise InputError("path", "a file with a triangle mesh", f"{str(path)!r} ({error.got})") from None
    except Exception as error:  # loaders raise whatever a damaged file makes them stumble over
        reason = f"{type(error).__name__}: {error}"
        raise InputError("path", f"a readable {path.suffix} file", f"{str(path)!r} ({reason})") from None
    _check_mesh("path", loaded, f" in {str(path)!r}")
    if path.suffix.lower() == ".ply" and loaded.vertex_attributes is None:
        loaded = _with_ply_attributes(loaded, path)
    merged = merge_vertices(loaded)
    if len(merged.faces) == 0:
        raise InputError("path", "a mesh with faces", f"only collapsed faces in {str(path)!r}")
    return merged


def write_mesh(path: str | os.PathLike[str], mesh: Mesh) -> None:
    """Write a mesh as obj, ply, stl, glb or off; an existing file is replaced at once or not at all.

    obj and off hold the coordinates to the last bit of their dtype, the others hold float32. Vertex attributes are
    kept as colours in obj, ply and glb where they can be read as such (3 or 4 columns within [0, 1]); others are
    written to ply and glb, a property a column. stl and glb need the extra ``mesh``.

    Raises:
        InputError: an unknown suffix, a place that cannot be written, or a mesh without faces, with vertices that are
            not finite or with face indices out of range.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITE_SUFFIXES:
        raise InputError("path", f"a suffix of {', '.join(WRITE_SUFFIXES)}", f"{path.name!r}")
    _check_mesh("mesh", mesh)
    mesh = mesh.detach().to("cpu")
    if suffix == ".obj":
        content = _obj_text(mesh).encode()
    elif suffix == ".off":
        content = _off_text(mesh).encode()
    elif suffix == ".ply":
        content = ply_bytes(mesh)
    else:
        content = _exportable(mesh).export(file_type=suffix[1:])
    try:
        write_bytes_atomic(path, content, argument="path")
    except OSError as error:
        raise InputError("path", "a place that can be written", f"{str(path)!r} ({error.strerror})") from None


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a scalar field on a regular grid from numpy's formats.

    Args:
        path: an ``.npy`` file with an array of shape (nx, ny, nz); or an ``.npz`` file with such an array under the key
            ``sdf`` or ``values`` or as its only 3-D array, and optionally ``spacing`` (one number, or one an axis) and
            ``origin``, which default to 1 and 0.

    Returns:
        The volume in its floating dtype; integers become float64, float16 becomes float32.

    Raises:
        InputError: no such file, an unknown suffix, a file that cannot be read, no 3-D array, a dtype that is not a
            real number, an axis shorter than 2, or values that are not finite.
    """
    path = _existing(path)
    if path.suffix.lower() not in VOLUME_SUFFIXES:
        raise InputError("path", f"a volume file ({', '.join(VOLUME_SUFFIXES)})", f"{path.name!r}")
    arrays = _load_arrays(path)
    values = _volume_values(arrays, path)
    if values.ndim != 3:
        raise InputError("path", "an array of shape (nx, ny, nz)", f"shape {values.shape} in {str(path)!r}")
    if values.dtype.kind not in "fiu":
        raise InputError("path", "an array of real numbers", f"dtype {values.dtype} in {str(path)!r}")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise InputError("path", "finite values", f"{bad} of {values.size} NaN or infinite in {str(path)!r}")
    dtype = {"float16": np.float32, "float32": np.float32}.get(values.dtype.name, np.float64)
    return Volume(
        torch.from_numpy(np.array(values, dtype=dtype)),
        spacing=_triple("spacing", arrays.get("spacing", 1.0)),
        origin=_triple("origin", arrays.get("origin", 0.0)),
    )


def merge_vertices(mesh: Mesh, *, tolerance: float = 1e-8) -> Mesh:
    """Merge vertices at the same position; needs values on the CPU.

    Faces that collapse and vertices that no face uses are dropped; of merged vertices the first keeps its place and
    its attributes.

    Args:
        mesh: finite vertices, valid faces.
        tolerance: size, relative to the longest side of the mesh, of the cells in which positions count as the same.
            The default is below the spacing of float32, so it only joins what was meant to be one.
    """
    vertices, faces = mesh.vertices.detach().double().cpu().numpy(), mesh.faces.cpu().numpy()
    used = np.zeros(len(vertices), dtype=bool)
    used[faces] = True
    old = np.flatnonzero(used)
    if len(old) == 0:
        return mesh
    low = vertices[old].min(0)
    cell = float(np.ptp(vertices[old], axis=0).max()) * tolerance
    cells = np.rint((vertices[old] - low) / (cell if cell > 0 else 1.0)).astype(np.int64)
    order = np.lexsort(cells.T)  # stable: within a group the first vertex stays first
    starts = np.r_[True, (np.diff(cells[order], axis=0) != 0).any(1)]
    first = np.empty(len(old), dtype=np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    kept = np.flatnonzero(first == np.arange(len(old)))
    renumbered = np.full(len(vertices), -1)
    renumbered[old] = np.searchsorted(kept, first)
    faces = renumbered[faces]
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    index = torch.from_numpy(old[kept]).to(mesh.vertices.device)
    return Mesh(
        mesh.vertices[index],
        torch.from_numpy(faces[whole]).to(mesh.faces.device),
        vertex_attributes=None if mesh.vertex_attributes is None else mesh.vertex_attributes[index],
    )


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError("path", "an existing file", f"{'the folder ' if path.is_dir() else ''}{str(path)!r}")
    return path


def _check_mesh(argument: str, mesh: Mesh, where: str = "") -> None:
    if len(mesh.faces) == 0:
        raise InputError(argument, "a mesh with faces", f"none{where}")
    check_values(argument, mesh, where=where)


def _exportable(mesh: Mesh) -> Any:
    """A trimesh for the writers of glb, which take attributes of one column in float32, and of stl."""
    values = mesh.vertex_attributes
    if values is None or is_colour(values.numpy()):
        return to_trimesh(mesh)
    result = to_trimesh(Mesh(mesh.vertices, mesh.faces))
    for i, column in enumerate(values.unbind(1)):
        result.vertex_attributes[f"_{ATTRIBUTE_KEY}_{i}"] = column.float().numpy()
    return result


def _with_ply_attributes(mesh: Mesh, path: Path) -> Mesh:
    """A mesh with the attributes of its PLY file that are no colours."""
    values = read_ply_vertices(path).attributes()
    if values is None or len(values) != len(mesh.vertices):  # trimesh splits vertices along seams of textures
        return mesh
    return Mesh(mesh.vertices, mesh.faces, vertex_attributes=torch.from_numpy(values))


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


def _triple(argument: str, value: Any) -> tuple[float, float, float]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.shape not in ((), (1,), (3,)):
        raise InputError(argument, "one number or three", f"{array.dtype} of shape {array.shape}")
    x, y, z = np.broadcast_to(array.astype(np.float64), 3).tolist()
    return x, y, z


def _obj_text(mesh: Mesh) -> str:
    values = mesh.vertex_attributes
    rows = mesh.vertices
    if values is not None and is_colour(values.numpy()):
        rows = torch.cat([rows, values[:, :3].to(rows.dtype)], dim=1)
    return _rows("v", rows) + _rows("f", mesh.faces + 1)


def _off_text(mesh: Mesh) -> str:
    faces = torch.cat([torch.full_like(mesh.faces[:, :1], 3), mesh.faces], dim=1)
    return f"OFF\n{len(mesh.vertices)} {len(mesh.faces)} 0\n" + _rows("", mesh.vertices) + _rows("", faces)


def _rows(prefix: str, table: Tensor) -> str:
    """One line a row; floats by ``repr``, which gives the shortest text that reads back to the same float64."""
    lines: Sequence[list[float]] = table.tolist()
    lead = f"{prefix} " if prefix else ""
    return "".join(f"{lead}{' '.join(map(repr, line))}\n" for line in lines)
