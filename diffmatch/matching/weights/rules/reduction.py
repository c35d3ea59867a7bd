"""Reductions, softmax, pooling, and what depends on the order along an axis."""

from typing import Any

from diffmatch.matching.weights.rules.pointwise import unknown
from diffmatch.matching.weights.symbols import free, segments
from diffmatch.matching.weights.trace import Value, Walk, rule


@rule("mean", "sum", "prod", "amax", "amin", "logsumexp", "any", "all", "norm", "linalg_vector_norm", "nansum")
@rule("var", "std", "var_mean", "std_mean", "max", "min")
def reduce(walk: Walk, x: Value, *settings: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
    """A symmetric function of the entries along axes; for ``max`` with an axis see `order`."""
    if walk.name in ("max", "min") and settings:
        if isinstance(settings[0], Value):
            return Value(walk.broadcast([x.axes, settings[0].axes]))
        return order(walk, x, settings[0], *settings[1:2])
    names = [argument.name for argument in _schema(walk)][1:]
    given = {"dim": dim, "keepdim": keepdim} | dict(zip(names, settings, strict=False))
    dims = given["dim"]
    every = dims is None or dims == []
    over = set(range(len(x.axes))) if every else {d % len(x.axes) for d in ([dims] if isinstance(dims, int) else dims)}
    axes = [() if i in over else axis for i, axis in enumerate(x.axes) if given["keepdim"] or i not in over]
    result = Value(axes)
    return [result, result] if walk.name.endswith("_mean") else result


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "special_softmax", "normalize")
def softmax(walk: Walk, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Mixes along an axis and treats its entries alike."""
    walk.computes([axis for i, axis in enumerate(x.axes) if i != dim % len(x.axes)])
    return x


@rule("argmax", "argmin", "topk", "sort", "argsort", "median", "mode", "kthvalue", "cummax", "cummin")
def order(walk: Walk, x: Value, *settings: Any, dim: int | None = None, **_: Any) -> Any:
    """Results name positions along an axis, which must therefore stay."""
    for axis in x.axes:
        walk.fixed_axis(axis, "positions along an axis are a result")
    return unknown(walk, x)


@rule("cumsum", "cumprod", "logcumsumexp", "flip", "roll")
def along(walk: Walk, x: Value, *settings: Any, dims: Any = None, dim: Any = None, **_: Any) -> Value:
    """The order along an axis matters."""
    named = settings[-1] if settings else (dims if dims is not None else dim)
    chosen = [named] if isinstance(named, int) else (named or range(len(x.axes)))
    for d in chosen:
        walk.fixed_axis(x.axes[d], "the order matters")
    return Value(x.axes)


@rule("tril", "triu")
def triangle(walk: Walk, x: Value, *_: Any) -> Value:
    """Which entries are kept depends on the order of rows and columns."""
    for axis in x.axes[-2:]:
        walk.fixed_axis(axis, "the order matters")
    return Value(x.axes)


@rule("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d")
@rule("adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "adaptive_max_pool2d")
@rule("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_linear1d")
@rule("upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact2d", "max_pool2d_with_indices", "lp_pool2d")
@rule("max_pool1d_with_indices", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "_upsample_bilinear2d_aa")
@rule("replication_pad1d")
def positions(walk: Walk, x: Value, *_: Any, **__: Any) -> Any:
    """Works on positions; what leads them (batch, channels) passes."""
    n_lead = len(x.axes) - (1 if "1d" in walk.name else 3 if "3d" in walk.name else 2)
    axes = list(x.axes[:n_lead])
    for axis, size in zip(x.axes[n_lead:], walk.shape[n_lead:], strict=True):
        axes.append(walk.fixed_axis(axis, "positions", size))
    result = Value(axes)
    return [result, result] if "with_indices" in walk.name or walk.name.startswith("adaptive_max") else result


@rule("pad", "constant_pad_nd")
def pad(walk: Walk, x: Value, padding: list[int], mode: Any = "constant", *_: Any, **__: Any) -> Value:
    """Constant entries before and after, which may move among themselves; other modes read positions."""
    axes = list(x.axes)
    for k in range(len(padding) // 2):
        before, after = padding[2 * k : 2 * k + 2]
        i = len(axes) - 1 - k
        if before == after == 0:
            continue
        if (isinstance(mode, str) and mode != "constant") or before < 0 or after < 0:
            axes[i] = walk.fixed_axis(axes[i], "positions", walk.shape[i])
        else:
            axes[i] = segments([part for n, part in ((before, free(before)), (1, axes[i]), (after, free(after))) if n])
    return Value(axes)


def _schema(walk: Walk) -> Any:
    assert walk.node is not None
    return walk.node.target._schema.arguments  # type: ignore[union-attr]
