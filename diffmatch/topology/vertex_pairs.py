"""Bars of functions on vertices: which are kept, in what order, and the values at their ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.topology.diagram import Diagram, Persistence
from diffmatch.topology.vertex_pair_kernels import bars

__all__ = ["VertexPairs", "check_degrees", "diagrams", "filtration_values", "vertex_pairs"]


@dataclass(frozen=True)
class VertexPairs:
    """The bars of one degree by the vertices that their ends are read from, in the order of a diagram.

    Attributes:
        degree: dimension of the classes.
        births: shape (p,), int64.
        deaths: shape (p,), int64.
        essential: births of the classes that never die, shape (e,), int64.
    """

    degree: int
    births: Int[Tensor, " p"]
    deaths: Int[Tensor, " p"]
    essential: Int[Tensor, " e"]


def check_degrees(degrees: Sequence[int] | None, top: int) -> tuple[int, ...]:
    """The degrees asked for, increasing and each once; all up to `top` if None.

    Raises:
        InputError: one of them is not an integer from 0 to `top`.
    """
    if degrees is None:
        return tuple(range(top + 1))
    if not all(isinstance(degree, int) and 0 <= degree <= top for degree in degrees):
        raise InputError("degrees", f"integers from 0 to {top}", repr(tuple(degrees)))
    return tuple(sorted(set(degrees)))


def filtration_values(argument: str, values: Tensor, *, superlevel: bool) -> Tensor:
    """Detached values that a sublevel filtration goes by: the negated ones with `superlevel`. Reads their extremes.

    Raises:
        InputError: a value is NaN, or infinite on the side where the filtration begins.
    """
    ascending = -values.detach() if superlevel else values.detach()
    lowest = float(ascending.min()) if ascending.numel() else 0.0
    if math.isnan(lowest):
        bad = ascending.isnan().flatten().nonzero()
        raise InputError(argument, "no NaN", f"{len(bad)} of {values.numel()} entries NaN, the first at {int(bad[0])}")
    if lowest == -math.inf:
        bad = ascending.isneginf().flatten().nonzero()
        sign, side = ("+", "superlevel") if superlevel else ("-", "sublevel")
        wanted = f"no {sign}inf in a {side} filtration"
        raise InputError(
            argument, wanted, f"{len(bad)} of {values.numel()} entries {sign}inf, the first at {int(bad[0])}"
        )
    return ascending


def vertex_pairs(
    degree: int,
    ascending: Float[Tensor, " n"],
    births: Int[Tensor, " p"],
    deaths: Int[Tensor, " p"],
    essential: Int[Tensor, " e"],
    *,
    min_persistence: float,
) -> VertexPairs:
    """Leave out short bars, sort the others, and set those apart that end at infinity.

    Args:
        degree: of the classes.
        ascending: values of a sublevel filtration, on the device of the vertices.
        births: vertex of each birth, shape (p,).
        deaths: vertex of each death, shape (p,).
        essential: vertex of the birth of each class that never dies, shape (e,).
        min_persistence: bars of this length and shorter are left out.
    """
    wide = ascending if ascending.dtype == torch.float64 else ascending.float()
    if wide.device.type == "cpu":
        columns = births.numpy(), deaths.numpy(), essential.numpy()
        first, last, unending = map(torch.from_numpy, bars(wide.numpy(), *columns, min_persistence))
    else:
        first, last, unending = _bars(wide, births.long(), deaths.long(), essential.long(), min_persistence)
    return VertexPairs(degree, first, last, unending)


def _bars(
    values: Float[Tensor, " n"],
    births: Int[Tensor, " p"],
    deaths: Int[Tensor, " p"],
    essential: Int[Tensor, " e"],
    min_persistence: float,
) -> tuple[Int[Tensor, " q"], Int[Tensor, " q"], Int[Tensor, " f"]]:
    """:func:`diffmatch.topology.vertex_pair_kernels.bars` by tensor operations, on any device."""
    length = values[deaths] - values[births]  # a birth is infinite only if its death is; NaN then, and not kept
    unending = torch.cat((essential, births[length.isposinf()]))
    unending = unending[values[unending].isfinite()].sort().values
    kept = (length > min_persistence) & length.isfinite()
    births, deaths, length = births[kept], deaths[kept], length[kept]
    order = deaths.argsort(stable=True)
    order = order[births[order].argsort(stable=True)]
    order = order[length[order].argsort(stable=True, descending=True)]
    return births[order], deaths[order], unending[values[unending].argsort(stable=True)]


class _Read(torch.autograd.Function):
    """``values[row][index]`` for several rows and indices, with one gradient that all of them are added into."""

    @staticmethod
    def forward(values: Tensor, rows: Sequence[int], *indices: Tensor) -> tuple[Tensor, ...]:
        items = values.unbind(0)
        return tuple([items[row].index_select(0, index) for row, index in zip(rows, indices, strict=True)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        values, ctx.rows, *indices = inputs
        ctx.shape = values.shape
        ctx.save_for_backward(*indices)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total = None
        for row, index, grad in zip(ctx.rows, ctx.saved_tensors, grads, strict=True):
            if grad is not None:
                total = grad.new_zeros(ctx.shape) if total is None else total
                total[row].scatter_add_(0, index, grad)
        return total, None, *[None for _ in grads]


def diagrams(
    values: Float[Tensor, "b n"], pairs: Sequence[Sequence[VertexPairs]], *, superlevel: bool
) -> list[Persistence]:
    """The diagrams of a batch; what they send back is added into one gradient.

    Args:
        values: what births and deaths are read from, one row an item.
        pairs: for each item, the bars of each degree.
        superlevel: whether the filtration went downward.
    """
    parts = [part.to(values.device) for item in pairs for p in item for part in (p.births, p.deaths, p.essential)]
    rows = [row for row, item in enumerate(pairs) for _ in range(3 * len(item))]
    ends, cells = iter(_Read.apply(values, rows, *parts)), iter(parts)

    def diagram(degree: int) -> Diagram:
        births, deaths, essential_births = next(ends), next(ends), next(ends)
        return Diagram(degree, births, deaths, next(cells), next(cells), essential_births, next(cells))

    return [Persistence(tuple(diagram(p.degree) for p in item), superlevel) for item in pairs]
