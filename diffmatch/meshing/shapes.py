"""Solids as fields: signed distances of simple bodies, how to combine them, and the part of the demo.

Each body maps points (..., 3) to its exact signed distance (...), negative inside, differentiable almost everywhere.
Combinations keep the sign, and the surface, exact; away from the surface they are bounds of the distance, as each
function says. Formulas follow from the geometry and are standard; see Hart 1996, "Sphere tracing", for the bounds.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "DEMO_PART_BODIES",
    "DEMO_PART_EULER_CHARACTERISTIC",
    "DEMO_PART_GENUS",
    "box",
    "cylinder",
    "demo_part",
    "difference",
    "intersection",
    "sphere",
    "torus",
    "union",
]

Triple = Sequence[float | int]
ORIGIN = (0.0, 0.0, 0.0)

DEMO_PART_BODIES = 1
DEMO_PART_GENUS = 5  # two mounting holes, the bore, and two for the oil hole, which crosses the bore
DEMO_PART_EULER_CHARACTERISTIC = 2 * DEMO_PART_BODIES - 2 * DEMO_PART_GENUS


def sphere(points: Float[Tensor, "*n 3"], *, radius: float | int, center: Triple = ORIGIN) -> Float[Tensor, "*n"]:
    """Signed distance of a ball; exact."""
    return _length(points - points.new_tensor(center)) - radius


def box(points: Float[Tensor, "*n 3"], *, half: Triple, center: Triple = ORIGIN) -> Float[Tensor, "*n"]:
    """Signed distance of a box with faces along the axes and half sides ``half``; exact."""
    return _joined((points - points.new_tensor(center)).abs() - points.new_tensor(half))


def cylinder(
    points: Float[Tensor, "*n 3"],
    *,
    radius: float | int,
    half_height: float | int,
    axis: int = 2,
    center: Triple = ORIGIN,
) -> Float[Tensor, "*n"]:
    """Signed distance of a capped cylinder along one of the axes 0, 1, 2; exact."""
    along, across = _split(points - points.new_tensor(center), axis)
    return _joined(torch.stack([_length(across) - radius, along.abs() - half_height], dim=-1))


def torus(
    points: Float[Tensor, "*n 3"], *, radius: float | int, tube: float | int, axis: int = 2, center: Triple = ORIGIN
) -> Float[Tensor, "*n"]:
    """Signed distance of a ring of radius ``radius`` and thickness 2 ``tube`` around an axis 0, 1 or 2; exact."""
    along, across = _split(points - points.new_tensor(center), axis)
    return _length(torch.stack([_length(across) - radius, along], dim=-1)) - tube


def union(*fields: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """What lies in any of them; outside the exact distance if the fields are, inside never deeper than the truth."""
    return torch.stack(fields).amin(0)


def intersection(*fields: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """What lies in all of them; inside the exact distance if the fields are, outside never farther than the truth."""
    return torch.stack(fields).amax(0)


def difference(field: Float[Tensor, "*n"], *holes: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """What lies in the first and in none of the others; never more than the true distance, on either side."""
    return intersection(field, *(-hole for hole in holes))


def demo_part(points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
    """A pillow block: a base with two mounting holes, a round-topped housing, its bore and an oil hole across it.

    Sharp edges, convex and concave, flat and curved faces; one body of genus 5, its longest side 1.8, centred: within
    [-0.9, 0.9] x [-0.45, 0.45] x [-0.68, 0.68]. The walls are at least 0.1 thick, 3 cells of a grid of 64.

    Args:
        points: positions, shape (..., 3).

    Returns:
        A field negative inside, of the exact sign and at most the true distance, shape (...).
    """
    base = box(points, half=(0.9, 0.45, 0.14), center=(0.0, 0.0, -0.54))
    block = box(points, half=(0.45, 0.3, 0.35), center=(0.0, 0.0, -0.12))
    top = cylinder(points, radius=0.45, half_height=0.3, axis=1, center=(0.0, 0.0, 0.23))
    bore = cylinder(points, radius=0.26, half_height=1.0, axis=1, center=(0.0, 0.0, 0.23))
    oil = cylinder(points, radius=0.1, half_height=1.0)
    mounts = [cylinder(points, radius=0.12, half_height=1.0, center=(x, 0.0, 0.0)) for x in (-0.68, 0.68)]
    return difference(union(base, block, top), bore, oil, *mounts)


def _split(points: Float[Tensor, "*n 3"], axis: int) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n 2"]]:
    """Coordinates along an axis and across it."""
    across = [other for other in range(3) if other != axis % 3]
    return points[..., axis], points[..., across]


def _joined(excess: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    """Signed distance of a product of bodies from how far a point is beyond each of them."""
    return _length(excess.clamp(min=0)) + excess.amax(-1).clamp(max=0)


def _length(vectors: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return lengths
