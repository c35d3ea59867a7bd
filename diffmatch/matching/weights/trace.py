"""Values that stand for tensors while a graph is walked, and the walk: one rule an operation, by its ATen name."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from diffmatch.matching.weights.symbols import Axis, bind, fix, fixed

__all__ = ["Rule", "Stack", "UniformWriteError", "Value", "Walk", "rule", "rules"]

Rule = Callable[..., Any]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the ATen operations of these names.

    A rule is called with the :class:`Walk` and the arguments of the operation, tensors replaced by :class:`Value`. It
    binds and fixes axes and returns the value (or values) of the result.
    """

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def rules() -> dict[str, Rule]:
    """All rules by the names of their operations; the modules that define them are imported on the first call."""
    import diffmatch.matching.weights.rules  # noqa: F401

    return _RULES


@dataclass
class Value:
    """What is known of a tensor.

    Attributes:
        axes: one :data:`~diffmatch.matching.weights.symbols.Axis` for each of its axes.
        uniform: all entries are equal (zeros, ones), so that nothing ties its axes to anything.
    """

    axes: list[Axis]
    uniform: bool = False


@dataclass
class Stack:
    """A tensor whose slices along one axis are known apart, until an operation treats them alike.

    Attributes:
        axis: the axis of the slices.
        members: the axes of each slice, without that axis.
    """

    axis: int
    members: list[list[Axis]]

    def collapse(self, where: str) -> Value:
        """The same as one value: the slices are tied to each other."""
        first, *others = self.members
        for other in others:
            for x, y in zip(first, other, strict=True):
                bind(x, y, f"slices that {where} treats alike")
        axes = list(first)
        axes.insert(self.axis, fixed(len(self.members), f"which of the slices that {where} treats alike"))
        return Value(axes)


class UniformWriteError(Exception):
    """Something is written into a tensor that was taken to be uniform; the walk is repeated without that notion."""


@dataclass
class Walk:
    """The state of a walk, and what the rules ask of it.

    Attributes:
        uniform: whether tensors of equal entries are taken to be :attr:`Value.uniform`.
        values: what is known of each node's result.
        blocks: the axes of everything that was computed, results and intermediate results alike: which symbols occur
            together tells which permutations may depend on which indices.
        unknown: names of the operations that have no rule.
        node: the node at work.
    """

    uniform: bool = True
    values: dict[fx.Node, Any] = field(default_factory=dict)
    blocks: list[Sequence[Axis]] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    node: fx.Node | None = None

    @property
    def name(self) -> str:
        """Name of the operation at work, without namespace and overload."""
        assert self.node is not None
        return operation_name(self.node)

    @property
    def where(self) -> str:
        """The operation at work and the module that it stands in, for reasons."""
        assert self.node is not None
        stack = self.node.meta.get("nn_module_stack") or {}
        paths = [entry[0] for entry in stack.values() if entry[0]]
        return f"{self.name} in {paths[-1]}" if paths else self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) result."""
        assert self.node is not None
        result = self.node.meta["val"]
        return tuple(int(n) for n in (result if isinstance(result, Tensor) else result[0]).shape)

    def computes(self, axes: Sequence[Axis]) -> None:
        """Record a tensor that exists inside the operation, such as the statistics of a norm."""
        self.blocks.append(axes)

    def bind(self, x: Axis, y: Axis) -> None:
        """Make two axes move together."""
        bind(x, y, self.where)

    def broadcast(self, operands: Iterable[Sequence[Axis]]) -> list[Axis]:
        """Axes of the broadcast of operands, whose aligned axes are bound."""
        result: list[Axis] = []
        for axes in operands:
            reach = max(len(axes), len(result))
            padded = [()] * (reach - len(axes)) + list(axes)
            result = [()] * (reach - len(result)) + result
            for i, axis in enumerate(padded):
                if result[i] and axis:
                    self.bind(result[i], axis)
                result[i] = result[i] or axis
        return result

    def fixed_axis(self, axis: Axis, reason: str, size: int | None = None) -> Axis:
        """Fix an axis and give one, fixed for the same reason, in its place."""
        fix(axis, f"{reason} ({self.where})")
        return axis if size is None else fixed(size, f"{reason} ({self.where})")

    def run(self, node: fx.Node) -> None:
        """Apply the rule of a node's operation."""
        self.node = node
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, fx.Node)
            assert isinstance(index, int)
            known = self.values.get(source)
            self.values[node] = known[index] if isinstance(known, list | tuple) else None
            return
        if not tensors_of(node.meta.get("val")):
            return
        found = rules().get(self.name)
        if found is None and self._is_pointwise():
            found = rules()["pointwise"]
        if found is None:
            self.unknown.add(self.name)
            found = rules()["unknown"]
        stacks = found in (rules().get(name) for name in ("select", "unbind", "permute"))
        arguments = fx.map_arg((node.args, node.kwargs), lambda n: self._read(n, stacks=stacks))
        args, kwargs = arguments
        self._check_writes(args)
        result = found(self, *args, **kwargs)
        self.values[node] = result
        for value in result if isinstance(result, list | tuple) else [result]:
            if isinstance(value, Value):
                self.computes(value.axes)
            elif isinstance(value, Stack):
                self.blocks.extend(value.members)

    def _read(self, node: fx.Node, *, stacks: bool) -> Any:
        value = self.values.get(node)
        if isinstance(value, Stack) and not stacks:
            value = self.values[node] = value.collapse(self.where)
            self.computes(value.axes)
        if isinstance(value, list | tuple):
            return [v.collapse(self.where) if isinstance(v, Stack) else v for v in value]
        return value

    def _is_pointwise(self) -> bool:
        assert self.node is not None
        return isinstance(self.node.target, torch._ops.OpOverload) and torch.Tag.pointwise in self.node.target.tags

    def _check_writes(self, args: Sequence[Any]) -> None:
        assert self.node is not None
        target = self.node.target
        mutable = isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
        if mutable and args and isinstance(args[0], Value) and args[0].uniform:
            raise UniformWriteError


def operation_name(node: fx.Node) -> str:
    """The name of a node's operation without namespace and overload; in-place forms have that of the other."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return str(getattr(node.target, "__name__", node.target))
    name = node.target._schema.name.split("::")[-1]
    return str(name).removesuffix("_")


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in the recorded result of a node."""
    if isinstance(value, Tensor):
        return [value]
    return [v for v in value if isinstance(v, Tensor)] if isinstance(value, list | tuple) else []
