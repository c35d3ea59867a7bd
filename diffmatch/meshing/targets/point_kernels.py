"""The surface through oriented points near a query, as compiled loops over its neighbours.

The kernels release the interpreter lock and are serial. Numba's cache does not notice edits in other files, so every
jitted function that a kernel calls lives here.
"""

import math
import typing

import numpy as np
from numba import njit

__all__ = ["surface_values"]

# Cosine of the angle to the normal of a sheet up to which points belong to it.
SAME_SHEET = math.cos(math.radians(38))
SOFTNESS = 0.45  # width, as a difference of unit normals, of the weights within a sheet
RIDGE = 0.05  # of the regression of normals, relative to the spread of the points
STEEPEST = 0.6  # largest change of the normal that the regression may find
LEAST_SHARE = 0.003  # of the weights, for a second or third sheet to count
SHEETS = 3

_kernel = njit(cache=True, nogil=True, error_model="numpy")


def surface_values(
    queries: np.ndarray, points: np.ndarray, normals: np.ndarray, neighbours: np.ndarray, distances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance, to second order, from the surface that oriented points lie on, and its unit gradient.

    The neighbours are split by their normals into at most three smooth sheets. A sheet's distance is the weighted mean
    of ``(x - p) (n + N) / 2``, where N is its normal at x by a regression of the normals on the positions: exact for
    planes and, to second order, for anything curved. Sheets meet as intersections of half spaces where their edge is
    convex and as unions where it is concave, which keeps the edge sharp (as in Ohtake et al. 2003).

    Args:
        queries: shape (n, 3).
        points: shape (m, 3).
        normals: unit, shape (m, 3).
        neighbours: indices of the nearest points, nearest first, shape (n, k).
        distances: of these, shape (n, k).

    Returns:
        values (n,), and gradients (n, 3).
    """
    values, gradients = np.empty(len(queries)), np.empty((len(queries), 3))
    _surface(queries, points, normals, neighbours, distances, values, gradients)
    return values, gradients


@_kernel
@typing.no_type_check
def _surface(queries, points, normals, neighbours, distances, values, gradients):
    k = neighbours.shape[1]
    weight = np.empty(k)
    free = np.empty(k, np.bool_)
    f, share = np.empty(SHEETS), np.empty(SHEETS)
    normal, middle, centre = np.empty((SHEETS, 3)), np.empty((SHEETS, 3)), np.empty((SHEETS, 3))
    for q in range(len(queries)):
        reach = distances[q, k - 1] * 1.0001 + 1e-300
        total = 0.0
        for i in range(k):
            weight[i] = (1 - (distances[q, i] / reach) ** 2) ** 4
            free[i] = True
            total += weight[i]
        n_sheets = 0
        for _ in range(2 * SHEETS):
            if n_sheets == SHEETS:
                break
            seed = -1
            for i in range(k):
                if free[i]:
                    seed = i
                    break
            if seed < 0:
                break
            share[n_sheets] = _sheet(
                queries[q],
                points,
                normals,
                neighbours[q],
                weight,
                free,
                seed,
                reach,
                f,
                normal,
                middle,
                centre,
                n_sheets,
            )
            if n_sheets == 0 or share[n_sheets] > LEAST_SHARE * total:
                n_sheets += 1
        chosen = 0
        if n_sheets == 2:
            chosen = _pick(_convex(middle, centre, 0, 1), f, 0, 1)
        elif n_sheets == 3:
            ab, ac, bc = _convex(middle, centre, 0, 1), _convex(middle, centre, 0, 2), _convex(middle, centre, 1, 2)
            # The pair that meets differently from the two others, if there is one, is joined first.
            if ab == ac:
                chosen = _pick(ab, f, 0, _pick(bc, f, 1, 2))
            elif ab == bc:
                chosen = _pick(ab, f, 1, _pick(ac, f, 0, 2))
            else:
                chosen = _pick(ac, f, 2, _pick(ab, f, 0, 1))
        values[q] = f[chosen]
        gradients[q] = normal[chosen]


@_kernel
@typing.no_type_check
def _pick(convex, f, a, b):
    """Which of two sheets bounds their intersection (where they meet convexly) or union."""
    return a if (f[a] >= f[b]) == convex else b


@_kernel
@typing.no_type_check
def _convex(middle, centre, a, b):
    """Whether each sheet's centre lies rather below the other sheet."""
    dot = 0.0
    for c in range(3):
        dot += (centre[b, c] - centre[a, c]) * (middle[a, c] - middle[b, c])
    return dot <= 0


@_kernel
@typing.no_type_check
def _sheet(x, points, normals, neighbours, weight, free, seed, reach, f, normal, middle, centre, sheet):
    """Take the sheet around a seed out of the free neighbours; returns its weight."""
    k = len(neighbours)
    # The sheet's normal: the mean over what agrees with the seed.
    first = neighbours[seed]
    mx, my, mz = 0.0, 0.0, 0.0
    for i in range(k):
        if free[i]:
            j = neighbours[i]
            dot = (
                normals[j, 0] * normals[first, 0]
                + normals[j, 1] * normals[first, 1]
                + normals[j, 2] * normals[first, 2]
            )
            if dot > SAME_SHEET:
                w = weight[i] + 1e-9
                mx += w * normals[j, 0]
                my += w * normals[j, 1]
                mz += w * normals[j, 2]
    length = math.sqrt(mx * mx + my * my + mz * mz)
    mx, my, mz = mx / length, my / length, mz / length

    total = 0.0
    c0, c1, c2, n0, n1, n2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    xx, xy, xz, yy, yz, zz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    b = np.zeros((3, 3))
    for i in range(k):
        if not free[i]:
            continue
        j = neighbours[i]
        dot = normals[j, 0] * mx + normals[j, 1] * my + normals[j, 2] * mz
        if dot < SAME_SHEET and i != seed:
            continue
        free[i] = False
        w = (weight[i] + 1e-9) * math.exp(-2 * (1 - dot) / SOFTNESS**2)
        total += w
        dx, dy, dz = points[j, 0] - x[0], points[j, 1] - x[1], points[j, 2] - x[2]
        c0 += w * dx
        c1 += w * dy
        c2 += w * dz
        n0 += w * normals[j, 0]
        n1 += w * normals[j, 1]
        n2 += w * normals[j, 2]
        xx += w * dx * dx
        xy += w * dx * dy
        xz += w * dx * dz
        yy += w * dy * dy
        yz += w * dy * dz
        zz += w * dz * dz
        for c in range(3):
            b[c, 0] += w * normals[j, c] * dx
            b[c, 1] += w * normals[j, c] * dy
            b[c, 2] += w * normals[j, c] * dz
    c0, c1, c2, n0, n1, n2 = c0 / total, c1 / total, c2 / total, n0 / total, n1 / total, n2 / total
    middle[sheet, 0], middle[sheet, 1], middle[sheet, 2] = n0, n1, n2
    xx, xy, xz = xx / total - c0 * c0, xy / total - c0 * c1, xz / total - c0 * c2
    yy, yz, zz = yy / total - c1 * c1, yz / total - c1 * c2, zz / total - c2 * c2
    # f = mean of (x - p) n / 2 + (x - mean p) N / 2; the first part from the diagonal of the raw moments.
    own = -(b[0, 0] + b[1, 1] + b[2, 2]) / total
    ridge = RIDGE * (xx + yy + zz) + 1e-6 * reach * reach
    xx, yy, zz = xx + ridge, yy + ridge, zz + ridge
    # N = mean n - B c, with B = cov(n, p) cov(p, p)^-1: the product with the adjugate of a symmetric matrix.
    a00, a01, a02 = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    a11, a12, a22 = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    det = xx * a00 + xy * a01 + xz * a02
    s0 = (a00 * c0 + a01 * c1 + a02 * c2) / det
    s1 = (a01 * c0 + a11 * c1 + a12 * c2) / det
    s2 = (a02 * c0 + a12 * c1 + a22 * c2) / det
    m0, m1, m2 = c0, c1, c2
    d0 = (b[0, 0] / total - n0 * m0) * s0 + (b[0, 1] / total - n0 * m1) * s1 + (b[0, 2] / total - n0 * m2) * s2
    d1 = (b[1, 0] / total - n1 * m0) * s0 + (b[1, 1] / total - n1 * m1) * s1 + (b[1, 2] / total - n1 * m2) * s2
    d2 = (b[2, 0] / total - n2 * m0) * s0 + (b[2, 1] / total - n2 * m1) * s1 + (b[2, 2] / total - n2 * m2) * s2
    change = math.sqrt(d0 * d0 + d1 * d1 + d2 * d2)
    limit = STEEPEST / change if change > STEEPEST else 1.0
    n0, n1, n2 = n0 - limit * d0, n1 - limit * d1, n2 - limit * d2
    length = math.sqrt(n0 * n0 + n1 * n1 + n2 * n2) + 1e-300
    normal[sheet, 0], normal[sheet, 1], normal[sheet, 2] = n0 / length, n1 / length, n2 / length
    centre[sheet, 0], centre[sheet, 1], centre[sheet, 2] = x[0] + c0, x[1] + c1, x[2] + c2
    f[sheet] = (own - (c0 * n0 + c1 * n1 + c2 * n2) / length) / 2
    return total
