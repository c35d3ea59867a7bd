"""Parts of axes: slices, splits, selections, concatenations."""

from typing import Any

from diffmatch.matching.weights.symbols import Axis, cut, fixed, fixed_reason, length, segments
from diffmatch.matching.weights.trace import Stack, Value, Walk, rule


def pieces(walk: Walk, x: Value, dim: int, sizes: list[int]) -> list[Value]:
    """Consecutive parts of a tensor along an axis, which move independently where they can."""
    dim %= len(x.axes)
    parts: list[Axis] | None = None if fixed_reason(x.axes[dim]) else cut(x.axes[dim], sizes)
    if parts is None:
        walk.fixed_axis(x.axes[dim], "cut where its structure has no seam")
        reason = fixed_reason(x.axes[dim])
        parts = [fixed(n, reason) for n in sizes]
    return [Value([*x.axes[:dim], part, *x.axes[dim + 1 :]], x.uniform) for part in parts]


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(walk: Walk, x: Value, sections: Any, dim: int = 0, **_: Any) -> list[Value]:
    """All consecutive parts."""
    assert walk.node is not None
    return pieces(walk, x, dim, [int(part.shape[dim]) for part in walk.node.meta["val"]])


@rule("slice", "narrow")
def part(walk: Walk, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    """A part of an axis."""
    dim %= len(x.axes)
    size, n = length(x.axes[dim]), walk.shape[dim]
    if step != 1:
        reason = fixed_reason(walk.fixed_axis(x.axes[dim], "every so many entries of it are taken"))
        return Value([*x.axes[:dim], fixed(n, reason), *x.axes[dim + 1 :]], x.uniform)
    if n == size:
        return x
    first = start or 0
    first = min(first + size if first < 0 else first, size)
    sizes = [first, n, size - first - n]
    return pieces(walk, x, dim, [s for s in sizes if s])[1 if first else 0]


@rule("select")
def select(walk: Walk, x: Value | Stack, dim: int, index: int) -> Value | Stack:
    """One entry of an axis."""
    if isinstance(x, Stack):
        rank = len(x.members[0]) + 1
        if dim % rank == x.axis:
            return Value(x.members[index])
        x = x.collapse(walk.where)
    dim %= len(x.axes)
    size = length(x.axes[dim])
    index = index + size if index < 0 else index
    taken = _one(walk, x, dim, index, size)
    return Value([*taken.axes[:dim], *taken.axes[dim + 1 :]], x.uniform)


@rule("unbind")
def unbind(walk: Walk, x: Value | Stack, dim: int = 0) -> list[Value]:
    """All entries of an axis."""
    if isinstance(x, Stack):
        if dim % (len(x.members[0]) + 1) == x.axis:
            return [Value(member) for member in x.members]
        x = x.collapse(walk.where)
    dim %= len(x.axes)
    walk.fixed_axis(x.axes[dim], "its entries are used apart")
    return [Value([*x.axes[:dim], *x.axes[dim + 1 :]], x.uniform) for _ in range(length(x.axes[dim]))]


@rule("cat", "concat", "concatenate")
def cat(walk: Walk, tensors: list[Value], dim: int = 0) -> Value:
    """Segments of one axis; the others move together."""
    tensors = [value for value in tensors if len(value.axes) == len(walk.shape)]
    dim %= len(walk.shape)
    axes = walk.broadcast([[*v.axes[:dim], (), *v.axes[dim + 1 :]] for v in tensors])
    axes[dim] = segments([value.axes[dim] for value in tensors])
    return Value(axes)


@rule("stack")
def stack(walk: Walk, tensors: list[Value], dim: int = 0) -> Stack:
    """Slices of a new axis."""
    return Stack(dim % len(walk.shape), [list(value.axes) for value in tensors])


@rule("index_select", "gather", "take_along_dim", "scatter", "scatter_add", "index_add")
def index_select(walk: Walk, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Entries named by number: their axis must stay; the others pass where they are whole."""
    reason = fixed_reason(walk.fixed_axis(x.axes[dim], "its entries are looked up by number")) or "looked up by number"
    axes: list[Axis] = []
    for i, n in enumerate(walk.shape):
        whole = walk.name == "index_select" and i != dim % len(x.axes)
        if not whole:
            walk.fixed_axis(x.axes[i], "its entries are looked up by number")
        axes.append(x.axes[i] if whole else fixed(n, reason))
    return Value(axes)


@rule("index")
def index(walk: Walk, x: Value, indices: list[Value | None]) -> Value:
    """Indexing by tensors: the axes that they index must stay."""
    at = [i for i, value in enumerate(indices) if value is not None]
    contiguous = at == list(range(at[0], at[-1] + 1))
    touched = range(len(x.axes)) if not contiguous else at
    for i in touched:
        walk.fixed_axis(x.axes[i], "its entries are looked up by number")
    reason = f"looked up by number ({walk.where})"
    if not contiguous:
        return Value([fixed(n, reason) for n in walk.shape])
    n_new = len(walk.shape) - (len(x.axes) - len(at))
    new = [fixed(n, reason) for n in walk.shape[at[0] : at[0] + n_new]]
    return Value([*x.axes[: at[0]], *new, *x.axes[at[-1] + 1 :]])


def _one(walk: Walk, x: Value, dim: int, index: int, size: int) -> Value:
    sizes = [n for n in (index, 1, size - index - 1) if n]
    return x if size == 1 else pieces(walk, x, dim, sizes)[1 if index else 0]
