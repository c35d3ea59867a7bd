"""Views, permutations of axes, repetitions."""

import math
from typing import Any

from torch import fx

from diffmatch.matching.weights.rules.pointwise import unknown
from diffmatch.matching.weights.symbols import Axis, cut, fixed, free, length, regroup
from diffmatch.matching.weights.trace import Stack, Value, Walk, operation_name, rule


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "_reshape_alias")
def reshape(walk: Walk, x: Value, *_: Any, **__: Any) -> Value | Stack:
    """Row-major regrouping; an axis whose slices are only ever taken apart becomes a stack of them."""
    shape = walk.shape
    if x.uniform:
        return Value([free(n) for n in shape], uniform=True)
    apart = _taken_apart(walk.node, len(shape))
    axes: list[Axis] = []
    stack: Stack | None = None
    for source, sizes in _aligned([length(axis) for axis in x.axes], shape):
        whole = tuple(symbol for i in source for symbol in x.axes[i])
        at = next((i for i, n in enumerate(sizes) if len(axes) + i in apart and 1 < n < length(whole)), None)
        members = None if stack or at is None else _slices(whole, sizes, at)
        if members is not None:
            assert at is not None
            stack = Stack(len(axes) + at, [[*axes, *member] for member in members])
            axes = [*axes, *[()] * len(sizes)]
            continue
        groups = regroup(whole, sizes)
        if groups is None:
            walk.fixed_axis(whole, "a view that cuts across the structure")
            groups = [fixed(n, f"a view that cuts across the structure ({walk.where})") for n in sizes]
        axes.extend(groups)
        for member in stack.members if stack else []:
            member.extend(groups)
    return stack or Value(axes)


@rule("permute", "transpose", "t", "movedim", "numpy_T", "swapaxes", "squeeze", "unsqueeze", "contiguous", "clone")
@rule("adjoint", "mT", "alias", "detach", "lift_fresh_copy", "to", "_to_copy", "dropout")
def permute(walk: Walk, x: Value | Stack, *settings: Any, **_: Any) -> Value | Stack:
    """A new order of the axes; axes of size one come and go."""
    rank = len(x.axes) if isinstance(x, Value) else len(x.members[0]) + 1
    order = _order(walk.node, rank)
    if isinstance(x, Value):
        return Value([x.axes[i] if i is not None else () for i in order], x.uniform)
    members = []
    for member in x.members:
        full: list[Axis] = [*member[: x.axis], (), *member[x.axis :]]
        members.append([full[i] if i is not None else () for i in order if i != x.axis])
    return Stack(order.index(x.axis), members)


@rule("expand", "expand_as", "broadcast_to", "repeat", "tile", "meshgrid")
def expand(walk: Walk, x: Value, *settings: Any, **_: Any) -> Value:
    """New entries are copies, so that they may move among themselves."""
    shape = walk.shape
    axes = [()] * (len(shape) - len(x.axes)) + list(x.axes)
    return Value([(*free(n // length(axis)), *axis) for n, axis in zip(shape, axes, strict=True)], x.uniform)


@rule("repeat_interleave")
def repeat_interleave(walk: Walk, x: Value, repeats: Any, dim: int | None = None, **_: Any) -> Value:
    """Each entry of an axis, several times in a row."""
    if not isinstance(repeats, int) or dim is None:
        return unknown(walk, x)  # type: ignore[no-any-return]
    axes = list(x.axes)
    axes[dim] = (*axes[dim], *free(repeats))
    return Value(axes, x.uniform)


def _order(node: fx.Node | None, rank: int) -> list[int | None]:
    """Which axis of the operand each axis of the result is; None where it is new."""
    assert node is not None
    name = operation_name(node)
    settings: list[Any] = list(node.args[1:])
    axes: list[int | None] = list(range(rank))
    if name == "permute":
        return [d % rank for d in settings[0]]
    if name in ("transpose", "swapaxes", "t", "mT", "adjoint", "numpy_T"):
        if rank < 2:
            return axes
        i, j = settings[:2] if len(settings) > 1 else (-2, -1)
        axes[i], axes[j] = axes[j], axes[i]
    elif name == "movedim":
        source, target = ([d] if isinstance(d, int) else list(d) for d in settings[:2])
        source, target = [d % rank for d in source], [d % rank for d in target]
        rest = iter([i for i in range(rank) if i not in source])
        axes = [source[target.index(i)] if i in target else next(rest) for i in range(rank)]
    elif name == "unsqueeze":
        axes.insert(settings[0] % (rank + 1), None)
    elif name == "squeeze":
        operand = node.args[0]
        assert isinstance(operand, fx.Node)
        sizes = operand.meta["val"].shape
        dims = range(rank) if not settings else [settings[0]] if isinstance(settings[0], int) else settings[0]
        gone = {d % rank for d in dims if sizes[d] == 1}
        axes = [i for i in range(rank) if i not in gone]
    return axes


def _aligned(before: list[int], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products: axes of the operand by number, those of the result by size."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        source: list[int] = []
        sizes: list[int] = []
        have = want = 1
        while not source or not sizes or have != want:
            if i < len(before) and (have <= want or j == len(after)):
                source.append(i)
                have *= before[i]
                i += 1
            elif j < len(after):
                sizes.append(after[j])
                want *= after[j]
                j += 1
            else:
                break
        runs.append((source, sizes))
    return runs


def _slices(whole: Axis, sizes: list[int], at: int) -> list[list[Axis]] | None:
    """The axes of each slice along one axis of a regrouping, without that axis; None where slices are no segments."""
    groups = regroup(whole, [*sizes[:at], math.prod(sizes[at:])])
    if groups is None:
        return None
    parts = cut(groups[-1], [math.prod(sizes[at + 1 :])] * sizes[at])
    if parts is None:
        return None
    tails = [tail for tail in (regroup(part, sizes[at + 1 :]) for part in parts) if tail is not None]
    return [[*groups[:-1], *tail] for tail in tails] if len(tails) == len(parts) else None


_PASSING = ("permute", "transpose", "contiguous", "clone", "squeeze", "unsqueeze", "movedim", "t", "alias", "to")


def _taken_apart(node: fx.Node | None, rank: int) -> set[int]:
    """The axes of a result of which every later use selects single slices."""
    assert node is not None
    return {axis for axis in range(rank) if _selects(node, axis, rank)}


def _selects(node: fx.Node, axis: int, rank: int) -> bool:
    for user in node.users:
        name = operation_name(user)
        if name in ("select", "unbind"):
            dim = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0)
            if not isinstance(dim, int) or dim % rank != axis:
                return False
        elif name in _PASSING and user.args[0] is node:
            order = _order(user, rank)
            if axis not in order or not _selects(user, order.index(axis), len(order)):
                return False
        else:
            return False
    return bool(node.users)
