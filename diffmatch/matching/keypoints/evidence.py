"""What speaks for a candidate match: its descriptors, those that support it, and its rivals.

All quantities are relative (ratios, differences of angles, lengths in units of scales or spacings), so that turning,
scaling or moving an image changes nothing.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffmatch.matching.keypoints.candidates import Candidates, Frames, Support
from diffmatch.ops import gather_rows, segment_sum

__all__ = [
    "EDGE_FEATURES",
    "FIT_FEATURES",
    "NODE_FEATURES",
    "RIVAL_FEATURES",
    "affine_fit",
    "describe_edges",
    "describe_nodes",
    "length_units",
    "rival_shares",
]

EDGE_FEATURES = 9
NODE_FEATURES = 13
FIT_FEATURES = 7
RIVAL_FEATURES = 3

_NO_RIVAL = 2.0
"""Distance of a rival that is not there: the largest between descriptors of length one."""


def describe_nodes(a: Frames, b: Frames, candidates: Candidates) -> Float[Tensor, "c f"]:
    """What is known about each candidate by itself: its descriptors' distance, alone and against its rivals'.

    The distances of the nearest and the second nearest rival are read at the candidates of rank 0 and 1, so that
    gradients reach their descriptors too.
    """
    distance = _distance(a.descriptors, b.descriptors, candidates)
    columns = [distance]
    for rows, ranks, count in (
        (candidates.a, candidates.rank_a, len(a.score)),
        (candidates.b, candidates.rank_b, len(b.score)),
    ):
        nearest = [_at_rank(distance, rows, ranks, rank, count) for rank in (0, 1)]
        rival = torch.where(ranks == 0, nearest[1], nearest[0])
        columns += [
            distance / (rival + 1e-3) - 1.0,
            distance - nearest[0],
            (ranks == 0).to(distance.dtype),
            ranks.to(distance.dtype).log1p(),
        ]
    log_scale = b.log_scale[candidates.b] - a.log_scale[candidates.a]
    spacing = (b.spacing / a.spacing).log()[candidates.pair]
    columns += [
        a.score[candidates.a].clamp(-5, 5),
        b.score[candidates.b].clamp(-5, 5),
        (a.log_scale[candidates.a] - a.spacing.log()[candidates.pair]),
        (log_scale - spacing).clamp(-4, 4),
    ]
    return torch.stack(columns, -1)


def _distance(a: Float[Tensor, "m d"], b: Float[Tensor, "n d"], candidates: Candidates) -> Float[Tensor, " c"]:
    """Euclidean distances of the descriptors; with a finite gradient at zero."""
    squared = (gather_rows(a, candidates.a) - gather_rows(b, candidates.b)).square().sum(-1)
    return (squared + 1e-8).sqrt()


def _at_rank(
    distance: Float[Tensor, " c"], rows: Int64[Tensor, " c"], ranks: Int64[Tensor, " c"], rank: int, count: int
) -> Float[Tensor, " c"]:
    """For each candidate the distance of the one that has a given rank for the same keypoint; 2 where there is none."""
    found = (ranks == rank).nonzero()[:, 0]
    table = distance.new_full((count,), _NO_RIVAL).index_copy(0, rows[found], distance[found])
    return table[rows]


def describe_edges(support: Support) -> Float[Tensor, "e f"]:
    """The geometry of each edge, and its error: of the offsets, alone and against their length, and of the frames."""
    geometry = support.geometry
    error = (support.offset_b - support.offset_a).norm(dim=-1)
    length = support.offset_a.norm(dim=-1)
    return torch.cat(
        (
            geometry,
            (error / (length + 1e-3))[:, None],
            (error + 0.05).log()[:, None],
            (geometry[:, 0] - geometry[:, 1]).square()[:, None] + (geometry[:, 2] - geometry[:, 3]).square()[:, None],
        ),
        -1,
    )


def length_units(a: Frames, b: Frames, candidates: Candidates) -> Float[Tensor, "c 2"]:
    """Spacing of the first image in units of the candidate's scale, and of the second image's spacing moved back."""
    spacing_a, spacing_b = a.spacing[candidates.pair], b.spacing[candidates.pair]
    scale_a, scale_b = a.log_scale[candidates.a], b.log_scale[candidates.b]
    return torch.stack((spacing_a.log() - scale_a, (spacing_a / spacing_b).log() + scale_b - scale_a), -1)


def affine_fit(
    support: Support, weight: Float[Tensor, " e"], units: Float[Tensor, "c 2"], ridge: float = 0.5
) -> Float[Tensor, "c f"]:
    """How an affine map, fitted to the supporters with weights, moves the candidate's keypoint against its partner.

    In the candidate's own frame a supporter at offset x should land at y = x. Fitted is y - x = t + X x, with a ridge
    on X; t is then the candidate's own error.
    """
    x, d = support.offset_a, support.offset_b - support.offset_a
    x0, x1, d0, d1 = x[:, 0], x[:, 1], d[:, 0], d[:, 1]
    one = torch.ones_like(x0)
    moments = torch.stack(
        (one, x0, x1, d0, d1, x0 * x0, x0 * x1, x1 * x1, d0 * x0, d0 * x1, d1 * x0, d1 * x1, d0 * d0 + d1 * d1), -1
    )
    total = segment_sum(moments * weight[:, None], support.target, n_segments=len(units))
    mass = total[:, 0]
    mean = total[:, 1:] / (mass[:, None] + 1e-3)
    m0, m1, e0, e1, m00, m01, m11, c00, c01, c10, c11, dd = mean.unbind(-1)
    damping = ridge / (mass + 1e-3)
    s00, s01, s11 = m00 - m0 * m0 + damping, m01 - m0 * m1, m11 - m1 * m1 + damping
    c00, c01, c10, c11 = c00 - e0 * m0, c01 - e0 * m1, c10 - e1 * m0, c11 - e1 * m1
    determinant = (s00 * s11 - s01 * s01).clamp(min=1e-6)
    x00, x01 = (c00 * s11 - c01 * s01) / determinant, (c01 * s00 - c00 * s01) / determinant
    x10, x11 = (c10 * s11 - c11 * s01) / determinant, (c11 * s00 - c10 * s01) / determinant
    t0, t1 = e0 - x00 * m0 - x01 * m1, e1 - x10 * m0 - x11 * m1
    error = (t0 * t0 + t1 * t1 + 1e-8).sqrt()
    explained = x00 * c00 + x01 * c01 + x10 * c10 + x11 * c11
    spread = (dd - e0 * e0 - e1 * e1 - explained).clamp(min=0.0)
    change = (x00 * x00 + x01 * x01 + x10 * x10 + x11 * x11 + 1e-8).sqrt()
    fit = torch.stack(
        (
            mass.log1p(),
            (error + 0.01).log(),
            (error * units[:, 0].exp() + 0.05).log(),
            (error * units[:, 1].exp() + 0.01).log(),
            (spread + 1e-3).log(),
            change.clamp(max=4.0),
            (m0 * m0 + m1 * m1 + 1e-8).sqrt().log1p(),
        ),
        -1,
    )
    return torch.where(mass[:, None] > 1e-3, fit, torch.zeros_like(fit))


def rival_shares(score: Float[Tensor, " c"], candidates: Candidates, sizes: tuple[int, int]) -> Float[Tensor, "c f"]:
    """A score, and the logarithms of its share among the rivals for either keypoint; staying alone has score 0."""
    score = 15.0 * torch.tanh(score / 15.0)
    weight = score.exp()
    shares = []
    for rows, count in ((candidates.a, sizes[0]), (candidates.b, sizes[1])):
        total = 1.0 + segment_sum(weight, rows, n_segments=count)
        shares.append(score - total.log()[rows])
    return torch.stack((score, *shares), -1)
