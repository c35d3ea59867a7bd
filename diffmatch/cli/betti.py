"""The topology that a mesh was asked to have: what is done to its field, and whether the mesh has it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffmatch.cli.outcome import Failure

if TYPE_CHECKING:
    from torch import Tensor

    from diffmatch.topology import TopologyCertificate
    from diffmatch.topology.surgery import TopologyChange

__all__ = ["TopologyEdit", "parse_betti"]


def parse_betti(text: str | None) -> tuple[int | None, ...] | None:
    """Numbers of pieces, tunnels and cavities; None in place of a number that may be any.

    Raises:
        InputError: another form, or no piece.
    """
    from diffmatch.errors import InputError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    wanted = tuple(None if part == "any" else int(part) if part.isdecimal() else -1 for part in parts)
    numbers = [count for count in wanted if count is not None]
    if len(wanted) != 3 or not numbers or min(numbers) < 0 or wanted[0] == 0:
        form = "numbers of pieces (at least 1), tunnels and cavities such as 1,2,0, at most two of them 'any'"
        raise InputError("betti", form, repr(text))
    return wanted


@dataclass
class TopologyEdit:
    """Gives a field on a grid the topology that was asked for, and remembers what it did.

    Args:
        betti: what was asked for.
        cells: of the grid, along each side of [-1, 1]^3.
    """

    betti: tuple[int | None, ...]
    cells: int | tuple[int, int, int]
    change: "TopologyChange | None" = field(default=None, init=False)
    before: tuple[int, ...] = field(default=(), init=False)

    def __call__(self, values: "Tensor") -> "Tensor":
        """The edited field.

        Raises:
            Failure: the numbers cannot be reached on this grid.
        """
        from diffmatch.topology import betti_numbers
        from diffmatch.topology.surgery import change_topology

        sides = self.cells if isinstance(self.cells, tuple) else (self.cells,) * 3
        self.before = betti_numbers(values)
        self.change = change_topology(values, betti=self.betti, spacing=tuple(2 / n for n in sides))
        if not self.change.reached:
            raise Failure(
                f"the field has the Betti numbers {_listed(self.before)} and came only to "
                f"{_listed(self.change.betti)} (pixels as top cells: {_listed(self.change.betti_top_cells)}), not to "
                f"{_listed(self.betti)}; a larger --resolution gives more room"
            )
        return self.change.field

    def certificate(self, mesh: Any) -> "TopologyCertificate":
        """Whether a mesh has the topology of the edited field."""
        from diffmatch.topology import certify_topology

        assert self.change is not None
        return certify_topology(self.change.field, mesh.faces)

    def describe(self, certificate: "TopologyCertificate") -> dict[str, Any]:
        """What is written of it beside the mesh."""
        assert self.change is not None
        return {
            "asked": list(self.betti),
            "before": list(self.before),
            "moves": list(self.change.moves),
            "changed_nodes": self.change.changed,
            "betti": list(certificate.betti),
            "betti_top_cells": list(certificate.betti_top_cells),
            "mesh_euler": certificate.mesh_euler,
            "expected_euler": certificate.expected_euler,
            "mesh_components": certificate.mesh_components,
            "expected_components": certificate.expected_components,
            "agree": certificate.holds,
            "doubts": list(certificate.doubts),
        }

    def sentence(self, certificate: "TopologyCertificate") -> str:
        """The outcome in a line."""
        assert self.change is not None
        words = f"topology: {_listed(self.before)} became {_listed(certificate.betti)}" + (
            f" ({', '.join(self.change.moves)})" if self.change.moves else ", as it was"
        )
        if not certificate.holds:
            return f"{words}; the mesh DISAGREES: {'; '.join(certificate.doubts)}"
        counts = f"Euler characteristic {certificate.mesh_euler}, components {certificate.mesh_components}"
        notes = f" (note: {'; '.join(certificate.doubts)})" if certificate.doubts else ""
        return f"{words}; the mesh agrees: {counts}{notes}"


def _listed(numbers: tuple[int | None, ...]) -> str:
    return ",".join("any" if number is None else str(number) for number in numbers)
