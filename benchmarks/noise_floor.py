"""How well a surface can be found from noisy points at best."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from diffmatch.meshing import Mesh

SHARP = 38.0  # degrees between normals: across sharper edges, points of one side say nothing of the place of the other


def placement_floor(mesh: Mesh, n_points: int, noise: float) -> float:
    """Least mean distance that an unbiased estimate can be expected to have from points with noise on a known shape.

    Each smooth patch is taken as known in shape and direction; only its place is to be found, from its own points. With
    their normals as the rows of N, the Cramer-Rao bound of its translation is ``noise^2 (N' N)^-1``, and the mean
    distance that goes with it the mean over the patch of ``sqrt(2 / pi) noise sqrt(n' (N' N)^-1 n)``. For a plane of k
    points this is the error of their mean, ``sqrt(2 / pi) noise / sqrt(k)``. What bends has to be found in its shape
    too, so its true floor lies higher.

    Args:
        mesh: closed, with shared vertices.
        n_points: uniform by area.
        noise: standard deviation of each coordinate, in the unit of the mesh.
    """
    normals, areas = mesh.face_normals.double().numpy(), mesh.face_areas.double().numpy()
    density = n_points / areas.sum()
    total = 0.0
    patch = _patches(mesh, normals)
    for label in range(patch.max() + 1):
        own, weight = normals[patch == label], areas[patch == label]
        information = density * (own * weight[:, None]).T @ own
        information += 1e-9 * np.trace(information) * np.eye(3)  # no say in directions along a plane
        spread = np.sqrt(np.einsum("fx,xy,fy->f", own, np.linalg.inv(information), own))
        total += (weight * np.minimum(spread, 1.0)).sum()
    return float(np.sqrt(2 / np.pi) * noise * total / areas.sum())


def _patches(mesh: Mesh, normals: np.ndarray) -> np.ndarray:
    """Number of the smooth patch of each face."""
    faces, n = mesh.faces.numpy(), len(mesh.faces)
    ends = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
    key = ends[:, 0] * len(mesh.vertices) + ends[:, 1]
    order = np.argsort(key, kind="stable")
    pair = np.flatnonzero(np.diff(key[order]) == 0)
    one, other = order[pair] // 3, order[pair + 1] // 3
    smooth = (normals[one] * normals[other]).sum(1) > np.cos(np.radians(SHARP))
    graph = coo_array((np.ones(smooth.sum()), (one[smooth], other[smooth])), shape=(n, n))
    label: np.ndarray = connected_components(graph, directed=False)[1]
    return label
