"""SIFT keypoints with RootSIFT descriptors by OpenCV."""

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from diffmatch.errors import check_positive, require
from diffmatch.matching.keypoints.images import ImageSource, read_image
from diffmatch.matching.keypoints.record import Keypoints

__all__ = ["CONTRAST", "ROOTSIFT", "detect_sift", "rootsift", "sift_of_gray"]

ROOTSIFT = "rootsift"  # the order of the 4 x 4 x 8 numbers is OpenCV's

CONTRAST = 0.0133  # a third of OpenCV's default: more keypoints in dull parts

# OpenCV doubles the image by cv2.resize, where pixel x lands on 2 x + 1/2, and then halves positions. Its option
# enable_precise_upscale avoids the shift by sampling at the pixels, but blurs every second column: fewer match.
_UPSCALE_SHIFT = 0.25


def detect_sift(
    image: ImageSource,
    *,
    max_keypoints: int = 2048,
    contrast_threshold: float = CONTRAST,
    device: torch.device | str = "cpu",
) -> Keypoints:
    """SIFT keypoints (Lowe 2004) with RootSIFT descriptors (Arandjelović and Zisserman 2012), strongest first.

    Args:
        image: a file, an array or a tensor, see :func:`~diffmatch.matching.keypoints.read_image`.
        max_keypoints: how many are kept.
        contrast_threshold: lower finds more keypoints, and weaker ones.
        device: where the result goes; the detector runs on the CPU.

    Returns:
        The record; empty where nothing was found. A position may occur with several orientations.

    Raises:
        InputError: the image cannot be read.
        MissingExtraError: OpenCV is not installed.
    """
    check_positive("max_keypoints", max_keypoints)
    check_positive("contrast_threshold", contrast_threshold)
    gray = read_image(image).gray
    return sift_of_gray(gray, max_keypoints=max_keypoints, contrast_threshold=contrast_threshold).to(device)


def sift_of_gray(
    gray: UInt8[np.ndarray, "h w"], *, max_keypoints: int, contrast_threshold: float = CONTRAST
) -> Keypoints:
    """:func:`detect_sift` of grey values."""
    cv2 = require("cv2", extra="images")
    detector = cv2.SIFT_create(max_keypoints, contrastThreshold=contrast_threshold)
    found, raw = detector.detectAndCompute(gray, None) if min(gray.shape) > 1 else ((), None)
    numbers = np.array([(*p.pt, p.size / 2, np.radians(p.angle), p.response) for p in found], np.float32).reshape(-1, 5)
    numbers[:, :2] -= _UPSCALE_SHIFT
    descriptors = rootsift(raw if raw is not None else np.zeros((0, 128), np.float32))
    order = np.argsort(-numbers[:, 4], kind="stable")[:max_keypoints]
    table = torch.from_numpy(numbers[order])
    return Keypoints.of(
        table[:, :2].contiguous(),
        torch.from_numpy(descriptors[order]),
        image_size=(gray.shape[1], gray.shape[0]),
        scale=table[:, 2].contiguous(),
        orientation=table[:, 3].contiguous(),
        score=table[:, 4].contiguous(),
        kind=ROOTSIFT,
    )


def rootsift(descriptors: Float32[np.ndarray, "n 128"]) -> Float32[np.ndarray, "n 128"]:
    """SIFT descriptors as their square roots, of length one: Euclidean distance is then Hellinger's."""
    total = descriptors.sum(axis=1, keepdims=True)
    return np.asarray(np.sqrt(descriptors / np.maximum(total, 1e-12)), dtype=np.float32)
