"""Match two images: upright first, the learned matcher and affine views only where few matches verify."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_choice, check_positive, check_shape
from diffmatch.matching.keypoints.attempt import Attempt, attempt, keep_close, keep_verified, rematch
from diffmatch.matching.keypoints.features import ROOTSIFT, sift_of_gray
from diffmatch.matching.keypoints.features_hessian import detect_hessian
from diffmatch.matching.keypoints.geometry.pose import Pose, normalize_by_intrinsics, pose_from_essential
from diffmatch.matching.keypoints.images import Image, ImageSource, read_image
from diffmatch.matching.keypoints.nearest import Nearest, check_alike, match_nearest, nearest_descriptors, one_to_one
from diffmatch.matching.keypoints.predicted import rematch_predicted
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.result import ImageMatches
from diffmatch.matching.keypoints.verify import essential_matrix
from diffmatch.matching.keypoints.views import join_keypoints, view_keypoints, views_of_tilt

__all__ = ["match_features", "match_images"]

ENOUGH = 100
"""Verified matches with which the search ends."""

MAX_PIXELS = 2_000_000
TILTS = (2.88, 6.2)
"""Views are added one tilt after the other: a near-optimal cover of what a camera can see (Rodríguez et al. 2018)."""

_CONTRAST = 0.0133  # a third of OpenCV's default: more keypoints in dull parts
_VIEW_KEYPOINTS = 1500  # of each affine view
_PREDICTED_KEYPOINTS = 4096  # of each view that a homography predicts
_PLENTY = 2  # times enough, after the network
_NEAREST = 8  # descriptors looked through along an epipolar line

Extractor = Callable[[Image], Keypoints]
Intrinsics = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class _Settings:
    ratio: float
    threshold: float
    estimator: str
    seed: int
    enough: int
    network: bool
    guided: bool
    device: torch.device


def match_images(
    image_a: ImageSource,
    image_b: ImageSource,
    *,
    features: str | Extractor = "sift",
    max_keypoints: int = 4096,
    max_pixels: int = MAX_PIXELS,
    ratio: float = 0.85,
    views: str = "auto",
    network: bool = True,
    guided: bool = True,
    threshold: float = 2.0,
    enough: int = ENOUGH,
    estimator: str = "magsac",
    intrinsics: Intrinsics | None = None,
    keep: str = "verified",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ImageMatches:
    """Match the keypoints of two images and find the geometry of the two cameras.

    Keypoints are matched by their descriptors (mutual, ratio test). If fewer than ``enough`` matches agree with a
    homography or a fundamental matrix, the learned matcher looks at the same keypoints, and then affine views of both
    images are added, one tilt after the other. At last the images are matched again under the geometry that was found,
    and, if that is a homography that upright keypoints alone did not give, each with the other as it predicts it.

    Args:
        image_a: a file, an array (h, w[, c]) or a tensor (c, h, w), see :func:`read_image`.
        image_b: likewise.
        features: "sift", "hessian" (of kornia) or a function from an :class:`Image` to :class:`Keypoints` in its
            pixels; views are made for "sift" alone.
        max_keypoints: of each image, upright.
        max_pixels: larger images are shrunk to this many; positions are given in the original.
        ratio: of the ratio test; 1 takes all mutual nearest descriptors.
        views: "auto" (where few matches verify), "always" or "never".
        network: use the learned matcher where few matches verify.
        guided: match again under the geometry that was found.
        threshold: pixels of the shrunk image within which a match agrees with a geometry.
        enough: verified matches with which the search ends.
        estimator: "magsac" (OpenCV) or "ransac" (tensors).
        intrinsics: K of both cameras in pixels of the original images, (3, 3) each: the pose is found too.
        keep: "verified" gives matches that agree with the geometry, "all" also those that do not.
        seed: of the robust fit "ransac".
        device: where kornia's detector and the learned matcher run; all else runs on the CPU.

    Returns:
        Tensors on the CPU; empty where the images do not match.

    Raises:
        InputError: an image cannot be read, or an argument is out of range.
        MissingExtraError: OpenCV (or kornia) is not installed.
    """
    check_positive("max_keypoints", max_keypoints)
    check_positive("max_pixels", max_pixels)
    check_positive("ratio", ratio)
    check_positive("threshold", threshold)
    check_positive("enough", enough)
    check_choice("views", views, ("auto", "always", "never"))
    check_choice("keep", keep, ("verified", "all"))
    check_choice("estimator", estimator, ("magsac", "ransac"))
    _check_intrinsics(intrinsics)
    extract = _extractor(features, max_keypoints, device)
    settings = _Settings(ratio, threshold, estimator, seed, enough, network, guided, torch.device(device))
    clock = _Clock()
    images = [
        read_image(source, max_pixels=max_pixels, argument=name)
        for name, source in (("image_a", image_a), ("image_b", image_b))
    ]
    clock.lap("read")
    upright = [_checked(extract(image), image) for image in images]
    clock.lap("detect")
    more = _more_views(images) if features == "sift" and views != "never" else []
    search = _Search(settings, clock, always_more=views == "always")
    best, raw = search.run(upright[0], upright[1], more, images if more else ())
    return _result(best, raw, images, search, intrinsics, keep)


def match_features(
    keypoints_a: Keypoints,
    keypoints_b: Keypoints,
    *,
    ratio: float = 0.85,
    network: bool = True,
    guided: bool = True,
    threshold: float = 2.0,
    enough: int = ENOUGH,
    estimator: str = "magsac",
    intrinsics: Intrinsics | None = None,
    keep: str = "verified",
    seed: int = 0,
) -> ImageMatches:
    """:func:`match_images` from keypoints that the caller has, without views.

    Args:
        keypoints_a: of one image, no batch axes.
        keypoints_b: of the other, with descriptors of the same kind.
        ratio: of the ratio test.
        network: use the learned matcher where few matches verify and it knows the descriptors.
        guided: match again under the geometry that was found.
        threshold: pixels within which a match agrees with a geometry.
        enough: verified matches with which the search ends.
        estimator: "magsac" (OpenCV) or "ransac" (tensors).
        intrinsics: K of both cameras.
        keep: "verified" or "all".
        seed: of the robust fit "ransac".

    Raises:
        InputError: descriptors of different kinds, or an argument out of range.
    """
    check_alike(keypoints_a, keypoints_b)
    for name, value in (("ratio", ratio), ("threshold", threshold), ("enough", enough)):
        check_positive(name, value)
    check_choice("keep", keep, ("verified", "all"))
    check_choice("estimator", estimator, ("magsac", "ransac"))
    _check_intrinsics(intrinsics)
    device = keypoints_a.device
    settings = _Settings(ratio, threshold, estimator, seed, enough, network, guided, device)
    search = _Search(settings, _Clock(), always_more=False)
    both = [keypoints.select(keypoints.mask).to("cpu") for keypoints in (keypoints_a, keypoints_b)]
    best, raw = search.run(both[0], both[1], [])
    return _result(best, raw, None, search, intrinsics, keep)


class _Clock:
    """Seconds spent on each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


class _Search:
    """The stages, in order, until enough matches verify."""

    def __init__(self, settings: _Settings, clock: _Clock, *, always_more: bool) -> None:
        self.settings, self.clock, self.always_more = settings, clock, always_more
        self.stages: list[str] = []

    def run(
        self,
        a: Keypoints,
        b: Keypoints,
        more: Sequence[tuple[str, Callable[[], list[Keypoints]]]],
        images: Sequence[Image] = (),
    ) -> tuple[Attempt, Attempt]:
        """The final matches, all verified, and the raw matches they come from."""
        s = self.settings
        best, nearest = self._nearest(a, b, "upright")
        if best.verified < s.enough and s.network and _network_knows(a):
            best = max(best, self._network(a, b), key=_verified)
        # What the network adds lies on frames that do not quite correspond: views place their matches better, and are
        # left out only where it has found plenty.
        wanted = s.enough if len(self.stages) == 1 else _PLENTY * s.enough
        for name, views in more:
            if best.verified >= wanted and not self.always_more:
                break
            wanted = s.enough
            extra = views()
            self.clock.lap("detect")
            a, b = join_keypoints([a, extra[0]]), join_keypoints([b, extra[1]])
            wider, near = self._nearest(a, b, name)
            if wider.verified > best.verified:
                best, nearest = wider, near
        final = keep_verified(best)
        if best.geometry.found and s.guided:
            final = rematch(best, nearest=nearest, threshold=s.threshold, estimator=s.estimator, seed=s.seed)
            self.clock.lap("guided")
            if images and len(self.stages) > 1 and final.geometry.planar:
                final = self._predicted(final, images)
        return keep_close(final, s.threshold), best

    def _predicted(self, found: Attempt, images: Sequence[Image]) -> Attempt:
        s = self.settings
        self.stages.append("predicted")
        final = rematch_predicted(
            found,
            *(image.gray for image in images),
            max_keypoints=_PREDICTED_KEYPOINTS,
            contrast_threshold=_CONTRAST,
            threshold=s.threshold,
            estimator=s.estimator,
            seed=s.seed,
        )
        self.clock.lap("predicted")
        return final

    def _nearest(self, a: Keypoints, b: Keypoints, name: str) -> tuple[Attempt, Nearest | None]:
        self.stages.append(name)
        nearest = nearest_descriptors(a, b, k=_NEAREST) if a.count and b.count else None
        pairs, scores = match_nearest(a, b, ratio=self.settings.ratio, nearest=nearest)
        self.clock.lap("match")
        tried = self._attempt(a, b, pairs, scores)
        return tried, nearest

    def _network(self, a: Keypoints, b: Keypoints) -> Attempt:
        from diffmatch.matching.keypoints.matcher import match_keypoints

        self.stages.append("network")
        with torch.inference_mode():
            pairs, scores = match_keypoints(a.to(self.settings.device), b.to(self.settings.device))
            pairs, scores = pairs.cpu(), scores.cpu()
            kept = one_to_one(a.positions[pairs[:, 0]], b.positions[pairs[:, 1]], scores)
        self.clock.lap("network")
        return self._attempt(a, b, pairs[kept], scores[kept])

    def _attempt(self, a: Keypoints, b: Keypoints, pairs: Tensor, scores: Tensor) -> Attempt:
        s = self.settings
        found = attempt(a, b, pairs, scores, threshold=s.threshold, estimator=s.estimator, seed=s.seed)
        self.clock.lap("verify")
        return found


def _verified(found: Attempt) -> int:
    return found.verified


def _network_knows(keypoints: Keypoints) -> bool:
    """Whether the matcher that ships with the package is made for these descriptors."""
    return keypoints.kind == ROOTSIFT


def _check_intrinsics(intrinsics: Intrinsics | None) -> None:
    for matrix in intrinsics or ():
        check_shape("intrinsics", matrix, (3, 3))
        if not torch.allclose(matrix[2].double().cpu(), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)):
            raise InputError("intrinsics", "matrices with the last row (0, 0, 1)", str(matrix[2].tolist()))


def _extractor(features: str | Extractor, max_keypoints: int, device: torch.device | str) -> Extractor:
    if not isinstance(features, str):
        return features
    check_choice("features", features, ("sift", "hessian"))
    if features == "hessian":
        return functools.partial(detect_hessian, max_keypoints=max_keypoints, device=device)
    return lambda image: sift_of_gray(image.gray, max_keypoints=max_keypoints, contrast_threshold=_CONTRAST)


def _checked(keypoints: Keypoints, image: Image) -> Keypoints:
    """What an extractor gave, without padding, on the CPU and in float32."""
    if keypoints.mask.ndim != 1 or tuple(keypoints.image_size.tolist()) != image.size:
        raise InputError("features", f"keypoints of one image of size {image.size}", str(keypoints.image_size.tolist()))
    return keypoints.select(keypoints.mask).to("cpu", torch.float32)


def _more_views(images: Sequence[Image]) -> list[tuple[str, Callable[[], list[Keypoints]]]]:
    """For each tilt its name and a function that makes the keypoints of its views of both images."""

    def of_tilt(tilt: float) -> list[Keypoints]:
        return [
            join_keypoints(
                [
                    view_keypoints(image.gray, view, max_keypoints=_VIEW_KEYPOINTS, contrast_threshold=_CONTRAST)
                    for view in views_of_tilt(tilt)
                ]
            )
            for image in images
        ]

    return [(f"tilt {tilt:g}", functools.partial(of_tilt, tilt)) for tilt in TILTS]


def _result(
    final: Attempt,
    raw: Attempt,
    images: Sequence[Image] | None,
    search: _Search,
    intrinsics: Intrinsics | None,
    keep: str,
) -> ImageMatches:
    """Everything in pixels of the original images."""
    pairs, scores, guided = final.pairs, final.scores, final.guided
    verified, inliers = np.ones(len(pairs), bool), final.geometry.on_homography
    if keep == "all":
        a, b = final.keypoints_a, final.keypoints_b  # those of raw come first in them
        # Raw matches that are among the final ones already clash with them, and go.
        every, strength = torch.cat([pairs, raw.pairs]), torch.cat([scores + 2, raw.scores])
        kept = one_to_one(a.positions[every[:, 0]], b.positions[every[:, 1]], strength)
        pairs, scores = every[kept], torch.cat([scores, raw.scores])[kept]
        pad = np.zeros(len(raw.pairs), bool)
        verified, inliers = np.r_[verified, pad][kept.numpy()], np.r_[inliers, pad][kept.numpy()]
        guided = torch.cat([guided, torch.from_numpy(pad)])[kept]
    keypoints = [final.keypoints_a, final.keypoints_b]
    homography, fundamental = (
        None if m is None else torch.from_numpy(m) for m in (final.geometry.homography, final.geometry.fundamental)
    )
    if images is not None:
        keypoints = [_in_original(k, image) for k, image in zip(keypoints, images, strict=True)]
        scaling_a, scaling_b = (_scaling(image) for image in images)
        if homography is not None:
            homography = torch.linalg.solve(scaling_b, homography @ scaling_a)
            homography = homography / homography[2, 2]
        if fundamental is not None:
            fundamental = scaling_b.T @ fundamental @ scaling_a
            fundamental = fundamental / fundamental.norm()
    order = torch.argsort(scores, descending=True, stable=True)
    points_a, points_b = (k.positions[pairs[order, side]] for side, k in enumerate(keypoints))
    verified_rows = torch.from_numpy(verified)[order]
    pose = None
    if intrinsics is not None:
        pose = _pose(points_a, points_b, verified_rows, intrinsics, search.settings.threshold / 2)
        search.clock.lap("pose")
    return ImageMatches(
        points_a,
        points_b,
        scores[order],
        verified_rows,
        guided[order],
        torch.from_numpy(np.asarray(inliers))[order],
        homography,
        fundamental,
        pose,
        final.geometry.planar,
        keypoints[0].positions[raw.pairs[:, 0]],
        keypoints[1].positions[raw.pairs[:, 1]],
        raw.scores,
        keypoints[0],
        keypoints[1],
        tuple(search.stages),
        dict(search.clock.seconds),
    )


def _in_original(keypoints: Keypoints, image: Image) -> Keypoints:
    return dataclasses.replace(
        keypoints,
        positions=image.to_original(keypoints.positions),
        scale=keypoints.scale / (image.scale[0] * image.scale[1]) ** 0.5,
        image_size=torch.tensor(image.original_size),
    )


def _scaling(image: Image) -> Float[Tensor, "3 3"]:
    """Maps pixels of the original image to those that were matched: p' = s p + s / 2 - 1 / 2."""
    x, y = image.scale
    rows = [[x, 0.0, x / 2 - 0.5], [0.0, y, y / 2 - 0.5], [0.0, 0.0, 1.0]]
    return torch.tensor(rows, dtype=torch.float64)


def _pose(
    points_a: Tensor, points_b: Tensor, verified: Tensor, intrinsics: Intrinsics, threshold: float
) -> Pose | None:
    """Where camera B stands, from the verified matches."""
    cameras = [matrix.detach().cpu().double() for matrix in intrinsics]
    rays = [normalize_by_intrinsics(p.double(), k) for p, k in zip((points_a, points_b), cameras, strict=True)]
    focal = sum(float(k[0, 0] + k[1, 1]) for k in cameras) / 4
    essential = essential_matrix(*(r[verified].numpy() for r in rays), threshold=threshold / focal)
    return None if essential is None else pose_from_essential(torch.from_numpy(essential), *rays, mask=verified)
