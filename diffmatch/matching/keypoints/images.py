"""Images in: files of any common kind, arrays and tensors, as 8-bit pixels with their place in the original."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from diffmatch.errors import InputError, require

__all__ = ["Image", "ImageSource", "read_image"]

logger = logging.getLogger(__name__)

ImageSource = str | Path | np.ndarray | Tensor


@dataclass(frozen=True, eq=False)
class Image:
    """An image ready for a detector, and how its pixels lie in the original.

    Attributes:
        gray: 8-bit grey values, shape (h, w).
        color: 8-bit red, green, blue, shape (h, w, 3); grey three times where there was no colour.
        original_size: width and height before scaling, after the camera's rotation (EXIF) was undone.
        name: of the file, or what the caller gave.
    """

    gray: UInt8[np.ndarray, "h w"]
    color: UInt8[np.ndarray, "h w 3"]
    original_size: tuple[int, int]
    name: str = "image"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pixels here."""
        return self.gray.shape[1], self.gray.shape[0]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels here for one of the original, along x and y."""
        return self.size[0] / self.original_size[0], self.size[1] / self.original_size[1]

    def to_original(self, points: Tensor) -> Tensor:
        """Positions here, shape (\\*n, 2), as positions in the original: p' = s p + s / 2 - 1 / 2 undone."""
        if self.size == self.original_size:
            return points
        scale = torch.tensor(self.scale, dtype=points.dtype, device=points.device)
        return (points + 0.5) / scale - 0.5

    def from_original(self, points: Tensor) -> Tensor:
        """Positions in the original, shape (\\*n, 2), as positions here."""
        scale = torch.tensor(self.scale, dtype=points.dtype, device=points.device)
        return (points + 0.5) * scale - 0.5


def read_image(source: ImageSource | Image, *, max_pixels: int | None = None, argument: str = "image") -> Image:
    """Read an image: 8 or 16 bits, floating, grey, colour or with alpha, turned as the camera's EXIF note says.

    Args:
        source: a file, an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) in the order red, green, blue, or a tensor
            (1, h, w), (3, h, w), (4, h, w) or (h, w). Integers are taken in their full range; floats are between 0
            and 1. Where there is an alpha channel, the image lies on white.
        max_pixels: a larger image is shrunk to this many pixels.
        argument: name for the error message.

    Raises:
        InputError: no such file, not an image, truncated, or an array of another form.
        MissingExtraError: OpenCV is not installed.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, (str, Path)):
        pixels, name = _read_file(Path(source), argument), Path(source).name
    else:
        pixels, name = _from_array(source, argument), argument
    color = _flatten_alpha(_to_uint8(pixels, argument))
    height, width = color.shape[:2]
    color = _shrink(color, max_pixels)
    return Image(_gray(color), color, (width, height), name)


def _read_file(path: Path, argument: str) -> np.ndarray:
    """Pixels of a file in the order red, green, blue(, alpha)."""
    cv2 = require("cv2", extra="images")
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise InputError(argument, "an image file", f"{str(path)!r} ({error.strerror})") from error
    if not len(data):
        raise InputError(argument, "an image file", f"{str(path)!r} (empty)")
    if _is_cut_off(bytes(data[:8]), bytes(data[-64:])):
        raise InputError(argument, "a complete image file", f"{str(path)!r} (truncated)")
    try:
        # As stored keeps depth and alpha, but does not turn the image: that is done for what cameras write.
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if pixels is not None and (pixels.ndim == 2 or pixels.shape[2] == 3):
            turned = cv2.imdecode(data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
            pixels = pixels if turned is None else turned
    except cv2.error as error:
        raise InputError(argument, "an image file", f"{str(path)!r} ({error.err})") from error
    if pixels is None:
        raise InputError(argument, "an image that OpenCV can read", repr(str(path)))
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        return np.asarray(pixels)
    return np.asarray(pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]])


def _is_cut_off(head: bytes, tail: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end: decoders fill up what is missing with grey and say nothing."""
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in tail
    return head.startswith(b"\x89PNG") and b"IEND" not in tail


def _from_array(source: np.ndarray | Tensor, argument: str) -> np.ndarray:
    """Pixels with the channels last."""
    if isinstance(source, Tensor):
        pixels = source.detach().cpu().numpy()
        if pixels.ndim == 3:
            if pixels.shape[0] not in (1, 3, 4):
                raise InputError(argument, "a tensor (c, h, w) with 1, 3 or 4 channels", str(tuple(source.shape)))
            pixels = np.moveaxis(pixels, 0, -1)
    else:
        pixels = source
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise InputError(argument, "an array (h, w) or (h, w, c) with 1, 3 or 4 channels", str(tuple(source.shape)))
    if 0 in pixels.shape:
        raise InputError(argument, "an image with pixels", str(tuple(source.shape)))
    return np.asarray(pixels)


def _to_uint8(pixels: np.ndarray, argument: str) -> UInt8[np.ndarray, "h w *c"]:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return np.asarray(pixels * np.uint8(255))
    if pixels.dtype.kind == "u":
        return np.asarray((pixels / (np.iinfo(pixels.dtype).max / 255.0)).round().astype(np.uint8))
    if pixels.dtype.kind != "f":
        raise InputError(argument, "unsigned integers or floats between 0 and 1", str(pixels.dtype))
    if not np.isfinite(pixels).all():
        raise InputError(argument, "finite values", "NaN or infinite ones")
    if pixels.min() < 0 or pixels.max() > 1:
        raise InputError(argument, "floats between 0 and 1", f"{pixels.min():.4g} to {pixels.max():.4g}")
    return np.asarray((pixels * 255.0).round().astype(np.uint8))


def _flatten_alpha(pixels: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Three channels: grey repeated, alpha laid on white."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 255.0
        pixels = (pixels[..., :3] * alpha + 255.0 * (1.0 - alpha)).round().astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _shrink(color: UInt8[np.ndarray, "h w 3"], max_pixels: int | None) -> UInt8[np.ndarray, "hs ws 3"]:
    height, width = color.shape[:2]
    if max_pixels is None or height * width <= max_pixels:
        return color
    cv2 = require("cv2", extra="images")
    scale = math.sqrt(max_pixels / (height * width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    logger.info("image of %d x %d pixels shrunk to %d x %d", width, height, *size)
    return np.asarray(cv2.resize(color, size, interpolation=cv2.INTER_AREA))


def _gray(color: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    cv2 = require("cv2", extra="images")
    return np.asarray(cv2.cvtColor(color, cv2.COLOR_RGB2GRAY))
