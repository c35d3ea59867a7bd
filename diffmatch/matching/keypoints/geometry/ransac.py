"""Robust fits on tensors: many minimal samples at once, then a weighted fit that is differentiable."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffmatch.errors import InputError, check_choice, check_positive, check_shape
from diffmatch.matching.keypoints.geometry.epipolar import fundamental_8point, sampson_distance
from diffmatch.matching.keypoints.geometry.homography import apply_homography, homography_dlt
from diffmatch.matching.keypoints.geometry.normalization import homogeneous

__all__ = ["RobustFit", "ransac"]

_SAMPLE = {"homography": 4, "fundamental": 8}
_REFINED = 16  # samples that are fitted again to what agrees with them
_WIDTHS = (3.0, 2.0, 1.5, 1.0, 1.0)  # of the weights, in thresholds, from one refit to the next


@dataclass(frozen=True, eq=False)
class RobustFit:
    """A model that most matches agree with.

    Attributes:
        model: homography or fundamental matrix of unit norm, shape (\\*b, 3, 3).
        weights: how much each match counted in the last fit, between 0 and 1, shape (\\*b, n).
        inliers: which matches lie within the threshold, shape (\\*b, n).
        count: how many; fewer than a sample needs means that nothing was found; shape (\\*b,).
    """

    model: Float[Tensor, "*b 3 3"]
    weights: Float[Tensor, "*b n"]
    inliers: Bool[Tensor, "*b n"]
    count: Int64[Tensor, " *b"]


def ransac(
    points_a: Float[Tensor, "*b n 2"],
    points_b: Float[Tensor, "*b n 2"],
    *,
    model: str,
    threshold: float = 2.0,
    samples: int = 1024,
    mask: Bool[Tensor, "*b n"] | None = None,
    scores: Float[Tensor, "*b n"] | None = None,
    generator: torch.Generator | None = None,
) -> RobustFit:
    """Fit a homography or a fundamental matrix to matches of which some are wrong.

    Draws minimal samples, keeps those with the largest sum of max(0, 1 - r^2 / T^2) over the matches (MSAC, Torr and
    Zisserman 2000), and refits the best by weights (1 - r^2 / (k T)^2)^2 with k falling from 3 to 1. The last fit is a
    weighted linear one, differentiable in the points; the choice of the samples and the weights are not.

    Args:
        points_a: pixels, shape (\\*b, n, 2), n at least 4 (homography) or 8 (fundamental).
        points_b: the matched pixels.
        model: "homography" or "fundamental".
        threshold: T in pixels.
        samples: how many are drawn for each batch element.
        mask: which matches count, shape (\\*b, n); the others may hold NaN.
        scores: matches with larger ones are drawn more often (in proportion), not negative, shape (\\*b, n).
        generator: of the samples.

    Returns:
        Outputs in the dtype of the points; computed in float64.

    Raises:
        InputError: wrong shapes, too few matches, an unknown model.
    """
    check_choice("model", model, _SAMPLE)
    check_positive("threshold", threshold)
    check_positive("samples", samples)
    check_shape("points_a", points_a, ("n", 2), batch=True)
    check_shape("points_b", points_b, tuple(points_a.shape))
    *batch, n, _ = points_a.shape
    size = _SAMPLE[model]
    if n < size:
        raise InputError("points_a", f"at least {size} matches", str(n))
    chosen = torch.ones_like(points_a[..., 0], dtype=torch.bool) if mask is None else mask
    a, b = (torch.where(chosen[..., None], p, 0).double().reshape(-1, n, 2) for p in (points_a, points_b))
    used = chosen.reshape(-1, n)
    likely = used.double() if scores is None else torch.where(chosen, scores, 0).reshape(-1, n).double()
    with torch.no_grad():
        start = _best_samples(a, b, used, likely, model, threshold, samples, generator)
        fitted, weights = _refine(a, b, used, start, model, threshold)
        best = _support(fitted, a, b, used, model, threshold).argmax(dim=1)
        weights = weights[torch.arange(len(best), device=best.device), best]
    final = _fit(a, b, weights, model)
    inliers = (_squared_error(final.detach()[:, None], a, b, model)[:, 0] <= threshold**2) & used
    return RobustFit(
        final.reshape(*batch, 3, 3).to(points_a.dtype),
        weights.reshape(*batch, n).to(points_a.dtype),
        inliers.reshape(*batch, n),
        inliers.sum(dim=-1).reshape(batch),
    )


def _best_samples(
    a: Tensor,
    b: Tensor,
    used: Tensor,
    likely: Tensor,
    model: str,
    threshold: float,
    samples: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "b s 3 3"]:
    """The models of the samples that most matches agree with."""
    size = _SAMPLE[model]
    # Exponential races: the first `size` to finish are a draw without replacement in proportion to the rates.
    draws = torch.rand(len(a), samples, a.shape[1], generator=generator, device=a.device, dtype=torch.float32)
    rates = likely.clamp_min(1e-12).float()[:, None]
    index = (-draws.clamp_min(1e-12).log() / rates).topk(size, dim=-1, largest=False).indices
    rows = torch.arange(len(a), device=a.device)[:, None, None]
    sample_a, sample_b = a[rows, index], b[rows, index]
    if model == "homography":
        # Four points that a camera sees from one side keep the turning sense of each three of them.
        sound = (_turns(sample_a) * _turns(sample_b) > 0).all(dim=-1)
        models = _minimal_homography(sample_a, sample_b)
    else:
        sound = torch.ones_like(index[..., 0], dtype=torch.bool)
        models = fundamental_8point(sample_a, sample_b)
    support = _support(models, a, b, used, model, threshold).masked_fill(~sound, -1)
    best = support.topk(min(_REFINED, samples), dim=1).indices
    return models[torch.arange(len(a), device=a.device)[:, None], best]


def _turns(points: Float[Tensor, "b s 4 2"]) -> Float[Tensor, "b s 4"]:
    """Twice the signed area of each triangle of four points."""
    corners = points[..., [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]], :]
    u, v = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def _minimal_homography(a: Float[Tensor, "b s 4 2"], b: Float[Tensor, "b s 4 2"]) -> Float[Tensor, "b s 3 3"]:
    """Homographies through four matches: each image's points as weighted sums of a projective basis."""
    return _basis(b) @ _inverse(_basis(a))


def _basis(points: Float[Tensor, "b s 4 2"]) -> Float[Tensor, "b s 3 3"]:
    """The map from the unit vectors and their sum to four points."""
    p = homogeneous(points)
    columns = p[..., :3, :].mT
    return columns * (_inverse(columns) @ p[..., 3, :, None]).mT


def _inverse(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """The inverse up to a factor (the adjugate), which no singular sample stops."""
    x, y, z = matrix.unbind(dim=-2)
    return torch.stack([torch.linalg.cross(y, z), torch.linalg.cross(z, x), torch.linalg.cross(x, y)], dim=-1)


def _squared_error(models: Float[Tensor, "b s 3 3"], a: Tensor, b: Tensor, model: str) -> Float[Tensor, "b s n"]:
    if model == "fundamental":
        # Twice the squared Sampson distance: about the squared distance to the epipolar line in either image.
        error = 2 * sampson_distance(models, a[:, None], b[:, None])
    else:
        error = (apply_homography(models, a[:, None]) - b[:, None]).square().sum(dim=-1)
    return torch.nan_to_num(error, nan=torch.inf, posinf=torch.inf)


def _support(
    models: Float[Tensor, "b s 3 3"], a: Tensor, b: Tensor, used: Tensor, model: str, threshold: float
) -> Float[Tensor, "b s"]:
    gain = (1 - _squared_error(models, a, b, model) / threshold**2).clamp_min(0)
    return torch.where(used[:, None], gain, 0).sum(dim=-1)


def _refine(
    a: Tensor, b: Tensor, used: Tensor, models: Tensor, model: str, threshold: float
) -> tuple[Float[Tensor, "b s 3 3"], Float[Tensor, "b s n"]]:
    """Models fitted again and again to what agrees with them, and the weights of the last fit."""
    many_a, many_b = (p[:, None].expand(-1, models.shape[1], -1, -1) for p in (a, b))
    weights = torch.zeros_like(many_a[..., 0])
    for width in _WIDTHS:
        share = _squared_error(models, a, b, model) / (width * threshold) ** 2
        weights = (1 - share).clamp_min(0).square() * used[:, None]
        models = _fit(many_a, many_b, weights, model)
    return models, weights


def _fit(a: Tensor, b: Tensor, weights: Tensor, model: str) -> Tensor:
    fit = homography_dlt if model == "homography" else fundamental_8point
    return fit(a, b, weights=weights)
