"""Candidate matches of two images, and which of them support each other.

A candidate is a keypoint of image a with one of image b whose descriptors are close. The frames of the two keypoints
(position, scale, orientation) fix a similarity from a to b; two candidates support each other where the similarity of
each moves the other's keypoint roughly to its partner. Everything here depends on relative frames alone, so turning,
scaling or moving an image changes nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.spatial import cKDTree
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.matching.keypoints.kernels import agreeing_pairs
from diffmatch.matching.keypoints.record import Keypoints

__all__ = ["Candidates", "Frames", "Support", "find_candidates", "find_support", "nearest_pairs"]

_ROWS_AT_ONCE = 4096
"""Descriptors of one image that are compared with all of the other at a time; bounds the memory."""


@dataclass(frozen=True, eq=False)
class Frames:
    """The keypoints of several images, one after the other, without padding.

    Attributes:
        positions: shape (k, 2), pixels.
        log_scale: shape (k,).
        orientation: shape (k,), radians.
        score: logarithm of the detector's response against its mean in the image, shape (k,).
        descriptors: shape (k, d).
        spacing: for each image a typical distance of neighbours, shape (p,), pixels.
        counts: keypoints of each image.
    """

    positions: Float[Tensor, "k 2"]
    log_scale: Float[Tensor, " k"]
    orientation: Float[Tensor, " k"]
    score: Float[Tensor, " k"]
    descriptors: Float[Tensor, "k d"]
    spacing: Float[Tensor, " p"]
    counts: tuple[int, ...]

    @staticmethod
    def of(images: Sequence[Keypoints]) -> "Frames":
        """Pack images; rows that are masked out are dropped, whatever they hold."""
        kept = [image.select(image.mask) for image in images]
        score = [image.score.clamp(min=1e-12).log() for image in kept]
        return Frames(
            torch.cat([image.positions for image in kept]),
            torch.cat([image.scale.clamp(min=1e-6).log() for image in kept]),
            torch.cat([image.orientation for image in kept]),
            torch.cat([s - s.mean() if len(s) else s for s in score]),
            torch.cat([image.descriptors for image in kept]),
            torch.stack([_spacing(image.positions) for image in kept]),
            tuple(image.count for image in kept),
        )


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates of several pairs of images, pair after pair.

    Attributes:
        a: row of each in the packed keypoints of the first images, shape (c,).
        b: row in those of the second images.
        pair: number of the pair of images.
        rank_a: how many keypoints of b are closer to that of a, at most k; shape (c,), int64.
        rank_b: how many of a are closer to that of b.
        counts: candidates of each pair.
    """

    a: Int64[Tensor, " c"]
    b: Int64[Tensor, " c"]
    pair: Int64[Tensor, " c"]
    rank_a: Int64[Tensor, " c"]
    rank_b: Int64[Tensor, " c"]
    counts: tuple[int, ...]

    def select(self, keep: Bool[Tensor, " c"]) -> "Candidates":
        """Some of the candidates; waits for the device to count them."""
        counts = torch.bincount(self.pair[keep], minlength=len(self.counts)).tolist()
        a, b, pair = self.a[keep], self.b[keep], self.pair[keep]
        return Candidates(a, b, pair, self.rank_a[keep], self.rank_b[keep], tuple(counts))


@dataclass(frozen=True, eq=False)
class Support:
    """Who supports whom, and how well their frames agree.

    Attributes:
        source: the supporting candidate of each edge, shape (e,).
        target: the supported one.
        geometry: by edge, shape (e, 6): log of the ratio of the two keypoints' distances, in b against a, less the log
            scale of the target's similarity, and less that of the source's; the turn between the two keypoints, in b
            against a, less that of the target's similarity, and less the source's (radians); log distance in a in units
            of the target's scale, and in units of the image's spacing.
        offset_a: from the target's keypoint to the source's in the frame of the target's keypoint in a, in units of
            the image's spacing, shape (e, 2).
        offset_b: the same in b, moved back to a by the target's similarity: equal to `offset_a` in perfect agreement.
    """

    source: Int64[Tensor, " e"]
    target: Int64[Tensor, " e"]
    geometry: Float[Tensor, "e 6"]
    offset_a: Float[Tensor, "e 2"]
    offset_b: Float[Tensor, "e 2"]

    def select(self, keep: Bool[Tensor, " c"]) -> "Support":
        """The edges between some of the candidates, which are numbered anew."""
        number = keep.cumsum(0) - 1
        edges = keep[self.source] & keep[self.target]
        source, target = number[self.source[edges]], number[self.target[edges]]
        return Support(source, target, self.geometry[edges], self.offset_a[edges], self.offset_b[edges])


@torch.no_grad()
def nearest_pairs(
    a: Float[Tensor, "m d"], b: Float[Tensor, "n d"], *, k: int
) -> tuple[Int64[Tensor, "2 c"], Int64[Tensor, "2 c"]]:
    """The k nearest of b for each row of a, and the k nearest of a for each row of b, as one list of pairs.

    Args:
        a: descriptors of length one.
        b: descriptors of length one.
        k: neighbours of each.

    Returns:
        The pairs, sorted, and their ranks from both sides: 0 for the nearest, k where it is none of the k nearest.

    Raises:
        InputError: k is below 1.
    """
    if k < 1:
        raise InputError("k", "at least 1", str(k))
    m, n = len(a), len(b)
    if m == 0 or n == 0:
        empty = torch.zeros(2, 0, dtype=torch.int64, device=a.device)
        return empty, empty
    if max(m, n) <= _ROWS_AT_ONCE:
        similarity = a @ b.T
        from_a, from_b = similarity.topk(min(k, n), 1).indices, similarity.topk(min(k, m), 0).indices.T
    else:
        from_a, from_b = _nearest_rows(a, b, min(k, n)), _nearest_rows(b, a, min(k, m))
    rows, columns = (torch.arange(count, device=a.device)[:, None] for count in (m, n))
    key_a, key_b = (rows * n + from_a).flatten(), (from_b * n + columns).flatten()
    keys, place = torch.unique(torch.cat((key_a, key_b)), return_inverse=True)
    ranks = torch.full((2, len(keys)), k, device=a.device)
    for side, (found, at) in enumerate(((from_a, place[: len(key_a)]), (from_b, place[len(key_a) :]))):
        ranks[side, at] = torch.arange(found.shape[1], device=a.device).repeat(len(found))
    return torch.stack((keys // n, keys % n)), ranks


def find_candidates(a: Frames, b: Frames, *, k: int) -> Candidates:
    """The candidates of each pair of images.

    Args:
        a: the first images.
        b: the second images, as many.
        k: neighbours of each keypoint.
    """
    parts, start_a, start_b = [], 0, 0
    for number, (m, n) in enumerate(zip(a.counts, b.counts, strict=True)):
        rows_a, rows_b = slice(start_a, start_a + m), slice(start_b, start_b + n)
        pairs, ranks = nearest_pairs(a.descriptors[rows_a], b.descriptors[rows_b], k=k)
        own = torch.full_like(pairs[:1], number)
        parts.append(torch.cat((pairs[:1] + start_a, pairs[1:] + start_b, own, ranks)))
        start_a, start_b = start_a + m, start_b + n
    row_a, row_b, pair, rank_a, rank_b = torch.cat(parts, 1)
    return Candidates(row_a, row_b, pair, rank_a, rank_b, tuple(part.shape[1] for part in parts))


@torch.no_grad()
def find_support(
    a: Frames,
    b: Frames,
    candidates: Candidates,
    seeds: Bool[Tensor, " c"],
    *,
    neighbors: int,
    max_log_scale: float = 1.0,
    max_turn: float = 1.0,
) -> Support:
    """For each candidate the seeds nearby in either image whose frames agree with its own.

    Args:
        a: the first images.
        b: the second images.
        candidates: of all pairs of images.
        seeds: which candidates may support others.
        neighbors: seeds that are looked at around each keypoint.
        max_log_scale: largest logarithm of the quotient between any two of the three scales (of the two similarities
            and of the distances).
        max_turn: largest angle between any two of the three turns, in radians.
    """
    near_a = _nearest_seeds(a, candidates.a, candidates, seeds, neighbors)
    near_b = _nearest_seeds(b, candidates.b, candidates, seeds, neighbors)
    search = _agreeing_compiled if near_a.device.type == "cpu" else _agreeing
    target, source = search(a, b, candidates, near_a, near_b, max_log_scale, max_turn)
    return _geometry(a, b, candidates, target, source)


def _geometry(
    a: Frames, b: Frames, candidates: Candidates, target: Int64[Tensor, " e"], source: Int64[Tensor, " e"]
) -> Support:
    """What the edges carry."""
    row_a, row_b = candidates.a[target], candidates.b[target]
    log_scale, turn = _similarity(a, b, candidates)
    offset_a = a.positions[candidates.a[source]] - a.positions[row_a]
    offset_b = b.positions[candidates.b[source]] - b.positions[row_b]
    length_a, length_b = (offset.norm(dim=-1).clamp(min=1e-6).log() for offset in (offset_a, offset_b))
    stretch, rotated = length_b - length_a, _angle(offset_b) - _angle(offset_a)
    spacing = a.spacing[candidates.pair[target]]
    geometry = (
        stretch - log_scale[target],
        stretch - log_scale[source],
        _wrap(rotated - turn[target]),
        _wrap(rotated - turn[source]),
        length_a - a.log_scale[row_a],
        length_a - spacing.log(),
    )
    unit = spacing[:, None]
    return Support(
        source,
        target,
        torch.stack(geometry, -1),
        _turned(offset_a, -a.orientation[row_a]) / unit,
        _turned(offset_b, -b.orientation[row_b]) / (unit * log_scale[target, None].exp()),
    )


def _similarity(a: Frames, b: Frames, candidates: Candidates) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Log scale and turn of the similarity that takes one frame of each candidate to the other."""
    log_scale = b.log_scale[candidates.b] - a.log_scale[candidates.a]
    return log_scale, b.orientation[candidates.b] - a.orientation[candidates.a]


def _agreeing_compiled(
    a: Frames,
    b: Frames,
    candidates: Candidates,
    near_a: Int64[Tensor, "m n"],
    near_b: Int64[Tensor, "_m n"],
    max_log_scale: float,
    max_turn: float,
) -> tuple[Int64[Tensor, " e"], Int64[Tensor, " e"]]:
    """:func:`_agreeing` by a kernel, which looks at each pair once and keeps what agrees."""
    columns = (
        a.positions,
        b.positions,
        candidates.a,
        candidates.b,
        *_similarity(a, b, candidates),
        near_a,
        near_b,
        0.5 * a.log_scale.exp(),
        0.5 * b.log_scale.exp(),
    )
    arrays = [column.double() if column.is_floating_point() else column for column in columns]
    target, source = agreeing_pairs(*(x.contiguous().numpy() for x in arrays), max_log_scale, max_turn)
    return torch.from_numpy(target), torch.from_numpy(source)


def _agreeing(
    a: Frames,
    b: Frames,
    candidates: Candidates,
    near_a: Int64[Tensor, "m n"],
    near_b: Int64[Tensor, "_m n"],
    max_log_scale: float,
    max_turn: float,
) -> tuple[Int64[Tensor, " e"], Int64[Tensor, " e"]]:
    """Targets and sources: candidates, and seeds near them in either image whose frames agree, each once."""
    count = len(candidates.a)
    index = torch.arange(count, device=near_a.device)[:, None]
    around_a, around_b = near_a[candidates.a], near_b[candidates.b]
    new = ~(around_b[:, :, None] == around_a[:, None, :]).any(-1)
    nearby = torch.cat((around_a, around_b), 1)
    known = torch.cat((around_a >= 0, (around_b >= 0) & new), 1)
    target, source = index.expand_as(nearby)[known], nearby[known]
    log_scale, turn = _similarity(a, b, candidates)
    agree = (log_scale[target] - log_scale[source]).abs() < max_log_scale
    agree &= _wrap(turn[target] - turn[source]).abs() < max_turn
    target, source = target[agree], source[agree]
    offset_a = a.positions[candidates.a[source]] - a.positions[candidates.a[target]]
    offset_b = b.positions[candidates.b[source]] - b.positions[candidates.b[target]]
    length_a, length_b = offset_a.norm(dim=-1), offset_b.norm(dim=-1)
    apart = (length_a > 0.5 * a.log_scale.exp()[candidates.a[target]]) & (
        length_b > 0.5 * b.log_scale.exp()[candidates.b[target]]
    )
    stretch, rotated = length_b.log() - length_a.log(), _angle(offset_b) - _angle(offset_a)
    agree = apart
    for end in (target, source):
        agree &= (stretch - log_scale[end]).abs() < max_log_scale
        agree &= _wrap(rotated - turn[end]).abs() < max_turn
    return target[agree], source[agree]


def _nearest_seeds(
    frames: Frames, rows: Int64[Tensor, " c"], candidates: Candidates, seeds: Bool[Tensor, " c"], neighbors: int
) -> Int64[Tensor, "k n"]:
    """For each keypoint the candidates that are the nearest seeds in its image, nearest first, then -1."""
    found, start, begin = [], 0, 0
    for count, size in zip(frames.counts, candidates.counts, strict=True):
        own = begin + seeds[begin : begin + size].nonzero()[:, 0]
        nearest = torch.full((count, neighbors), -1, device=own.device)
        if len(own) and count:
            positions = frames.positions[start : start + count]
            width = min(neighbors, len(own))
            nearest[:, :width] = own[_nearest_points(positions, frames.positions[rows[own]], width)]
        found.append(nearest)
        start, begin = start + count, begin + size
    return torch.cat(found)


def _nearest_points(points: Float[Tensor, "k 2"], others: Float[Tensor, "s 2"], count: int) -> Int64[Tensor, "k n"]:
    """Numbers of the nearest of some other points: by a tree on the CPU, by all distances elsewhere."""
    if points.device.type == "cpu":
        _, index = cKDTree(others.numpy()).query(points.numpy(), k=np.arange(1, count + 1))
        return torch.from_numpy(index.astype(np.int64))
    return torch.cdist(points, others).topk(count, 1, largest=False).indices


def _nearest_rows(a: Float[Tensor, "m d"], b: Float[Tensor, "n d"], k: int) -> Int64[Tensor, "m k"]:
    return torch.cat([(part @ b.T).topk(k, 1).indices for part in a.split(_ROWS_AT_ONCE)])


def _spacing(positions: Float[Tensor, "k 2"]) -> Float[Tensor, ""]:
    """Distance of neighbours if the keypoints were spread evenly over a square with their variance."""
    if len(positions) < 2:
        return positions.new_ones(())
    variance = positions.var(0, correction=0).sum()
    return (6.0 * variance / len(positions)).sqrt().clamp(min=1e-3)


def _wrap(angle: Tensor) -> Tensor:
    """The same angle between -pi and pi."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _angle(vectors: Float[Tensor, "e 2"]) -> Float[Tensor, " e"]:
    return torch.atan2(vectors[:, 1], vectors[:, 0])


def _turned(vectors: Float[Tensor, "e 2"], angle: Float[Tensor, " e"]) -> Float[Tensor, "e 2"]:
    x, y = vectors.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos * x - sin * y, sin * x + cos * y), -1)
