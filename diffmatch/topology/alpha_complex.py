"""The alpha complex: faces of the Delaunay triangulation with the spheres at whose radii they enter."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import Delaunay

from diffmatch.topology.alpha_kernels import empty_spheres, faces_of
from diffmatch.topology.alpha_spheres import circumspheres, inside, padded, repair_flat

__all__ = ["AlphaComplex", "Faces", "alpha_complex"]

JITTER = 1e-9
"""How far points in special position are moved for their triangulation, relative to the extent of the cloud."""
LOW_RANK = 1e-9
"""Points span a dimension if its singular value is above this fraction of the largest one."""


@dataclass(frozen=True)
class Faces:
    """The faces of one dimension.

    Attributes:
        vertices: sorted points of each face, shape (m, k).
        values: squared radius at which each face enters, shape (m,).
        spheres: points on the sphere with that radius, filled up by -1, shape (m, d + 1).
        order: the faces by increasing value, equal ones by number, shape (m,).
    """

    vertices: np.ndarray
    values: np.ndarray
    spheres: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class AlphaComplex:
    """An alpha complex.

    Attributes:
        n_points: number of points, those that the triangulation leaves out included.
        vertices: the points that belong to it.
        higher: edges, triangles, tetrahedra, as far as there are any.
        sides: the cells on both sides of each facet, the number of cells standing for the outside, shape (m, 2).
        triangle_edges: the edges of each triangle, if there are tetrahedra, shape (m, 3).
    """

    n_points: int
    vertices: np.ndarray
    higher: tuple[Faces, ...]
    sides: np.ndarray
    triangle_edges: np.ndarray

    @property
    def dimension(self) -> int:
        """Largest dimension of a face."""
        return len(self.higher)

    def faces(self, dimension: int) -> Faces:
        """The faces of a dimension above 0."""
        return self.higher[dimension - 1]


def alpha_complex(points: np.ndarray) -> AlphaComplex:
    """The alpha complex of points, in the smallest space that contains them.

    Args:
        points: shape (n, d), d of 2 or 3, double precision.
    """
    columns = points.shape[1] + 1
    spanned = _in_their_span(points)
    dimension = spanned.shape[1]
    no_sides, no_triangles = np.empty((0, 2), np.int64), np.empty((0, 3), np.int64)
    if dimension == 0:
        return AlphaComplex(len(points), np.arange(min(len(points), 1)), (), no_sides, no_triangles)
    if dimension == 1:
        edges = _chain(spanned[:, 0])
        _, squared = circumspheres(spanned[edges])
        own = (_faces(edges, squared, padded(edges, columns)),)
        return AlphaComplex(len(points), np.unique(edges), own, no_sides, no_triangles)
    higher, face_of = _triangulate(spanned)
    cells, facets = higher[-1], higher[-2]
    sides = _sides(face_of[-1], len(facets))
    _, values = circumspheres(spanned[cells])
    spheres, flat = padded(cells, columns), []
    if dimension == 3:
        flat = repair_flat(spanned, cells, face_of[-1], sides, values, spheres)
    top = _faces(cells, values, spheres)
    middle = _lower_faces(spanned, facets, face_of[-1], top, columns, [(face_of[-1][c].ravel(), q) for c, q in flat])
    vertices = np.unique(cells)
    if dimension == 2:
        return AlphaComplex(len(points), vertices, (middle, top), sides, no_triangles)
    edges_of_flat = [(face_of[0][face_of[1][c]].ravel(), q) for c, q in flat]
    lowest = _lower_faces(spanned, higher[0], face_of[0], middle, columns, edges_of_flat)
    return AlphaComplex(len(points), vertices, (lowest, middle, top), sides, face_of[0])


def _triangulate(points: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The faces of the Delaunay triangulation by increasing dimension from 1, and which faces each has from 2 on."""
    higher, face_of = _faces_of_cells(Delaunay(points).simplices)
    if not _is_ball(higher):
        # Where many points lie on one sphere, Qhull may divide the two sides of a square along different diagonals. The
        # distinct points a little moved are in general position.
        distinct, first = np.unique(points, axis=0, return_index=True)
        extent = np.ptp(distinct)
        moved = distinct + np.random.default_rng(0).uniform(-JITTER * extent, JITTER * extent, distinct.shape)
        higher, face_of = _faces_of_cells(first[Delaunay(moved).simplices])
    return higher, face_of


def _faces_of_cells(cells: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    higher = [np.sort(cells, axis=1).astype(np.int64)]
    face_of: list[np.ndarray] = []
    while higher[0].shape[1] > 2:
        numbers, faces = faces_of(higher[0])
        higher.insert(0, faces)
        face_of.insert(0, numbers)
    return higher, face_of


def _is_ball(higher: list[np.ndarray]) -> bool:
    """Whether the Euler characteristic is that of a ball, which each side that is not glued to another raises."""
    signs = [-1, 1, -1]
    return len(np.unique(higher[-1])) + sum(s * len(faces) for s, faces in zip(signs, higher, strict=False)) == 1


def _sides(facet_of: np.ndarray, n_facets: int) -> np.ndarray:
    """The cells on both sides of each facet; their number stands for the outside."""
    n_cells, corners = facet_of.shape
    sides = np.full((n_facets, 2), n_cells)
    facet, cell = facet_of.ravel(), np.repeat(np.arange(n_cells), corners)
    sides[facet, 1] = cell  # of two cells the last one stays
    sides[facet[::-1], 0] = cell[::-1]
    sides[sides[:, 0] == sides[:, 1], 1] = n_cells
    return sides


def _in_their_span(points: np.ndarray) -> np.ndarray:
    """Coordinates in the smallest affine space that contains the points."""
    if len(points) < 2:
        return points[:, :0]
    centred = points - points.mean(0)
    _, size, axes = np.linalg.svd(centred, full_matrices=False)
    rank = int((size > LOW_RANK * size[0]).sum()) if size[0] > 0 else 0
    return centred if rank == points.shape[1] else np.ascontiguousarray(centred @ axes[:rank].T)


def _chain(positions: np.ndarray) -> np.ndarray:
    """Edges between neighbours on a line; of points that coincide the first counts."""
    _, first = np.unique(positions, return_index=True)
    return np.sort(np.stack((first[:-1], first[1:]), axis=1), axis=1)


def _faces(vertices: np.ndarray, values: np.ndarray, spheres: np.ndarray) -> Faces:
    return Faces(vertices, values, spheres, values.argsort(kind="stable"))


def _lower_faces(
    points: np.ndarray,
    vertices: np.ndarray,
    face_of: np.ndarray,
    above: Faces,
    columns: int,
    flat: list[tuple[np.ndarray, np.ndarray]],
) -> Faces:
    """Faces one dimension down: their own sphere if it is empty, else that of the first coface.

    ``flat`` has faces of flat cells, and what else must not lie in their spheres.
    """
    centres, squared = circumspheres(points[vertices])
    empty, coface = empty_spheres(points, above.vertices, face_of, centres, squared, above.values)
    for faces, opposite in flat:
        empty[faces] &= ~inside(points[opposite], centres[faces], squared[faces])
    own = empty & (squared <= above.values[coface])
    values = np.where(own, squared, above.values[coface])
    spheres = np.where(own[:, None], padded(vertices, columns), above.spheres[coface])
    return _faces(vertices, values, spheres)
