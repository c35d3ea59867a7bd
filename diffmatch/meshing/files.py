"""Meshes in files."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffmatch.errors import InputError, require
from diffmatch.io import existing_file, write_bytes_atomic
from diffmatch.meshing.interop import ATTRIBUTE_KEY, from_trimesh, is_colour, to_trimesh
from diffmatch.meshing.mesh import Mesh, check_values
from diffmatch.meshing.ply import ply_bytes, read_ply_vertices

__all__ = ["WRITE_SUFFIXES", "merge_vertices", "read_mesh", "write_mesh"]

WRITE_SUFFIXES = (".obj", ".ply", ".stl", ".glb", ".off")


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
    path = existing_file(path)
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
