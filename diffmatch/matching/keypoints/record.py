"""The one record that detectors make and matchers read: keypoints of an image, or of a padded batch of images."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_same_device, check_shape

__all__ = ["Keypoints"]


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Keypoints of one image (no batch axes) or of several (padded to the largest count).

    Rows where ``mask`` is False are padding: they may hold anything, NaN too. Construction checks shapes, dtypes and
    devices, never values.

    Attributes:
        positions: pixels, x to the right and y down, the centre of the top-left pixel is (0, 0); shape (\\*b, k, 2).
        scale: standard deviation of the blob in pixels (half of OpenCV's ``size``), shape (\\*b, k).
        orientation: radians from the x axis towards the y axis, which points down; shape (\\*b, k).
        score: response of the detector, larger is better; shape (\\*b, k).
        descriptors: rows of length one, shape (\\*b, k, d).
        mask: which rows are keypoints, shape (\\*b, k).
        image_size: width and height in pixels, shape (\\*b, 2), int64.
        kind: what the descriptors are, such as ``"rootsift"``; only equal kinds can be matched.

    Raises:
        InputError: a shape, dtype or device does not fit.
    """

    positions: Float[Tensor, "*b k 2"]
    scale: Float[Tensor, "*b k"]
    orientation: Float[Tensor, "*b k"]
    score: Float[Tensor, "*b k"]
    descriptors: Float[Tensor, "*b k d"]
    mask: Bool[Tensor, "*b k"]
    image_size: Int64[Tensor, "*b 2"]
    kind: str = field(default="own", kw_only=True)

    def __post_init__(self) -> None:
        check_shape("positions", self.positions, ("k", 2), batch=True)
        check_floating("positions", self.positions)
        *batch, k, _ = self.positions.shape
        shapes: dict[str, tuple[int | str | None, ...]] = dict.fromkeys(
            ("scale", "orientation", "score", "mask"), (*batch, k)
        )
        shapes |= {"descriptors": (*batch, k, "d"), "image_size": (*batch, 2)}
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            check_shape(name, tensor, shape)
            check_same_device(name, tensor, self.positions.device)
        for name in ("scale", "orientation", "score", "descriptors"):
            check_floating(name, getattr(self, name))
        if self.mask.dtype != torch.bool:
            raise InputError("mask", "booleans", str(self.mask.dtype))

    @staticmethod
    def of(
        positions: Float[Tensor, "*b k 2"],
        descriptors: Float[Tensor, "*b k d"],
        *,
        image_size: Int[Tensor, "*b 2"] | tuple[int, int],
        scale: Float[Tensor, "*b k"] | None = None,
        orientation: Float[Tensor, "*b k"] | None = None,
        score: Float[Tensor, "*b k"] | None = None,
        mask: Bool[Tensor, "*b k"] | None = None,
        kind: str = "own",
    ) -> "Keypoints":
        """Keypoints of the caller: what is not known is filled in (scale 1, orientation 0, score 1, no padding).

        Args:
            positions: pixels, shape (\\*b, k, 2).
            descriptors: shape (\\*b, k, d).
            image_size: width and height, one pair for all images or shape (\\*b, 2).
            scale: in pixels, shape (\\*b, k).
            orientation: radians, shape (\\*b, k).
            score: shape (\\*b, k).
            mask: which rows are keypoints, shape (\\*b, k).
            kind: a name of the descriptors.

        Raises:
            InputError: a shape, dtype or device does not fit.
        """
        check_shape("positions", positions, ("k", 2), batch=True)
        check_floating("positions", positions)
        ones = torch.ones_like(positions[..., 0])
        size = torch.as_tensor(image_size, dtype=torch.int64, device=positions.device)
        return Keypoints(
            positions,
            ones if scale is None else scale,
            torch.zeros_like(ones) if orientation is None else orientation,
            ones if score is None else score,
            descriptors,
            ones > 0 if mask is None else mask,
            size.expand(*positions.shape[:-2], 2),
            kind=kind,
        )

    @property
    def count(self) -> int:
        """Rows an image, padding included."""
        return self.positions.shape[-2]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.positions.device

    def select(self, rows: Int[Tensor, " m"] | Bool[Tensor, " k"]) -> "Keypoints":
        """Some keypoints of one image, by number or by mask.

        Raises:
            InputError: this is a batch.
        """
        self._check_single("select")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in _PER_POINT})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Keypoints":
        """The same on another device, or with another floating dtype."""
        moved = {name: getattr(self, name).to(device=device, dtype=dtype) for name in _FLOATING}
        moved |= {name: getattr(self, name).to(device=device) for name in ("mask", "image_size")}
        return dataclasses.replace(self, **moved)

    @staticmethod
    def stack(images: Sequence["Keypoints"]) -> "Keypoints":
        """A padded batch of the keypoints of several images; the padding is zero.

        Args:
            images: at least one, without batch axes, of one kind and width of descriptors.

        Raises:
            InputError: none, or they do not fit together.
        """
        if not images:
            raise InputError("images", "at least one record", "none")
        for other in images:
            other._check_single("images")
            if (other.kind, other.descriptors.shape[-1]) != (images[0].kind, images[0].descriptors.shape[-1]):
                wanted = f"descriptors of kind {images[0].kind!r} with {images[0].descriptors.shape[-1]} numbers"
                raise InputError("images", wanted, f"{other.kind!r} with {other.descriptors.shape[-1]}")
        padded = {
            name: torch.nn.utils.rnn.pad_sequence([getattr(image, name) for image in images], batch_first=True)
            for name in _PER_POINT
        }
        return Keypoints(**padded, image_size=torch.stack([image.image_size for image in images]), kind=images[0].kind)

    def unstack(self) -> list["Keypoints"]:
        """The images of a batch with one batch axis, without their padding.

        Raises:
            InputError: there is not exactly one batch axis.
        """
        check_shape("mask", self.mask, ("b", "k"))
        parts = []
        for number, mask in enumerate(self.mask):
            rows = {name: getattr(self, name)[number][mask] for name in _PER_POINT}
            parts.append(Keypoints(**rows, image_size=self.image_size[number], kind=self.kind))
        return parts

    def _check_single(self, argument: str) -> None:
        if self.mask.ndim != 1:
            raise InputError(argument, "keypoints of one image, without batch axes", f"mask {tuple(self.mask.shape)}")


_FLOATING = ("positions", "scale", "orientation", "score", "descriptors")
_PER_POINT = (*_FLOATING, "mask")
