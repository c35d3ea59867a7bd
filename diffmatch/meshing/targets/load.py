"""From what a user has to a target."""

import inspect
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.meshing.files import read_mesh
from diffmatch.meshing.interop import as_mesh
from diffmatch.meshing.point_files import PointCloud, holds_points, read_points
from diffmatch.meshing.targets.field import FieldTarget
from diffmatch.meshing.targets.mesh import MeshTarget
from diffmatch.meshing.targets.points import PointTarget
from diffmatch.meshing.targets.target import Target
from diffmatch.meshing.targets.volume import VolumeTarget
from diffmatch.meshing.volumes import Volume, holds_volume, read_volume
from diffmatch.named import named_object

__all__ = ["load_target"]

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
FIELD_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def load_target(
    source: Any,
    *,
    bounds: Float[Tensor, "2 3"] | Sequence[Sequence[float | int]] | None = None,
    level: float | None = None,
) -> Target:
    """A target from a file, a name, or an object.

    Args:
        source: the path of a mesh, of points (see `read_points`; .ply without faces, .npz with ``points``) or of a
            volume (.npy, .npz, .nii, .nii.gz); ``"module:name"`` of a field, with the current folder importable; or a
            mesh (`as_mesh`), a `PointCloud`, a `Volume`, a field or a target. A named field may be a callable of
            points (n, 3), an ``nn.Module``, or a class or a function without arguments that makes one.
        bounds: of a field, see `FieldTarget`; by default the field's own ``bounds`` where it has such an attribute.
        level: of the file of a scan, see `read_volume`.

    Raises:
        InputError: whatever is wrong with the file or the object; a module that fails to import, a name it does not
            have, or one that cannot be called.
    """
    if level is not None and not isinstance(source, (str, os.PathLike)):
        raise InputError("level", "None but for the file of a volume", f"{level:g} with {type(source).__name__}")
    if isinstance(source, Target):
        return source
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if not Path(text).exists() and FIELD_NAME.fullmatch(text):
            return _field_target(_named_field(text), bounds)
        return _file_target(Path(text), level)
    if isinstance(source, Volume):
        return VolumeTarget(source)
    if isinstance(source, PointCloud):
        return _point_target(source)
    holds_mesh = isinstance(source, (tuple, list)) or hasattr(source, "faces") or hasattr(source, "verts_list")
    if holds_mesh or (hasattr(source, "geometry") and hasattr(source, "graph")):
        return MeshTarget(as_mesh(source))
    if callable(source):
        return _field_target(source, bounds)
    raise InputError("target", "a path, module:name, mesh, volume or callable", type(source).__name__)


def _file_target(path: Path, level: float | None) -> Target:
    try:
        if holds_volume(path) and not holds_points(path):
            return VolumeTarget(read_volume(path, level=level))
        if level is not None:
            raise InputError("level", "None but for the file of a volume", f"{level:g} with {path.name!r}")
        if holds_points(path):
            return _point_target(read_points(path))
        return MeshTarget(read_mesh(path))
    except InputError as error:
        if error.argument != "path":
            raise
        raise InputError("target", error.wanted, error.got) from error  # the name that the caller knows


def _point_target(cloud: PointCloud) -> PointTarget:
    return PointTarget(cloud.points, cloud.normals, attributes=cloud.attributes)


def _field_target(field: Any, bounds: Any) -> FieldTarget:
    return FieldTarget(field, getattr(field, "bounds", None) if bounds is None else bounds)


def _named_field(text: str) -> Any:
    found = named_object(text, argument="target")
    if inspect.isclass(found) or _takes_nothing(found):
        try:
            found = found()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError("target", "a factory that returns a field", f"{text!r} ({reason})") from error
    if not callable(found):
        raise InputError(
            "target", "a callable of points (n, 3), or a factory of one", f"{type(found).__name__} {text!r}"
        )
    return found


def _takes_nothing(function: Any) -> bool:
    """Whether a function can do without an argument, which a field cannot."""
    if not inspect.isfunction(function):
        return False
    parameters = inspect.signature(function).parameters.values()
    needed = [p for p in parameters if p.kind is p.VAR_POSITIONAL or (p.default is p.empty and p.kind in POSITIONAL)]
    return not needed
