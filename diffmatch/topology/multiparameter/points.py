"""Signed measures of point clouds: function-Rips, degree-Rips, and the Delaunay triangulation with a function."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_floating, check_positive, check_same_device, check_shape
from diffmatch.topology.alpha_complex import alpha_complex
from diffmatch.topology.multiparameter.axes import Axis, value_axis
from diffmatch.topology.multiparameter.events import Events, cell_events, graph_events, negated
from diffmatch.topology.multiparameter.images import check_degree
from diffmatch.topology.multiparameter.measure import SignedMeasure, collect, from_codes
from diffmatch.topology.multiparameter.rips_loops import loop_events
from diffmatch.topology.radix import argsort
from diffmatch.topology.rips_kernels import spanning_tree

__all__ = ["codensity", "degree_rips_signed_measure", "delaunay_signed_measure", "rips_signed_measure"]


def codensity(points: Float[Tensor, "n d"], *, bandwidth: float | int) -> Float[Tensor, " n"]:
    """How thin a cloud is at each of its points: minus the logarithm of a Gaussian kernel density estimate.

    ``c(p) = -log(1/n sum_q exp(-|p - q|^2 / (2 bandwidth^2)))``, from 0 (all points at p) to log n (p alone). As the
    second function of a cloud it lets dense parts enter first. Smooth in the points.

    Args:
        points: shape (n, d), finite.
        bandwidth: standard deviation of the kernel, in the unit of the points, > 0.

    Raises:
        InputError: wrong shape or dtype, NaN or inf, a bandwidth that is not positive.
    """
    _check_points(points)
    check_positive("bandwidth", bandwidth)
    apart = (points[:, None] - points).square().sum(-1)
    return math.log(max(len(points), 1)) - (apart / (-2 * bandwidth**2)).logsumexp(1)


def rips_signed_measure(
    points: Float[Tensor, "n d"], function: Float[Tensor, " n"], *, degree: int = 0, levels: int | None = None
) -> SignedMeasure:
    """The signed measure of a cloud with a function: the function-Rips bifiltration.

    At (r, t) the points with function values up to t are there, those at most r apart joined, and every clique filled.
    With :func:`codensity` as the function it is the density-Rips bifiltration. The measure is exact in the radius: its
    levels there are all distances; see :meth:`SignedMeasure.round_up` for fewer of them.

    Components come from the minimum spanning tree of a cloud that grows point by point, at a cost of n^2 steps beside
    the sorting of all distances. Loops come from the Rips complexes of the sublevel sets, a sweep of implicit
    cohomology for each level of the function; there ``levels`` saves time. All bars of loops end, at the enclosing
    radius of a sublevel set at the latest, so that the weights of degree 1 add up to zero at each value of the
    function: a loss that adds a term of the radius and one of the function sees the whole cloud only, as with one
    parameter.

    Differentiable in the points and in the function where neither the distances nor the values that matter change
    their order: first coordinates are distances of two points (or 0, where points enter), second ones are values of
    the function. Between points that coincide the gradient is zero. The sweep runs on the CPU.

    Args:
        points: shape (n, d), finite.
        function: one value a point, shape (n,), finite.
        degree: 0 or 1.
        levels: how many quantiles of the function to look at, each point entering at the next one; None for all values.

    Returns:
        The measure; its total weight is 1 in degree 0 and 0 in degree 1, or 0 for no points.

    Raises:
        InputError: wrong shapes or dtypes, NaN or inf, an unknown degree or number of levels.

    References:
        Carlsson, Zomorodian 2009, "The theory of multidimensional persistence"; Scoccola et al. 2024.
    """
    _check_function(points, function)
    if degree not in (0, 1):
        raise InputError("degree", "0 or 1", repr(degree))
    if levels is not None and levels < 1:
        raise InputError("levels", "a number >= 1 or None", repr(levels))
    n = len(points)
    first, second = np.triu_indices(n, 1)
    ends = np.stack((first, second), axis=1)
    length = _Lengths(points, ends)
    y = value_axis(function, levels)
    at = y.array()
    if degree == 1:
        return _measure(length, y, [loop_events(at, ends, length.rank, y.size)], degree)
    size = length.size, y.size
    events = graph_events((np.zeros(n, np.int32), at), ends, (length.rank, np.maximum(at[first], at[second])), size)
    return _measure(length, y, [events], degree)


def degree_rips_signed_measure(
    points: Float[Tensor, "n d"], *, neighbours: Sequence[int] | None = None
) -> SignedMeasure:
    """The signed measure of degree 0 of the degree-Rips bifiltration, which needs no function and no bandwidth.

    At (r, -k) those points are there that have at least k other points within r, those at most r apart joined. Second
    coordinates are numbers -k, so that the filtration grows from crowded points to all of them.

    Differentiable in the points where distances that matter keep their order: first coordinates are distances of two
    points (or 0), second ones are constant. Costs n^2 steps for each k. The sweep runs on the CPU.

    Args:
        points: shape (n, d), finite.
        neighbours: the k to look at, from 0 to n - 1; None for all of them.

    Returns:
        The measure on the levels of all distances and the given k.

    Raises:
        InputError: wrong shape or dtype, NaN or inf, numbers of neighbours that do not exist.

    References:
        Lesnick, Wright 2015, "Interactive visualization of 2-D persistence modules"; Blumberg, Lesnick 2024,
        "Stability of 2-parameter persistent homology".
    """
    _check_points(points)
    n = len(points)
    ks = sorted({int(k) for k in neighbours} if neighbours is not None else range(n), reverse=True)
    if ks and not (ks[-1] >= 0 and ks[0] < max(n, 1)):
        raise InputError("neighbours", f"numbers from 0 to {max(n - 1, 0)}", f"{ks[-1]} to {ks[0]}")
    ends = np.stack(np.triu_indices(n, 1), axis=1)
    length = _Lengths(points, ends)
    rank = np.zeros((n, n))
    rank[ends[:, 0], ends[:, 1]] = rank[ends[:, 1], ends[:, 0]] = length.rank
    nearest = np.sort(rank, axis=1)  # the point itself comes first, with rank 0
    codes, weights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for place, k in enumerate(ks if n else []):
        enters = nearest[:, k]
        joined = np.maximum(rank, np.maximum(enters[:, None], enters))
        tree = spanning_tree(joined)
        level = np.concatenate((enters, joined[tree[:, 0], tree[:, 1]])).astype(np.int64)
        sign = np.concatenate((np.ones(n, np.int64), -np.ones(len(tree), np.int64)))
        codes.append(level * len(ks) + place)
        weights.append(sign)
        if place + 1 < len(ks):
            codes.append(codes[-1] + 1)
            weights.append(-sign)
    counts = points.new_tensor([-k for k in ks])
    y = Axis(torch.zeros(0, dtype=torch.int32), counts, torch.arange(len(ks), device=points.device))
    return _measure(
        length, y, [(torch.from_numpy(np.concatenate(codes)), torch.from_numpy(np.concatenate(weights)))], 0
    )


def delaunay_signed_measure(
    points: Float[Tensor, "n 2"], function: Float[Tensor, " n"], *, degree: int | None = 1
) -> SignedMeasure:
    """The signed measure of a cloud in the plane with a function, on its Delaunay triangulation.

    At (r, t) those simplices of the triangulation are there whose points have function values up to t and whose edges
    are at most 2 r long (the flag complex of Delaunay edges, without triangles that are no faces of the triangulation).
    Loops are counted by ``H_1 = H_0 - chi``, which holds in the plane. It has a linear number of cells, where the Rips
    complex has a cubic one, and follows the same loops, though the two are not equivalent.

    Differentiable in the points and in the function where neither the edge lengths nor the values that matter change
    their order and the triangulation stays as it is; where it flips, the measure may jump. First coordinates are half
    the distance of two points (or 0), second ones are values of the function. The triangulation (SciPy) and the sweep
    run on the CPU.

    Args:
        points: shape (n, 2), finite. Of points that coincide one counts.
        function: one value a point, shape (n,), finite.
        degree: 0, 1, or None for the Euler characteristic.

    Raises:
        InputError: wrong shapes or dtypes, NaN or inf, an unknown degree.

    References:
        Scoccola et al. 2024, "Differentiability and optimization of multiparameter persistent homology".
    """
    check_shape("points", points, ("n", 2))
    _check_function(points, function)
    check_degree(degree, 1)
    complex_ = alpha_complex(points.detach().double().cpu().numpy())
    faces = [complex_.faces(k).vertices for k in range(1, complex_.dimension + 1)]
    edges = faces[0] if faces else np.empty((0, 2), np.int64)
    triangles = faces[1] if len(faces) > 1 else np.empty((0, 3), np.int64)
    length = _Lengths(points, edges, scale=0.5)
    n = len(points)
    y = value_axis(function, None)
    size = length.size, n
    at = np.full(n, n, np.int32)
    at[complex_.vertices] = y.array()[complex_.vertices]
    parts: list[Events] = []
    if degree is not None:
        parts.append(graph_events((np.zeros(n, np.int32), at), edges, (length.rank, at[edges].max(1, initial=0)), size))
    if degree != 0:
        code = edges[:, 0] * n + edges[:, 1]
        order = code.argsort()
        sides = np.searchsorted(code[order], triangles[:, [0, 0, 1]] * n + triangles[:, [1, 2, 2]])
        longest = length.rank[order[sides]].max(1, initial=0)
        levels = [(np.zeros(n, np.int32), at), (length.rank, at[edges].max(1, initial=0))]
        levels.append((longest, at[triangles].max(1, initial=0)))
        cells = [
            cell_events(torch.from_numpy(a), torch.from_numpy(b), (-1) ** k, size) for k, (a, b) in enumerate(levels)
        ]
        parts += [negated(part) for part in cells] if degree == 1 else cells
    return _measure(length, y, parts, degree)


class _Lengths:
    """The axis of distances: level 0 is zero, where points enter, and each pair has a level of its own.

    Args:
        points: shape (n, d).
        ends: the pairs, shape (m, 2).
        scale: coordinates are distances times this.

    Attributes:
        rank: level of each pair, from 1, shape (m,), int32; equal distances in the order of the pairs.
        size: number of levels.
    """

    def __init__(self, points: Tensor, ends: np.ndarray, *, scale: float = 1.0) -> None:
        self.points, self.scale = points, scale
        data = points.detach().double().cpu().numpy()
        squared = np.square(data[ends[:, 0]] - data[ends[:, 1]]).sum(1)
        # Numbers >= 0 are in the order of their bits.
        order = argsort(squared.view(np.int64))
        self.rank = np.empty(len(ends), np.int32)
        self.rank[order] = np.arange(1, len(ends) + 1, dtype=np.int32)
        self.size = len(ends) + 1
        self._by_rank = ends[order]

    def coordinates(self, at: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        """Distances of the pairs at levels, recomputed from the points."""
        if self.size == 1:
            return self.points.sum() * 0 + self.points.new_zeros(len(at))
        pair = self._by_rank[(at.cpu().numpy() - 1).clip(0)]
        i, j = torch.from_numpy(pair).to(self.points.device).long().unbind(1)
        squared = (self.points[i] - self.points[j]).square().sum(1)
        apart = (squared > 0) & (at > 0)
        return self.scale * torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)


def _measure(length: _Lengths, y: Axis, parts: Sequence[Events], degree: int | None) -> SignedMeasure:
    size = length.size, y.size
    codes, weights = collect([c for c, _ in parts], [w for _, w in parts], size)
    device = length.points.device
    return from_codes(codes.to(device), weights.to(device), size, length.coordinates, y.coordinates, degree)


def _check_points(points: Tensor) -> None:
    check_shape("points", points, ("n", "d"))
    check_floating("points", points)
    check_finite("points", points)


def _check_function(points: Tensor, function: Tensor) -> None:
    _check_points(points)
    check_shape("function", function, (len(points),))
    check_floating("function", function)
    check_finite("function", function)
    check_same_device("function", function, points.device)
