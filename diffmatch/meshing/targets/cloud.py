"""Oriented points made ready for a surface: outliers, areas, and normals where there are none.

Everything here is float64 numpy on the CPU and does not depend on the unit of length.
"""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import cKDTree

__all__ = [
    "NEIGHBOURS",
    "SAME_SHEET",
    "estimated_normals",
    "inliers",
    "neighbours",
    "point_areas",
    "smoothed_normals",
    "thinned",
]

NEIGHBOURS = 12
SAME_SHEET = 0.7  # largest difference of unit normals between neighbours on one smooth sheet: 41 degrees
ISOLATED = 3.0  # times farther from its neighbours than these from theirs, a point is an outlier
SUPPORT = 3  # neighbours that must agree with a point
SMALL_PIECE = 10  # points; smaller groups apart from the others are outliers
NORMAL_RIDGE = 0.1
NORMAL_CUT = 0.5  # width, as a difference of unit normals, of the bilateral weights
PCA_NEIGHBOURS = 20


def inliers(points: np.ndarray, normals: np.ndarray | None) -> np.ndarray:
    """Which points belong to a surface: near others, in line with some of them, in no tiny group; shape (n,), bool.

    Args:
        points: shape (n, 3).
        normals: unit, shape (n, 3); without them only distances count.
    """
    n = len(points)
    kept = np.ones(n, dtype=bool)
    for _ in range(2):  # outliers among the neighbours hide others
        index = np.flatnonzero(kept)
        distance, near = neighbours(points[index], NEIGHBOURS)
        reach = distance.mean(1)
        good = reach <= ISOLATED * np.median(reach[near], axis=1)
        if normals is not None:
            good &= _supported(points[index], normals[index], near)
        kept[index[~good]] = False
    index = np.flatnonzero(kept)
    if len(index) > NEIGHBOURS:
        _, near = neighbours(points[index], NEIGHBOURS)
        rows = np.repeat(np.arange(len(index)), near.shape[1])
        graph = coo_array((np.ones(near.size), (rows, near.ravel())), shape=(len(index),) * 2)
        _, piece = connected_components(graph, directed=False)
        sizes = np.bincount(piece)
        kept[index[sizes[piece] < min(SMALL_PIECE, sizes.max())]] = False
    return kept


def smoothed_normals(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Normals at the points from those of their neighbours, unit, (n, 3): a regression with bilateral weights."""
    distance, near = neighbours(points, NEIGHBOURS, itself=True)
    offset, around = points[near] - points[:, None], normals[near]
    difference = np.square(around - normals[:, None]).sum(2)
    weight = np.exp(-np.square(distance / (0.6 * distance[:, -1:])) - difference / NORMAL_CUT**2)
    weight /= weight.sum(1, keepdims=True)
    centre, mean = np.einsum("nk,nkx->nx", weight, offset), np.einsum("nk,nkx->nx", weight, around)
    offset, around = offset - centre[:, None], around - mean[:, None]
    spread = np.einsum("nk,nkx,nky->nxy", weight, offset, offset)
    spread += (NORMAL_RIDGE * np.trace(spread, axis1=1, axis2=2) + 1e-300)[:, None, None] * np.eye(3)
    slope = np.linalg.solve(spread, np.einsum("nk,nkx,nky->nxy", weight, offset, around))
    result = mean - np.einsum("nx,nxy->ny", centre, slope)
    return np.asarray(result / np.linalg.norm(result, axis=1, keepdims=True))


def estimated_normals(points: np.ndarray) -> np.ndarray:
    """Unit normals of points that have none, the same way out on each connected piece; shape (n, 3).

    Planes through the neighbours, their sides made to agree along a minimum spanning tree (Hoppe et al. 1992), and
    each piece turned so that its volume is positive.
    """
    n = len(points)
    _, near = neighbours(points, PCA_NEIGHBOURS, itself=True)
    around = points[near] - points[near].mean(1, keepdims=True)
    _, vectors = np.linalg.eigh(np.einsum("nkx,nky->nxy", around, around))
    normals = vectors[:, :, 0]

    rows, columns = np.repeat(np.arange(n), NEIGHBOURS), near[:, 1 : NEIGHBOURS + 1].ravel()
    bend = 1 - np.abs((normals[rows] * normals[columns]).sum(1))
    graph = coo_array((bend + 1e-6, (rows, columns)), shape=(n, n)).tocsr()
    tree = minimum_spanning_tree(graph.maximum(graph.T))
    n_pieces, piece = connected_components(tree, directed=False)
    parent = np.arange(n)
    for root in np.unique(piece, return_index=True)[1]:
        order, before = breadth_first_order(tree, root, directed=False)
        parent[order[1:]] = before[order[1:]]
    side = np.where((normals * normals[parent]).sum(1) < 0, -1.0, 1.0)
    while (parent != parent[parent]).any():  # jump to the grandparent: as many rounds as the depth has digits
        side, parent = side * side[parent], parent[parent]
    normals = normals * side[:, None]
    areas = point_areas(points)
    counts = np.bincount(piece, minlength=n_pieces)
    centres = np.stack([np.bincount(piece, points[:, x], n_pieces) / counts for x in range(3)], axis=1)
    volumes = np.bincount(piece, areas * ((points - centres[piece]) * normals).sum(1), n_pieces)
    return np.asarray(normals * np.where(volumes < 0, -1.0, 1.0)[piece][:, None])


def point_areas(points: np.ndarray) -> np.ndarray:
    """The part of the surface that each point stands for, from the distance to its eighth neighbour; shape (n,)."""
    k = min(8, len(points) - 1)
    distance, _ = neighbours(points, k)
    return np.asarray(np.pi * distance[:, -1] ** 2 / k)


def thinned(points: np.ndarray, normals: np.ndarray, cell: float) -> np.ndarray:
    """Indices of a subset: of the points in a cell of that side whose normals lie in one octant, the most central."""
    grid = np.floor((points - points.min(0)) / cell)
    keys = np.c_[grid, normals > 0].astype(np.int64)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.reshape(-1)
    counts = np.bincount(group)
    centres = np.stack([np.bincount(group, points[:, x]) / counts for x in range(3)], axis=1)
    order = np.lexsort((np.square(points - centres[group]).sum(1), group))
    return np.asarray(order[np.r_[True, np.diff(group[order]) != 0]])


def _supported(points: np.ndarray, normals: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Whether enough neighbours have similar normals and lie near the same tangent plane."""
    mean = normals[:, None] + normals[near]
    mean /= np.linalg.norm(mean, axis=2, keepdims=True) + 1e-300
    similar = np.square(normals[:, None] - normals[near]).sum(2) < SAME_SHEET**2
    height = np.abs(((points[:, None] - points[near]) * mean).sum(2))
    typical = np.median(height[similar]) if similar.any() else 0.0
    reach = np.linalg.norm(points[:, None] - points[near], axis=2)
    return np.asarray(
        (similar & (height <= np.maximum(6 * typical, 0.3 * reach))).sum(1) >= min(SUPPORT, near.shape[1])
    )


def neighbours(points: np.ndarray, k: int, *, itself: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices of the k nearest other points, nearest first; the point itself before them if asked."""
    k = min(k, len(points) - 1)
    distance, near = cKDTree(points).query(points, k + 1)
    return (distance, near) if itself else (distance[:, 1:], near[:, 1:])
