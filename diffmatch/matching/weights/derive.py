"""The permutation symmetries of a model, derived from one symbolic run of it."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from diffmatch.errors import InputError
from diffmatch.matching.weights.check import check_spec
from diffmatch.matching.weights.layout import Fixed, Layout, Moved, Product, Segments
from diffmatch.matching.weights.spec import Atom, PermutationSpec
from diffmatch.matching.weights.symbols import Axis, Symbol, fix, fixed, free, leaves, plain
from diffmatch.matching.weights.trace import Stack, UniformWriteError, Value, Walk, operation_name, rules

__all__ = ["permutation_spec"]

logger = logging.getLogger(__name__)


def permutation_spec(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    by_hand: PermutationSpec | None = None,
    generator: torch.Generator | None = None,
) -> PermutationSpec:
    """Which units of a model may be permuted, which may not and why.

    The model is traced by :func:`torch.export.export` in evaluation mode. Every axis of every tensor carries symbols,
    every operation says which axes must move together, and what no rule covers stays fixed. The result is then tried
    out: :func:`check_spec` compares outputs under random permutations and fixes what changes them.

    Args:
        model: any module that can be exported; it is not changed.
        example_inputs: a tensor, or a tuple of positional inputs.
        example_kwargs: inputs by name.
        by_hand: a spec of the same model that is taken as it is instead of the derived one, and checked.
        generator: source of randomness of the check, on the CPU.

    Returns:
        The spec, checked. On a model on the meta device, which has no weights to run, it is not checked.

    Raises:
        InputError: the model cannot be exported; :meth:`PermutationSpec.by_hand` is the way out.
    """
    inputs = tuple(example_inputs) if isinstance(example_inputs, list | tuple) else (example_inputs,)
    kwargs = dict(example_kwargs or {})
    spec = by_hand or _derive(model, inputs, kwargs)
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        logger.info("the model has no weights, so its spec is not checked")
        return spec
    return check_spec(spec, model, inputs, example_kwargs=kwargs, generator=generator)


def _derive(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> PermutationSpec:
    program = _export(model, inputs, kwargs)
    missing = {operation_name(node) for node in program.graph.nodes if _lacks_rule(node)}
    if missing:
        program = _decompose(program)
    try:
        walk, axes = _walk(program, model, uniform=True)
    except UniformWriteError:
        walk, axes = _walk(program, model, uniform=False)
    if walk.unknown:
        logger.info("no rule for %s: what they touch stays fixed", ", ".join(sorted(walk.unknown)))
    moved_buffers = frozenset(name for name, _ in model.named_buffers() if name in axes)
    return _record(walk, axes, moved_buffers)


def _export(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    config: Any = getattr(model, "config", None)
    caches = getattr(config, "use_cache", None) is True  # transformers' caches are objects that cannot be traced
    if caches:
        config.use_cache = False
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path hides the projections in one operation
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(model, inputs, kwargs)
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        wanted = "a model that torch.export can trace (or write its spec with PermutationSpec.by_hand)"
        raise InputError("model", wanted, f"{type(error).__name__}: {text}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if caches:
            config.use_cache = True
        for module, mode in training.items():
            module.training = mode


def _lacks_rule(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return operation_name(node) not in rules() and torch.Tag.pointwise not in node.target.tags


def _decompose(program: ExportedProgram) -> ExportedProgram:
    """The program in core operations, those with a rule kept whole."""
    table = torch.export.default_decompositions()
    for operation in list(table):
        if not isinstance(operation, torch._ops.OpOverload):
            continue
        name = operation._schema.name.split("::")[-1].removesuffix("_")
        if name in rules():
            del table[operation]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decomposed: ExportedProgram = program.run_decompositions(table)
        return decomposed


def _walk(program: ExportedProgram, model: nn.Module, *, uniform: bool) -> tuple[Walk, dict[str, list[Axis]]]:
    """Run the rules over the graph; gives the walk and the axes of each entry of the state dict."""
    walk = Walk(uniform=uniform)
    axes = _seed(walk, program, model)
    for node in program.graph.nodes:
        if node.op == "call_function":
            walk.run(node)
        elif node.op == "get_attr":
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                walk.values[node] = Value([fixed(int(n), "a constant of the model") for n in value.shape])
        elif node.op == "output":
            for result in node.all_input_nodes:
                _fix_result(walk, result)
    walk.blocks.extend(axes.values())
    return walk, axes


def _fix_result(walk: Walk, node: fx.Node) -> None:
    value = walk.values.get(node)
    for axes in value.members if isinstance(value, Stack) else [value.axes] if isinstance(value, Value) else []:
        for axis in axes:
            fix(axis, "an axis of the model's output")


def _seed(walk: Walk, program: ExportedProgram, model: nn.Module) -> dict[str, list[Axis]]:
    """Values of all placeholders; tied parameters share theirs."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    statistics = _running_statistics(program)
    state = model.state_dict(keep_vars=True)
    learned = dict(model.named_parameters(remove_duplicate=False))
    axes: dict[str, list[Axis]] = {}
    shared: dict[object, list[Axis]] = {}
    used: set[str] = set()
    for name, tensor in state.items():
        axes[name] = shared.setdefault(_memory(tensor), [free(n) for n in tensor.shape])
    for spec in program.graph_signature.input_specs:
        node = nodes.get(getattr(spec.arg, "name", ""))
        value = node.meta.get("val") if node is not None else None
        if node is None or not isinstance(value, Tensor):
            continue
        if spec.kind is InputKind.PARAMETER or (spec.kind is InputKind.BUFFER and node in statistics):
            assert spec.target is not None
            walk.values[node] = Value(axes[spec.target])
            if node.users:
                used.add(spec.target)
            continue
        constant = spec.kind is not InputKind.USER_INPUT
        reason = f"a constant of the model ({spec.target})" if constant else f"an axis of the input {node.name!r}"
        walk.values[node] = Value([fixed(int(n), reason) for n in value.shape])
    memory = {_memory(state[name]) for name in used}
    for name, tensor in state.items():
        if _memory(tensor) not in memory:
            reason = "not used by the forward pass" if name in learned else "a constant of the model"
            for axis in axes[name]:
                fix(axis, reason)
    return axes


def _memory(tensor: Tensor) -> object:
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _running_statistics(program: ExportedProgram) -> set[fx.Node]:
    """The placeholders that a normalization reads as running mean or variance: buffers that move with the channels."""
    return {
        argument
        for node in program.graph.nodes
        if node.op == "call_function" and "norm" in operation_name(node)
        for argument in node.args[3:5]
        if isinstance(argument, fx.Node) and argument.op == "placeholder"
    }


def _record(walk: Walk, axes: dict[str, list[Axis]], buffers: frozenset[str]) -> PermutationSpec:
    names: dict[Symbol, str] = {}
    for name, tensor_axes in axes.items():
        for i, axis in enumerate(tensor_axes):
            fresh = list(dict.fromkeys(s for s in plain(axis) if not s.reason and s not in names))
            for k, symbol in enumerate(fresh):
                names[symbol] = f"{name}[{i}]" + (f".{k}" if len(fresh) > 1 else "")
    parents = _parents(walk, names, _before(axes, names))
    atoms = {name: Atom(name, symbol.size, tuple(names[p] for p in parents[symbol])) for symbol, name in names.items()}
    layouts = {name: tuple(_layout(axis, names) for axis in tensor_axes) for name, tensor_axes in axes.items()}
    moved_buffers = frozenset(n for n in buffers if any(not isinstance(layout, Fixed) for layout in layouts[n]))
    return PermutationSpec(atoms, layouts, moved_buffers)


def _layout(axis: Axis, names: Mapping[Symbol, str]) -> Layout:
    factors = _joined([_leaf(symbol, names) for symbol in leaves(axis)], lambda a, b: a * b)
    return factors[0] if len(factors) == 1 else Product(tuple(factors)) if factors else Fixed(1)


def _leaf(symbol: Symbol, names: Mapping[Symbol, str]) -> Layout:
    if symbol.terms is None:
        return Moved(names[symbol], symbol.size) if symbol in names else Fixed(symbol.size, symbol.reason)
    parts: list[Layout] = []
    for term in symbol.terms:
        layout = _layout(term, names)
        parts.extend(layout.parts if isinstance(layout, Segments) else [layout])
    parts = _joined(parts, lambda a, b: a + b)
    return parts[0] if len(parts) == 1 else Segments(tuple(parts))


def _joined(parts: Sequence[Layout], size: Any) -> list[Layout]:
    """Neighbours that are fixed become one, with the reasons of both."""
    found: list[Layout] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, Fixed) and isinstance(last, Fixed):
            reasons = dict.fromkeys(r for r in (last.reason, part.reason) if r)
            found[-1] = Fixed(size(last.size, part.size), "; ".join(reasons))
        else:
            found.append(part)
    return found


def _before(axes: Mapping[str, list[Axis]], names: Mapping[Symbol, str]) -> set[tuple[Symbol, Symbol]]:
    """Pairs of atoms of which the first is outside the second in a product on some axis of a parameter."""
    return {
        (block[i], symbol)
        for tensor_axes in axes.values()
        for axis in tensor_axes
        for block in _axis_blocks(axis, names)
        for k, symbol in enumerate(block)
        for i in range(k)
    }


def _parents(walk: Walk, names: Mapping[Symbol, str], before: set[tuple[Symbol, Symbol]]) -> dict[Symbol, list[Symbol]]:
    """For each atom those that are in every tensor that it is in, so that its permutation may depend on their index.

    An inner index is not used for an outer one, though there are models that would allow it.
    """
    together: dict[Symbol, set[Symbol]] = {}
    for axes in walk.blocks:
        for block in _blocks(axes, names):
            for symbol in block:
                others = set(block) - {symbol}
                together[symbol] = together[symbol] & others if symbol in together else others
    order = {symbol: k for k, symbol in enumerate(names)}

    def above(symbol: Symbol) -> list[Symbol]:
        # Of two that are always together the outer was named first.
        found = (
            p
            for p in together[symbol]
            if (symbol, p) not in before and (symbol not in together[p] or order[p] < order[symbol])
        )
        return sorted(found, key=order.__getitem__)

    return {symbol: above(symbol) for symbol in names}


def _blocks(axes: Sequence[Axis], names: Mapping[Symbol, str]) -> Iterator[list[Symbol]]:
    """The combinations of atoms that occur together in a tensor, segment by segment."""
    if not axes:
        yield []
        return
    for rest in _blocks(axes[1:], names):
        for head in _axis_blocks(axes[0], names):
            yield [*head, *rest]


def _axis_blocks(axis: Axis, names: Mapping[Symbol, str]) -> Iterator[list[Symbol]]:
    symbols = leaves(axis)
    if not symbols:
        yield []
        return
    first, rest = symbols[0], tuple(symbols[1:])
    if first.terms is None:
        heads: list[list[Symbol]] = [[first] if first in names else []]
    else:
        heads = [block for term in first.terms for block in _axis_blocks(term, names)]
    for tail in _axis_blocks(rest, names):
        for head in heads:
            yield [*head, *tail]
