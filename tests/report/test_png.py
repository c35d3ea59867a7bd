import struct
import zlib

import numpy as np
import pytest

from diffmatch.errors import InputError
from diffmatch.report import encode_png


def decode(data):
    """A reader for what `encode_png` writes, by the format's own rules for filters 0 (none) and 2 (up)."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, depth, color, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    channels = {0: 1, 2: 3, 6: 4}[color]
    assert depth == 8
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    image, before = np.empty((height, width * channels), np.uint8), np.zeros(width * channels, np.uint8)
    for n, row in enumerate(rows):
        before = image[n] = row[1:] + (before if row[0] == 2 else 0)
    return image.reshape(height, width, channels)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (4, 6, 3), (9, 2, 4)])
def test_what_is_written_reads_back(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decode(encode_png(image)).reshape(shape), image)


def test_smooth_pictures_are_small():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 300, axis=0).repeat(3, axis=2)
    assert len(encode_png(ramp)) < ramp.size / 100


@pytest.mark.untyped
@pytest.mark.parametrize("image", [np.zeros((2, 2, 2), np.uint8), np.zeros((0, 3), np.uint8), np.zeros((2, 2))])
def test_other_arrays_are_refused(image):
    with pytest.raises(InputError, match=r"image: want uint8 of shape"):
        encode_png(image)
