"""Changes of light, focus and sensor between two views of one scene, for training pairs."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from diffmatch.errors import check_positive, require

__all__ = ["Draws", "change_photometry"]

_Pixels = Float32[np.ndarray, "h w"]


class Draws:
    """Random numbers for one image at a time, all from one torch generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float | int, high: float | int) -> float:
        """A number between two bounds."""
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def log_uniform(self, low: float | int, high: float | int) -> float:
        """A positive number, every octave equally likely."""
        return float(np.exp(self.uniform(np.log(low), np.log(high))))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform(0.0, 1.0) < probability

    def integer(self, count: int) -> int:
        """One of 0, ..., count - 1."""
        return min(int(self.uniform(0.0, count)), count - 1)

    def normal(self, *shape: int) -> Float32[np.ndarray, "*shape"]:
        """Standard normal numbers."""
        return np.asarray(torch.randn(shape, generator=self.generator).numpy())


def change_photometry(
    gray: UInt8[np.ndarray, "h w"], *, generator: torch.Generator, strength: float = 1.0
) -> UInt8[np.ndarray, "h w"]:
    """The image under other light, less sharp, noisy and compressed, each by chance.

    Args:
        gray: grey values.
        generator: source of the random numbers.
        strength: 0 changes nothing; at 1 gamma lies between 1/2 and 2, the standard deviation of the blur goes up to
            2 pixels and that of the noise up to 12 grey levels.

    Raises:
        InputError: a negative strength.
    """
    check_positive("strength", strength, allow_zero=True)
    draws = Draws(generator)
    steps: tuple[tuple[float, Callable[[_Pixels, Draws, float], _Pixels]], ...] = (
        (0.3, _shade),
        (0.8, _tone),
        (0.4, _defocus),
        (0.15, _shake),
        (0.6, _add_noise),
        (0.4, _compress),
    )
    pixels = gray.astype(np.float32)
    for probability, step in steps:
        if draws.chance(probability):
            pixels = step(pixels, draws, strength)
    return np.asarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _shade(pixels: _Pixels, draws: Draws, strength: float) -> _Pixels:
    """A smooth change of brightness across the image."""
    cv2 = require("cv2", extra="images")
    coarse = np.exp(0.35 * strength * draws.normal(3, 4))
    return np.asarray(pixels * cv2.resize(coarse, pixels.shape[::-1], interpolation=cv2.INTER_CUBIC))


def _tone(pixels: _Pixels, draws: Draws, strength: float) -> _Pixels:
    """Gamma, contrast and brightness."""
    gamma = draws.log_uniform(0.5**strength, 2.0**strength)
    contrast = draws.log_uniform(0.5**strength, 1.5**strength)
    bright = draws.uniform(-40.0, 40.0) * strength
    curved = 255.0 * (np.clip(pixels, 0, 255) / 255.0) ** gamma
    return np.asarray(np.clip(contrast * (curved - 128.0) + 128.0 + bright, 0, 255), dtype=np.float32)


def _defocus(pixels: _Pixels, draws: Draws, strength: float) -> _Pixels:
    cv2 = require("cv2", extra="images")
    sigma = draws.uniform(0.3, 2.0) * strength
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma)) if sigma > 0 else pixels


def _shake(pixels: _Pixels, draws: Draws, strength: float) -> _Pixels:
    """Blur along a short line."""
    cv2 = require("cv2", extra="images")
    length = 1 + 2 * round(draws.uniform(1.0, 4.0) * strength)
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1.0 / length
    center = (length // 2, length // 2)
    kernel = cv2.warpAffine(kernel, cv2.getRotationMatrix2D(center, draws.uniform(0.0, 180.0), 1.0), (length, length))
    return np.asarray(cv2.filter2D(pixels, -1, kernel / kernel.sum()))


def _add_noise(pixels: _Pixels, draws: Draws, strength: float) -> _Pixels:
    sigma = draws.log_uniform(1.0, 12.0) * strength
    return np.asarray(pixels + sigma * draws.normal(*pixels.shape), dtype=np.float32)


def _compress(pixels: _Pixels, draws: Draws, strength: float) -> _Pixels:
    """To JPEG and back."""
    cv2 = require("cv2", extra="images")
    quality = round(100 - draws.uniform(5.0, 75.0) * min(strength, 1.0))
    whole = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), dtype=np.float32)
