"""The record of persistent homology: one diagram a degree, with the critical cells of every bar."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_positive

__all__ = ["Diagram", "Persistence"]


@dataclass(frozen=True)
class Diagram:
    """The bars of one degree: pairs with two finite ends, and essential classes apart from them.

    Births and deaths are gathered from the input (or recomputed from it), so that a loss of them has a gradient in the
    input; the pairing itself has none. Bars stand most persistent first; equally persistent ones in the order of their
    indices. With a superlevel filtration the values keep the user's sign: a bar is born above its death.

    Attributes:
        degree: dimension of the classes: 0 components, 1 loops, 2 cavities.
        births: value at which each finite bar begins, shape (p,).
        deaths: value at which it ends, shape (p,).
        birth_index: what of the input the births are read from, shape (p, \\*c), int64. A field, graph or mesh: the
            flat index of a pixel or vertex, shape (p,). Points: the indices of the c points of the critical simplex,
            shape (p, c).
        death_index: the same for the deaths, shape (p, \\*c).
        essential_births: value at which the classes begin that never die, shape (e,).
        essential_index: what they are read from, shape (e, \\*c).
    """

    degree: int
    births: Float[Tensor, " p"]
    deaths: Float[Tensor, " p"]
    birth_index: Int[Tensor, "p *c"]
    death_index: Int[Tensor, "p *d"]
    essential_births: Float[Tensor, " e"]
    essential_index: Int[Tensor, "e *c"]

    def __len__(self) -> int:
        """How many finite bars there are."""
        return len(self.births)

    @property
    def persistence(self) -> Float[Tensor, " p"]:
        """Length of each finite bar, never negative, shape (p,)."""
        return (self.deaths - self.births).abs()

    def points(self) -> Float[Tensor, "p 2"]:
        """The finite bars as points (birth, death), shape (p, 2)."""
        return torch.stack((self.births, self.deaths), dim=1)

    def select(self, keep: Bool[Tensor, " p"] | Int[Tensor, " q"] | slice) -> "Diagram":
        """The finite bars that a mask, an index or a slice names; the essential classes stay."""
        fields = ("births", "deaths", "birth_index", "death_index")
        return replace(self, **{name: getattr(self, name)[keep] for name in fields})

    def filter(self, min_persistence: float) -> "Diagram":
        """The finite bars that are longer than a length; the essential classes stay.

        The size of the answer depends on the values, so this waits for the device.

        Args:
            min_persistence: bars of this length and shorter are left out, >= 0.

        Raises:
            InputError: it is negative or not finite.
        """
        check_positive("min_persistence", min_persistence, allow_zero=True)
        return self.select(self.persistence.detach() > min_persistence)

    def detach(self) -> "Diagram":
        """The same bars without gradients."""
        fields = ("births", "deaths", "essential_births")
        return replace(self, **{name: getattr(self, name).detach() for name in fields})


@dataclass(frozen=True)
class Persistence:
    """The diagrams of one input, by degree: ``persistence[1]`` is the diagram of degree 1.

    Attributes:
        diagrams: one diagram for each degree that was asked for, by increasing degree; iterating goes over them.
        superlevel: whether the filtration runs from high values to low ones.
    """

    diagrams: tuple[Diagram, ...]
    superlevel: bool = False

    @property
    def degrees(self) -> tuple[int, ...]:
        """The degrees that were computed."""
        return tuple(diagram.degree for diagram in self.diagrams)

    def __getitem__(self, degree: int) -> Diagram:
        for diagram in self.diagrams:
            if diagram.degree == degree:
                return diagram
        raise InputError("degree", f"one of {', '.join(map(str, self.degrees))}, as computed", repr(degree))

    def __iter__(self) -> Iterator[Diagram]:
        return iter(self.diagrams)

    def __len__(self) -> int:
        return len(self.diagrams)

    def betti(self, level: float) -> tuple[int, ...]:
        """Betti numbers of the set below a level (above it with `superlevel`), one for each computed degree.

        A bar counts if its birth lies strictly below the level and its death does not, so that they are those of the
        set ``field < level`` (``field > level`` with `superlevel`). Bars that were left out by a least persistence
        are not counted. Waits for the device.

        Args:
            level: any number, infinities included.

        Raises:
            InputError: the level is NaN.
        """
        if math.isnan(level):
            raise InputError("level", "a number", "nan")
        sign = -1.0 if self.superlevel else 1.0

        def alive(diagram: Diagram) -> int:
            born, dead = sign * diagram.births < sign * level, sign * diagram.deaths < sign * level
            return int((born & ~dead).sum() + (sign * diagram.essential_births < sign * level).sum())

        return tuple(alive(diagram) for diagram in self.diagrams)
