"""Fields on grids whose level set is given other Betti numbers: discrete moves that persistence points out."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy import ndimage
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_floating, check_positive, check_shape
from diffmatch.topology.betti_numbers import betti_numbers
from diffmatch.topology.cubical import cubical_persistence
from diffmatch.topology.cubical.persistence import Construction
from diffmatch.topology.diagram import Diagram
from diffmatch.topology.surgery_kernels import grow

__all__ = ["TopologyChange", "change_topology"]

logger = logging.getLogger(__name__)

_CONSTRUCTIONS: tuple[Construction, ...] = ("V", "T")
_ORDER = (0, 2, 1)  # pieces, then cavities, then tunnels: joining pieces may close a ring
_CANDIDATES = 12  # bars that are tried for one move
_PLACES = 6  # where a new feature is tried
_SHORTEST_OPENED = 0.5  # persistence, in pixels, of a bar that is opened; shorter ones are noise
_REACH = 3.0  # pixels around a change in which values are made those of a distance
_LEAST = 0.25  # magnitude of such a value, in pixels
_WORDS = {  # degree, whether there are fewer then, whether pixels were added
    (0, True, True): "joined two pieces",
    (0, True, False): "removed a piece",
    (0, False, True): "made a piece",
    (0, False, False): "split a piece",
    (1, True, True): "filled a tunnel",
    (1, True, False): "cut a handle",
    (1, False, True): "made a handle",
    (1, False, False): "drilled a tunnel",
    (2, True, True): "filled a cavity",
    (2, True, False): "opened a cavity",
    (2, False, True): "closed a cavity off",
    (2, False, False): "carved a cavity",
}

Numbers = tuple[int, int, int]
Mask = Bool[np.ndarray, "nx ny nz"]


@dataclass(frozen=True, eq=False)
class TopologyChange:
    """What :func:`change_topology` made of a field.

    Attributes:
        field: the new field, shape (nx, ny, nz); where no sign near by has changed, that which was given.
        betti: pieces, tunnels and cavities of the set where it is negative, with the V-construction.
        betti_top_cells: the same with the T-construction.
        reached: whether both are those that were asked for.
        moves: what was done, in words, in order.
        changed: the number of nodes whose sign is another.
    """

    field: Float[Tensor, "nx ny nz"]
    betti: tuple[int, int, int]
    betti_top_cells: tuple[int, int, int]
    reached: bool
    moves: tuple[str, ...]
    changed: int


def change_topology(
    field: Float[Tensor, "nx ny nz"], *, betti: Sequence[int | None], spacing: float | Sequence[float] = 1.0
) -> TopologyChange:
    """Change signs of a field, as few as it finds, until the set where it is negative has other Betti numbers.

    One move changes one Betti number. Persistence says where: a bar that is alive at zero and is to go loses its
    cheaper end, as in :func:`~diffmatch.topology.betti_loss` (a cavity is filled first), a bar that is not alive and
    is to come is opened, the longest first. To take the pixel of a death (or of a birth) into the set, the set is grown
    in the order of the field up to that pixel, by simple points, whose addition changes nothing; then the pixel is
    added, which makes the one change; then what was added is taken away again by simple points, which leaves a curve, a
    membrane or a plug; and that is made a pixel thicker where there is room. Pixels leave the set by the same steps on
    the complement. Points are simple in both pairs of connectivities, so that both constructions agree. A move is kept
    if it brings the Betti numbers of the two constructions together closer to those asked for, so the moves end.

    Where no bar is to be opened (a ball has none but noise), a tunnel is drilled through the deepest place, a cavity
    made there, a piece put where there is most room outside.

    Compared with gradient steps on a loss, which end in other wrong topologies where ends of bars are shared, this is
    certain in what it reaches, quick, and without a gradient. Signs at the border of the grid stay.

    Args:
        field: signed distance, or a field like it, at the nodes of a grid, negative inside.
        betti: wanted numbers of pieces (at least 1), tunnels and cavities; None for any; those not named are free.
        spacing: distance of neighbouring nodes, one number or one an axis, in the unit of the field.

    Returns:
        The field, and how far it came: a small or coarse set may have no room for what was asked.

    Raises:
        InputError: wrong shapes, dtypes or numbers, NaN or inf, or no piece in the field.
    """
    check_shape("field", field, ("nx", "ny", "nz"))
    check_floating("field", field)
    check_finite("field", field)
    pixel = _pixel(spacing)
    wanted = _wanted(betti)
    given = field.detach().cpu().double().numpy()
    if not (given < 0).any():
        raise InputError("field", "a field that is negative somewhere", "none")
    state, moves = _State(given.copy(), wanted, pixel), []
    while state.distance and (move := _next_move(state)) is not None:
        state, words = move
        moves.append(words)
    first, second = state.betti
    reached = state.distance == 0
    if not reached:
        logger.warning("asked for the Betti numbers %s, reached %s (V) and %s (T)", tuple(betti), first, second)
    changed = state.inside != (given < 0)
    near, values = _distances(state.values, changed, pixel)
    placed = torch.from_numpy(values).to(field)
    return TopologyChange(
        field=torch.where(torch.from_numpy(near).to(field.device), placed, field.detach()),
        betti=first,
        betti_top_cells=second,
        reached=reached,
        moves=tuple(moves),
        changed=int(changed.sum()),
    )


def _pixel(spacing: float | Sequence[float]) -> tuple[float, float, float]:
    steps = tuple(spacing) if isinstance(spacing, Sequence) else (spacing,) * 3
    if len(steps) != 3:
        raise InputError("spacing", "one number or three", repr(spacing))
    for step in steps:
        check_positive("spacing", step)
    x, y, z = (float(step) for step in steps)
    return x, y, z


def _wanted(betti: Sequence[int | None]) -> dict[int, int]:
    wanted = {degree: count for degree, count in enumerate(betti) if count is not None}
    if len(betti) > 3 or not wanted or min(wanted.values()) < 0 or wanted.get(0, 1) < 1:
        raise InputError("betti", "at most three numbers or None: pieces >= 1, tunnels, cavities", repr(tuple(betti)))
    return wanted


@dataclass(frozen=True, eq=False)
class _State:
    """A field on its way."""

    values: Float64[np.ndarray, "nx ny nz"]
    wanted: dict[int, int]
    pixel: tuple[float, float, float]

    @property
    def inside(self) -> Mask:
        return np.asarray(self.values < 0)

    @cached_property
    def betti(self) -> tuple[Numbers, Numbers]:
        return _both(self.inside)

    @cached_property
    def distance(self) -> int:
        return sum(abs(found[degree] - count) for found in self.betti for degree, count in self.wanted.items())

    def moved(self, inside: Mask) -> "_State":
        """The state with the signs of another set."""
        placed = np.where(inside, -0.5, 0.5) * min(self.pixel)
        return replace(self, values=np.where(inside == self.inside, self.values, placed))


def _both(inside: Mask) -> tuple[Numbers, Numbers]:
    """Betti numbers with the V- and with the T-construction."""
    field = torch.from_numpy(np.where(inside, -1.0, 1.0))
    (a, b, c), (d, e, f) = betti_numbers(field), betti_numbers(field, construction="T")
    return (a, b, c), (d, e, f)


def _next_move(state: _State) -> tuple[_State, str] | None:
    """The first move that comes closer, the most natural ones first."""
    for construction, found in zip(_CONSTRUCTIONS, state.betti, strict=True):
        degrees = [degree for degree in _ORDER if state.wanted.get(degree, found[degree]) != found[degree]]
        if not degrees:
            continue
        diagrams = cubical_persistence(torch.from_numpy(state.values), degrees=degrees, construction=construction)
        for degree in degrees:
            fewer = state.wanted[degree] < found[degree]
            ends = (_closings if fewer else _openings)(diagrams[degree], min(state.pixel))
            by_bars = (
                ([_with_pixel(state, pixel, add=add, kept=kept) for kept in ("VT", construction)], add)
                for pixel, add in ends
            )
            made_anew = () if fewer else (([inside], degree == 0) for inside in _makings(state, degree))
            for ways, add in itertools.chain(by_bars, made_anew):
                moved = min((state.moved(inside) for inside in ways), key=lambda moved: moved.distance)
                if moved.distance < state.distance:
                    return moved, _WORDS[degree, fewer, add]
    return None


def _closings(diagram: Diagram, cell: float) -> list[tuple[int, bool]]:
    """The ends of bars that are alive, the cheapest first: a pixel, and whether it joins the set or leaves it."""
    births, deaths = diagram.births.numpy(), diagram.deaths.numpy()
    alive = np.flatnonzero((births < 0) & (deaths >= 0))
    cost = np.minimum(-births[alive], deaths[alive])
    found = []
    for bar in alive[np.argsort(cost, kind="stable")][:_CANDIDATES]:
        ends = [(int(diagram.death_index[bar]), True), (int(diagram.birth_index[bar]), False)]
        found += ends[::-1] if diagram.degree < 2 and -births[bar] < deaths[bar] else ends
    return found


def _openings(diagram: Diagram, cell: float) -> list[tuple[int, bool]]:
    """The nearer ends of bars on one side of zero, the longest first: a pixel, and whether it joins the set."""
    births, deaths = diagram.births.numpy(), diagram.deaths.numpy()
    apart = np.flatnonzero(((births >= 0) | (deaths < 0)) & (deaths - births > _SHORTEST_OPENED * cell))
    bars = apart[np.argsort(births[apart] - deaths[apart], kind="stable")][:_CANDIDATES]
    return [
        (int((diagram.birth_index if births[bar] >= 0 else diagram.death_index)[bar]), bool(births[bar] >= 0))
        for bar in bars
    ]


def _with_pixel(state: _State, pixel: int, *, add: bool, kept: str) -> Mask:
    """The set with a pixel added, and the least of others that its addition needs; or the same for the complement.

    Args:
        state: the field.
        pixel: flat index.
        add: whether it joins the set or leaves it.
        kept: the constructions in which all other pixels must change nothing.
    """
    values = state.values if add else -state.values
    before = state.inside if add else ~state.inside
    order = np.empty(values.size, np.int64)
    order[values.argsort(axis=None, kind="stable")] = np.arange(values.size)
    rank = order.reshape(values.shape)
    inner = np.zeros(values.shape, dtype=np.bool_)
    inner[1:-1, 1:-1, 1:-1] = True
    place = np.unravel_index(pixel, values.shape)
    if before[place] or not inner[place]:
        return state.inside
    by_faces, by_corners = ("V" in kept, "T" in kept) if add else ("T" in kept, "V" in kept)

    grown = before.copy()
    grow(grown, rank, inner & (rank < rank[place]), by_faces, by_corners)
    grown[place] = True
    outside = ~grown
    grow(outside, values.size - 1 - rank, inner & grown & ~before, by_corners, by_faces)
    core = ~outside
    around = ndimage.binary_dilation(core & ~before, np.ones((3, 3, 3)))
    grow(core, rank, inner & around, by_faces, by_corners)
    return core if add else ~core


def _makings(state: _State, degree: int) -> Iterator[Mask]:
    """Sets with a new feature where there is most room for it: a ball, a hole along an axis, or a ball left out."""
    inside = state.inside
    room = ~inside if degree == 0 else inside
    depth = ndimage.distance_transform_edt(np.pad(room, 1), sampling=state.pixel)[1:-1, 1:-1, 1:-1]
    cell = min(state.pixel)
    for _ in range(_PLACES):
        place = np.unravel_index(depth.argmax(), depth.shape)
        deepest, away = float(depth[place]), _away(state, place, (0, 1, 2))
        if deepest < 1.5 * cell:
            return
        for radius in sorted({max(deepest / 3, cell), 1.5 * cell, cell}, reverse=True):
            if degree == 0:
                yield inside | (away <= radius)
            elif degree == 2:
                yield inside & (away > radius)
            else:
                yield from _drilled(state, place, radius)
        depth[away <= 2 * deepest] = 0


def _drilled(state: _State, place: tuple[np.intp, ...], radius: float) -> Iterator[Mask]:
    """The set with a straight hole through a place, along each axis, the shortest hole first."""
    inside = state.inside
    chords = [_chord(inside, place, axis) for axis in range(3)]
    for axis in sorted(range(3), key=lambda axis: len(chords[axis]) * state.pixel[axis]):
        tube = _away(state, place, tuple(other for other in range(3) if other != axis)) <= radius
        beyond = int(np.ceil(radius / state.pixel[axis])) + 1  # where the surface is slanted
        within = np.zeros(inside.shape[axis], dtype=np.bool_)
        within[max(chords[axis][0] - beyond, 0) : chords[axis][-1] + beyond + 1] = True
        yield inside & ~(tube & within.reshape([-1 if other == axis else 1 for other in range(3)]))


def _away(state: _State, place: tuple[np.intp, ...], axes: tuple[int, ...]) -> Float64[np.ndarray, "nx ny nz"]:
    """Distance of all pixels from one, along some axes."""
    offsets = np.indices(state.values.shape) - np.asarray(place).reshape(3, 1, 1, 1)
    return np.asarray(np.sqrt(sum((offsets[axis] * state.pixel[axis]) ** 2 for axis in axes)))


def _chord(inside: Mask, place: tuple[np.intp, ...], axis: int) -> Int64[np.ndarray, " n"]:
    """Positions along an axis of the pixels of the set that are connected with a place on its line."""
    line = inside[tuple(slice(None) if other == axis else place[other] for other in range(3))]
    labels = ndimage.label(line)[0]
    return np.flatnonzero(labels == labels[place[axis]])


def _distances(
    values: Float64[np.ndarray, "nx ny nz"], changed: Mask, pixel: tuple[float, float, float]
) -> tuple[Mask, Float64[np.ndarray, "nx ny nz"]]:
    """Where values are to be replaced because the surface near by is another, and distances to take their place."""
    if not changed.any():
        return changed, values
    cell = min(pixel)
    inside = values < 0
    near = ndimage.distance_transform_edt(~changed, sampling=pixel) <= _REACH * cell
    away = [ndimage.distance_transform_edt(side, sampling=pixel) for side in (inside, ~inside)]
    distance = np.maximum(np.maximum(*away) - 0.5 * cell, _LEAST * cell)
    size = np.where(changed, distance, np.minimum(np.abs(values), distance))
    return near, np.where(inside, -size, size)
