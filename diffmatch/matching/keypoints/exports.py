"""Matches in files: npz, and the text formats that COLMAP imports."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffmatch.errors import InputError, check_shape
from diffmatch.io import existing_file, write_bytes_atomic
from diffmatch.matching.keypoints.result import ImageMatches

__all__ = ["match_arrays", "read_matches", "write_colmap", "write_matches"]


def match_arrays(matches: ImageMatches) -> dict[str, np.ndarray]:
    """What a file of matches holds, by name; matrices that were not found are left out."""
    arrays = {
        name: getattr(matches, name).numpy()
        for name in (
            "points_a",
            "points_b",
            "scores",
            "verified",
            "guided",
            "inliers",
            "raw_points_a",
            "raw_points_b",
            "raw_scores",
        )
    }
    arrays["size_a"], arrays["size_b"] = (k.image_size.numpy() for k in (matches.keypoints_a, matches.keypoints_b))
    for name in ("homography", "fundamental"):
        if getattr(matches, name) is not None:
            arrays[name] = getattr(matches, name).numpy()
    if matches.pose is not None:
        arrays["rotation"], arrays["translation"] = matches.pose.rotation.numpy(), matches.pose.translation.numpy()
    return arrays


def write_matches(path: str | Path, matches: ImageMatches) -> None:
    """Write matches as ``.npz``: the tensors of :class:`ImageMatches` under their names, and size_a, size_b.

    Raises:
        InputError: the place cannot be written, or the name does not end in .npz.
    """
    if Path(path).suffix.lower() != ".npz":
        raise InputError("output", "a file that ends in .npz", repr(str(path)))
    buffer = io.BytesIO()
    arrays: dict[str, Any] = match_arrays(matches)
    np.savez_compressed(buffer, **arrays)
    write_bytes_atomic(path, buffer.getvalue())


def read_matches(path: str | Path) -> dict[str, np.ndarray]:
    """Read a file of matches.

    Raises:
        InputError: no such file, or not one of matches.
    """
    found = existing_file(path)
    try:
        with np.load(found, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, AttributeError) as error:
        raise InputError("path", "an .npz file of matches", f"{found} ({error})") from error
    for name in ("points_a", "points_b"):
        if name not in arrays:
            raise InputError("path", f"a file of matches with {name}", f"{found} with {', '.join(arrays) or 'nothing'}")
        check_shape(name, torch.from_numpy(arrays[name]), ("n", 2))
    return arrays


def write_colmap(folder: str | Path, names: Sequence[str], matches: Mapping[tuple[int, int], ImageMatches]) -> None:
    """Write what COLMAP's feature_importer and matches_importer (match type "raw") read.

    Each image gets ``NAME.txt`` with the matched points as keypoints, whose descriptors are left zero; the pairs stand
    in ``matches.txt``. Positions are shifted by half a pixel: COLMAP's origin is the corner of the first pixel.

    Args:
        folder: made if needed.
        names: file names of the images, relative to COLMAP's image folder.
        matches: by the numbers of both images.

    Raises:
        InputError: a number without a name, or the place cannot be written.
    """
    target = Path(folder)
    points: list[dict[tuple[float, float], int]] = [{} for _ in names]
    lines = []
    for (i, j), found in matches.items():
        if not (0 <= i < len(names) and 0 <= j < len(names) and i != j):
            raise InputError("matches", f"two different numbers below {len(names)}", f"{(i, j)}")
        rows = [
            [points[at].setdefault((x, y), len(points[at])) for x, y in places[found.verified].tolist()]
            for at, places in ((i, found.points_a), (j, found.points_b))
        ]
        lines += [f"{names[i]} {names[j]}", *(f"{a} {b}" for a, b in zip(*rows, strict=True)), ""]
    for name, places in zip(names, points, strict=True):
        content = [f"{len(places)} 128", *(f"{x + 0.5:.4f} {y + 0.5:.4f} 1 0 {_ZEROS}" for x, y in places)]
        file = target / f"{name}.txt"
        _make_folder(file.parent)
        write_bytes_atomic(file, "\n".join([*content, ""]).encode())
    _make_folder(target)
    write_bytes_atomic(target / "matches.txt", "\n".join([*lines, ""]).encode())


_ZEROS = " ".join(["0"] * 128)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("folder", "a folder that exists or can be made", f"{folder} ({error.strerror})") from error
