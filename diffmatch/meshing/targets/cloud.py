"""Oriented points made ready for a surface: outliers, noise, areas, and normals where there are none.

Everything here is float64 numpy on the CPU and does not depend on the unit of length.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

__all__ = ["denoised", "estimated_normals", "inliers", "noise_level", "point_areas", "smoothed_normals", "thinned"]

NEIGHBOURS = 12
SAME_SHEET = 0.7  # largest difference of unit normals between neighbours on one smooth sheet: 41 degrees
ISOLATED = 3.0  # times farther from its neighbours than these from theirs, a point is an outlier
SUPPORT = 3  # neighbours that must agree with a point
SMALL_PIECE = 10  # points; smaller groups apart from the others are outliers
# A pair of neighbours h apart whose normals differ by d is off the rule of mean normals by about this times h d, on
# smooth surfaces and on facets alike.
PAIR_ERROR = 0.5
LEAST_PAIR_ERROR = 0.01  # in units of the noise: keeps the system well conditioned
ROBUST_ROUNDS = 2
ROBUST_PAIRS, ROBUST_POINTS = 2.0, 4.0  # widths of the Cauchy weights, in standard deviations
NORMAL_RIDGE = 0.1
NORMAL_CUT = 0.5  # width, as a difference of unit normals, of the bilateral weights
PCA_NEIGHBOURS = 20


class _Pairs(NamedTuple):
    """Neighbours on one smooth sheet, each pair once."""

    one: np.ndarray  # (e,)
    other: np.ndarray
    normals: np.ndarray  # mean normals, unit, (e, 3)
    change: np.ndarray  # lengths of the differences of the normals, (e,)


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
        distance, near = _neighbours(points[index], NEIGHBOURS)
        reach = distance.mean(1)
        good = reach <= ISOLATED * np.median(reach[near], axis=1)
        if normals is not None:
            good &= _supported(points[index], normals[index], near)
        kept[index[~good]] = False
    index = np.flatnonzero(kept)
    if len(index) > NEIGHBOURS:
        _, near = _neighbours(points[index], NEIGHBOURS)
        rows = np.repeat(np.arange(len(index)), near.shape[1])
        graph = coo_array((np.ones(near.size), (rows, near.ravel())), shape=(len(index),) * 2)
        _, piece = connected_components(graph, directed=False)
        sizes = np.bincount(piece)
        kept[index[sizes[piece] < min(SMALL_PIECE, sizes.max())]] = False
    return kept


def noise_level(points: np.ndarray, normals: np.ndarray) -> float:
    """Standard deviation of the positions along the normals, from pairs of neighbours where the surface is flattest."""
    pairs = _pairs(points, normals)
    if len(pairs.one) == 0:
        return 0.0
    offset = points[pairs.one] - points[pairs.other]
    height = np.abs((offset * pairs.normals).sum(1))
    bend = pairs.change * np.linalg.norm(offset, axis=1)
    flattest = bend <= np.quantile(bend, 0.25)
    return float(np.median(height[flattest]) / 0.6745 / np.sqrt(2))


def denoised(points: np.ndarray, normals: np.ndarray, noise: float) -> np.ndarray:
    """Points moved onto a surface that fits their normals; shape (n, 3).

    Between two points of a quadric, the chord is at a right angle to the mean of the normals, up to third order. So
    positions x are sought that minimise ``|x - points|^2 / noise^2 + sum over pairs ((x_i - x_j) m_ij)^2 / s_ij^2``,
    with the mean normals m and the error s that this rule has on a pair: one sparse least-squares problem, in which
    noise averages out over as much of the surface as the normals can carry. Pairs across sharp edges take no part,
    and Cauchy weights keep the influence of errors bounded.

    Args:
        points: shape (n, 3).
        normals: unit, shape (n, 3).
        noise: standard deviation of each coordinate of the points, in their unit; positive.
    """
    pairs = _pairs(points, normals)
    n, e = len(points), len(pairs.one)
    if e == 0:
        return points
    length = np.linalg.norm(points[pairs.one] - points[pairs.other], axis=1)
    weights = noise**2 / ((PAIR_ERROR * pairs.change * length) ** 2 + (LEAST_PAIR_ERROR * noise) ** 2)
    axes = np.arange(3)
    columns = np.concatenate([(3 * end[:, None] + axes).ravel() for end in (pairs.one, pairs.other)])
    rows = np.tile(np.repeat(np.arange(e), 3), 2)
    entries = np.concatenate([pairs.normals.ravel(), -pairs.normals.ravel()])
    chords = csr_array((entries, (rows, columns)), shape=(e, 3 * n))
    transposed = chords.T.tocsr()
    heights = chords @ points.ravel()
    moved = np.zeros(3 * n)
    pair_trust, point_trust = np.ones(e), np.ones(3 * n)
    for round_ in range(ROBUST_ROUNDS + 1):
        trusted = weights * pair_trust
        system = transposed @ chords.multiply(trusted[:, None]).tocsr() + _diagonal(point_trust)
        moved, _ = cg(
            system,
            transposed @ (trusted * heights),
            x0=moved,
            rtol=1e-4 if round_ < ROBUST_ROUNDS else 1e-5,
            maxiter=1000,
            M=_diagonal(1 / system.diagonal()),
        )
        residual = np.abs(heights - chords @ moved) * np.sqrt(weights)
        scale = np.median(residual) / 0.6745 + 1e-300
        pair_trust = 1 / (1 + (residual / (ROBUST_PAIRS * scale)) ** 2)
        far = np.linalg.norm(moved.reshape(-1, 3), axis=1) / (ROBUST_POINTS * noise)
        point_trust = np.repeat(1 / (1 + far**2), 3)
    return np.asarray(points - moved.reshape(-1, 3))


def smoothed_normals(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Normals at the points from those of their neighbours, unit, (n, 3): a regression with bilateral weights."""
    distance, near = _neighbours(points, NEIGHBOURS, itself=True)
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
    _, near = _neighbours(points, PCA_NEIGHBOURS, itself=True)
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
    distance, _ = _neighbours(points, k)
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


def _pairs(points: np.ndarray, normals: np.ndarray) -> _Pairs:
    n = len(points)
    _, near = _neighbours(points, NEIGHBOURS)
    one, other = np.repeat(np.arange(n), near.shape[1]), near.ravel()
    key = np.unique(np.minimum(one, other) * n + np.maximum(one, other))
    one, other = key // n, key % n
    change = np.linalg.norm(normals[one] - normals[other], axis=1)
    same = (change < SAME_SHEET) & (one != other)
    one, other, change = one[same], other[same], change[same]
    mean = normals[one] + normals[other]
    return _Pairs(one, other, mean / np.linalg.norm(mean, axis=1, keepdims=True), change)


def _neighbours(points: np.ndarray, k: int, *, itself: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices of the k nearest other points, nearest first; the point itself before them if asked."""
    k = min(k, len(points) - 1)
    distance, near = cKDTree(points).query(points, k + 1)
    return (distance, near) if itself else (distance[:, 1:], near[:, 1:])


def _diagonal(values: np.ndarray) -> csr_array:
    n = len(values)
    return csr_array((values, np.arange(n), np.arange(n + 1)), shape=(n, n))
