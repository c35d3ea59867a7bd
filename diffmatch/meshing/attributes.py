"""Vertex attributes, such as colours, carried from one surface to points near it."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_shape, require
from diffmatch.meshing.mesh import Mesh, check_values

__all__ = ["transfer_attributes"]


def transfer_attributes(source: Mesh, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"]:
    """The vertex attributes of a mesh at the nearest points of its surface; needs the extra ``mesh`` (libigl).

    Between the corners of a triangle the attributes are linear in its barycentric coordinates. Runs on the CPU in
    float64, without a graph.

    Args:
        source: a mesh with ``vertex_attributes`` and at least one face.
        points: where they are wanted, such as the vertices of a mesh fitted to ``source``.

    Returns:
        Attributes on the device of the points and in the dtype of the source's attributes.

    Raises:
        InputError: the source has no attributes or no faces, or a point is not finite.
    """
    igl = require("igl", extra="mesh")
    if source.vertex_attributes is None or len(source.faces) == 0:
        raise InputError("source", "a mesh with faces and vertex_attributes", "one without")
    check_shape("points", points, ("n", 3))
    check_finite("points", points)
    check_values("source", source)
    values = source.vertex_attributes.detach().cpu()
    if len(points) == 0:
        return values.new_empty(0, values.shape[1], device=points.device)
    vertices, faces = source.vertices.detach().double().cpu().numpy(), source.faces.cpu().numpy()
    vertices, faces = np.ascontiguousarray(vertices), np.ascontiguousarray(faces)
    queries = points.detach().to("cpu", torch.float64).contiguous().numpy()
    tree = igl.AABB()
    tree.init(vertices, faces)
    _, face, nearest = tree.squared_distance(vertices, faces, queries)
    corners = faces[face]
    weights = torch.from_numpy(_barycentrics(nearest, vertices[corners]))
    mixed = (weights[:, :, None] * values.double()[torch.from_numpy(corners)]).sum(1)
    return mixed.to(points.device, values.dtype)


def _barycentrics(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Barycentric coordinates of points on triangles (n, 3, 3); of slivers, those along their longest side."""
    sides = np.roll(corners, -1, axis=1) - corners  # side i leaves corner i
    square = np.square(sides).sum(2)
    row = np.arange(len(points))
    # From the longest side a, b and the corner c across: the only order in which slivers do not divide by nothing.
    first = square.argmax(1)
    a, b, c = first, (first + 1) % 3, (first + 2) % 3
    along, up, to = sides[row, first], corners[row, c] - corners[row, a], points - corners[row, a]
    length = square[row, first][:, None] + np.finfo(float).tiny
    foot_c = (up * along).sum(1, keepdims=True) / length
    height = up - foot_c * along
    high = np.square(height).sum(1)
    flat = high < 1e-24 * length[:, 0]
    weight_c = np.where(flat, 0, (to * height).sum(1) / np.where(flat, 1, high)).clip(0, 1)
    weight_b = ((to * along).sum(1) / length[:, 0] - weight_c * foot_c[:, 0]).clip(0, 1)
    weights = np.empty((len(points), 3))
    weights[row, a], weights[row, b], weights[row, c] = 1 - weight_b - weight_c, weight_b, weight_c
    weights = weights.clip(min=0)
    return np.asarray(weights / weights.sum(1, keepdims=True))
