"""Recurrent layers and cells: the gates are blocks of rows, and all of them move as the hidden state does."""

from typing import Any

from diffmatch.matching.weights.symbols import Axis, fixed, free, length, segments
from diffmatch.matching.weights.trace import Stack, Value, Walk, rule

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def layers(
    walk: Walk,
    x: Value,
    state: Any,
    parameters: list[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
) -> list[Any]:
    """All layers and directions of ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``."""
    states = state if isinstance(state, list | tuple) else [state]
    directions = 2 if bidirectional else 1
    each = len(parameters) // (num_layers * directions)
    below, waiting = x.axes[-1], iter(parameters)
    members: list[list[Axis]] = []
    cells: list[list[Axis]] = []
    batch = list(states[0].axes[1:-1])
    for _ in range(num_layers):
        outputs = []
        for _ in range(directions):
            weights = [next(waiting) for _ in range(each)]
            cell, out = _cell(walk, below, weights, has_biases)
            for value, axis in zip(states, (out, cell), strict=False):
                if not value.uniform:  # zeros, the usual start, tie nothing
                    walk.bind(value.axes[-1], axis)
            outputs.append(out)
            members.append([*batch, out])
            cells.append([*batch, cell])
        below = segments(outputs)
    results: list[Any] = [Value([*x.axes[:-1], below]), Stack(0, members)]
    return results if walk.name != "lstm" else [*results, Stack(0, cells)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(walk: Walk, x: Value, state: Any, *parameters: Value | None) -> Any:
    """One step of one layer."""
    states = state if isinstance(state, list | tuple) else [state]
    hidden, _ = _cell(walk, x.axes[-1], [p for p in parameters if p is not None], True)
    for value in states:
        if not value.uniform:
            walk.bind(value.axes[-1], hidden)
    result = Value([*x.axes[:-1], hidden])
    return [result, result] if walk.name == "lstm_cell" else result


def _cell(walk: Walk, below: Axis, weights: list[Value], has_biases: bool) -> tuple[Axis, Axis]:
    """Bind the weights of a layer; gives the axes of its cell and of its output, which differ by a projection."""
    gates = _GATES[walk.name.removesuffix("_cell")]
    w_ih, w_hh, *rest = weights
    hidden = free(length(w_ih.axes[0]) // gates)
    rows = (*fixed(gates, "which gate"), *hidden)
    biases = rest[:2] if has_biases else []
    for value in (w_ih, w_hh, *biases):
        walk.bind(value.axes[0], rows)
    walk.bind(w_ih.axes[1], below)
    out = hidden
    if len(rest) > len(biases):  # proj_size of nn.LSTM
        walk.bind(rest[-1].axes[1], hidden)
        out = rest[-1].axes[0]
    walk.bind(w_hh.axes[1], out)
    return hidden, out
