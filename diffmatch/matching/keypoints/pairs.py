"""Which pairs of images are meant, and what is known of their cameras."""

import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffmatch.errors import InputError

__all__ = ["ImagePair", "image_pairs", "parse_intrinsics"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm")


@dataclass(frozen=True)
class ImagePair:
    """Two image files and the name of their matches."""

    a: Path
    b: Path
    name: str

    @property
    def paths(self) -> tuple[Path, Path]:
        """Both files."""
        return self.a, self.b


def image_pairs(first: str | Path, second: str | Path | None = None) -> list[ImagePair]:
    """The pairs that are meant.

    Args:
        first: an image; a folder; or a text file with two images a line, relative to it.
        second: an image; a folder; None for all pairs of a folder, or with a text file. Of two folders, images with
            the same name (but for the suffix) are matched; of a folder and an image, each one with that image.

    Raises:
        InputError: nothing to match, a line with another number of names, a name twice.
    """
    one = Path(first)
    if second is None:
        if one.is_dir():
            pairs = list(combinations(_images(one, "A"), 2))
        elif one.suffix.lower() == ".txt":
            pairs = _listed(one)
        else:
            raise InputError("B", "an image, or A a folder or a text file of pairs", "nothing")
    else:
        pairs = _between(one, Path(second))
    if not pairs:
        raise InputError("A", "at least one pair of images", f"none in {first}")
    named = [ImagePair(a, b, f"{a.stem}_{b.stem}") for a, b in pairs]
    names = [pair.name for pair in named]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise InputError("A", "pairs with different names", f"{double} twice")
    return named


def _images(folder: Path, argument: str) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise InputError(argument, f"a folder with images ({', '.join(_SUFFIXES)})", str(folder))
    return found


def _between(one: Path, two: Path) -> list[tuple[Path, Path]]:
    if one.is_dir() and two.is_dir():
        others = {path.stem: path for path in _images(two, "B")}
        return [(path, others[path.stem]) for path in _images(one, "A") if path.stem in others]
    if one.is_dir():
        return [(path, two) for path in _images(one, "A")]
    if two.is_dir():
        return [(one, path) for path in _images(two, "B")]
    return [(one, two)]


def _listed(file: Path) -> list[tuple[Path, Path]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("A", "a text file with two images a line", f"{str(file)!r} ({error})") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        words = line.split("\t") if "\t" in line else line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise InputError("A", "two images a line", f"{len(words)} in line {number} of {file}")
        pairs.append((file.parent / words[0].strip(), file.parent / words[1].strip()))
    return pairs


def parse_intrinsics(text: str) -> tuple[Tensor, Tensor]:
    """The matrices K of both cameras, float64.

    Args:
        text: four numbers fx,fy,cx,cy (both cameras), eight (A, then B), or a text file with three rows of three
            numbers (both cameras) or six (A, then B).

    Raises:
        InputError: another form, or focal lengths that are not positive.
    """
    numbers = re.split(r"[,\s]+", text.strip())
    if len(numbers) in (4, 8) and all(re.fullmatch(r"[-+0-9.eE]+", number) for number in numbers):
        values = [_number(number) for number in numbers]
        matrices = [_matrix(*values[at : at + 4]) for at in range(0, len(values), 4)]
    else:
        matrices = _read_matrices(Path(text))
    for matrix in matrices:
        if not (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0 and (matrix[2] == [0, 0, 1]).all()):
            raise InputError("intrinsics", "K with positive focal lengths and last row 0 0 1", str(matrix.tolist()))
    return torch.from_numpy(matrices[0]), torch.from_numpy(matrices[-1])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError("intrinsics", "numbers fx,fy,cx,cy", repr(text)) from None


def _matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _read_matrices(path: Path) -> list[np.ndarray]:
    wanted = "fx,fy,cx,cy, or a text file with 3 or 6 rows of 3 numbers"
    if not path.is_file():
        raise InputError("intrinsics", wanted, repr(str(path)))
    try:
        rows = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise InputError("intrinsics", wanted, f"{path} ({error})") from error
    if rows.shape not in ((3, 3), (6, 3)):
        raise InputError("intrinsics", wanted, f"{path} with {rows.shape[0]} rows of {rows.shape[1]}")
    return [np.ascontiguousarray(part) for part in np.split(rows, len(rows) // 3)]
