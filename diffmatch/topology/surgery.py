"""Fields on grids whose level set is given other Betti numbers: discrete moves that persistence points out."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from scipy import ndimage
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_floating, check_positive, check_shape
from diffmatch.topology.betti_numbers import betti_numbers
from diffmatch.topology.cubical import cubical_persistence
from diffmatch.topology.diagram import Diagram
from diffmatch.topology.surgery_kernels import grow

__all__ = ["TopologyChange", "change_topology"]

logger = logging.getLogger(__name__)

_ORDER = (0, 2, 1)  # pieces, then cavities, then tunnels: joining pieces may close a ring
_CANDIDATES = 12  # bars that are tried for one move
_SHORTEST_OPENED = 0.5  # persistence, in pixels, of a bar that is opened; shorter ones are noise
_REACH = 3.0  # pixels around a change in which values are made those of a distance
_LEAST = 0.25  # magnitude of such a value, in pixels
_WORDS = {
    (0, -1): "removed or joined a piece",
    (0, 1): "made a piece",
    (1, -1): "filled or cut a tunnel",
    (1, 1): "made a tunnel",
    (2, -1): "filled or opened a cavity",
    (2, 1): "made a cavity",
}

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
    steps = tuple(spacing) if isinstance(spacing, Sequence) else (spacing,) * 3
    if len(steps) != 3:
        raise InputError("spacing", "one number or three", repr(spacing))
    for step in steps:
        check_positive("spacing", step)
    wanted = _wanted(betti)
    surgery = _Surgery(field.detach().cpu().double().numpy(), wanted, tuple(float(step) for step in steps))
    moves = surgery.run()
    now = surgery.inside < 0
    reached = surgery.distance(now) == 0
    if not reached:
        logger.warning("asked for the Betti numbers %s, reached %s (V) and %s (T)", tuple(betti), *_both(now))
    changed = torch.from_numpy(surgery.result() - surgery.given)
    return TopologyChange(
        field=field.detach() + changed.to(field),
        betti=_both(now)[0],
        betti_top_cells=_both(now)[1],
        reached=reached,
        moves=tuple(moves),
        changed=int((now != (surgery.given < 0)).sum()),
    )
