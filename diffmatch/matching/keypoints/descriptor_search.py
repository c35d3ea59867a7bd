"""The nearest descriptors of two images by brute force, in blocks, and again when keypoints are added."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.row_kernels import update_nearest

__all__ = ["Nearest", "extend_nearest", "nearest_descriptors"]

_CHUNK = 1 << 24  # similarities held at a time
_CPU_ROWS, _CPU_COLUMNS = 128, 2048  # of a block, which then stays in the CPU's caches
_COMPILED = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest descriptors in image B of each keypoint in image A, best first, and the way back.

    Attributes:
        index: numbers of keypoints in B, shape (n, k).
        distance: between the descriptors, shape (n, k); infinite where fewer than k were compared.
        back: number of the nearest keypoint in A of each keypoint in B, shape (m,).
        back_distance: to that one, shape (m,).
    """

    index: Int64[Tensor, "n k"]
    distance: Float[Tensor, "n k"]
    back: Int64[Tensor, " m"]
    back_distance: Float[Tensor, " m"]


def nearest_descriptors(a: Keypoints, b: Keypoints, *, k: int) -> Nearest:
    """Nearest neighbours of descriptors by brute force, in blocks of bounded memory.

    Args:
        a: keypoints of one image; its padding gets candidates that mean nothing.
        b: keypoints of another, at least one.
        k: how many candidates; at most as many as ``b`` has.
    """
    state = _State(a, b, min(k, b.count))
    state.compare(slice(0, a.count), slice(0, b.count))
    return state.nearest()


def extend_nearest(known: Nearest, a: Keypoints, b: Keypoints, *, among_new: bool = True) -> Nearest:
    """The same after keypoints were added to both images.

    Args:
        known: of the keypoints that were there before, which come first in ``a`` and ``b``.
        a: all keypoints of one image.
        b: all keypoints of the other.
        among_new: compare the new ones with each other too, not only with those that were there.
    """
    n, m = len(known.index), len(known.back)
    state = _State(a, b, known.index.shape[1])
    state.values[:n], state.index[:n] = 1 - known.distance.square() / 2, known.index
    state.best[:m], state.back[:m] = 1 - known.back_distance.square() / 2, known.back
    state.compare(slice(0, n), slice(m, b.count))
    state.compare(slice(n, a.count), slice(0, b.count if among_new else m))
    return state.nearest()


class _State:
    """The largest similarities so far of each row, and of each column."""

    def __init__(self, a: Keypoints, b: Keypoints, k: int) -> None:
        self.a, self.b = a, b
        self.padded = [not bool(side.mask.all()) for side in (a, b)]
        # Padding is set to zero and never wins: a similarity of -2 is less than any of two rows of length one.
        self.left, self.right = (
            (torch.where(side.mask[:, None], side.descriptors, 0) if padded else side.descriptors).detach()
            for side, padded in zip((a, b), self.padded, strict=True)
        )
        self.values = self.left.new_full((a.count, k), -torch.inf)
        self.index = torch.zeros(a.count, k, dtype=torch.int32, device=a.device)
        self.best = self.left.new_full((b.count,), -torch.inf)
        self.buffer = self.left.new_empty(0)  # of a block: memory that is new each time costs more than the product
        self.back = torch.zeros(b.count, dtype=torch.int32, device=a.device)  # narrow for the kernel

    def nearest(self) -> Nearest:
        """Similarities as distances."""
        distances = ((2 - 2 * values).clamp_min(0).sqrt() for values in (self.values, self.best))
        return Nearest(self.index.long(), next(distances), self.back.long(), next(distances))

    def compare(self, rows: slice, columns: slice) -> None:
        """Take the similarities of some keypoints in A with some in B into account, once."""
        compiled = self.left.device.type == "cpu" and self.left.dtype in _COMPILED
        width = _CPU_COLUMNS if compiled else max(1, columns.stop - columns.start)
        height = _CPU_ROWS if compiled else max(1, _CHUNK // width)
        for top in range(rows.start, rows.stop, height):
            bottom = min(top + height, rows.stop)
            for start in range(columns.start, columns.stop, width):
                stop = min(start + width, columns.stop)
                similar = self._block(bottom - top, stop - start)
                torch.mm(self.left[top:bottom], self.right[start:stop].T, out=similar)
                if self.padded[1]:
                    similar.masked_fill_(~self.b.mask[start:stop], -2)
                if self.padded[0]:
                    similar.masked_fill_(~self.a.mask[top:bottom, None], -2)
                if compiled:
                    state = (self.values, self.index, self.best, self.back)
                    update_nearest(similar.numpy(), top, start, *(part.numpy() for part in state))
                else:
                    self._update(similar, top, start)

    def _block(self, height: int, width: int) -> Float[Tensor, "r c"]:
        if self.buffer.numel() < height * width:
            self.buffer = self.left.new_empty(height * width)
        return self.buffer[: height * width].view(height, width)

    def _update(self, similar: Float[Tensor, "r c"], top: int, start: int) -> None:
        """:func:`update_nearest` by torch."""
        k = self.values.shape[1]
        rows, columns = slice(top, top + similar.shape[0]), slice(start, start + similar.shape[1])
        value, index = similar.topk(min(k, similar.shape[1]), dim=1)
        value, index = torch.cat([self.values[rows], value], 1), torch.cat([self.index[rows], index.int() + start], 1)
        self.values[rows], place = value.topk(k, dim=1)
        self.index[rows] = index.gather(1, place)
        best, row = similar.max(dim=0)
        better = best > self.best[columns]
        self.best[columns] = torch.where(better, best, self.best[columns])
        self.back[columns] = torch.where(better, row.int() + top, self.back[columns])
