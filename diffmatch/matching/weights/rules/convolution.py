"""Convolutions: plain, grouped, depthwise, transposed."""

from typing import Any

from diffmatch.matching.weights.symbols import free, length
from diffmatch.matching.weights.trace import Value, Walk, rule


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    walk: Walk, x: Value, weight: Value, bias: Value | None = None, *settings: Any, groups: int = 1, **_: Any
) -> Value:
    """Channels of the input meet axis 1 of the weight, group by group; axis 0 gives the channels of the result."""
    return _convolve(walk, x, weight, bias, groups=settings[3] if len(settings) > 3 else groups, transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed(
    walk: Walk, x: Value, weight: Value, bias: Value | None = None, *settings: Any, groups: int = 1, **_: Any
) -> Value:
    """The same with the first two axes of the weight exchanged."""
    return _convolve(walk, x, weight, bias, groups=settings[3] if len(settings) > 3 else groups, transposed=True)


@rule("convolution", "_convolution")
def general(walk: Walk, x: Value, weight: Value, bias: Value | None, *settings: Any) -> Value:
    """The form that decompositions lead to."""
    return _convolve(walk, x, weight, bias, groups=settings[5], transposed=settings[3])


def _convolve(walk: Walk, x: Value, weight: Value, bias: Value | None, *, groups: int, transposed: bool) -> Value:
    n_spatial = len(weight.axes) - 2
    channel = len(x.axes) - n_spatial - 1
    group = free(groups)
    rest = free(length(weight.axes[0]) // groups)
    walk.bind(weight.axes[0], (*group, *rest))
    inner, outer = (rest, weight.axes[1]) if transposed else (weight.axes[1], rest)
    walk.bind(x.axes[channel], (*group, *inner))
    out = (*group, *outer)
    if bias is not None:
        walk.bind(bias.axes[0], out)
    for axis in weight.axes[2:]:
        walk.fixed_axis(axis, "positions in a kernel")
    shape = walk.shape[channel + 1 :]
    spatial = [walk.fixed_axis(a, "positions", n) for a, n in zip(x.axes[channel + 1 :], shape, strict=True)]
    return Value([*x.axes[:channel], out, *spatial])
