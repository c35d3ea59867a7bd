"""Symbols for the axes of tensors, with union-find: which axes must be permuted together, and how axes decompose.

An axis is a row-major product of symbols, written as a tuple; axes of size one are the empty tuple. A symbol is free,
or fixed with a reason, or was found to be a product of smaller symbols (a `view` that splits heads), or a sum of axes
that follow each other (a concatenation, a packed projection). What cannot be reconciled becomes fixed, so that the
symmetry that is found holds, though it may be smaller than the true one.
"""

import math
from collections.abc import Iterator, Sequence

__all__ = ["Axis", "Symbol", "bind", "cut", "fix", "fixed", "fixed_reason", "free", "leaves", "regroup", "segments"]

Axis = tuple["Symbol", ...]


class Symbol:
    """A set of indices that moves as one; its state is read and changed by the functions of this file alone.

    Args:
        size: number of indices, at least two.
        reason: why it must not move, or empty where it may.
    """

    __slots__ = ("factors", "parent", "reason", "size", "terms")

    def __init__(self, size: int, reason: str = "") -> None:
        self.size, self.reason = size, reason
        self.parent: Symbol | None = None  # set when it was found equal to another
        self.factors: Axis | None = None  # set when it is a product
        self.terms: list[Axis] | None = None  # set when it is a sum of consecutive segments


def free(size: int) -> Axis:
    """A new axis that may move."""
    return (Symbol(size),) if size != 1 else ()


def fixed(size: int, reason: str) -> Axis:
    """A new axis that must not move."""
    return (Symbol(size, reason),) if size != 1 else ()


def segments(parts: Sequence[Axis]) -> Axis:
    """The axis on which the parts follow each other."""
    if len(parts) == 1:
        return parts[0]
    symbol = Symbol(sum(map(length, parts)))
    symbol.terms = list(parts)
    return (symbol,)


def length(axis: Axis) -> int:
    """Number of indices of an axis."""
    return math.prod(symbol.size for symbol in axis)


def leaves(axis: Axis) -> list[Symbol]:
    """The symbols of an axis as known by now: representatives, with products written out."""
    found: list[Symbol] = []
    for symbol in axis:
        root = _root(symbol)
        found.extend([root] if root.factors is None else leaves(root.factors))
    return found


def plain(axis: Axis) -> Iterator[Symbol]:
    """The symbols of an axis that are neither product nor sum, those inside sums included."""
    for symbol in leaves(axis):
        if symbol.terms is None:
            yield symbol
        else:
            for term in symbol.terms:
                yield from plain(term)


def fix(axis: Axis, reason: str) -> None:
    """Forbid an axis to move; a symbol that is fixed already keeps its reason."""
    for symbol in plain(axis):
        symbol.reason = symbol.reason or reason


def fixed_reason(axis: Axis) -> str:
    """Why nothing on an axis may move; empty where something may, or where it has size one."""
    reasons = [symbol.reason for symbol in plain(axis)]
    return reasons[0] if reasons and all(reasons) else ""


def bind(x: Axis, y: Axis, reason: str) -> None:
    """Make two axes of equal length move together.

    Args:
        x: one axis.
        y: the other.
        reason: what is recorded where their structures cannot be reconciled and both are fixed.
    """
    while True:
        left, right = leaves(x), leaves(y)
        while left and right and left[0] is right[0]:
            left, right = left[1:], right[1:]
        if not left and not right:
            return
        if not left or not right or not _bind_heads(left, right):
            fix((*left, *right), f"{reason}: the structures of two axes differ")
            return
        x, y = tuple(left), tuple(right)


def cut(axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    """Cut an axis into consecutive parts, which move independently where they may; None where it has no such parts.

    Args:
        axis: what to cut.
        sizes: lengths of the parts, each positive; they add up to the length of the axis.
    """
    if len(sizes) == 1:
        return [axis]
    symbols = leaves(axis)
    head, rest = symbols[0], tuple(symbols[1:])
    inner = length(rest)
    if any(size % inner for size in sizes):
        return None
    pieces = _cut_symbol(head, [size // inner for size in sizes])
    return pieces and [(*piece, *rest) for piece in pieces]


def regroup(axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    """The axes of the given sizes whose row-major product is this axis; None where there are none."""
    groups: list[Axis] = []
    rest = axis
    for size in sizes:
        taken: list[Symbol] = []
        while size > 1:
            symbols = leaves(rest)
            head, rest = symbols[0], tuple(symbols[1:])
            if size % head.size == 0:
                taken.append(head)
                size //= head.size
                continue
            if head.size % size or not _factorize(head, size):
                return None
            rest = (head, *rest)
        groups.append(tuple(taken))
    return groups


def _root(symbol: Symbol) -> Symbol:
    while symbol.parent is not None:
        if symbol.parent.parent is not None:
            symbol.parent = symbol.parent.parent
        symbol = symbol.parent
    return symbol


def _bind_heads(left: list[Symbol], right: list[Symbol]) -> bool:
    """One step of `bind`: make the first symbols equal or split the larger; False where neither is possible."""
    a, b = left[0], right[0]
    if a.size == b.size:
        return _unite(a, b)
    (large, _), (small, others) = ((a, left), (b, right)) if a.size > b.size else ((b, right), (a, left))
    if large.size % small.size:
        return False
    if large.terms is None:
        return _factorize(large, small.size)
    return _bind_sum_to_product(large, others)


def _unite(a: Symbol, b: Symbol) -> bool:
    if a.terms is not None and b.terms is not None:
        cuts = sorted(set(_ends(a.terms)) | set(_ends(b.terms)))
        sizes = [end - start for start, end in zip([0, *cuts], cuts, strict=False)]
        parts_a, parts_b = _cut_symbol(a, sizes), _cut_symbol(b, sizes)
        if parts_a is None or parts_b is None:
            return False
        for part_a, part_b in zip(parts_a, parts_b, strict=True):
            bind(part_a, part_b, "segments")
        a.parent = b
        return True
    if a.terms is not None:
        a, b = b, a
    if a.reason:
        fix((b,), a.reason)
    a.parent = b
    return True


def _bind_sum_to_product(large: Symbol, others: list[Symbol]) -> bool:
    """Bind a sum to the leading symbols of a product, the first of which is cut as the sum is."""
    assert large.terms is not None
    count, size = 0, 1
    while count < len(others) and size < large.size:
        size *= others[count].size
        count += 1
    if size != large.size:
        return False
    pieces = cut(tuple(others[:count]), [length(term) for term in large.terms])
    if pieces is None:
        return False
    for term, piece in zip(large.terms, pieces, strict=True):
        bind(term, piece, "segments")
    # From here on the sum is the product, whose first symbol is a sum by now.
    large.terms, large.factors = None, tuple(others[:count])
    return True


def _factorize(symbol: Symbol, outer: int) -> bool:
    """Write a symbol as a product of the outer size and the rest."""
    inner = symbol.size // outer
    if symbol.terms is None:
        symbol.factors = (Symbol(outer, symbol.reason), Symbol(inner, symbol.reason))
        return True
    if any(length(term) % inner for term in symbol.terms):
        return False
    heads: list[Axis] = []
    tails: list[Axis] = []
    for term in symbol.terms:
        groups = regroup(term, (length(term) // inner, inner))
        if groups is None:
            return False
        heads.append(groups[0])
        tails.append(groups[1])
    for tail in tails[1:]:
        bind(tails[0], tail, "segments")
    if all(length(head) == 1 for head in heads):
        heads = [fixed(len(heads), "which of several equal segments")]
    symbol.terms, symbol.factors = None, (*segments(heads), *tails[0])
    return True


def _cut_symbol(symbol: Symbol, sizes: Sequence[int]) -> list[Axis] | None:
    if symbol.terms is None:
        symbol.terms = [(Symbol(size, symbol.reason),) if size > 1 else () for size in sizes]
    pieces: list[list[Axis]] = []
    waiting = list(symbol.terms)
    for size in sizes:
        piece: list[Axis] = []
        while size:
            term = waiting.pop(0)
            if length(term) > size:
                parts = cut(term, [size, length(term) - size])
                if parts is None:
                    return None
                term, rest = parts
                waiting.insert(0, rest)
            piece.append(term)
            size -= length(term)
        pieces.append(piece)
    symbol.terms = [term for piece in pieces for term in piece]
    return [segments(piece) for piece in pieces]


def _ends(terms: list[Axis]) -> list[int]:
    ends, end = [], 0
    for term in terms:
        end += length(term)
        ends.append(end)
    return ends
