"""Graphs over the keypoints of an image: the adaptive one of GIMS, and plain ones."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.spatial import cKDTree
from torch import Tensor

from diffmatch.errors import InputError, check_positive
from diffmatch.matching.graphs import Graph, to_geometric
from diffmatch.matching.graphs.edges import EdgeSet, both_directions
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.row_kernels import row_products

__all__ = ["KeypointGraph", "adaptive_graph", "keypoint_graph"]

_ALL_PAIRS = 2048  # keypoints up to which the percentile is taken over all pairs
_SAMPLED_PAIRS = 1 << 19
_CHUNK = 1 << 18  # pairs whose descriptors are gathered at a time


@dataclass(frozen=True, eq=False)
class KeypointGraph:
    """A graph over some keypoints of an image.

    Attributes:
        graph: positions and descriptors (as features) of the kept keypoints, each edge in both directions.
        kept: numbers of the kept keypoints in the record, ascending, shape (n,).
        threshold: least cosine similarity of two keypoints for an edge; None where there is none.
    """

    graph: Graph
    kept: Int64[Tensor, " n"]
    threshold: float | None

    def to_geometric(self) -> Any:
        """A torch-geometric ``Data``: ``pos``, ``x`` (descriptors), ``edge_index`` and ``keypoint`` (their numbers).

        Raises:
            MissingExtraError: torch-geometric is not installed.
        """
        data = to_geometric(self.graph)
        data.keypoint = self.kept
        return data


def keypoint_graph(
    keypoints: Keypoints, *, edges: EdgeSet = "delaunay", k: int = 6, radius: float | None = None
) -> KeypointGraph:
    """A plain graph over all keypoints of an image.

    Args:
        keypoints: of one image.
        edges: "delaunay", "knn", "radius" or "complete".
        k: neighbours a keypoint, for "knn".
        radius: pixels, for "radius".

    Raises:
        InputError: a batch, or an unknown kind of edges.
    """
    kept = _single(keypoints)
    graph = Graph.from_points(
        keypoints.positions[kept], edges=edges, k=k, radius=radius, features=keypoints.descriptors[kept]
    )
    return KeypointGraph(graph, kept, None)


def adaptive_graph(
    keypoints: Keypoints,
    *,
    radius: float = 25.0,
    percentile: float = 7.0,
    min_size: int = 8,
    joined: bool = True,
    generator: torch.Generator | None = None,
) -> KeypointGraph:
    """The adaptive graph of GIMS (Song et al. 2024, section 3): edges follow the similarities of the image at hand.

    Keypoints within ``radius`` are joined if the cosine of their descriptors is at least the given percentile of that
    of all pairs of the image. A keypoint without an edge is joined with its nearest one. Components of fewer than
    ``min_size`` keypoints are left out with their keypoints. From each component that stays, one edge leads to the one
    with the nearest centroid, between their closest points.

    Args:
        keypoints: of one image; descriptors of length one.
        radius: pixels.
        percentile: between 0 and 100; above 2048 keypoints it is that of about 2^19 pairs drawn at random.
        min_size: keypoints of the smallest component that stays.
        joined: join the components.
        generator: of the sampled pairs.

    Returns:
        The graph on the device of the keypoints. Finding the nearest of points is done on the CPU (k-d trees); the
        counts of pairs and of rounds wait for the device.

    Raises:
        InputError: a batch, or an argument out of range.
    """
    check_positive("radius", radius)
    if not 0 <= percentile <= 100:
        raise InputError("percentile", "a number from 0 to 100", str(percentile))
    if min_size < 1:
        raise InputError("min_size", "a whole number of at least 1", str(min_size))
    rows = _single(keypoints)
    points, descriptors = keypoints.positions[rows], keypoints.descriptors[rows]
    with torch.no_grad():
        threshold = _threshold(descriptors, percentile, generator)
        pairs = radius_pairs(points, radius)
        # The same product may differ in its last bits from one kernel to the next.
        pairs = pairs[:, _cosines(descriptors, pairs) >= threshold - 8 * torch.finfo(descriptors.dtype).eps]
        pairs = torch.cat([pairs, _nearest_of_isolated(points, pairs)], dim=1)
        label = components(pairs, len(points))
        sizes = torch.bincount(label, minlength=len(points))
        stays = sizes[label] >= min_size
        pairs = pairs[:, stays[pairs[0]]]
        if joined:
            pairs = torch.cat([pairs, _joints(points, label, stays)], dim=1)
    number = stays.cumsum(0) - 1
    edges, _ = both_directions(number[pairs], int(stays.sum()))
    graph = Graph(edges, int(stays.sum()), positions=points[stays], features=descriptors[stays])
    return KeypointGraph(graph, rows[stays], threshold if math.isfinite(threshold) else None)


def _single(keypoints: Keypoints) -> Int64[Tensor, " n"]:
    """Numbers of the keypoints that are not padding."""
    if keypoints.mask.ndim != 1:
        raise InputError("keypoints", "keypoints of one image", f"a batch {tuple(keypoints.mask.shape)}")
    return keypoints.mask.nonzero()[:, 0]


def _threshold(descriptors: Float[Tensor, "n d"], percentile: float, generator: torch.Generator | None) -> float:
    """The percentile of the cosines of all pairs of rows, interpolated between neighbouring ranks."""
    n = len(descriptors)
    if n < 2:
        return -math.inf
    if n <= _ALL_PAIRS:
        upper = torch.ones(n, n, dtype=torch.bool, device=descriptors.device).triu(1)
        cosines = (descriptors @ descriptors.mT)[upper]
    else:
        # Every keypoint with those a few random steps further: rows in order are read faster than at random.
        count = math.ceil(_SAMPLED_PAIRS / n)
        step = torch.randperm(n - 1, generator=generator, device=descriptors.device)[:count, None] + 1
        first = torch.arange(n, device=descriptors.device).expand(count, n)
        cosines = _cosines(descriptors, torch.stack([first.flatten(), ((first + step) % n).flatten()]))
    rank = percentile / 100 * (len(cosines) - 1)
    low = math.floor(rank)
    lower = float(cosines.kthvalue(low + 1).values)
    upper_value = float(cosines.kthvalue(min(low + 2, len(cosines))).values)
    return lower + (rank - low) * (upper_value - lower)


def _cosines(descriptors: Float[Tensor, "n d"], pairs: Int64[Tensor, "2 e"]) -> Float[Tensor, " e"]:
    if descriptors.device.type == "cpu" and descriptors.dtype in (torch.float32, torch.float64) and descriptors.numel():
        rows = np.ascontiguousarray(descriptors.detach().numpy())
        return torch.from_numpy(row_products(rows, pairs[0].numpy(), pairs[1].numpy()))
    parts = [torch.linalg.vecdot(descriptors[part[0]], descriptors[part[1]]) for part in pairs.split(_CHUNK, dim=1)]
    return torch.cat(parts) if parts else descriptors.new_zeros(0)


def radius_pairs(points: Float[Tensor, "n 2"], radius: float) -> Int64[Tensor, "2 e"]:
    """All pairs i, j of points within a distance, each once, by cells of a grid."""
    n = len(points)
    if n < 2:
        return torch.zeros(2, 0, dtype=torch.int64, device=points.device)
    cell = ((points - points.amin(0)) / radius).floor().to(torch.int64) + 1
    stride = int(cell[:, 1].max()) + 2
    key, order = (cell[:, 0] * stride + cell[:, 1]).sort(stable=True)
    pairs = []
    # The own cell and half of those around it: each pair of cells once.
    for offset in (0, 1, stride - 1, stride, stride + 1):
        start = torch.searchsorted(key, key + offset)
        end = torch.searchsorted(key, key + offset, right=True)
        if offset == 0:
            start = torch.arange(1, n + 1, device=points.device)
        count = (end - start).clamp_min(0)
        first = torch.repeat_interleave(torch.arange(n, device=points.device), count)
        within = torch.arange(len(first), device=points.device) - (count.cumsum(0) - count)[first]
        i, j = order[first], order[start[first] + within]
        close = (points[i] - points[j]).square().sum(dim=1) <= radius**2
        pairs.append(torch.stack([i[close], j[close]]))
    return torch.cat(pairs, dim=1)


def _nearest_of_isolated(points: Float[Tensor, "n 2"], pairs: Int64[Tensor, "2 e"]) -> Int64[Tensor, "2 m"]:
    """An edge from each point without one to the point nearest to it; each edge once."""
    alone = torch.bincount(pairs.flatten(), minlength=len(points)) == 0
    rows = alone.nonzero()[:, 0]
    if len(points) < 2 or not len(rows):
        return pairs[:, :0]
    places = points.cpu().double().numpy()
    near = torch.from_numpy(cKDTree(places).query(places[rows.cpu().numpy()], k=2)[1]).to(points.device)
    other = torch.where(near[:, 0] == rows, near[:, 1], near[:, 0])  # another point may lie in the same place
    edges: Tensor = torch.stack([torch.minimum(rows, other), torch.maximum(rows, other)]).unique(dim=1)
    return edges


def components(pairs: Int64[Tensor, "2 e"], n: int) -> Int64[Tensor, " n"]:
    """The smallest number in the component of each of n nodes, by propagation and pointer jumping."""
    label = torch.arange(n, device=pairs.device)
    while True:
        low = torch.minimum(label[pairs[0]], label[pairs[1]])
        # Hooked at the roots, so that whole trees move, not single nodes.
        hooked = label.scatter_reduce(0, label[pairs[0]], low, "amin").scatter_reduce(0, label[pairs[1]], low, "amin")
        hooked = hooked[hooked]
        if torch.equal(hooked, label):
            return label
        label = hooked


def _joints(
    points: Float[Tensor, "n 2"], label: Int64[Tensor, " n"], stays: Bool[Tensor, " n"]
) -> Int64[Tensor, "2 m"]:
    """For each component the closest pair of points of it and of the component with the nearest centroid."""
    rows = stays.nonzero()[:, 0]
    roots, part = label[rows].unique(return_inverse=True)
    count = len(roots)
    if count < 2:
        return torch.zeros(2, 0, dtype=torch.int64, device=points.device)
    sizes = torch.bincount(part, minlength=count)
    sums = points.new_zeros(count, 2).index_add(0, part, points[rows])
    centroids = (sums / sizes[:, None]).cpu().double().numpy()
    near = torch.from_numpy(cKDTree(centroids).query(centroids, k=2)[1])
    own = torch.arange(count)
    other = torch.where(near[:, 0] == own, near[:, 1], near[:, 0])
    links = torch.stack([torch.minimum(own, other), torch.maximum(own, other)], dim=1).unique(dim=0)
    members = rows[part.argsort(stable=True)].cpu().split(sizes.tolist())
    places = points.cpu().double().numpy()
    trees: dict[int, cKDTree] = {}
    joints = []
    for i, j in links.tolist():
        small, large = (i, j) if len(members[i]) <= len(members[j]) else (j, i)
        if large not in trees:
            trees[large] = cKDTree(places[members[large].numpy()])
        distance, index = trees[large].query(places[members[small].numpy()])
        at = int(distance.argmin())
        joints.append((int(members[small][at]), int(members[large][index[at]])))
    return torch.tensor(joints, dtype=torch.int64, device=points.device).T
