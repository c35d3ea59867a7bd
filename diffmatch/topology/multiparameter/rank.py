"""The rank invariant of components in two parameters, as a signed measure of rectangles."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import check_choice, check_floating, check_shape
from diffmatch.topology.cubical import Construction
from diffmatch.topology.multiparameter.axes import Axis, Levels, make_axes
from diffmatch.topology.multiparameter.graphs import check_cells
from diffmatch.topology.multiparameter.kernels import grid_edges
from diffmatch.topology.multiparameter.rank_kernels import rank_events

__all__ = ["RankInvariant", "graph_rank_invariant", "image_rank_invariant"]


@dataclass(frozen=True)
class RankInvariant:
    """Rectangles with integer weights that say how many components of a sublevel set remain apart in a larger one.

    The rank of ``a <= b`` (in both coordinates) is the number of components of the set at b that meet the set at a. It
    is the sum of the weights of the rectangles with ``birth <= a`` and ``b < death`` in both coordinates: a signed
    barcode, where one parameter has bars. On the diagonal a = b it is the Hilbert function.

    The weights are constant where the order of the values on each axis does not change, and the coordinates are values
    of the input (or levels), so that a loss of them has a gradient, right as long as these orders stay.

    Attributes:
        births: lower corners, shape (p, 2).
        deaths: upper corners, shape (p, 2), not included; +inf where nothing ends in that coordinate.
        weights: shape (p,), int64, none of them zero.
    """

    births: Float[Tensor, "p 2"]
    deaths: Float[Tensor, "p 2"]
    weights: Int[Tensor, " p"]

    def __len__(self) -> int:
        """How many rectangles there are."""
        return len(self.weights)

    def at(self, first: Float[Tensor, "q 2"], second: Float[Tensor, "q 2"]) -> Int[Tensor, " q"]:
        """Ranks of the maps from some places to others, without gradients.

        Args:
            first: places a, shape (q, 2).
            second: places b, shape (q, 2).

        Returns:
            The ranks, shape (q,); 0 where a is not at most b in both coordinates.
        """
        born = (self.births.detach() <= first[:, None]).all(-1)
        alive = (second[:, None] < self.deaths.detach()).all(-1)
        below = (first <= second).all(-1)
        # Sums of integers far below 2^53 are exact.
        return ((born & alive).double() @ self.weights.double() * below).round().long()

    def integrate(self, function: Callable[[Tensor, Tensor], Tensor]) -> Float[Tensor, ""]:
        """The weighted sum of a function of the rectangles.

        Args:
            function: maps births and deaths, shapes (p, 2), to numbers, shape (p,); what is infinite is its business.
        """
        return (self.weights * function(self.births, self.deaths)).sum()

    def detach(self) -> "RankInvariant":
        """The same rectangles without gradients."""
        return replace(self, births=self.births.detach(), deaths=self.deaths.detach())


def graph_rank_invariant(
    values: Float[Tensor, "2 n"], edges: Int[Tensor, "m 2"], *, levels: Levels = None
) -> RankInvariant:
    """The rank invariant of degree 0 of a graph with two functions on its vertices (lower star in both).

    Costs a sweep of a spanning forest for each pair of levels of the second function, so about r^2 n / 2 steps on r
    levels, on the CPU.

    Args:
        values: both functions, shape (2, n), floating point; +inf in either marks vertices that never appear.
        edges: ends of the edges, shape (m, 2).
        levels: None for all values, a number of quantiles, or the increasing levels of both functions; each value
            counts at the next level that is not below it. Gradients go to the values or to the given levels.

    Raises:
        InputError: wrong shapes, dtypes or indices, NaN, -inf, levels that do not increase.

    References:
        Carlsson, Zomorodian 2009, "The theory of multidimensional persistence"; Botnan, Oppermann, Oudot 2024, "Signed
        barcodes for multi-parameter persistence via rank decompositions and rank-exact resolutions".
    """
    check_cells(values, "edges", edges, 2)
    x, y = make_axes("values", values, levels)
    ends = edges.cpu().numpy()
    a, b = x.array(), y.array()
    return _invariant(x, y, ends, a[ends].max(1, initial=0), b[ends].max(1, initial=0))


def image_rank_invariant(
    field: Float[Tensor, "2 h w"], *, levels: Levels = None, construction: Construction = "V"
) -> RankInvariant:
    """The rank invariant of degree 0 of an image with two channels.

    As :func:`graph_rank_invariant` of its pixels. With r levels it takes about r^2 h w / 2 steps, so that all values as
    levels are for small images only.

    Args:
        field: shape (2, h, w), floating point. A pixel with +inf in either channel never appears.
        levels: as for :func:`graph_rank_invariant`.
        construction: ``"V"`` joins pixels through sides, ``"T"`` through corners too.

    Raises:
        InputError: wrong shape or dtype, NaN, -inf, an unknown construction, levels that do not increase.
    """
    check_shape("field", field, (2, "h", "w"))
    check_floating("field", field)
    check_choice("construction", construction, ("V", "T"))
    x, y = make_axes("field", field.reshape(2, -1), levels)
    ends, edge_a, edge_b = grid_edges(x.array(), y.array(), tuple(field.shape[1:]), construction == "T")
    return _invariant(x, y, ends, edge_a, edge_b)


def _invariant(x: Axis, y: Axis, ends: np.ndarray, edge_a: np.ndarray, edge_b: np.ndarray) -> RankInvariant:
    """Rectangles of a graph whose vertices and edges enter at levels."""
    size = x.size, y.size
    entering = ((edge_a < size[0]) & (edge_b < size[1])).nonzero()[0]
    by_level = entering[np.lexsort((edge_a[entering], edge_b[entering]))].astype(np.int32)
    found, signs = rank_events(
        x.array(),
        y.array(),
        np.ascontiguousarray(ends, np.int32),
        edge_a.astype(np.int32),
        edge_b.astype(np.int32),
        by_level,
        size,
    )
    place, weights = _collected(found, signs)
    corners = torch.from_numpy(place).long().to(x.entries.device)
    births = torch.stack((x.coordinates(corners[:, 0]), y.coordinates(corners[:, 1])), dim=1)
    deaths = torch.stack((_or_never(x, corners[:, 2]), _or_never(y, corners[:, 3])), dim=1)
    return RankInvariant(births, deaths, torch.from_numpy(weights).to(corners.device))


def _collected(found: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows with the sums of their signs, without those that cancel."""
    order = np.lexsort(found.T[::-1])
    rows, signs = found[order], signs[order]
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (rows[1:] != rows[:-1]).any(1)
    start = fresh.nonzero()[0]
    total = np.add.reduceat(signs, start) if len(start) else signs
    used = total != 0
    return rows[start[used]], total[used]


def _or_never(axis: Axis, at: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Values at levels, infinite for the one behind the last."""
    if not axis.size:
        return axis.source.new_full((len(at),), torch.inf)
    return torch.where(at < axis.size, axis.coordinates(at.clamp_max(axis.size - 1)), torch.inf)
