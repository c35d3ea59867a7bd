"""Normalizations: statistics do not depend on the order, scales and shifts move with what they scale."""

from typing import Any

from diffmatch.matching.weights.symbols import Axis, free, length
from diffmatch.matching.weights.trace import Value, Walk, rule


@rule("batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit_no_training")
def batch_norm(walk: Walk, x: Value, *parameters: Any, **_: Any) -> Any:
    """Scale, shift and running statistics belong to the channels."""
    channel = 1 if len(x.axes) > 1 else 0
    _bind(walk, x.axes[channel], parameters[:4])
    result = Value(x.axes)
    return [result, Value([x.axes[channel]]), Value([x.axes[channel]])] if "native" in walk.name else result


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(walk: Walk, x: Value, normalized_shape: list[int], *parameters: Any) -> Any:
    """Scale and shift belong to the normalized axes."""
    n = len(normalized_shape)
    for parameter in parameters[:2]:
        if isinstance(parameter, Value):
            for axis, own in zip(x.axes[-n:], parameter.axes, strict=True):
                walk.bind(axis, own)
    statistics = [*x.axes[:-n], *[()] * n]
    walk.computes(statistics)
    if walk.name in ("layer_norm", "rms_norm"):
        return Value(x.axes)
    return [Value(x.axes), Value(statistics), Value(statistics)]


@rule("group_norm")
def group_norm(walk: Walk, x: Value, groups: int, *parameters: Any) -> Value:
    """Channels are groups times channels of a group."""
    _group_norm(walk, x, groups, parameters[:2])
    return Value(x.axes)


@rule("native_group_norm")
def native_group_norm(walk: Walk, x: Value, weight: Any, bias: Any, *sizes: int) -> Any:
    """The form that decompositions lead to; ``sizes`` are batch, channels, positions and groups."""
    statistics = Value(_group_norm(walk, x, sizes[3], (weight, bias)))
    return [Value(x.axes), statistics, statistics]


def _group_norm(walk: Walk, x: Value, groups: int, parameters: Any) -> list[Axis]:
    group = free(groups)
    walk.bind(x.axes[1], (*group, *free(length(x.axes[1]) // groups)))
    _bind(walk, x.axes[1], parameters)
    statistics = [x.axes[0], group]
    walk.computes(statistics)
    return statistics


def _bind(walk: Walk, axis: Axis, parameters: Any) -> None:
    for parameter in parameters:
        if isinstance(parameter, Value):
            walk.bind(axis, parameter.axes[0])
