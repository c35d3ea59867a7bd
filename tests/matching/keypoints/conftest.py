"""Textured pictures and warps of them, made here."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def cv2():
    return pytest.importorskip("cv2")


@pytest.fixture(scope="session")
def texture(cv2):
    """A picture with corners and blobs of many sizes: random discs and boxes, smoothed."""

    def make(height=300, width=400, seed=0):
        random = np.random.default_rng(seed)
        picture = np.full((height, width, 3), 128, np.uint8)
        for size in (60, 30, 15, 8):
            for _ in range(height * width // (6 * size * size)):
                at = random.integers(0, (width, height))
                color = random.integers(0, 256, 3).tolist()
                if random.random() < 0.5:
                    cv2.circle(picture, at.tolist(), int(random.integers(2, size // 2)), color, -1)
                else:
                    far = at + random.integers(2, size, 2)
                    cv2.rectangle(picture, at.tolist(), far.tolist(), color, -1)
        return cv2.GaussianBlur(picture, (0, 0), 0.8)

    return make


@pytest.fixture(scope="session")
def warped(cv2):
    """A picture under a homography, in a frame of the same size."""

    def make(picture, homography):
        size = (picture.shape[1], picture.shape[0])
        return cv2.warpPerspective(picture, np.asarray(homography), size, borderMode=cv2.BORDER_REFLECT)

    return make
