"""Persistence of Vietoris-Rips filtrations, differentiable in the points, the distances and the weights."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_choice, check_finite, check_floating, check_positive, check_shape
from diffmatch.topology.bars import simplex_diagram
from diffmatch.topology.diagram import Diagram, Persistence
from diffmatch.topology.rips_general import general_pairs
from diffmatch.topology.rips_kernels import merge_components, spanning_tree, sweep_edges

__all__ = ["rips_persistence", "rips_persistence_batch"]

METRICS = ("euclidean", "precomputed")


def rips_persistence(
    points: Float[Tensor, "n d"],
    *,
    degrees: Sequence[int] = (0, 1),
    metric: str = "euclidean",
    threshold: float | int | None = None,
    weights: Float[Tensor, " n"] | None = None,
    vertex_values: Float[Tensor, " n"] | None = None,
    min_persistence: float | int = 0.0,
) -> Persistence:
    """Persistent homology of the Vietoris-Rips filtration of a point cloud or of a matrix of distances.

    A simplex enters with its longest edge, an edge uv with its length ``d(u, v)`` (a diameter, not a radius) and a
    point at 0. With ``weights`` w a point enters at ``2 w_u`` and an edge at
    ``max(d(u, v) + w_u + w_v, 2 w_u, 2 w_v)``, when balls that start at those times meet (a distance to measure). With
    ``vertex_values`` c a point enters at ``c_u`` and an edge at ``max(d(u, v), c_u, c_v)``.

    Births and deaths are recomputed from the critical edges, so they have gradients in the points or distances and in
    the weights: two points move for the death of a component, up to four for a loop. Where two edges are equally long
    the first in row order counts as shorter; the gradient is then one element of the generalised gradient. At a
    distance of zero (duplicated points) the gradient is zero. The pairing runs on the CPU, whatever the device of the
    input.

    Args:
        points: shape (n, d), finite; with ``metric="precomputed"`` a symmetric matrix of distances, shape (n, n), >= 0,
            zero on the diagonal; inf there means no edge. Gradients of distances go to the upper triangle.
        degrees: which degrees to compute. 0 and 1 are our own; higher ones need gudhi (extra ``topology``), and memory
            for all simplices.
        metric: ``"euclidean"`` or ``"precomputed"``.
        threshold: longer edges are left out, and classes alive then are essential; in units of the edge values. None
            for the enclosing radius, beyond which nothing happens any more.
        weights: shape (n,), finite.
        vertex_values: shape (n,), finite; not together with ``weights``.
        min_persistence: only bars longer than this are returned, >= 0.

    Returns:
        The diagrams. ``birth_index`` has the point of a component, shape (p, 1), or the ends of the edge that starts a
        higher class, shape (p, 2); ``death_index`` the ends of the edge that ends it, shape (p, 2). No points give
        empty diagrams, one point a component that is essential.

    Raises:
        InputError: wrong shapes or dtypes, NaN, or matrices that are no distances.

    References:
        The sources of :mod:`diffmatch.topology.rips_kernels`; Anai et al. 2020, "DTM-based filtrations".
    """
    wanted = _check_options(degrees, metric, threshold, min_persistence)
    cloud = _checked_cloud(points, metric, weights, vertex_values)
    return cloud.persistence(_pairs(cloud, wanted, threshold), min_persistence)


def rips_persistence_batch(
    points: Float[Tensor, "b n d"],
    *,
    counts: Int[Tensor, " b"] | None = None,
    degrees: Sequence[int] = (0, 1),
    metric: str = "euclidean",
    threshold: float | int | None = None,
    weights: Float[Tensor, "b n"] | None = None,
    vertex_values: Float[Tensor, "b n"] | None = None,
    min_persistence: float | int = 0.0,
) -> list[Persistence]:
    """:func:`rips_persistence` of each cloud of a batch, paired in as many threads as torch is set to use.

    Args:
        points: shape (b, n, d), or (b, n, n) with ``metric="precomputed"``.
        counts: number of points of each cloud, shape (b,), from 0 to n; None for n. What stands behind them does not
            matter, NaN included.
        degrees: as there.
        metric: as there.
        threshold: as there.
        weights: as there, shape (b, n).
        vertex_values: as there, shape (b, n).
        min_persistence: as there.

    Returns:
        One result a cloud; indices count from the beginning of their own cloud.

    Raises:
        InputError: as there, or counts that do not fit.
    """
    wanted = _check_options(degrees, metric, threshold, min_persistence)
    check_shape("points", points, ("b", "n", "d"))
    b, n, _ = points.shape
    sizes = _sizes(counts, b, n)

    def part(argument: str, values: Tensor | None) -> list[Tensor | None]:
        if values is None:
            return [None] * b
        check_shape(argument, values, (b, n))
        return [row[:size] for row, size in zip(values.unbind(0), sizes, strict=True)]

    own = [
        item[:size, :size] if metric == "precomputed" else item[:size]
        for item, size in zip(points.unbind(0), sizes, strict=True)
    ]
    rows = zip(own, part("weights", weights), part("vertex_values", vertex_values), strict=True)
    clouds = [_checked_cloud(item, metric, u, v) for item, u, v in rows]

    def pairs(cloud: "_Cloud") -> dict[int, "_Pairs"]:
        return _pairs(cloud, wanted, threshold)

    workers = min(torch.get_num_threads(), b)
    if workers < 2:
        found = [pairs(cloud) for cloud in clouds]
    else:
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(pairs, clouds))
    return [cloud.persistence(of, min_persistence) for cloud, of in zip(clouds, found, strict=True)]


def _sizes(counts: Tensor | None, b: int, n: int) -> list[int]:
    """Numbers of points by cloud."""
    if counts is None:
        return [n] * b
    check_shape("counts", counts, (b,))
    sizes = [int(count) for count in counts.tolist()]
    if counts.is_floating_point() or any(not 0 <= size <= n for size in sizes):
        raise InputError("counts", f"integers from 0 to {n}", repr(counts.tolist()))
    return sizes


def _check_options(
    degrees: Sequence[int], metric: str, threshold: float | int | None, min_persistence: float | int
) -> tuple[int, ...]:
    """Check what clouds of a batch share; the degrees, increasing and each once."""
    check_choice("metric", metric, METRICS)
    wanted = tuple(sorted({int(k) for k in degrees}))
    if not wanted or wanted[0] < 0:
        raise InputError("degrees", "at least one degree, each >= 0", repr(degrees))
    if threshold is not None and math.isnan(threshold):
        raise InputError("threshold", "a number or None", repr(threshold))
    check_positive("min_persistence", min_persistence, allow_zero=True)
    return wanted


@dataclass(frozen=True)
class _Pairs:
    """Critical simplices of one degree as numbers of points: ends of edges, or single points for births in degree 0."""

    birth: np.ndarray
    death: np.ndarray
    essential: np.ndarray


@dataclass(frozen=True)
class _Cloud:
    """The values of points and edges, all at once for the pairing, some of them with gradients for the diagrams."""

    points: Tensor
    precomputed: bool
    weights: Tensor | None
    vertex_values: Tensor | None

    def vertices(self, index: Int[Tensor, "p 1"]) -> Float[Tensor, " p"]:
        """When points enter."""
        index = index.squeeze(1)
        if self.weights is not None:
            return 2 * self.weights[index]
        if self.vertex_values is not None:
            return self.vertex_values[index]
        return self.points.new_zeros(len(index))

    def edges(self, index: Int[Tensor, "p 2"]) -> Float[Tensor, " p"]:
        """When edges enter."""
        i, j = index.unbind(1)
        if self.precomputed:
            length = self.points[i, j]
        else:
            squared = (self.points[i] - self.points[j]).square().sum(1)
            apart = squared > 0
            length = torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)
        return self._entry(length, i, j)

    def _entry(self, length: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if self.weights is not None:
            u, v = self.weights[i], self.weights[j]
            return torch.maximum(length + u + v, 2 * torch.maximum(u, v))
        if self.vertex_values is not None:
            return torch.maximum(length, torch.maximum(self.vertex_values[i], self.vertex_values[j]))
        return length

    def matrix(self) -> np.ndarray:
        """All edge values without gradients, shape (n, n), double precision."""
        data = self.points.detach().double()
        exact = "donot_use_mm_for_euclid_dist"
        length = data if self.precomputed else torch.cdist(data, data, compute_mode=exact)
        n = torch.arange(len(length), device=length.device)
        values: np.ndarray = self._entry(length, n.unsqueeze(1), n).detach().cpu().numpy()
        return values

    def entries(self) -> np.ndarray:
        """When each point enters, without gradients."""
        every = torch.arange(len(self.points), device=self.points.device).unsqueeze(1)
        values: np.ndarray = self.vertices(every).detach().double().cpu().numpy()
        return values

    def persistence(self, found: dict[int, _Pairs], min_persistence: float | int) -> Persistence:
        """The diagrams of critical simplices by degree."""
        return Persistence(tuple(self.diagram(degree, pairs, min_persistence) for degree, pairs in found.items()))

    def diagram(self, degree: int, pairs: _Pairs, min_persistence: float | int) -> Diagram:
        """Values for critical simplices."""
        birth, death, essential = (
            torch.from_numpy(x).to(self.points.device) for x in (pairs.birth, pairs.death, pairs.essential)
        )
        born = self.vertices if degree == 0 else self.edges
        return simplex_diagram(
            degree,
            born(birth),
            self.edges(death),
            birth,
            death,
            born(essential),
            essential,
            min_persistence=min_persistence,
        )


def _pairs(cloud: _Cloud, degrees: tuple[int, ...], threshold: float | int | None) -> dict[int, _Pairs]:
    """Critical simplices by degree, without gradients."""
    values = cloud.matrix()
    n = len(values)
    if threshold is None:
        threshold = float(values.max(1).min()) if n else 0.0
    if degrees == (0,):
        tree = spanning_tree(values)
        length = values[tree[:, 0], tree[:, 1]]
        tree, length = tree[length <= threshold], length[length <= threshold]
        edges = tree[np.lexsort((tree[:, 1], tree[:, 0], length))]
    else:
        edges = _sorted_edges(values, threshold)
    found: dict[int, _Pairs] = {}
    if 0 in degrees:
        entries = cloud.entries()
        birth, death, essential = merge_components(edges, _ranks(entries))
        essential = essential[entries[essential] <= threshold]
        found[0] = _Pairs(birth[:, None], edges[death], essential[:, None])
    if 1 in degrees:
        start, stop, alive = sweep_edges(edges, n)
        found[1] = _Pairs(edges[start], edges[stop], edges[alive[alive >= 0]])
    for degree, pairs in general_pairs(edges, n, [k for k in degrees if k > 1]).items():
        found[degree] = _Pairs(*pairs)
    return found


def _ranks(values: np.ndarray) -> np.ndarray:
    """The place of each value in a stable order."""
    order = values.argsort(kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank


def _sorted_edges(values: np.ndarray, threshold: float) -> np.ndarray:
    """The edges up to a threshold in order, shape (m, 2)."""
    upper = np.triu(values <= threshold, 1) & np.isfinite(values)
    i, j = upper.nonzero()
    order = values[i, j].argsort(kind="stable")
    return np.stack((i[order], j[order]), axis=1)


def _checked_cloud(points: Tensor, metric: str, weights: Tensor | None, vertex_values: Tensor | None) -> _Cloud:
    """One cloud, if all is well with it."""
    check_shape("points", points, ("n", "d"))
    check_floating("points", points)
    if metric == "precomputed":
        _check_distances(points)
    else:
        check_finite("points", points)
    if weights is not None and vertex_values is not None:
        raise InputError("vertex_values", "None where weights are given", "both")
    for name, values in (("weights", weights), ("vertex_values", vertex_values)):
        if values is not None:
            check_shape(name, values, (len(points),))
            check_floating(name, values)
            check_finite(name, values)
    return _Cloud(points, metric == "precomputed", weights, vertex_values)


def _check_distances(distances: Tensor) -> None:
    check_shape("points", distances, (len(distances),) * 2)
    values = distances.detach()
    if bool(values.isnan().any()):
        raise InputError("points", "distances without NaN", f"{int(values.isnan().sum())} NaN")
    if bool((values < 0).any()) or bool(values.diagonal().any()):
        raise InputError("points", "distances >= 0 with a diagonal of zeros", "others")
    if not torch.equal(values, values.mT):
        raise InputError("points", "a symmetric matrix of distances", "one that is not symmetric")
