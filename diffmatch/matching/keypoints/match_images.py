"""Match two images: upright first, the learned matcher and affine views only where few matches verify."""

import functools
from collections.abc import Callable

import torch

from diffmatch.errors import InputError, check_choice, check_positive, check_shape
from diffmatch.matching.keypoints.features import sift_of_gray
from diffmatch.matching.keypoints.features_hessian import detect_hessian
from diffmatch.matching.keypoints.images import Image, ImageSource, read_image
from diffmatch.matching.keypoints.nearest import check_alike
from diffmatch.matching.keypoints.outcome import Intrinsics, image_matches
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.result import ImageMatches
from diffmatch.matching.keypoints.search import Clock, Search, SearchSettings, more_views

__all__ = ["match_features", "match_images"]

ENOUGH = 100
"""Verified matches with which the search ends."""

MAX_PIXELS = 2_000_000

Extractor = Callable[[Image], Keypoints]


def match_images(
    image_a: ImageSource,
    image_b: ImageSource,
    *,
    features: str | Extractor = "sift",
    max_keypoints: int = 4096,
    max_pixels: int = MAX_PIXELS,
    ratio: float = 0.85,
    views: str = "auto",
    network: str = "auto",
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
        network: use the learned matcher "auto" (where few matches verify), "always" (in place of the ratio test) or
            "never".
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
    check_choice("network", network, ("auto", "always", "never"))
    check_choice("keep", keep, ("verified", "all"))
    check_choice("estimator", estimator, ("magsac", "ransac"))
    _check_intrinsics(intrinsics)
    extract = _extractor(features, max_keypoints, device)
    settings = SearchSettings(ratio, threshold, estimator, seed, enough, network, guided, torch.device(device))
    clock = Clock()
    images = [
        read_image(source, max_pixels=max_pixels, argument=name)
        for name, source in (("image_a", image_a), ("image_b", image_b))
    ]
    clock.lap("read")
    upright = [_checked(extract(image), image) for image in images]
    clock.lap("detect")
    more = more_views(images) if features == "sift" and views != "never" else []
    search = Search(settings, clock, always_more=views == "always")
    best, raw = search.run(upright[0], upright[1], more, images if more else ())
    return image_matches(best, raw, images, search, intrinsics, keep)


def match_features(
    keypoints_a: Keypoints,
    keypoints_b: Keypoints,
    *,
    ratio: float = 0.85,
    network: str = "auto",
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
        network: use the learned matcher "auto" (where few matches verify), "always" (in place of the ratio test) or
            "never"; one that knows the descriptors is at hand for RootSIFT alone.
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
    check_choice("network", network, ("auto", "always", "never"))
    check_choice("keep", keep, ("verified", "all"))
    check_choice("estimator", estimator, ("magsac", "ransac"))
    _check_intrinsics(intrinsics)
    device = keypoints_a.device
    settings = SearchSettings(ratio, threshold, estimator, seed, enough, network, guided, device)
    search = Search(settings, Clock(), always_more=False)
    both = [keypoints.select(keypoints.mask).to("cpu") for keypoints in (keypoints_a, keypoints_b)]
    best, raw = search.run(both[0], both[1], [])
    return image_matches(best, raw, None, search, intrinsics, keep)


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
    return lambda image: sift_of_gray(image.gray, max_keypoints=max_keypoints)


def _checked(keypoints: Keypoints, image: Image) -> Keypoints:
    """What an extractor gave, without padding, on the CPU and in float32."""
    if keypoints.mask.ndim != 1 or tuple(keypoints.image_size.tolist()) != image.size:
        raise InputError("features", f"keypoints of one image of size {image.size}", str(keypoints.image_size.tolist()))
    return keypoints.select(keypoints.mask).to("cpu", torch.float32)
