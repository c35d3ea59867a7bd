"""Which points of a set are joined: Delaunay, nearest neighbours, radius, all pairs."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.spatial import Delaunay, QhullError, cKDTree
from torch import Tensor

from diffmatch.errors import InputError, check_choice, check_finite, check_floating, check_positive, check_shape

__all__ = ["EDGE_SETS", "EdgeSet", "both_directions", "point_edges"]

EdgeSet = Literal["delaunay", "knn", "radius", "complete"]
EDGE_SETS = ("delaunay", "knn", "radius", "complete")


def point_edges(
    points: Float[Tensor, "n d"], *, edges: EdgeSet = "delaunay", k: int = 6, radius: float | None = None
) -> Int64[Tensor, "2 e"]:
    """Edges between points, each in both directions, sorted.

    The edge set is found on the CPU, whatever the device of the points.

    Args:
        points: shape (n, d).
        edges: ``"delaunay"``: sides of the Delaunay triangles (in d dimensions: simplices); all pairs where there are
            no triangles, as for fewer than d + 2 points or points on a line. ``"knn"``: each point with its ``k``
            nearest, whichever of the two it is near to. ``"radius"``: pairs at most ``radius`` apart. ``"complete"``:
            all pairs.
        k: neighbours, for ``"knn"``; all others where there are fewer.
        radius: in the unit of the points, for ``"radius"``.

    Returns:
        Tail and head of each edge, shape (2, e), on the device of the points.

    Raises:
        InputError: wrong shape or dtype, points that are not finite, an unknown edge set, no ``k`` or ``radius``.
    """
    check_shape("points", points, ("n", "d"))
    check_floating("points", points)
    check_choice("edges", edges, EDGE_SETS)
    check_finite("points", points)
    places = points.detach().cpu().double().numpy()
    n = len(places)
    if edges == "radius":
        if radius is None:
            raise InputError("radius", "a length, with edges='radius'", "None")
        check_positive("radius", radius)
        pairs = cKDTree(places).query_pairs(radius, output_type="ndarray") if n else _NONE
    elif edges == "knn":
        if k < 1:
            raise InputError("k", "a number of neighbours of at least 1", str(k))
        pairs = _nearest(places, min(k, n - 1))
    elif edges == "delaunay":
        pairs = _delaunay(places)
    else:
        pairs = _all_pairs(n)
    index = torch.from_numpy(np.ascontiguousarray(pairs.T.astype(np.int64))).to(points.device)
    return both_directions(index, n)[0]


def both_directions(edges: Int64[Tensor, "2 e"], n: int) -> tuple[Int64[Tensor, "2 m"], Int64[Tensor, " m"]]:
    """Edges with the missing directions added, sorted.

    Args:
        edges: tail and head of each edge, any of them in both directions already.
        n: number of nodes.

    Returns:
        The edges (2, m), and for each the column of ``edges`` that it comes from (of two, the earlier one).
    """
    count = edges.shape[1]
    key = torch.cat([edges[0] * n + edges[1], edges[1] * n + edges[0]])
    source = torch.arange(count, device=edges.device).repeat(2)
    unordered = torch.minimum(key, (key % max(n, 1)) * n + key // max(n, 1))
    # Both directions take the column that comes first, so that an edge given twice ends with one weight.
    _, group = unordered.unique(return_inverse=True)
    first = source.new_full((int(group.max()) + 1 if count else 0,), count).scatter_reduce(0, group, source, "amin")
    distinct, place = key.unique(return_inverse=True)
    owner = source.new_zeros(len(distinct)).index_put((place,), first[group])
    return torch.stack([distinct // max(n, 1), distinct % max(n, 1)]), owner


_NONE = np.empty((0, 2), np.int64)


def _all_pairs(n: int) -> np.ndarray:
    return np.stack(np.triu_indices(n, 1), axis=1)


def _nearest(points: np.ndarray, k: int) -> np.ndarray:
    if k < 1:
        return _NONE
    # One neighbour more than wanted: of points in one place, the point itself need not come first.
    _, near = cKDTree(points).query(points, k=k + 1)
    own = near == np.arange(len(points))[:, None]
    own[~own.any(1), -1] = True
    return np.stack([np.repeat(np.arange(len(points)), k), near[~own]], axis=1)


def _delaunay(points: np.ndarray) -> np.ndarray:
    n, d = points.shape
    if d == 1:
        order = np.argsort(points[:, 0], kind="stable")
        return np.stack([order[:-1], order[1:]], axis=1)
    if n < d + 2:
        return _all_pairs(n)
    try:
        cells = Delaunay(points, qhull_options="QJ" if _duplicates(points) else None).simplices
    except QhullError:  # on a line or in a plane
        return _all_pairs(n)
    corners = np.stack(np.triu_indices(d + 1, 1), axis=1)
    return np.asarray(cells[:, corners].reshape(-1, 2))


def _duplicates(points: np.ndarray) -> bool:
    """Whether some points are in one place: joggled, they keep edges of their own."""
    return len(np.unique(points, axis=0)) < len(points)
