"""Meshes to and from trimesh, kaolin and pytorch3d.

trimesh comes with the extra ``mesh``. kaolin and pytorch3d are neighbours that are never required: any object with
their attributes is accepted, and they are imported only to build one of theirs. Tensors pass to and from those two
without a copy, on their device and with their graph; trimesh holds float64 arrays on the CPU.
"""

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffmatch.errors import InputError, MissingExtraError, require
from diffmatch.meshing.mesh import Mesh

__all__ = ["as_mesh", "from_kaolin", "from_pytorch3d", "from_trimesh", "to_kaolin", "to_pytorch3d", "to_trimesh"]

ATTRIBUTE_KEY = "diffmatch"  # where trimesh's own attributes hold ours when they are not colours


def as_mesh(source: object) -> Mesh:
    """A mesh from whatever holds one.

    Args:
        source: a `Mesh` (returned as it is), a trimesh mesh or scene, a kaolin ``SurfaceMesh``, pytorch3d ``Meshes``
            of one mesh, or a pair ``(vertices, faces)`` of tensors or arrays. Integer vertices become float64.

    Raises:
        InputError: none of these, or not a single triangle mesh.
    """
    if isinstance(source, Mesh):
        return source
    if isinstance(source, (tuple, list)):
        if len(source) != 2:
            raise InputError("mesh", "a pair (vertices, faces)", f"{len(source)} items")
        return Mesh(_float_tensor("vertices", source[0]), _index_tensor("faces", source[1]))
    if hasattr(source, "verts_list"):
        return from_pytorch3d(source)
    if hasattr(source, "geometry") and hasattr(source, "graph"):
        return from_trimesh(source)
    if hasattr(source, "vertices") and hasattr(source, "faces"):
        holds_tensors = isinstance(source.vertices, (Tensor, list))
        return from_kaolin(source) if holds_tensors else from_trimesh(source)
    raise InputError("mesh", "a Mesh, trimesh, kaolin or pytorch3d mesh or (vertices, faces)", type(source).__name__)


def to_trimesh(mesh: Mesh) -> Any:
    """A ``trimesh.Trimesh`` with the same vertices and faces, in float64, nothing merged or dropped.

    Attributes of 3 or 4 columns within [0, 1] become vertex colours (8 bits), others an attribute of the trimesh.
    """
    trimesh = require("trimesh", extra="mesh")
    vertices, faces = mesh.vertices.detach().double().cpu().numpy(), mesh.faces.cpu().numpy()
    result = trimesh.Trimesh(vertices, faces, process=False)
    if mesh.vertex_attributes is not None:
        values = mesh.vertex_attributes.detach().double().cpu().numpy()
        if is_colour(values):
            result.visual.vertex_colors = np.rint(255 * values).astype(np.uint8)
        else:
            result.vertex_attributes[ATTRIBUTE_KEY] = values
    return result


def from_trimesh(source: Any) -> Mesh:
    """A float64 mesh on the CPU from a trimesh mesh, or from all the meshes of a trimesh scene together.

    Raises:
        InputError: ``source`` has no triangles to give, such as a point cloud.
    """
    if hasattr(source, "geometry") and hasattr(source, "graph"):
        return _from_scene(source)
    if not (hasattr(source, "vertices") and hasattr(source, "faces")):
        raise InputError("mesh", "a trimesh mesh", type(source).__name__)
    vertices, faces = _float_tensor("vertices", source.vertices), _index_tensor("faces", source.faces)
    values = _attributes(getattr(source, "vertex_attributes", {}))
    visual = getattr(source, "visual", None)
    if values is None and getattr(visual, "kind", None) == "vertex":
        values = np.asarray(source.visual.vertex_colors, dtype=np.float64) / 255
    return Mesh(vertices, faces, vertex_attributes=None if values is None else _float_tensor("attributes", values))


def to_kaolin(mesh: Mesh) -> Any:
    """A ``kaolin.rep.SurfaceMesh`` on the same tensors; vertex attributes have no place there and stay behind."""
    kaolin = _neighbour("kaolin.rep", "kaolin")
    return kaolin.SurfaceMesh(vertices=mesh.vertices, faces=mesh.faces)


def from_kaolin(source: Any) -> Mesh:
    """A mesh on the tensors of a kaolin ``SurfaceMesh``: a single one, or a batch of one.

    Raises:
        InputError: a batch of several.
    """
    vertices, faces = source.vertices, source.faces
    if isinstance(vertices, list) or vertices.ndim == 3:
        vertices = _single(vertices)
    if isinstance(faces, list) or faces.ndim == 3:
        faces = _single(faces)
    return Mesh(vertices, faces.long())


def to_pytorch3d(mesh: Mesh) -> Any:
    """A ``pytorch3d.structures.Meshes`` of one mesh; colour attributes become vertex textures."""
    structures = _neighbour("pytorch3d.structures", "pytorch3d")
    textures = None
    values = mesh.vertex_attributes
    if values is not None and is_colour(values.detach().cpu().numpy()):
        textures = _neighbour("pytorch3d.renderer", "pytorch3d").TexturesVertex([values[:, :3]])
    return structures.Meshes(verts=[mesh.vertices], faces=[mesh.faces], textures=textures)


def from_pytorch3d(source: Any) -> Mesh:
    """A mesh on the tensors of a pytorch3d ``Meshes`` that holds one mesh.

    Raises:
        InputError: it holds several, or none.
    """
    return Mesh(_single(source.verts_list()), _single(source.faces_list()).long())


def is_colour(values: np.ndarray) -> bool:
    """Whether vertex attributes (v, d) can be read as RGB or RGBA: 3 or 4 columns within [0, 1]."""
    return values.shape[1] in (3, 4) and bool(((values >= 0) & (values <= 1)).all())


def _attributes(found: Any) -> np.ndarray | None:
    """Our attributes among those of a trimesh: together, or as a glTF file has them, a column each."""
    if ATTRIBUTE_KEY in found:
        return np.asarray(found[ATTRIBUTE_KEY])
    names = {name.lower(): name for name in found}
    columns: list[np.ndarray] = []
    while (key := f"_{ATTRIBUTE_KEY}_{len(columns)}") in names:
        columns.append(np.asarray(found[names[key]]).reshape(-1))
    return np.stack(columns, axis=1) if columns else None


def _from_scene(scene: Any) -> Mesh:
    parts = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        if hasattr(scene.geometry[name], "faces"):
            # trimesh reverses the faces where the transform mirrors.
            parts.append(from_trimesh(scene.geometry[name].copy().apply_transform(transform)))
    if not parts:
        raise InputError("mesh", "a scene with at least one triangle mesh", f"none in {len(scene.geometry)} geometries")
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    widths = {None if part.vertex_attributes is None else part.vertex_attributes.shape[1] for part in parts}
    attributes = [part.vertex_attributes for part in parts if part.vertex_attributes is not None]
    return Mesh(
        torch.cat([part.vertices for part in parts]),
        torch.cat([part.faces + int(offset) for part, offset in zip(parts, offsets, strict=True)]),
        vertex_attributes=torch.cat(attributes) if len(widths) == 1 and attributes else None,
    )


def _single(batch: Any) -> Tensor:
    if len(batch) != 1:
        raise InputError("mesh", "a single mesh", f"a batch of {len(batch)}")
    tensor: Tensor = batch[0]
    return tensor


def _neighbour(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f"{package} is needed here and no extra brings it: see its own installation guide"
        raise MissingExtraError(message) from error


def _float_tensor(argument: str, values: Any) -> Tensor:
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(_array(argument, values))
    return tensor if tensor.is_floating_point() else tensor.double()


def _index_tensor(argument: str, values: Any) -> Tensor:
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(_array(argument, values))
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        if tensor.numel():
            raise InputError(argument, "integer indices", str(tensor.dtype))
        tensor = tensor.reshape(0, 3)  # an empty list has no dtype of its own
    return tensor.long()


def _array(argument: str, values: Any) -> np.ndarray:
    try:
        array = np.array(values)  # a copy: the library that owns the original may track or lock it
    except ValueError as error:
        raise InputError(argument, "a rectangular array", str(error)) from error
    if array.dtype.kind not in "fiub":
        raise InputError(argument, "a numeric array", f"dtype {array.dtype}")
    return array.astype(np.int64) if array.dtype.kind == "u" else array.astype(array.dtype.newbyteorder("="))
