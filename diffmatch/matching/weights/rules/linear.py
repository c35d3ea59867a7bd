"""Linear layers, matrix products, einsum, embeddings."""

from typing import Any

from diffmatch.matching.weights.symbols import Axis
from diffmatch.matching.weights.trace import Value, Walk, rule


@rule("linear")
def linear(walk: Walk, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """y = x W^T + b."""
    walk.bind(x.axes[-1], weight.axes[-1])
    out = list(weight.axes[:-1])
    if bias is not None and out:
        walk.bind(bias.axes[0], out[0])
    return Value([*x.axes[:-1], *out])


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(walk: Walk, x: Value, y: Value) -> Value:
    """The product over the last axis of x and the last but one of y, with leading axes broadcast."""
    inner = y.axes[-2] if len(y.axes) > 1 else y.axes[-1]
    walk.bind(x.axes[-1], inner)
    batch = walk.broadcast([x.axes[:-2], y.axes[:-2]])
    return Value([*batch, *x.axes[-2:-1], *(y.axes[-1:] if len(y.axes) > 1 else [])])


@rule("addmm", "baddbmm", "addbmm", "addmv")
def addmm(walk: Walk, bias: Value, x: Value, y: Value, **_: Any) -> Value:
    """A product plus a bias."""
    product = matmul(walk, x, y)
    if walk.name == "addbmm":
        product = Value(product.axes[1:])
    return Value(walk.broadcast([product.axes, bias.axes]))


@rule("bilinear")
def bilinear(walk: Walk, x: Value, y: Value, weight: Value, bias: Value | None = None) -> Value:
    """z_k = x^T W_k y + b_k."""
    walk.bind(x.axes[-1], weight.axes[1])
    walk.bind(y.axes[-1], weight.axes[2])
    if bias is not None:
        walk.bind(bias.axes[0], weight.axes[0])
    return Value([*walk.broadcast([x.axes[:-1], y.axes[:-1]]), weight.axes[0]])


@rule("einsum")
def einsum(walk: Walk, equation: str, operands: list[Value], **_: Any) -> Value:
    """Axes of the same letter move together."""
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    letters: dict[str, Axis] = {}
    dots: list[list[Axis]] = []
    for term, value in zip(left.split(","), operands, strict=True):
        head, ellipsis, tail = term.partition("...")
        n_dots = len(value.axes) - len(head) - len(tail)
        if ellipsis:
            dots.append(value.axes[len(head) : len(head) + n_dots])
        named = [*value.axes[: len(head)], *value.axes[len(head) + n_dots :]]
        for letter, axis in zip(head + tail, named, strict=True):
            if letters.get(letter) and axis:
                walk.bind(letters[letter], axis)
            letters[letter] = letters.get(letter) or axis
    if not arrow:
        once = sorted(letter for letter in letters if left.count(letter) == 1)
        right = ("..." if dots else "") + "".join(once)
    head, ellipsis, tail = right.partition("...")
    middle = walk.broadcast(dots) if ellipsis else []
    return Value([*(letters[c] for c in head), *middle, *(letters[c] for c in tail)])


@rule("embedding")
def embedding(walk: Walk, weight: Value, indices: Value, *_: Any, **__: Any) -> Value:
    """The rows that the indices name; their order is the vocabulary's."""
    walk.fixed_axis(weight.axes[0], "rows are looked up by number")
    return Value([*indices.axes, *weight.axes[1:]])
