"""Weight matching of models that stay on disk: one pair of tensors and one Gram matrix in memory at a time."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.matching.weights.ascent import Alignment, Structure, inner_product
from diffmatch.matching.weights.incidence import Incidence
from diffmatch.matching.weights.permute import Permutations, compose, permute_tensor
from diffmatch.matching.weights.spec import PermutationSpec

__all__ = ["BLOCK_BYTES", "StreamedAlignment", "StreamedAscent", "chunks", "permuted", "stored_spec"]

BLOCK_BYTES = 16 << 20
"""Size, in working precision, above which a tensor is gone through in blocks."""


def stored_spec(spec: PermutationSpec, stored: Sequence[str]) -> PermutationSpec:
    """The spec of the stored tensors alone; other names of theirs (tied weights) are not to be counted again."""
    present = set(stored)
    layouts = {name: layouts for name, layouts in spec.layouts.items() if name in present}
    return PermutationSpec(spec.atoms, layouts, spec.buffers & present, spec.checked)


def permuted(tensor: Tensor, name: str, spec: PermutationSpec, permutations: Mapping[str, Tensor]) -> Tensor:
    """A tensor of a model as its permutations leave it; not copied where they leave it as it is."""
    layouts = spec.layouts.get(name)
    if layouts is None:
        return tensor
    return permute_tensor(tensor, layouts, permutations, spec.parents())


def chunks(*tensors: Tensor, elements: int) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape in pieces of at most so many elements, row-major."""
    yield from zip(*(tensor.contiguous().flatten().split(elements) for tensor in tensors), strict=True)


class StreamedAlignment(Alignment):
    """An :class:`Alignment` whose tensors are read when they are needed, and forgotten.

    Tensors up to a block in size take exactly the way of those in memory, so that the result has the same bits. Larger
    ones are converted and multiplied in blocks, the sums of which may differ in the last digit.

    Args:
        structure: where the atoms are.
        a: the tensors that stay, in any precision.
        original: those that are aligned.
        permutations: the current ones, of ``original``.
        block_bytes: see :data:`BLOCK_BYTES`.
        labels: what the models are called in errors.
    """

    def __init__(
        self,
        structure: Structure,
        a: Mapping[str, Tensor],
        original: Mapping[str, Tensor],
        permutations: Permutations,
        *,
        block_bytes: int = BLOCK_BYTES,
        labels: tuple[str, str] = ("a", "b"),
    ) -> None:
        self.block_bytes, self.labels = block_bytes, labels
        self._open: tuple[str, Tensor, Tensor] | None = None
        super().__init__(structure, a, original, permutations, 0.0)

    def __post_init__(self) -> None:
        self.b = {}

    def measure(self, names: Sequence[str], a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, tol: float) -> float:
        """Go through all learned tensors once.

        Args:
            names: of all learned tensors, including those that nothing moves.
            a: the tensors that stay.
            b: those that are aligned, as they are.
            tol: smallest gain that counts, relative to Σ_k ‖A_k‖ ‖B_k‖; sets ``least_gain``.

        Returns:
            Σ_k ⟨A_k, B_k⟩.

        Raises:
            InputError: a tensor holds NaN or infinity.
        """
        norms, inner = [], []
        for name in names:
            found: list[list[float]] = [[], []]
            products = []
            for pieces in self._chunks(a[name], b[name]):
                for m, piece in enumerate(pieces):
                    if not torch.isfinite(piece).all():
                        raise InputError(f"{self.labels[m]}[{name!r}]", "finite values", "NaN or infinity")
                    found[m].append(float(torch.linalg.vector_norm(piece, dtype=torch.float64)))
                products.append(inner_product(*pieces))
            norms.append(math.hypot(*found[0]) * math.hypot(*found[1]))
            inner.append(math.fsum(products))
        self.least_gain = tol * math.fsum(norms)
        return math.fsum(inner)

    def objective(self) -> float:
        """Σ_k ⟨A_k, (π·B)_k⟩ over the tensors that something moves."""
        return math.fsum(self._inner(name, self.permutations) for name in self.structure.names)

    def _gram(self, places: Sequence[Incidence], total: Tensor | None = None) -> Tensor:
        for place in places:
            for x, y in self._pieces(place):
                total = x @ y.mT if total is None else total.baddbmm_(x, y.mT)
        self._open = None
        assert total is not None
        return total

    def _pairs(self, child: str, children: set[str]) -> Tensor:
        total: Tensor | None = None
        for place in self.structure.places[child]:
            gram: Tensor | None = None
            for x, y in self._pieces(place):
                rows, columns = x.flatten(0, 1), y.flatten(0, 1).T
                gram = rows @ columns if gram is None else gram.addmm_(rows, columns)
            assert gram is not None
            h, n = place.sizes[0], place.sizes[1]
            gram = gram.reshape(h, n, h, n).transpose(1, 2) / (1 + len(place.others & (children - {child})))
            total = gram if total is None else total + gram
        self._open = None
        assert total is not None
        return total.contiguous()

    def _step(self, relative: dict[str, Tensor], *, trusted: bool) -> bool:
        s = self.structure
        full = {**s.identity, **{name: permutation.cpu() for name, permutation in relative.items()}}
        changed = compose(s.spec, self.permutations, full)
        if not trusted:
            touched = dict.fromkeys(name for atom in relative for name in s.axes[atom])
            gain = math.fsum(self._inner(n, changed) - self._inner(n, self.permutations) for n in touched)
            if gain <= self.least_gain:
                return False
        self.permutations = changed
        return True

    def _inner(self, name: str, permutations: Permutations) -> float:
        """⟨A_k, (π·B)_k⟩ of one tensor."""
        a, b = self.a[name], permuted(self.original[name], name, self.structure.spec, permutations)
        return math.fsum(inner_product(x, y) for x, y in self._chunks(a, b))

    def _chunks(self, a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in chunks(a, b, elements=max(self.block_bytes // 4, 1)):
            yield _working(x), _working(y)

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Both models' tensor, the second permuted: ready for work if small, else as stored."""
        if self._open is None or self._open[0] != name:
            self._open = None  # first forget the last pair
            tensors = self.a[name], self.original[name]
            if self._is_small(tensors[0]):
                tensors = _working(tensors[0]), _working(tensors[1])
            b = permuted(tensors[1], name, self.structure.spec, self.permutations)
            self._open = name, tensors[0].contiguous(), b.contiguous()
        return self._open[1], self._open[2]

    def _pieces(self, place: Incidence) -> Iterator[tuple[Tensor, Tensor]]:
        """The units of an atom in one place, of both models, as rows (parents, size, some of the rest)."""
        a, b = self._pair(place.name)
        if self._is_small(a):
            yield place.matrices(a), place.matrices(b)
            return
        views = [torch.as_strided(t, place.sizes, place.strides, t.storage_offset() + place.offset) for t in (a, b)]
        first = place.n_parents + 1
        axis = max(range(first, len(place.sizes)), key=place.sizes.__getitem__)
        size = place.sizes[axis]
        step = max(size * self.block_bytes // (views[0].numel() * _working_dtype(a).itemsize), 1)
        lead = math.prod(place.sizes[: place.n_parents])
        for start in range(0, size, step):
            x, y = (
                view.narrow(axis, start, min(step, size - start))
                .to(_working_dtype(view))
                .reshape(lead, place.sizes[place.n_parents], -1)
                for view in views
            )
            yield x, y

    def _is_small(self, tensor: Tensor) -> bool:
        return tensor.numel() * _working_dtype(tensor).itemsize <= self.block_bytes


@dataclass
class StreamedAscent:
    """How far an ascent has come, so that it can go on after an interruption and end in the same bits.

    Attributes:
        permutations: the current ones.
        dirty: atoms to be looked at.
        sweeps: passes over the atoms that are complete.
        position: in the pass under way.
    """

    permutations: Permutations
    dirty: set[str]
    sweeps: int = 0
    position: int = 0

    def run(self, alignment: StreamedAlignment, *, max_sweeps: int, after: Callable[[str], object]) -> bool:
        """:func:`~diffmatch.matching.weights.ascent.ascend` in the order of the spec, from here.

        Args:
            alignment: at the same permutations; changed in place.
            max_sweeps: largest number of passes over the atoms.
            after: called with an atom after it was looked at, when this object can be saved.

        Returns:
            Whether no atom could improve any more.
        """
        s = alignment.structure
        names = [name for name in s.spec.atoms if s.occurs(name)]
        while self.dirty and self.sweeps < max_sweeps:
            while self.position < len(names):
                name = names[self.position]
                self.position += 1
                if name not in self.dirty:
                    continue
                self.dirty.discard(name)
                changed = alignment.improve(name)
                if s.children[name] and alignment.improve_jointly(name):
                    changed = True
                if changed:
                    self.dirty |= s.neighbours[name]
                    if name in s.curved or s.children[name]:
                        self.dirty.add(name)
                self.permutations = alignment.permutations
                after(name)
            self.sweeps, self.position = self.sweeps + 1, 0
        return not self.dirty


def _working_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _working(tensor: Tensor) -> Tensor:
    """A contiguous copy in working precision, in memory of its own and so as aligned as any."""
    return tensor.detach().to(_working_dtype(tensor), copy=True, memory_format=torch.contiguous_format)
