"""The search for supporters on the CPU, compiled."""

import math
import typing

import numpy as np
from numba import njit

__all__ = ["agreeing_pairs"]


@njit(cache=True, nogil=True)
@typing.no_type_check
def agreeing_pairs(
    points_a, points_b, row_a, row_b, log_scale, turn, near_a, near_b, apart_a, apart_b, max_log_scale, max_turn
):
    """Candidates and the seeds near them whose frames agree; see `find_support`, whose torch form is the reference.

    Args:
        points_a: positions in the first image, (m, 2).
        points_b: positions in the second, (n, 2).
        row_a: of each candidate, (c,).
        row_b: of each candidate, (c,).
        log_scale: of each candidate's similarity, (c,).
        turn: of each candidate's similarity, (c,).
        near_a: candidates that are seeds near each keypoint of the first image, -1 for none, (m, k).
        near_b: the same for the second image, (n, k).
        apart_a: least distance from each keypoint of the first image to one that supports it, (m,).
        apart_b: the same in the second, (n,).
        max_log_scale: largest difference of log scales.
        max_turn: largest angle between turns.

    Returns:
        Targets and sources, int64.
    """
    count, width = len(row_a), near_a.shape[1]
    target = np.empty(count * width * 2, np.int64)
    source = np.empty(count * width * 2, np.int64)
    total = 0
    for c in range(count):
        i, j = row_a[c], row_b[c]
        for side in range(2):
            for slot in range(width):
                s = near_a[i, slot] if side == 0 else near_b[j, slot]
                if s < 0:
                    break
                if abs(log_scale[s] - log_scale[c]) >= max_log_scale or abs(_wrapped(turn[s] - turn[c])) >= max_turn:
                    continue
                if side == 1 and _listed(near_a, i, s):
                    continue
                ax, ay = points_a[row_a[s], 0] - points_a[i, 0], points_a[row_a[s], 1] - points_a[i, 1]
                bx, by = points_b[row_b[s], 0] - points_b[j, 0], points_b[row_b[s], 1] - points_b[j, 1]
                length_a, length_b = math.sqrt(ax * ax + ay * ay), math.sqrt(bx * bx + by * by)
                if length_a <= apart_a[i] or length_b <= apart_b[j]:
                    continue
                stretch = math.log(length_b) - math.log(length_a)
                if abs(stretch - log_scale[c]) >= max_log_scale or abs(stretch - log_scale[s]) >= max_log_scale:
                    continue
                rotated = math.atan2(by, bx) - math.atan2(ay, ax)
                if abs(_wrapped(rotated - turn[c])) >= max_turn or abs(_wrapped(rotated - turn[s])) >= max_turn:
                    continue
                target[total], source[total] = c, s
                total += 1
    return target[:total].copy(), source[:total].copy()


@njit(cache=True, nogil=True)
@typing.no_type_check
def _wrapped(angle):
    """The same angle between -pi and pi."""
    return angle - 2.0 * math.pi * math.floor((angle + math.pi) / (2.0 * math.pi))


@njit(cache=True, nogil=True)
@typing.no_type_check
def _listed(near, row, seed):
    """Whether a seed is in a row of a table."""
    found = False
    for slot in range(near.shape[1]):
        found |= near[row, slot] == seed
    return found
