"""Element by element: operands are broadcast, and aligned axes move together."""

from typing import Any

from torch import Tensor

from diffmatch.matching.weights.rules.indexing import pieces
from diffmatch.matching.weights.symbols import fixed, free
from diffmatch.matching.weights.trace import Value, Walk, rule, tensors_of


@rule("pointwise", "feature_dropout", "alpha_dropout", "selu", "relu6", "hardtanh", "rrelu", "native_dropout")
@rule("type_as", "square", "where")
@rule("masked_fill", "copy", "addcmul", "addcdiv", "lerp", "pow", "clamp", "softplus", "nan_to_num", "zero")
def pointwise(walk: Walk, *args: Any, **_: Any) -> Any:
    """Bind aligned axes of all operands; a tensor written into keeps its own axes."""
    operands = [arg for arg in args if isinstance(arg, Value)]
    axes = walk.broadcast([value.axes for value in operands])
    uniform = walk.uniform and bool(operands) and all(value.uniform for value in operands)
    result = Value(axes, uniform)
    return [result, result] if walk.name == "native_dropout" else result


@rule("prelu", "_prelu_kernel")
def prelu(walk: Walk, x: Value, weight: Value) -> Value:
    """One slope a channel."""
    if len(x.axes) > 1 and len(weight.axes) == 1 and weight.axes[0]:
        walk.bind(x.axes[1], weight.axes[0])
    return x


@rule("glu")
def glu(walk: Walk, x: Value, dim: int = -1) -> Value:
    """The first half of an axis gates the second."""
    half = walk.shape[dim]
    first, second = pieces(walk, x, dim, [half, half])
    return Value(walk.broadcast([first.axes, second.axes]))


@rule("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "scalar_tensor")
@rule("new_zeros", "new_ones", "new_full", "new_empty")
def filled(walk: Walk, *_: Any, **__: Any) -> Value:
    """Equal entries: any permutation leaves them as they are."""
    return Value([free(n) for n in walk.shape], walk.uniform)


@rule("unknown")
def unknown(walk: Walk, *args: Any, **kwargs: Any) -> Any:
    """Nothing is known of the operation: everything that it touches stays where it is."""
    reason = f"no rule for {walk.where}"
    for value in [*_values(args), *_values(tuple(kwargs.values()))]:
        for axis in value.axes:
            walk.fixed_axis(axis, "no rule")
    assert walk.node is not None
    result = walk.node.meta["val"]
    made = [Value([fixed(int(n), reason) for n in tensor.shape]) for tensor in tensors_of(result)]
    return made[0] if isinstance(result, Tensor) else made


@rule("arange", "linspace", "eye", "rand", "randn", "randint", "randperm", "tril_indices", "triu_indices", "tensor")
def positions(walk: Walk, *_: Any, **__: Any) -> Value:
    """Entries that differ and are not parameters."""
    return Value([fixed(n, f"a constant ({walk.where})") for n in walk.shape])


def _values(args: Any) -> list[Value]:
    if isinstance(args, Value):
        return [args]
    return [value for arg in args for value in _values(arg)] if isinstance(args, list | tuple) else []
