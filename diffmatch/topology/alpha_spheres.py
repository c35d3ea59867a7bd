"""Circumspheres of simplices, and those of flat tetrahedra."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["circumspheres", "inside", "padded", "repair_flat"]

FLAT = 1e-10
"""A tetrahedron is flat if its volume is below this fraction of that of a box with its sides."""
ON_CIRCLE = 1e-7
"""Points lie on a sphere if their squared distances from its centre differ by less than this fraction."""
TRIPLES = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])


def circumspheres(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre, shape (m, d), and squared radius, shape (m,), of the smallest sphere through k corners, (m, k, d)."""
    first, sides = corners[:, 0], corners[:, 1:] - corners[:, :1]
    squares = (sides**2).sum(2)
    if sides.shape[1] == 1:
        offset = sides[:, 0] / 2
    elif sides.shape[1] == 2:
        u, v = sides.transpose(1, 0, 2)
        area = np.cross(u, v) if u.shape[1] == 3 else (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])[:, None]
        scale = 2 * (area**2).sum(1)  # not uu vv - uv uv, which loses the digits of thin triangles
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = squares[:, 1] * (u * (u - v)).sum(1) / scale, squares[:, 0] * (v * (v - u)).sum(1) / scale
            offset = a[:, None] * u + b[:, None] * v
    else:
        u, v, w = sides.transpose(1, 0, 2)
        vw, wu, uv = np.cross(v, w), np.cross(w, u), np.cross(u, v)
        with np.errstate(divide="ignore", invalid="ignore"):
            offset = (squares[:, :1] * vw + squares[:, 1:2] * wu + squares[:, 2:] * uv) / (
                2 * (u * vw).sum(1, keepdims=True)
            )
    squared = (offset**2).sum(1)
    return first + offset, np.where(np.isnan(squared), np.inf, squared)


def padded(vertices: np.ndarray, columns: int) -> np.ndarray:
    """Rows filled up by -1 to a number of columns."""
    spheres = np.full((len(vertices), columns), -1)
    spheres[:, : vertices.shape[1]] = vertices
    return spheres


def inside(points: np.ndarray, centres: np.ndarray, squared: np.ndarray) -> np.ndarray:
    """Which of m spheres have one of q points well inside, shape (m,)."""
    distance = ((points - centres[:, None]) ** 2).sum(2)
    found: np.ndarray = (distance < squared[:, None] * (1 - ON_CIRCLE)).any(1)
    return found


def repair_flat(
    points: np.ndarray,
    cells: np.ndarray,
    facet_of: np.ndarray,
    sides: np.ndarray,
    values: np.ndarray,
    spheres: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Give flat tetrahedra with corners on one circle the sphere that their circle, or a cell next to them, has.

    Any sphere through the circle is a circumsphere of them, so that the formula says nothing. Such cells lie between
    two Delaunay cells with more than four corners on a sphere, and are there because the triangulation divides their
    common side along both diagonals. So what lies beyond them counts for all of their faces.

    Args:
        points: shape (n, 3).
        cells: shape (t, 4).
        facet_of: facets of the cells, shape (t, 4).
        sides: cells on both sides of the facets, shape (m, 2).
        values: squared radii of the cells, changed in place.
        spheres: points on their spheres, changed in place.

    Returns:
        The cells in question and, for each group of them, the vertices of the cells around it.
    """
    flat, centres, squared, triples = _on_circles(points, cells)
    if not len(flat):
        return []
    around = sides[facet_of[flat]].reshape(len(flat), 8)
    group = _groups(flat, around, len(cells))
    beyond = []
    values[flat] = np.inf
    for number in range(group.max() + 1):
        members = (group == number).nonzero()[0]
        near = np.setdiff1d(around[members], np.append(flat, len(cells)))
        opposite = np.unique(np.concatenate((cells[near].ravel(), cells[flat[members]].ravel())))
        beyond.append((flat[members], opposite))
        first = members[0]
        if not inside(points[opposite], centres[first, None], squared[first, None])[0]:
            values[flat[members]], spheres[flat[members]] = (
                squared[first],
                padded(triples[first, None], spheres.shape[1]),
            )
        elif len(near):
            source = near[values[near].argmin()]
            values[flat[members]], spheres[flat[members]] = values[source], spheres[source]
    return beyond


def _on_circles(points: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The flat cells on one circle, its centres and squared radii, and their largest triangles."""
    u, v, w = (points[cells[:, 1:]] - points[cells[:, :1]]).transpose(1, 0, 2)
    volume = np.abs((np.cross(u, v) * w).sum(1))
    box = np.sqrt((u**2).sum(1) * (v**2).sum(1) * (w**2).sum(1))
    flat = (volume <= FLAT * box).nonzero()[0]
    corners = points[cells[flat]]
    faces = corners[:, TRIPLES]
    area = ((np.cross(faces[:, :, 1] - faces[:, :, 0], faces[:, :, 2] - faces[:, :, 0])) ** 2).sum(2)
    rows, largest = np.arange(len(flat)), area.argmax(1)
    centres, squared = circumspheres(faces[rows, largest])
    distance = ((corners - centres[:, None]) ** 2).sum(2)
    good = (np.abs(distance - squared[:, None]) <= ON_CIRCLE * squared[:, None]).all(1)
    triples = cells[flat[:, None], TRIPLES[largest]]
    return flat[good], centres[good], squared[good], triples[good]


def _groups(flat: np.ndarray, around: np.ndarray, n_cells: int) -> np.ndarray:
    """Numbers of the groups of flat cells that are joined through facets, and thus share a circle."""
    place = np.full(n_cells + 1, -1)
    place[flat] = np.arange(len(flat))
    row, column = np.repeat(np.arange(len(flat)), around.shape[1]), place[around].ravel()
    joined = column >= 0
    graph = coo_array((np.ones(joined.sum()), (row[joined], column[joined])), shape=(len(flat),) * 2)
    group: np.ndarray = connected_components(graph, directed=False)[1]
    return group
