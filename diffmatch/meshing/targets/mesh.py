"""A triangle mesh as a target."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, require
from diffmatch.meshing.attributes import transfer_attributes
from diffmatch.meshing.files import merge_vertices
from diffmatch.meshing.interop import as_mesh
from diffmatch.meshing.mesh import Mesh, check_values
from diffmatch.meshing.targets.normalization import Normalization
from diffmatch.meshing.targets.solid import oriented_solid, separates, visible_triangles

__all__ = ["ClosestPoint", "MeshTarget"]


class ClosestPoint(NamedTuple):
    """The nearest points of a surface.

    Attributes:
        points: positions on the surface, shape (n, 3).
        normals: unit outward normals of the triangles they lie on, shape (n, 3).
        distance: distances, not negative, shape (n,).
    """

    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"]
    distance: Float[Tensor, " n"]


class MeshTarget:
    """The solid that a mesh bounds, with exact distances to its surface; needs the extra ``mesh`` (libigl).

    Inside is where the generalised winding number exceeds one half, so parts may interpenetrate; what is buried in
    other parts belongs to the inside and not to the surface. Holes are closed by flat caps, with a warning in the log;
    where that would change the solid, the winding number of the open surface decides. A surface that is inside out
    or not consistently oriented is turned, with a warning.

    Trees are built once. All queries run on the CPU in float64, wherever the points live: they are copied there and
    the results back.

    Args:
        mesh: a `Mesh`, or anything that `as_mesh` takes.

    Raises:
        InputError: no faces, vertices that are not finite, face indices out of range, or triangles that bound no solid,
            such as an open sheet.

    Attributes:
        mesh: the oriented mesh with its caps, in the box, float64 on the CPU.
        surface: the part of ``mesh`` that distances and samples are taken from: without what is buried in other parts.
        closed: whether the mesh was closed as it came.
        normalization: from the mesh's own coordinates to the box.
        bounds: low and high corner in the box, float64 on the CPU.
    """

    def __init__(self, mesh: Mesh | Any) -> None:
        igl = require("igl", extra="mesh")
        mesh = as_mesh(mesh)
        if len(mesh.faces) == 0:
            raise InputError("target", "a mesh with faces", "none")
        check_values("target", mesh)
        mesh = merge_vertices(mesh.detach().to("cpu", torch.float64))
        if len(mesh.faces) == 0:
            raise InputError("target", "a mesh with faces", "only collapsed ones")
        own = torch.stack([mesh.vertices.amin(0), mesh.vertices.amax(0)])
        self.normalization = Normalization.of_bounds(own)
        self.bounds: Float[Tensor, "2 3"] = self.normalization.apply(own)

        boxed = np.ascontiguousarray(self.normalization.apply(mesh.vertices).numpy())
        vertices, faces, self._winding, self.closed = oriented_solid(boxed, mesh.faces.numpy())
        self.mesh = Mesh(torch.from_numpy(vertices), torch.from_numpy(faces))
        visible_vertices, visible_faces, self._buried = visible_triangles(vertices, faces, self._winding)
        self.surface = Mesh(torch.from_numpy(visible_vertices), torch.from_numpy(visible_faces))
        # As it came: caps have no attributes.
        self._painted = None
        if mesh.vertex_attributes is not None:
            self._painted = Mesh(torch.from_numpy(boxed), mesh.faces, vertex_attributes=mesh.vertex_attributes)
        self._normals = self.surface.face_normals
        self._tree = igl.AABB()
        self._tree.init(visible_vertices, visible_faces)

    @property
    def whole(self) -> bool:
        """Whether the mesh was closed as it came and bounds the solid, but for a thousandth of its area at most."""
        return self.closed and float(self.surface.face_areas.sum()) > 0.999 * float(self.mesh.face_areas.sum())

    def sdf(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Signed distance to the surface, negative inside; differentiable, once, in the points.

        Raises:
            InputError: a point is not finite.
        """
        if points.requires_grad and torch.is_grad_enabled():
            values, gradient = self.value_and_gradient(points)
            # Adds exact zeros: the value stays, and the gradient is that of the distance.
            return values + ((points - points.detach()) * gradient).sum(-1)
        queries = _queries(points)
        squared, _, _ = self._nearest(queries)
        return torch.from_numpy(np.sqrt(squared) * self._sign(queries)).to(points)

    def value_and_gradient(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Signed distance and its gradient, of unit length (on the surface: the normal), both without a graph.

        Raises:
            InputError: a point is not finite.
        """
        queries = _queries(points)
        squared, face, nearest = self._nearest(queries)
        values = np.sqrt(squared) * self._sign(queries)
        near = np.abs(values) < 1e-7  # the direction to the surface, or its sign, drowns in the rounding of points
        gradient = (queries - nearest) / np.where(near, 1, values)[:, None]
        gradient = np.where(near[:, None], self._normals.numpy()[face], gradient)
        return torch.from_numpy(values).to(points), torch.from_numpy(gradient).to(points)

    def closest(self, points: Float[Tensor, "n 3"]) -> ClosestPoint:
        """The nearest points of the surface.

        Raises:
            InputError: a point is not finite.
        """
        squared, face, nearest = self._nearest(_queries(points))
        return ClosestPoint(
            torch.from_numpy(nearest).to(points),
            self._normals[torch.from_numpy(face)].to(points),
            torch.from_numpy(np.sqrt(squared)).to(points),
        )

    def attributes_at(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"] | None:
        """The vertex attributes at the nearest points of the mesh as it came; None where it has none.

        Raises:
            InputError: a point is not finite.
        """
        return None if self._painted is None else transfer_attributes(self._painted, points)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Points on the surface, uniform by area, and the outward normals there.

        Args:
            n: number of points.
            generator: source of randomness.
            device: of the result.
            dtype: of the result.
        """
        points, faces, _ = self.surface.sample(n, generator)
        return points.to(device, dtype), self._normals[faces].to(device, dtype)

    def feature_edges(self, angle_degrees: float | int = 30.0) -> Float[Tensor, "k 2 3"]:
        """Segments where two triangles meet at a sharp edge, float64 on the CPU.

        Args:
            angle_degrees: least angle between the normals of the two triangles.

        Raises:
            InputError: the angle is not between 0 and 180.
        """
        if not 0 < angle_degrees < 180:
            raise InputError("angle_degrees", "an angle between 0 and 180", str(angle_degrees))
        vertices, faces = self.mesh.vertices.numpy(), self.mesh.faces.numpy()
        normals = self.mesh.face_normals.numpy()
        ends = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
        order = np.argsort(ends[:, 0] * len(vertices) + ends[:, 1], kind="stable")
        starts = np.flatnonzero(np.r_[True, (np.diff(ends[order], axis=0) != 0).any(1)])
        pairs = starts[np.diff(np.r_[starts, len(ends)]) == 2]
        one, two = normals[order[pairs] // 3], normals[order[pairs + 1] // 3]
        solid = (np.abs(one).sum(1) > 0) & (np.abs(two).sum(1) > 0)  # a face without area has no say
        sharp = solid & ((one * two).sum(1) < np.cos(np.radians(angle_degrees)))
        segments = vertices[ends[order[pairs[sharp]]]]
        if self._buried:
            middle, normal = segments.mean(1), one[sharp] + two[sharp]
            length = np.linalg.norm(normal, axis=1, keepdims=True)
            segments = segments[separates(middle, normal / np.where(length > 0, length, 1), self._winding)]
        return torch.from_numpy(segments)

    def sample_features(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        angle_degrees: float | int = 30.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "n 3"]:
        """Points on the sharp edges, uniform by length; an empty tensor (0, 3) if there are none.

        Args:
            n: number of points.
            generator: source of randomness.
            angle_degrees: see `feature_edges`.
            device: of the result.
            dtype: of the result.
        """
        segments = self.feature_edges(angle_degrees)
        if len(segments) == 0:
            return torch.empty(0, 3, device=device, dtype=dtype)
        origin = torch.device("cpu") if generator is None else generator.device
        draws = torch.rand(n, 2, generator=generator, device=origin, dtype=torch.float64).cpu()
        start, end = segments.unbind(1)
        lengths = torch.linalg.vector_norm(end - start, dim=1).cumsum(0)
        index = torch.searchsorted(lengths, draws[:, 0] * lengths[-1]).clamp(max=len(segments) - 1)
        return (start[index] + draws[:, 1:] * (end - start)[index]).to(device, dtype)

    def _sign(self, queries: np.ndarray) -> np.ndarray:
        return np.where(self._winding(queries) > 0.5, -1.0, 1.0)

    def _nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared distances, faces and nearest points."""
        if len(queries) == 0:
            return np.empty(0), np.empty(0, dtype=np.int64), np.empty((0, 3))
        surface = self.surface
        squared, face, nearest = self._tree.squared_distance(surface.vertices.numpy(), surface.faces.numpy(), queries)
        return squared, face, np.ascontiguousarray(nearest)


def _queries(points: Tensor) -> np.ndarray:
    queries = points.detach().to("cpu", torch.float64).contiguous().numpy()
    bad = int((~np.isfinite(queries)).any(1).sum())
    if bad:
        raise InputError("points", "finite points", f"{bad} of {len(points)} with NaN or infinity")
    return queries
