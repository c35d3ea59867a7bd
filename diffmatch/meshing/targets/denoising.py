"""Noise in oriented points, estimated and averaged out along the surface.

Everything here is float64 numpy on the CPU and does not depend on the unit of length.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import cg

from diffmatch.meshing.targets.cloud import NEIGHBOURS, SAME_SHEET, neighbours

__all__ = ["denoised", "noise_level", "residual_noise"]

# A pair of neighbours h apart whose normals differ by d is off the rule of mean normals by about this times h d, on
# smooth surfaces and on facets alike.
PAIR_ERROR = 0.5
LEAST_PAIR_ERROR = 0.01  # in units of the noise: keeps the system well conditioned
ROBUST_ROUNDS = 2
ROBUST_PAIRS, ROBUST_POINTS = 2.0, 4.0  # widths of the Cauchy weights, in standard deviations


class _Pairs(NamedTuple):
    """Neighbours on one smooth sheet, each pair once."""

    one: np.ndarray  # (e,)
    other: np.ndarray
    normals: np.ndarray  # mean normals, unit, (e, 3)
    change: np.ndarray  # lengths of the differences of the normals, (e,)


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


def residual_noise(points: np.ndarray, moved: np.ndarray, normals: np.ndarray) -> float:
    """Standard deviation along the normals between points and what `denoised` made of them."""
    return float(np.median(np.abs(((points - moved) * normals).sum(1))) / 0.6745)


def denoised(points: np.ndarray, normals: np.ndarray, noise: float, *, guide: np.ndarray | None = None) -> np.ndarray:
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
        guide: positions nearer to the surface, such as the result of an earlier call, that tell better which points
            are neighbours and how far apart; shape (n, 3).
    """
    guide = points if guide is None else guide
    pairs = _pairs(guide, normals)
    if len(pairs.one) == 0:
        return points
    length = np.linalg.norm(guide[pairs.one] - guide[pairs.other], axis=1)
    bend = PAIR_ERROR * pairs.change * length
    deviation = np.hypot(bend, LEAST_PAIR_ERROR * noise)
    chords = _chords(pairs, len(points))
    transposed = chords.T.tocsr()
    heights = chords @ points.ravel()
    moves = np.zeros(points.size)
    pair_trust, point_trust = np.ones(len(length)), np.ones(points.size)
    # On flat pairs the rule is exact: they say nothing of how far off the others may be.
    bent = bend > LEAST_PAIR_ERROR * noise
    for round_ in range(ROBUST_ROUNDS + 1):
        trusted = pair_trust * (noise / deviation) ** 2
        system = transposed @ chords.multiply(trusted[:, None]).tocsr() + _diagonal(point_trust)
        moves, _ = cg(
            system,
            transposed @ (trusted * heights),
            x0=moves,
            rtol=1e-4 if round_ < ROBUST_ROUNDS else 1e-5,
            maxiter=1000,
            M=_diagonal(1 / system.diagonal()),
        )
        residual = np.abs(heights - chords @ moves) / deviation
        scale = np.median(residual[bent]) / 0.6745 + 1e-300 if bent.any() else 1.0
        pair_trust = 1 / (1 + (residual / (ROBUST_PAIRS * scale)) ** 2)
        far = np.linalg.norm(moves.reshape(-1, 3), axis=1) / (ROBUST_POINTS * noise)
        point_trust = np.repeat(1 / (1 + far**2), 3)
    return np.asarray(points - moves.reshape(-1, 3))


def _chords(pairs: _Pairs, n: int) -> csr_array:
    """The map from coordinates (3 n,) to the heights of the pairs over each other, along their mean normals."""
    e, axes = len(pairs.one), np.arange(3)
    columns = np.concatenate([(3 * end[:, None] + axes).ravel() for end in (pairs.one, pairs.other)])
    rows = np.tile(np.repeat(np.arange(e), 3), 2)
    entries = np.concatenate([pairs.normals.ravel(), -pairs.normals.ravel()])
    return csr_array((entries, (rows, columns)), shape=(e, 3 * n))


def _pairs(points: np.ndarray, normals: np.ndarray) -> _Pairs:
    n = len(points)
    _, near = neighbours(points, NEIGHBOURS)
    one, other = np.repeat(np.arange(n), near.shape[1]), near.ravel()
    key = np.unique(np.minimum(one, other) * n + np.maximum(one, other))
    one, other = key // n, key % n
    change = np.linalg.norm(normals[one] - normals[other], axis=1)
    same = (change < SAME_SHEET) & (one != other)
    one, other, change = one[same], other[same], change[same]
    mean = normals[one] + normals[other]
    return _Pairs(one, other, mean / np.linalg.norm(mean, axis=1, keepdims=True), change)


def _diagonal(values: np.ndarray) -> csr_array:
    n = len(values)
    return csr_array((values, np.arange(n), np.arange(n + 1)), shape=(n, n))
