"""PNG pictures from arrays, with the standard library only."""

import struct
import zlib

import numpy as np
from jaxtyping import UInt8

from diffmatch.errors import InputError

__all__ = ["encode_png"]

_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # channels -> the format's number for grey, RGB, RGBA


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encode_png(image: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """Encode a picture as PNG.

    Args:
        image: grey (h, w), RGB (h, w, 3) or RGBA (h, w, 4) with straight alpha, uint8.

    Returns:
        The bytes of a PNG file. Equal pictures give equal bytes.

    Raises:
        InputError: another shape or dtype, or no pixels.
    """
    pixels = image[:, :, None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[2] not in _COLOR_TYPES or pixels.size == 0 or pixels.dtype != np.uint8:
        raise InputError("image", "uint8 of shape (h, w), (h, w, 3) or (h, w, 4)", f"{image.dtype} {image.shape}")
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    filtered = np.empty((height, 1 + rows.shape[1]), dtype=np.uint8)
    filtered[:, 0] = 2  # filter "up": each row minus the one above, modulo 256; zlib then finds long runs of zeros
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(filtered.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
