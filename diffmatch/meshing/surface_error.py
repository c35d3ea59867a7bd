"""How far points of a surface are from a target, in place and in direction."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.meshing.mesh import Mesh
from diffmatch.meshing.targets import MeshTarget, Target

__all__ = ["one_point_a_face", "surface_errors"]


def surface_errors(
    target: Target, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], *, cell: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Errors of points on a surface, of their places and of the normals of the triangles they lie in.

    Args:
        target: what the surface is compared with.
        points: positions; differentiable.
        normals: unit normals at the points; differentiable.
        cell: size of a cell, in units of length.

    Returns:
        Squared distances to the nearest points of the target, in cells, and squared differences to the normals there.
    """
    place, direction = _nearest(target, points.detach())
    return ((points - place) / cell).square().sum(1), (normals - direction).square().sum(1)


def one_point_a_face(mesh: Mesh, generator: torch.Generator) -> Float[Tensor, "f 3"]:
    """A random point in each face, uniform within it; differentiable in the vertices.

    Args:
        mesh: the faces.
        generator: source of randomness; the numbers are drawn on its device.
    """
    draws = torch.rand(len(mesh.faces), 2, generator=generator, device=generator.device, dtype=mesh.vertices.dtype)
    root, split = draws.to(mesh.vertices.device).split(1, 1)
    root = root.sqrt()
    weights = torch.cat((1 - root, root * (1 - split), root * split), 1)
    return (weights[:, :, None] * mesh.corners).sum(1)


def _nearest(target: Target, points: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest points and unit normals of a target: exact for meshes, by a Newton step along the gradient for fields."""
    if isinstance(target, MeshTarget):
        found = target.closest(points)
        return found.points, found.normals
    value, gradient = target.value_and_gradient(points)
    length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True).clamp_min(torch.finfo(points.dtype).tiny ** 0.5)
    direction = gradient / length
    return points - value[:, None] / length * direction, direction
