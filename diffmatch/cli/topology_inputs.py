"""What `diffmatch topology` reads: fields, images, points, graphs and meshes with values at their vertices."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmatch.errors import InputError, check_choice, require

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from diffmatch.report.topology import TopologyData

__all__ = ["KINDS", "guess_kind", "read_data", "second_values"]

KINDS = ("field", "points", "graph", "mesh")
_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_MESHES = (".obj", ".stl", ".glb", ".gltf", ".off", ".ply")
_GRAPHS = (".graphml", ".gml", ".json")
_FIELD_KEYS = ("field", "image", "sdf", "values")
_AXES = ("x", "y", "z")


def read_data(path: str, *, kind: str = "auto", values: str | None = None) -> "TopologyData":
    """Read what is to be filtered.

    Args:
        path: the file.
        kind: one of :data:`KINDS`, or ``auto``: by suffix and content.
        values: for graphs and meshes: an attribute of nodes or vertices, or the coordinate x, y or z.

    Raises:
        InputError: no such file, not of the kind, or values that it does not have.
        MissingExtraError: a package is needed to read it.
    """
    from diffmatch.report.topology import TopologyData

    check_choice("kind", kind, ("auto", *KINDS))
    file = Path(path)
    if not file.is_file():
        raise InputError("data", "a file that exists", repr(path))
    kind = guess_kind(file) if kind == "auto" else kind
    if values is not None and kind in ("field", "points"):
        raise InputError("values", f"none: {kind} data has values or distances of its own", repr(values))
    if kind == "field":
        return TopologyData("field", values=_read_field(file))
    if kind == "points":
        return TopologyData("points", points=_read_points(file))
    return _read_graph(file, values) if kind == "graph" else _read_mesh(file, values)


def guess_kind(file: Path) -> str:
    """What a file holds, by its suffix and by the shape and names of arrays: (n, 2) and (n, 3) are points if n > 3."""
    from diffmatch.meshing.point_files import holds_points

    suffix = file.suffix.lower()
    if suffix in _GRAPHS:
        return "graph"
    if suffix in _MESHES:
        return "points" if holds_points(file) else "mesh"
    if suffix == ".xyz":
        return "points"
    if suffix == ".npz":
        names = set(_arrays(file))
        return "points" if "points" in names else "graph" if names & {"edges", "adjacency"} else "field"
    if suffix == ".npy":
        shape = next(iter(_arrays(file).values())).shape
        return "points" if len(shape) == 2 and shape[1] in (2, 3) and shape[0] > shape[1] else "field"
    if suffix in _IMAGES or file.name.lower().endswith((".nii", ".nii.gz")):
        return "field"
    known = (*_IMAGES, ".npy", ".npz", ".nii", ".nii.gz", ".xyz", *_MESHES, *_GRAPHS)
    raise InputError("data", f"a file that ends in {', '.join(known)}, or --kind", repr(file.name))


def _read_field(file: Path) -> "Tensor":
    import numpy as np
    import torch

    suffix = file.suffix.lower()
    if suffix in _IMAGES:
        image = require("PIL.Image", extra="images")
        try:
            with image.open(file) as picture:
                array = np.asarray(picture.convert("F"), dtype=np.float64)
        except OSError as error:
            raise InputError("data", "an image that can be read", f"{file} ({error})") from error
    elif suffix in (".npy", ".npz"):
        array = _array(file)
    else:
        from diffmatch.meshing import read_volume

        return read_volume(file).values
    if array.ndim not in (2, 3) or array.dtype.kind not in "fiub":
        raise InputError("data", "a field: real numbers of shape (nx, ny) or (nx, ny, nz)", _said(array))
    return torch.from_numpy(array.astype(np.float32 if array.dtype == np.float32 else np.float64))


def _array(file: Path) -> "np.ndarray":
    """The field in a file of arrays: by name, or the only one with two or three axes."""
    arrays = _arrays(file)
    named = [arrays[key] for key in _FIELD_KEYS if key in arrays]
    found = named[:1] or [array for array in arrays.values() if array.ndim in (2, 3)]
    if len(found) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "no arrays"
        raise InputError(
            "data", f"an array named {', '.join(_FIELD_KEYS)}, or one of 2 or 3 axes", f"{shapes} in {file}"
        )
    return found[0]


def _arrays(file: Path) -> "dict[str, np.ndarray]":
    import numpy as np

    try:
        with file.open("rb") as content:
            loaded: Any = np.load(content, allow_pickle=False)
            return {_FIELD_KEYS[0]: loaded} if isinstance(loaded, np.ndarray) else dict(loaded.items())
    except Exception as error:  # numpy, zipfile and zlib each have their own for a damaged file
        raise InputError("data", f"a readable {file.suffix} file of numbers", f"{file} ({error})") from None


def _read_points(file: Path) -> "Tensor":
    """Positions in the plane or in space; normals and other columns after the third are left out."""
    import numpy as np
    import torch

    suffix = file.suffix.lower()
    if suffix == ".ply":
        from diffmatch.meshing import read_points

        return read_points(file).points
    if suffix in (".npy", ".npz"):
        arrays = _arrays(file)
        array = arrays.get("points", next(iter(arrays.values()), np.empty(0)))
    else:
        try:
            with file.open(encoding="utf-8") as lines:
                array = np.loadtxt((line.replace(",", " ") for line in lines), ndmin=2)
        except ValueError as error:
            raise InputError("data", "2, 3 or 6 numbers a line", f"{file} ({error})") from None
    if array.ndim != 2 or array.shape[1] not in (2, 3, 6) or array.dtype.kind not in "fiu":
        raise InputError("data", "points: numbers of shape (n, 2), (n, 3) or, with normals, (n, 6)", _said(array))
    return torch.from_numpy(array[:, :3].astype(np.float64))


def _read_graph(file: Path, values: str | None) -> "TopologyData":
    from diffmatch.matching.graphs import read_graph
    from diffmatch.report.topology import TopologyData

    named = () if values is None or values in _AXES or file.suffix.lower() == ".npz" else (values,)
    try:
        graph = read_graph(file, features=named, argument="data")
    except InputError as error:
        raise error if not named else InputError("values", f"an attribute of all nodes ({error})", named[0]) from error
    if values is None or values in _AXES:
        node_values = _coordinate(graph.positions, values, "nodes")
    elif graph.features is None:
        raise InputError("values", "an attribute of the nodes, or features in an npz file", repr(values))
    else:
        node_values = graph.features[:, 0]
    edges = graph.edges.sort(dim=0).values.unique(dim=1).T  # each edge once, whatever its direction
    return TopologyData("graph", values=node_values, edges=edges, points=graph.positions, graph=graph)


def _read_mesh(file: Path, values: str | None) -> "TopologyData":
    from diffmatch.meshing.files import merge_vertices, read_mesh
    from diffmatch.report.topology import TopologyData

    mesh = read_mesh(file)
    attributes = mesh.vertex_attributes
    if values is None or values in _AXES:
        mesh = merge_vertices(mesh)
        vertex_values = _coordinate(mesh.vertices, values, "vertices")
    elif attributes is None or not values.isdecimal() or int(values) >= attributes.shape[1]:
        there = "none" if attributes is None else f"{attributes.shape[1]}"
        raise InputError("values", f"x, y, z, or the number of a vertex attribute ({there} there)", repr(values))
    else:
        vertex_values = attributes[:, int(values)]
    return TopologyData("mesh", values=vertex_values, points=mesh.vertices, faces=mesh.faces)


def _coordinate(positions: "Tensor | None", name: str | None, of: str) -> "Tensor":
    """A coordinate by name; the last one, the height, by default."""
    if positions is None:
        raise InputError("values", f"an attribute of the {of}, which have no positions", name or "none")
    axis = positions.shape[1] - 1 if name is None else _AXES.index(name)
    if axis >= positions.shape[1]:
        raise InputError("values", f"a coordinate that {of} in {positions.shape[1]} dimensions have", repr(name))
    return positions[:, axis].contiguous()


def second_values(text: str, data: "TopologyData", path: str) -> "Tensor":
    """The second of two parameters: another field, a density of points, another attribute of vertices.

    Args:
        text: a file with a field of the same shape; for points the bandwidth of a kernel; for graphs and meshes as
            ``values`` in :func:`read_data`.
        data: the first parameter.
        path: the file that it was read from.

    Raises:
        InputError: none of these.
    """
    if data.kind == "field":
        field = read_data(text, kind="field").values
        if field is None or data.values is None or field.shape != data.values.shape or field.ndim != 2:
            raise InputError("second", "an image of the shape of the first", repr(text))
        return field
    if data.kind == "points":
        from diffmatch.topology.multiparameter import codensity

        try:
            bandwidth = float(text)
        except ValueError:
            raise InputError("second", "the bandwidth of a density kernel, a number", repr(text)) from None
        assert data.points is not None
        return codensity(data.points, bandwidth=bandwidth)
    again = read_data(path, kind=data.kind, values=text)
    if again.values is None or data.values is None or len(again.values) != len(data.values):
        raise InputError("second", "values at the same vertices", repr(text))
    return again.values


def _said(array: "np.ndarray") -> str:
    return f"{array.dtype} of shape {array.shape}"
