"""Signed measures: where the Hilbert function or Euler characteristic of two parameters changes, and by how much."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_shape

__all__ = ["SignedMeasure", "collect", "from_codes"]

_TABLE = 1 << 22
"""Pairs of levels up to this number are counted in a table, more of them by sorting."""


@dataclass(frozen=True)
class SignedMeasure:
    """Points with integer weights whose sums over lower left quadrants are a function of two parameters.

    ``H(s, t)`` is the sum of the weights of the points that are at most s in the first and at most t in the second
    coordinate: the rank of a homology group of the set of what has entered by (s, t) (Hilbert function), or the Euler
    characteristic of that set.

    The weights are constant where the order of the input's values on each axis does not change, and the coordinates
    are entries of the input (or levels): so a loss of the points has a gradient in the input, right as long as these
    orders stay. Where values are tied, points of opposite weights may coincide.

    Attributes:
        points: coordinates, shape (p, 2), gathered from the input and differentiable in it.
        weights: shape (p,), int64, none of them zero.
        degree: of homology; None for the Euler characteristic.
    """

    points: Float[Tensor, "p 2"]
    weights: Int[Tensor, " p"]
    degree: int | None

    def __len__(self) -> int:
        """How many points there are."""
        return len(self.weights)

    def at(self, first: Float[Tensor, " s"], second: Float[Tensor, " t"]) -> Int[Tensor, "s t"]:
        """The Hilbert function (Euler characteristic) at all pairs of two lists of levels.

        Args:
            first: levels on the first axis, shape (s,), in any order.
            second: levels on the second axis, shape (t,).

        Returns:
            Integers, shape (s, t), without gradients.
        """
        x, y = self.points.detach().unbind(1)
        left, below = (x <= first[:, None]).double(), (y <= second[:, None]).double()
        # Sums of integers far below 2^53 are exact.
        return ((left * self.weights) @ below.T).round().long()

    def integrate(self, function: Callable[[Float[Tensor, "p 2"]], Float[Tensor, " p"]]) -> Float[Tensor, ""]:
        """The integral of a function: the weighted sum of its values at the points.

        Args:
            function: maps points, shape (p, 2), to numbers, shape (p,).
        """
        return (self.weights * function(self.points)).sum()

    def round_up(self, first: Float[Tensor, " s"], second: Float[Tensor, " t"]) -> "SignedMeasure":
        """The measure of the same function on a grid of levels: each point moves up to the next level on either axis.

        Points above the last level vanish. The coordinates are the levels, so gradients go to them, not to the input.

        Args:
            first: increasing levels on the first axis, shape (s,).
            second: increasing levels on the second axis, shape (t,).

        Raises:
            InputError: levels that do not increase.
        """
        for name, levels in (("first", first), ("second", second)):
            check_levels(name, levels)
        x, y = self.points.detach().T.contiguous()
        size = len(first), len(second)
        i, j = torch.searchsorted(first.detach(), x), torch.searchsorted(second.detach(), y)
        seen = (i < size[0]) & (j < size[1])
        codes, weights = collect([i[seen] * size[1] + j[seen]], [self.weights[seen]], size)
        return from_codes(codes, weights, size, lambda at: first[at], lambda at: second[at], self.degree)

    def detach(self) -> "SignedMeasure":
        """The same measure without gradients."""
        return replace(self, points=self.points.detach())


def check_levels(argument: str, levels: Tensor) -> None:
    """Check that levels are a list of increasing numbers.

    Raises:
        InputError: they are not.
    """
    check_shape(argument, levels, ("r",))
    values = levels.detach()
    if not bool((values[1:] > values[:-1]).all()) or bool(values.isnan().any()):
        raise InputError(argument, "increasing levels", "levels that are not")


def collect(
    codes: Sequence[Int[Tensor, " _"]], weights: Sequence[Int[Tensor, " _"]], size: tuple[int, int]
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Add up weights at equal codes.

    Args:
        codes: ``i * size[1] + j`` of events at level i of the first and j of the second axis.
        weights: of these events, int64.
        size: number of levels on each axis.

    Returns:
        increasing codes with weights that are not zero.
    """
    code, weight = torch.cat(list(codes)), torch.cat(list(weights))
    cells = size[0] * size[1]
    distinct = None
    if cells > _TABLE:
        distinct, code = code.unique(return_inverse=True)
        cells = len(distinct)
    # Sums of integers far below 2^53 are exact.
    total = torch.bincount(code, weights=weight.double(), minlength=cells)
    used = total.nonzero().squeeze(1)
    return used if distinct is None else distinct[used], total[used].long()


def from_codes(
    codes: Int[Tensor, " p"],
    weights: Int[Tensor, " p"],
    size: tuple[int, int],
    first: Callable[[Int[Tensor, " p"]], Float[Tensor, " p"]],
    second: Callable[[Int[Tensor, " p"]], Float[Tensor, " p"]],
    degree: int | None,
) -> SignedMeasure:
    """The measure of collected codes; `first` and `second` read coordinates for levels."""
    points = torch.stack((first(codes // size[1]), second(codes % size[1])), dim=1)
    return SignedMeasure(points, weights, degree)
