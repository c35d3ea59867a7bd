"""Hessian keypoints with affine shape and RootSIFT descriptors by kornia: slower than SIFT, and better by itself."""

import math

import torch

from diffmatch.errors import check_positive, require
from diffmatch.matching.keypoints.images import Image, ImageSource, read_image
from diffmatch.matching.keypoints.record import Keypoints

__all__ = ["HESSIAN", "detect_hessian"]

HESSIAN = "rootsift-kornia"  # the order of the 4 x 4 x 8 numbers is kornia's: not to be matched with OpenCV's

_PATCH = 32  # pixels of the patch that is described
_PATCH_SCALE = 6.0  # of a blob's standard deviation in the radius of its frame


def detect_hessian(
    image: ImageSource | Image, *, max_keypoints: int = 2048, device: torch.device | str = "cpu"
) -> Keypoints:
    """Hessian blobs (Mikolajczyk et al. 2005), their affine shape, orientation and RootSIFT, on any device.

    Args:
        image: a file, an array or a tensor, see :func:`read_image`.
        max_keypoints: how many are kept.
        device: where the work is done.

    Returns:
        Keypoints of kind ``"rootsift-kornia"``, whose descriptors cannot be compared with those of OpenCV's SIFT.

    Raises:
        InputError: the image cannot be read.
        MissingExtraError: kornia is not installed.
    """
    check_positive("max_keypoints", max_keypoints)
    features = require("kornia.feature", extra="images")
    gray = read_image(image).gray
    size = (gray.shape[1], gray.shape[0])
    if min(size) < _PATCH:
        return Keypoints.of(
            torch.zeros(0, 2, device=device), torch.zeros(0, 128, device=device), image_size=size, kind=HESSIAN
        )
    pixels = torch.from_numpy(gray).to(device).float()[None, None] / 255
    detector = features.MultiResolutionDetector(
        features.BlobHessian(),
        max_keypoints,
        ori_module=features.LAFOrienter(19),
        aff_module=features.LAFAffineShapeEstimator(19),
    ).to(device)
    describe = features.LAFDescriptor(
        features.SIFTDescriptor(_PATCH, rootsift=True).to(device), patch_size=_PATCH, grayscale_descriptor=True
    )
    with torch.inference_mode():
        frames, responses = detector(pixels)
        descriptors = describe(pixels, frames)[0]
    linear, positions = frames[0, :, :, :2].clone(), frames[0, :, :, 2].clone()
    radius = torch.linalg.det(linear).abs().sqrt()
    # kornia's angles are from the x axis towards an upward y axis.
    orientation = torch.deg2rad(features.get_laf_orientation(frames)[0, :, 0].clone())
    inside = torch.isfinite(positions).all(dim=1) & (radius > 0)
    return Keypoints.of(
        positions,
        torch.nn.functional.normalize(descriptors.clone(), dim=1),
        image_size=size,
        scale=radius / _PATCH_SCALE,
        orientation=torch.remainder(-orientation, 2 * math.pi),
        score=responses[0].clone(),
        kind=HESSIAN,
    ).select(inside)
