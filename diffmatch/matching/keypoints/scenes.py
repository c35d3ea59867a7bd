"""Scenes to train on: made from pictures once, kept in a folder, read back as pairs of views."""

import hashlib
import json
import logging
import os
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from diffmatch.errors import InputError
from diffmatch.io import atomic_write
from diffmatch.matching.keypoints.features import sift_of_gray
from diffmatch.matching.keypoints.images import read_image
from diffmatch.matching.keypoints.photometric import Draws
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.synthetic import Observed, made_image, observe, render_views

__all__ = ["SceneSettings", "Scenes"]

logger = logging.getLogger(__name__)

Picture = Path | UInt8[np.ndarray, "h w"]

_VERSION = 3
"""Of how scenes are made: a change of the detector or of the views needs another number, so that no old one is read."""


@dataclass(frozen=True)
class SceneSettings:
    """How scenes are made.

    Attributes:
        views: cameras a scene; each two of them are a training pair.
        max_keypoints: of a view.
        long_side: of the views, in pixels, from and to.
        max_tilt: of the cameras, in degrees.
        max_pixels: larger pictures are shrunk to this.
        seed: of all random numbers.
    """

    views: int = 4
    max_keypoints: int = 2048
    long_side: tuple[int, int] = (560, 900)
    max_tilt: float = 60.0
    max_pixels: int = 700_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.views < 2:
            raise InputError("views", "at least 2", str(self.views))


class Scenes:
    """Scenes by number; each depends on its number, the pictures and the settings alone.

    Scene k shows picture ``k mod n`` of n; what lies around it comes from the pictures after it.

    Args:
        pictures: files, or grey values; at least one more than a scene has views.
        folder: where finished scenes are kept, in a subfolder named after the pictures and settings; None keeps them in
            memory.
        settings: how they are made.

    Raises:
        InputError: too few pictures.
    """

    def __init__(
        self, pictures: Sequence[Picture], folder: Path | None = None, *, settings: SceneSettings | None = None
    ) -> None:
        self.settings = settings = settings or SceneSettings()
        if len(pictures) <= settings.views:
            raise InputError("pictures", f"more than {settings.views}", str(len(pictures)))
        self.pictures = list(pictures)
        self.folder = None if folder is None else folder / self._fingerprint()
        self._kept: dict[int, list[Observed]] = {}

    @staticmethod
    def made(count: int, *, size: tuple[int, int] = (320, 240), settings: SceneSettings | None = None) -> "Scenes":
        """Scenes of pictures that are made here, for trials without photographs."""
        settings = settings or SceneSettings(max_keypoints=256, long_side=(240, 320), max_tilt=35.0)
        generator = torch.Generator().manual_seed(settings.seed)
        return Scenes([made_image(size, generator=generator) for _ in range(count)], settings=settings)

    def prepare(self, numbers: Sequence[int], *, workers: int = 1, progress: bool = True) -> None:
        """Make the scenes of a folder that are not there yet.

        Args:
            numbers: which.
            workers: threads.
            progress: show a bar where standard error is a terminal.

        Raises:
            InputError: there is no folder.
        """
        if self.folder is None:
            raise InputError("folder", "a folder to keep scenes in", "none")
        missing = [number for number in numbers if not self._file(number).exists()]
        hidden = not (progress and sys.stderr.isatty())
        with ThreadPoolExecutor(workers) as pool:
            for _ in tqdm(pool.map(self.scene, missing), total=len(missing), delay=2.0, disable=hidden, unit="scene"):
                pass

    def scene(self, number: int) -> list[Observed]:
        """The views of a scene, read from the folder or made.

        Args:
            number: from 0; beyond the number of pictures they are shown again, from other sides.
        """
        if self.folder is None:
            if number not in self._kept:
                self._kept[number] = self._make(number)
            return self._kept[number]
        path = self._file(number)
        if path.exists():
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                logger.warning("%s is damaged and made again", path)
        views = self._make(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, argument="folder") as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **_arrays(views))
        return views

    def pairs(self) -> list[tuple[int, int]]:
        """The ordered pairs of views of a scene."""
        views = range(self.settings.views)
        return [(a, b) for a in views for b in views if a != b]

    def _make(self, number: int) -> list[Observed]:
        settings = self.settings
        digest = hashlib.sha256(f"{settings.seed} {number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        grays = [self._gray(number + k) for k in range(settings.views + 1)]
        views = render_views(
            grays[0], grays[1:], generator=generator, long_side=settings.long_side, max_tilt=settings.max_tilt
        )
        draws, observed = Draws(generator), []
        for view in views:
            keypoints = sift_of_gray(
                view.gray,
                max_keypoints=settings.max_keypoints,
                contrast_threshold=draws.log_uniform(0.01, 0.04),
            )
            observed.append(observe(view, keypoints))
        return observed

    def _gray(self, number: int) -> UInt8[np.ndarray, "h w"]:
        picture = self.pictures[number % len(self.pictures)]
        return (
            picture
            if isinstance(picture, np.ndarray)
            else read_image(picture, max_pixels=self.settings.max_pixels).gray
        )

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:06d}.npz"

    def _fingerprint(self) -> str:
        """A name that changes with the pictures and the settings."""
        digest = hashlib.sha256(json.dumps([_VERSION, asdict(self.settings)]).encode())
        for picture in self.pictures:
            digest.update(picture.tobytes() if isinstance(picture, np.ndarray) else os.fsencode(picture.name))
        return digest.hexdigest()[:12]


def _arrays(views: Sequence[Observed]) -> dict[str, np.ndarray]:
    """A scene as arrays; descriptors in half precision, which changes distances by less than 1e-3."""
    arrays = {}
    for number, view in enumerate(views):
        points = view.keypoints
        table = (points.positions, points.scale[:, None], points.orientation[:, None], points.score[:, None])
        arrays[f"points{number}"] = torch.cat(table, -1).numpy()
        arrays[f"descriptors{number}"] = points.descriptors.half().numpy()
        arrays[f"size{number}"] = points.image_size.numpy()
        arrays[f"plane{number}"] = view.plane.numpy().astype(np.int8)
        arrays[f"homographies{number}"] = view.homographies.numpy()
    return arrays


def _read(path: Path) -> list[Observed]:
    """The inverse of :func:`_arrays`."""
    views = []
    with np.load(path) as file:
        for number in range(sum(name.startswith("points") for name in file.files)):
            points = torch.from_numpy(file[f"points{number}"])
            keypoints = Keypoints.of(
                points[:, :2],
                torch.from_numpy(file[f"descriptors{number}"]).float(),
                image_size=torch.from_numpy(file[f"size{number}"]),
                scale=points[:, 2],
                orientation=points[:, 3],
                score=points[:, 4],
                kind="rootsift",
            )
            plane = torch.from_numpy(file[f"plane{number}"]).long()
            views.append(Observed(keypoints, plane, torch.from_numpy(file[f"homographies{number}"])))
    return views
