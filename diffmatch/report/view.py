"""Where a mesh is looked at from; the still pictures and the interactive views share it."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from diffmatch.errors import InputError, check_choice

__all__ = ["Axis", "Frame", "MeshLike", "View", "mesh_arrays"]

Axis = Literal["x", "y", "z"]
_UP = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
_EYE = {"x": (0.50, 0.75, 0.97), "y": (0.75, 0.50, 0.97), "z": (0.75, -0.97, 0.50)}  # from the front, right and above


@runtime_checkable
class MeshLike(Protocol):
    """Anything with triangles: this package's ``Mesh``, a trimesh, a named tuple of arrays."""

    @property
    def vertices(self) -> Any:
        """Positions, shape (v, 3)."""

    @property
    def faces(self) -> Any:
        """Vertex indices, shape (f, 3)."""


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)


def mesh_arrays(mesh: MeshLike) -> tuple[Float64[np.ndarray, "v 3"], Int64[np.ndarray, "f 3"]]:
    """The triangles of a mesh as checked arrays on the CPU.

    Args:
        mesh: has ``vertices`` (v, 3) and ``faces`` (f, 3), tensors or arrays.

    Returns:
        Vertices (float64) and faces (int64).

    Raises:
        InputError: wrong shapes, no faces, indices out of range, or coordinates that are not finite.
    """
    vertices = _array(mesh.vertices).astype(np.float64)
    faces = _array(mesh.faces).astype(np.int64)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise InputError("mesh.vertices", "shape (v, 3)", str(vertices.shape))
    if faces.ndim != 2 or faces.shape[1] != 3 or len(faces) == 0:
        raise InputError("mesh.faces", "shape (f, 3) with f > 0", str(faces.shape))
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError("mesh.faces", f"indices in 0..{len(vertices) - 1}", f"{faces.min()}..{faces.max()}")
    if not np.isfinite(vertices).all():
        raise InputError("mesh.vertices", "finite coordinates", f"{(~np.isfinite(vertices)).sum()} NaN or infinite")
    return vertices, faces


@dataclass(frozen=True)
class View:
    """A perspective camera that looks at the centre of a frame.

    Args:
        eye: direction from the centre to the eye; its length does not matter.
        up: the direction that is up in the picture.
        field_of_view: full angle in degrees across the shorter side; 45 is what plotly uses.
        distance: from the centre to the eye, in radii of the frame; at 2.62 the ball just fits 45 degrees.
    """

    eye: tuple[float, float, float] = _EYE["z"]
    up: tuple[float, float, float] = _UP["z"]
    field_of_view: float = 45.0
    distance: float = 2.62

    @staticmethod
    def standard(up: Axis = "z") -> "View":
        """From the front, right and above, for meshes whose upward axis is ``up``."""
        check_choice("up", up, _UP)
        return View(eye=_EYE[up], up=_UP[up])

    def fitted(
        self, vertices: Float64[np.ndarray, "v 3"], frame: "Frame", *, aspect: float = 4 / 3, margin: float = 0.08
    ) -> "View":
        """The same view from the distance at which the vertices just fill the picture.

        Args:
            vertices: what is to be seen, in the frame's coordinates.
            frame: what the distance is measured in.
            aspect: width of the picture over its height.
            margin: share of the half picture that stays free.
        """
        x, y, z = self.basis() @ ((vertices - np.asarray(frame.center)) / frame.radius).T
        slope = math.tan(math.radians(self.field_of_view) / 2) * (1 - margin)
        wide, high = slope * max(aspect, 1.0), slope * max(1.0 / aspect, 1.0)  # the angle is across the shorter side
        return replace(self, distance=max(1.05, float((z + np.maximum(np.abs(x) / wide, np.abs(y) / high)).max())))

    def basis(self) -> Float64[np.ndarray, "3 3"]:
        """Rows: the camera's right, up and backward directions, orthonormal.

        Raises:
            InputError: ``eye`` is zero or along ``up``.
        """
        backward = np.asarray(self.eye, dtype=np.float64)
        right = np.cross(np.asarray(self.up, dtype=np.float64), backward)
        if not (np.linalg.norm(right) > 1e-9 and math.isfinite(np.linalg.norm(right))):
            raise InputError("view.eye", f"a direction across up = {self.up}", str(self.eye))
        backward, right = backward / np.linalg.norm(backward), right / np.linalg.norm(right)
        return np.stack([right, np.cross(backward, right), backward])


@dataclass(frozen=True)
class Frame:
    """The ball that a picture shows: what lies beside each other is shown in the same place and at the same scale.

    Args:
        center: in the mesh's own coordinates.
        radius: in the mesh's own unit, positive.
    """

    center: tuple[float, float, float]
    radius: float

    @staticmethod
    def around(vertices: Float64[np.ndarray, "v 3"]) -> "Frame":
        """The ball about the centre of the bounding box that holds all vertices."""
        center = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
        radius = float(np.sqrt(((vertices - center) ** 2).sum(axis=1).max()))
        return Frame(center=(float(center[0]), float(center[1]), float(center[2])), radius=radius or 1.0)
