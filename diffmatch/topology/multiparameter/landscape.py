"""The multiparameter persistence landscape, line by line."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_shape
from diffmatch.topology.descriptors.points import tents
from diffmatch.topology.diagram import Persistence

__all__ = ["multiparameter_landscape"]


def multiparameter_landscape(
    along: Callable[[Float[Tensor, ""]], Persistence],
    offsets: Float[Tensor, " m"],
    grid: Float[Tensor, " t"],
    *,
    degree: int = 0,
    levels: int = 5,
) -> Float[Tensor, "levels m t"]:
    """The landscape functions of a module with two parameters, on diagonal lines.

    ``lambda_k(a)`` is the largest e such that the map from ``a - (e, e)`` to ``a + (e, e)`` has rank at least k. On a
    diagonal line it is the ordinary landscape of the persistence along that line, essential classes included, which
    have no end. Evaluated at the points ``(t, t + offset)``.

    On that line the first function has been reached at the time of its value, the second at its value less the offset,
    so that both have at their maximum. For an image, a graph or a mesh with two functions f::

        multiparameter_landscape(lambda s: cubical_persistence(torch.maximum(f[0], f[1] - s)), offsets, grid)

    and for the function-Rips bifiltration of points with a function c::

        lambda s: rips_persistence(points, vertex_values=(c - s).clamp_min(0))

    Differentiable in the values where the persistence along each line is, the function that is the larger one does not
    change at the critical cells, and no two of the k largest tents are equal. Each landscape function is 1-Lipschitz in
    the larger of the two functions' changes.

    Args:
        along: the persistence (sublevel) along the line with an offset, a tensor without axes.
        offsets: of the lines, shape (m,).
        grid: times along each line, shape (t,).
        degree: of homology.
        levels: how many landscape functions.

    Returns:
        The functions, from the largest, shape (levels, m, t).

    Raises:
        InputError: wrong shapes, values that are not finite, fewer than one level, a superlevel persistence.

    References:
        Vipond 2020, "Multiparameter persistence landscapes", definition 3.1 and lemma 3.3.
    """
    for name, values in (("offsets", offsets), ("grid", grid)):
        check_shape(name, values, (name[0],))
        check_finite(name, values.detach())
    if levels < 1:
        raise InputError("levels", "an integer >= 1", repr(levels))
    lines = [_line(along(offset), grid, degree, levels) for offset in offsets]
    return torch.stack(lines, dim=1) if lines else grid.new_zeros(levels, 0, len(grid))


def _line(persistence: Persistence, grid: Tensor, degree: int, levels: int) -> Float[Tensor, "levels t"]:
    if persistence.superlevel:
        raise InputError("along", "a sublevel filtration", "a superlevel one")
    diagram = persistence[degree]
    grid = grid.to(diagram.births)
    endless = (grid - diagram.essential_births[:, None]).clamp_min(0)  # (e, t)
    heights = torch.cat((tents(diagram.births, diagram.deaths, grid), endless))
    largest = heights.topk(min(levels, len(heights)), dim=0).values
    return torch.nn.functional.pad(largest, (0, 0, 0, levels - len(largest)))
