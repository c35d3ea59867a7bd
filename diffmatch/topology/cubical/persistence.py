"""Persistence of scalar fields on grids, differentiable in the field."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_choice, check_floating, check_positive
from diffmatch.topology.cubical.parallel import parallel_pairs
from diffmatch.topology.cubical.periodic import periodic_pairs
from diffmatch.topology.cubical.plane import plane_pairs
from diffmatch.topology.cubical.volume import volume_pairs
from diffmatch.topology.diagram import Persistence
from diffmatch.topology.radix import ordered_keys
from diffmatch.topology.vertex_pairs import VertexPairs, check_degrees, diagrams, filtration_values, vertex_pairs

__all__ = ["Construction", "cubical_persistence", "cubical_persistence_batch"]

Construction = Literal["V", "T"]
Pairing = Literal["sweep", "parallel"]

_MOST_PIXELS = 1 << 28
"""Edges are numbered by eight times their pixel plus a digit, and pixels of the padded field, in 31 bits."""


def cubical_persistence(
    field: Float[Tensor, "*shape"],
    *,
    degrees: Sequence[int] | None = None,
    construction: Construction = "V",
    superlevel: bool = False,
    min_persistence: float = 0.0,
    pairing: Pairing = "sweep",
    periodic: bool | Sequence[bool] = False,
) -> Persistence:
    """Persistent homology of an image or a volume, with births and deaths that are differentiable in its values.

    The sets ``field <= t`` grow with the level t (with `superlevel`, ``field >= t`` as the level falls). With the
    V-construction, pixels are the vertices of a cubical complex and a cell appears with the last of its corners, so
    that a set is connected through faces (4 neighbours in an image, 6 in a volume) and its complement through corners
    (8, 26). With the T-construction, pixels are the top cells, and the two kinds of neighbours change places.

    The pairing is exact and has no gradient: births and deaths are gathered from the field at the pixels of
    ``birth_index`` and ``death_index``, flat indices into it. Pixels of equal value are ordered by their index, so that
    on a plateau one pixel of each bar receives the gradient; the bars themselves do not depend on that order. The one
    class that never dies is the component of the lowest pixel.

    Images: a union-find over the saddles for components, and another, by duality, for loops. Volumes: the same for
    components and cavities; loops by a reduction over the critical edges and squares of a discrete gradient (Robins,
    Wood and Sheppard, 2011), cleared of those that the union-finds have paired.

    Args:
        field: values at pixels, shape (nx, ny) or (nx, ny, nz), floating point, less than 2^28 of them. +inf (with
            `superlevel` -inf) marks pixels that never appear: a class that only they would end is essential. A constant
            field has no finite bar, a field without pixels none at all.
        degrees: which to compute, from 0 to 1 (image) or 2 (volume); None for all. Fewer cost less.
        construction: ``"V"`` or ``"T"``. For surfaces extracted from values at grid nodes, ``"V"``.
        superlevel: filter from high values to low ones; bars are then born above their deaths.
        min_persistence: bars of this length and shorter are left out; in units of the field, >= 0. By default only
            those of length zero are.
        pairing: ``"sweep"`` runs compiled loops on the CPU; values on another device are copied there once and waited
            for. ``"parallel"`` finds the same pairs of degree 0 and of the top degree by tensor operations on the
            field's own device, waiting for it in every round; it is slow on the CPU, and has no degree 1 of volumes.
        periodic: whether the last pixel of an axis is a neighbour of its first; for each axis, or one answer for all.
            A ring has classes of its own that never end: a torus two loops. If all axes are rings there is one more
            degree, the number of axes, whose one class is the whole grid. Such grids are paired cell by cell, which
            takes several times as long; with the sweep only.

    Returns:
        The diagrams by degree.

    Raises:
        InputError: the shape or dtype is wrong, a value is NaN, or infinite on the side where the filtration begins; a
            degree, the construction or the pairing is unknown; `min_persistence` is negative; degree 1 of a volume
            or rings were asked for with the parallel pairing.
    """
    batch = field[None] if isinstance(field, Tensor) else field
    _check("field", batch, "(nx, ny) or (nx, ny, nz)", construction, pairing, min_persistence)
    return _persistence("field", batch, degrees, construction, superlevel, min_persistence, pairing, periodic)[0]


def cubical_persistence_batch(
    fields: Float[Tensor, "b *shape"],
    *,
    degrees: Sequence[int] | None = None,
    construction: Construction = "V",
    superlevel: bool = False,
    min_persistence: float = 0.0,
    pairing: Pairing = "sweep",
    periodic: bool | Sequence[bool] = False,
) -> list[Persistence]:
    """:func:`cubical_persistence` of each field of a batch, in as many threads as torch is set to use.

    The indices of each result count from the beginning of its own field. A backward pass writes one gradient for the
    batch.

    Args:
        fields: shape (b, nx, ny) or (b, nx, ny, nz).
        degrees: as there.
        construction: as there.
        superlevel: as there.
        min_persistence: as there.
        pairing: as there; ``"parallel"`` takes the whole batch at once, without threads.
        periodic: as there.

    Returns:
        One result a field.

    Raises:
        InputError: as there.
    """
    _check("fields", fields, "(b, nx, ny) or (b, nx, ny, nz)", construction, pairing, min_persistence)
    return _persistence("fields", fields, degrees, construction, superlevel, min_persistence, pairing, periodic)


def _check(argument: str, fields: Tensor, wanted: str, construction: str, pairing: str, min_persistence: float) -> None:
    if not isinstance(fields, Tensor):
        raise InputError(argument, "a tensor", type(fields).__name__)
    if fields.ndim not in (3, 4):
        shape = fields.shape[1:] if argument == "field" else fields.shape
        raise InputError(argument, f"shape {wanted}", str(tuple(shape)))
    check_floating(argument, fields)
    n_pixels = fields.shape[1:].numel()
    if n_pixels >= _MOST_PIXELS or math.prod(n + 2 for n in fields.shape[1:]) >= 8 * _MOST_PIXELS:
        raise InputError(argument, "less than 2^28 pixels, and 2^31 with a margin of one pixel", str(n_pixels))
    check_choice("construction", construction, ("V", "T"))
    check_choice("pairing", pairing, ("sweep", "parallel"))
    check_positive("min_persistence", min_persistence, allow_zero=True)


def _persistence(
    argument: str,
    fields: Tensor,
    degrees: Sequence[int] | None,
    construction: str,
    superlevel: bool,
    min_persistence: float,
    pairing: str,
    periodic: bool | Sequence[bool],
) -> list[Persistence]:
    top = fields.ndim - 2
    rings = _rings(periodic, fields.ndim - 1, pairing)
    wanted = check_degrees(degrees, top + 1 if all(rings) else top)
    if pairing == "parallel" and not set(wanted) <= {0, top}:
        raise InputError("degrees", f"0 and {top} with the parallel pairing", repr(wanted))
    ascending = filtration_values(argument, fields, superlevel=superlevel)
    top_cells = construction == "T"
    if not ascending.numel():
        none = torch.empty(0, dtype=torch.int64)
        found = [[VertexPairs(degree, none, none, none) for degree in wanted] for _ in fields]
    elif pairing == "parallel":
        found = _parallel(ascending, wanted, top_cells, min_persistence)
    elif any(rings):
        bars = partial(_ring_bars, rings=rings, degrees=wanted, top_cells=top_cells, min_persistence=min_persistence)
        found = _in_threads(bars, ascending.cpu())
    else:
        found = _sweep(ascending.cpu(), wanted, top_cells, min_persistence)
    return diagrams(fields.flatten(1), found, superlevel=superlevel)


def _sweep(
    ascending: Tensor, degrees: tuple[int, ...], top_cells: bool, min_persistence: float
) -> list[list[VertexPairs]]:
    """Index pairs of each field of a batch on the CPU, a thread a field."""
    top = ascending.ndim - 2

    def pairs(values: Tensor) -> list[VertexPairs]:
        keys = ordered_keys(values).reshape(values.shape)
        engine = plane_pairs if top == 1 else volume_pairs
        found = engine(
            ~keys if top_cells else keys,
            outside_low=top_cells,
            degrees=[top - degree if top_cells else degree for degree in degrees],
        )
        ends = {degree: torch.from_numpy(pairs).unbind(1) for degree, pairs in found.items()}
        flat = keys.reshape(-1)
        lowest = len(flat) - 1 - flat[::-1].argmin() if top_cells else flat.argmin()
        return _bars(values, degrees, ends, int(lowest), top_cells, min_persistence)

    return _in_threads(pairs, ascending)


def _in_threads(pairs: Callable[[Tensor], list[VertexPairs]], fields: Tensor) -> list[list[VertexPairs]]:
    workers = min(torch.get_num_threads(), len(fields))
    if workers < 2:
        return [pairs(values) for values in fields]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(pairs, fields))


def _rings(periodic: bool | Sequence[bool], n_axes: int, pairing: str) -> tuple[bool, ...]:
    """For each axis, whether it is a ring."""
    rings = (periodic,) * n_axes if isinstance(periodic, bool) else tuple(periodic)
    if len(rings) != n_axes or not all(isinstance(ring, bool) for ring in rings):
        raise InputError("periodic", f"a bool, or {n_axes} of them, one an axis", repr(periodic))
    if pairing == "parallel" and any(rings):
        raise InputError("pairing", "'sweep' for periodic grids", repr(pairing))
    return rings


def _ring_bars(
    ascending: Tensor, *, rings: Sequence[bool], degrees: tuple[int, ...], top_cells: bool, min_persistence: float
) -> list[VertexPairs]:
    """The bars of one field with periodic axes."""
    flat, keys = ascending.reshape(-1), ordered_keys(ascending).reshape(ascending.shape)
    found = periodic_pairs(keys, periodic=rings, top_cells=top_cells, degrees=degrees)
    return [
        vertex_pairs(degree, flat, *map(torch.from_numpy, pairs), min_persistence=min_persistence)
        for degree, pairs in found.items()
    ]


def _parallel(
    ascending: Tensor, degrees: tuple[int, ...], top_cells: bool, min_persistence: float
) -> list[list[VertexPairs]]:
    """Index pairs of each field of a batch on its device, all at once."""
    top = ascending.ndim - 2
    found = {}
    for degree in [top - degree if top_cells else degree for degree in degrees]:
        item, *ends = parallel_pairs(-ascending if top_cells else ascending, degree=degree, outside_low=top_cells)
        found[degree] = [[end[item == i] for end in ends] for i in range(len(ascending))]
    return [
        _bars(
            values,
            degrees,
            {degree: found[degree][i] for degree in found},
            _lowest(values, last=top_cells),
            top_cells,
            min_persistence,
        )
        for i, values in enumerate(ascending)
    ]


def _lowest(ascending: Tensor, *, last: bool) -> int:
    """The first or the last pixel of the lowest value."""
    flat = ascending.reshape(-1)
    lowest = (flat == flat.min()).nonzero()
    return int(lowest[-1 if last else 0])


def _bars(
    ascending: Tensor,
    degrees: tuple[int, ...],
    ends: Mapping[int, Sequence[Tensor]],
    lowest: int,
    top_cells: bool,
    min_persistence: float,
) -> list[VertexPairs]:
    """The bars of one field from its pairs (lower end, upper end) by degree.

    The class that never dies begins at `lowest`, the pixel that the pairing takes for the lowest of equal ones.

    The T-construction goes through duality: its bars [b, d) of degree k are the bars [-d, -b) of degree
    (number of axes - 1 - k) of the V-construction on the negated field with an outside that is below all pixels.
    """
    flat, top = ascending.reshape(-1), ascending.ndim - 1
    essential = torch.tensor([lowest], device=flat.device)
    bars = []
    for degree in degrees:
        births, deaths = reversed(ends[top - degree]) if top_cells else ends[degree]
        essentials = essential if degree == 0 else essential[:0]
        bars.append(vertex_pairs(degree, flat, births, deaths, essentials, min_persistence=min_persistence))
    return bars
