"""The vertices of PLY files (Turk 1994), read with all their properties; triangle meshes written with attributes."""

import io
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from diffmatch.errors import InputError
from diffmatch.meshing.interop import is_colour
from diffmatch.meshing.mesh import Mesh

__all__ = ["ATTRIBUTE", "PlyVertices", "ply_bytes", "read_ply_vertices"]

ATTRIBUTE = "attribute_"  # and a number: the properties that hold vertex attributes which are no colours
COLOUR = ("red", "green", "blue", "alpha")
TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
LONGEST_HEADER = 1 << 20


class PlyVertices(NamedTuple):
    """The vertex element of a PLY file.

    Attributes:
        columns: its scalar properties by name, each of shape (v,), in the file's own types.
        n_faces: number of faces that the file declares.
    """

    columns: dict[str, np.ndarray]
    n_faces: int

    def stacked(self, names: tuple[str, ...]) -> np.ndarray | None:
        """Columns side by side as float64, shape (v, len(names)); None if one is missing."""
        if not names or not all(name in self.columns for name in names):
            return None
        return np.stack([self.columns[name].astype(np.float64) for name in names], axis=1)

    def colours(self) -> np.ndarray | None:
        """Colours in [0, 1], shape (v, 3 or 4), where the file has them; integers are scaled by their largest value."""
        names = COLOUR if COLOUR[3] in self.columns else COLOUR[:3]
        found = self.stacked(names)
        if found is None:
            return None
        kind = self.columns[names[0]].dtype
        return found / np.iinfo(kind).max if kind.kind in "iu" else found

    def attributes(self) -> np.ndarray | None:
        """What `ply_bytes` wrote of attributes that are no colours, shape (v, d)."""
        n = sum(name.startswith(ATTRIBUTE) for name in self.columns)
        return self.stacked(tuple(f"{ATTRIBUTE}{i}" for i in range(n)))


def read_ply_vertices(path: Path) -> PlyVertices:
    """Read the vertices of a PLY file, ASCII or binary.

    Raises:
        InputError: the file is damaged or has no vertices to speak of, such as ones with properties that are lists.
    """
    try:
        with path.open("rb") as file:
            order, elements = _header(file)
            for name, count, properties in elements:
                columns = _rows(file, order, count, properties)
                if name == "vertex":
                    faces = sum(count for name, count, _ in elements if name in ("face", "tristrips"))
                    return PlyVertices(columns, faces)
        raise ValueError("no element 'vertex'")
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise InputError("path", "a readable .ply file", f"{str(path)!r} ({error})") from None


def ply_bytes(mesh: Mesh) -> bytes:
    """A mesh as a binary PLY file: float32 positions, colours as bytes, other attributes as they are."""
    vertices, faces = mesh.vertices.numpy(), mesh.faces.numpy()
    columns = {axis: vertices[:, i].astype("<f4") for i, axis in enumerate("xyz")}
    if mesh.vertex_attributes is not None:
        values = mesh.vertex_attributes.numpy()
        if is_colour(values):
            shades = np.rint(255 * values).astype(np.uint8)
            columns |= {COLOUR[i]: shades[:, i] for i in range(shades.shape[1])}
        else:
            code = "<f8" if values.dtype == np.float64 else "<f4"
            columns |= {f"{ATTRIBUTE}{i}": values[:, i].astype(code) for i in range(values.shape[1])}
    words = {"u1": "uchar", "f4": "float", "f8": "double"}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    lines += [f"property {words[column.dtype.str[1:]]} {name}" for name, column in columns.items()]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    table = np.empty(len(vertices), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    rows = np.empty(len(faces), [("n", "u1"), ("corners", "<i4", 3)])
    rows["n"], rows["corners"] = 3, faces
    return "\n".join(lines).encode() + table.tobytes() + rows.tobytes()


def _header(file: BinaryIO) -> tuple[str, list[tuple[str, int, list[tuple[str, str]]]]]:
    """Format, and the elements: name, count, and properties as (name, type), with the type "list" for lists."""
    if file.readline(16).strip() != b"ply":
        raise ValueError("it does not begin with 'ply'")
    order, elements = "", []  # type: ignore[var-annotated]
    while file.tell() < LONGEST_HEADER:
        words = file.readline(4096).decode("ascii", "replace").split()
        match words:
            case ["end_header"]:
                if order not in ORDERS:
                    raise ValueError(f"format {order!r}")
                return order, elements
            case ["format", order, *_]:
                pass
            case ["element", name, count]:
                elements.append((name, int(count), []))
            case ["property", "list", _, _, name]:
                elements[-1][2].append((name, "list"))
            case ["property", kind, name]:
                elements[-1][2].append((name, TYPES[kind]))
            case [] if not file.peek(1):  # type: ignore[attr-defined]
                break
    raise ValueError("its header does not end")


def _rows(file: BinaryIO, order: str, count: int, properties: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    """The columns of one element, from where the file stands."""
    if any(kind == "list" for _, kind in properties):
        raise ValueError("an element with lists before or in the vertices")
    if order == "ascii":
        lines = b"".join(file.readline() for _ in range(count))
        table = np.loadtxt(io.BytesIO(lines), dtype=np.float64, ndmin=2) if count else np.empty((0, len(properties)))
        if table.shape != (count, len(properties)):
            raise ValueError(f"{count} lines of {len(properties)} numbers announced, {table.shape} found")
        return {name: table[:, i].astype(kind) for i, (name, kind) in enumerate(properties)}
    record: Any = np.dtype([(name, ORDERS[order] + kind) for name, kind in properties])
    data = file.read(count * record.itemsize)
    if len(data) < count * record.itemsize:
        raise ValueError("it ends early")
    rows = np.frombuffer(data, record)
    return {name: rows[name].astype(rows[name].dtype.newbyteorder("=")) for name, _ in properties}
