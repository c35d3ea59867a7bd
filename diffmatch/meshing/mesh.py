"""The triangle mesh that every part of the package speaks."""

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_same_device, check_shape
from diffmatch.ops import gather_rows

__all__ = ["Mesh", "SurfaceSamples", "check_values"]

M = TypeVar("M", bound="Mesh")  # typing.Self, which annotation checks of single methods cannot resolve


class SurfaceSamples(NamedTuple):
    """Points on a mesh, with where they lie.

    Attributes:
        points: positions, shape (n, 3).
        faces: index of the face that holds each point, shape (n,), int64.
        barycentrics: weights of that face's corners, shape (n, 3), rows sum to one.
    """

    points: Float[Tensor, "n 3"]
    faces: Int64[Tensor, " n"]
    barycentrics: Float[Tensor, "n 3"]


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh as tensors.

    Construction checks shapes, dtypes and devices, never values; files and targets check those where data enters.

    Attributes:
        vertices: positions, shape (v, 3), floating.
        faces: vertex indices, shape (f, 3), int64, counter-clockwise seen from outside.
        vertex_attributes: optional values at the vertices, shape (v, d), floating; 3 or 4 columns within [0, 1] are
            taken as colours where a file or another library has a place for them.

    Raises:
        InputError: a shape, dtype or device does not fit.
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int64[Tensor, "f 3"]
    vertex_attributes: Float[Tensor, "v d"] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_shape("vertices", self.vertices, ("v", 3))
        check_floating("vertices", self.vertices)
        check_shape("faces", self.faces, ("f", 3))
        if self.faces.dtype != torch.int64:
            raise InputError("faces", "int64 indices", str(self.faces.dtype))
        check_same_device("faces", self.faces, self.vertices.device)
        if self.vertex_attributes is not None:
            check_shape("vertex_attributes", self.vertex_attributes, (len(self.vertices), "d"))
            check_floating("vertex_attributes", self.vertex_attributes)
            check_same_device("vertex_attributes", self.vertex_attributes, self.vertices.device)

    @property
    def corners(self) -> Float[Tensor, "f 3 3"]:
        """Positions of the three corners of each face, shape (f, 3 corners, 3)."""
        return gather_rows(self.vertices, self.faces)

    @property
    def area_vectors(self) -> Float[Tensor, "f 3"]:
        """Outward normals as long as the area of their faces."""
        a, b, c = self.corners.unbind(1)
        vectors: Tensor = torch.linalg.cross(b - a, c - a) / 2
        return vectors

    @property
    def face_areas(self) -> Float[Tensor, " f"]:
        """Areas of the faces; the gradient at a face without area is zero."""
        areas: Tensor = torch.linalg.vector_norm(self.area_vectors, dim=-1)
        return areas

    @property
    def face_normals(self) -> Float[Tensor, "f 3"]:
        """Unit outward normals; zero, with a finite gradient, for a face without area."""
        vectors = self.area_vectors
        lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        return vectors / torch.where(lengths > 0, lengths, 1)

    @property
    def volume(self) -> Float[Tensor, ""]:
        """Signed volume, positive where faces are counter-clockwise from outside; of an open mesh, with a cone to 0."""
        a, b, c = self.corners.unbind(1)
        volume: Tensor = (a * torch.linalg.cross(b, c)).sum() / 6
        return volume

    @property
    def edges(self) -> Int64[Tensor, "e 2"]:
        """Undirected edges, each once, low index first, in lexicographic order; waits for the device."""
        ends = self.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
        low, high = ends.amin(1), ends.amax(1)
        key = torch.unique(low * max(len(self.vertices), 1) + high)
        return torch.stack([key // max(len(self.vertices), 1), key % max(len(self.vertices), 1)], dim=1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> SurfaceSamples:
        """Draw points uniformly by area; differentiable in the vertices at fixed faces and barycentrics.

        Args:
            n: number of points.
            generator: source of randomness; the numbers are drawn on its device.

        Raises:
            InputError: ``n`` is negative, or points are wanted from a mesh without faces.
        """
        if n < 0:
            raise InputError("n", "a number of points >= 0", str(n))
        if n > 0 and len(self.faces) == 0:
            raise InputError("mesh", "at least one face to sample from", "none")
        device = self.vertices.device if generator is None else generator.device
        # float64: a float32 running sum of 1e5 small areas would starve the faces at its end.
        draws = torch.rand(n, 3, generator=generator, device=device, dtype=torch.float64).to(self.vertices.device)
        areas = self.face_areas.detach().double().cumsum(0)
        faces = torch.searchsorted(areas, draws[:, 0] * areas[-1:]) if n else draws.new_zeros(0, dtype=torch.int64)
        faces = faces.clamp(max=max(len(self.faces) - 1, 0))
        root, split = draws[:, 1].sqrt(), draws[:, 2]  # uniform in the triangle: the square root spreads by area
        weights = torch.stack([1 - root, root * (1 - split), root * split], dim=1).to(self.vertices.dtype)
        points = (weights[:, :, None] * gather_rows(self.vertices, self.faces[faces])).sum(1)
        return SurfaceSamples(points, faces, weights)

    def to(self: M, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> M:
        """The mesh on another device or with another floating dtype; indices stay int64, subclasses stay themselves."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        return dataclasses.replace(self, **{name: moved(tensor) for name, tensor in self._tensors().items()})

    def detach(self: M) -> M:
        """The mesh without its graph."""
        return dataclasses.replace(self, **{name: tensor.detach() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def check_values(argument: str, mesh: Mesh, *, where: str = "") -> None:
    """Check what construction does not: finite vertices and face indices in range; waits for the device.

    Args:
        argument: name for the message.
        mesh: what to check.
        where: words for the end of the message, such as a file's name.

    Raises:
        InputError: with the number of bad vertices, or a bad index.
    """
    bad = int((~torch.isfinite(mesh.vertices)).any(1).sum())
    if bad:
        raise InputError(argument, "finite vertices", f"{bad} of {len(mesh.vertices)} with NaN or infinity{where}")
    if len(mesh.faces) == 0:
        return
    low, high = int(mesh.faces.min()), int(mesh.faces.max())
    if low < 0 or high >= len(mesh.vertices):
        wanted = f"face indices from 0 to {len(mesh.vertices) - 1}"
        raise InputError(argument, wanted, f"{low if low < 0 else high}{where}")
