"""Scaled dot-product attention."""

from typing import Any

from diffmatch.matching.weights.symbols import free, length
from diffmatch.matching.weights.trace import Value, Walk, rule


@rule("scaled_dot_product_attention")
def attention(
    walk: Walk,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Value | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
    **_: Any,
) -> Value:
    """Scores over the last axes of q and k weigh the rows of v; the leading axes are batch and heads."""
    mask = mask or attn_mask
    walk.bind(q.axes[-1], k.axes[-1])
    walk.bind(k.axes[-2], v.axes[-2])
    if causal or is_causal:
        for axis in (q.axes[-2], k.axes[-2]):
            walk.fixed_axis(axis, "the order of a sequence")
    keys, values = list(k.axes[:-2]), list(v.axes[:-2])
    if enable_gqa:
        # Each group of query heads reads one head of keys and values, so the members of a group move on their own.
        members = length(q.axes[-3]) // length(keys[-1])
        keys[-1], values[-1] = (*keys[-1], *free(members)), (*values[-1], *free(members))
    batch = walk.broadcast([q.axes[:-2], keys, values])
    scores = [*batch, q.axes[-2], k.axes[-2]]
    walk.computes(scores)
    walk.computes(scores[:-1])
    if mask is not None:
        walk.broadcast([scores, mask.axes])
    return Value([*batch, q.axes[-2], v.axes[-1]])
