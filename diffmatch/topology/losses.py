"""Losses of diagrams: total persistence, and Betti numbers that a level set should have."""

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_positive
from diffmatch.topology.cubical import cubical_persistence
from diffmatch.topology.diagram import Diagram, Persistence

__all__ = ["betti_loss", "total_persistence"]

logger = logging.getLogger(__name__)


def total_persistence(diagrams: Diagram | Persistence, *, power: float | int = 1.0) -> Float[Tensor, ""]:
    """The sum of a power of the lengths of all finite bars, ``sum |d_i - b_i|^power``.

    Bars stand longest first, so ``total_persistence(diagram.select(slice(1, None)))`` leaves out the longest. Essential
    classes have no length and do not count. To make bars longer, maximise it together with a term that bounds the data.

    Args:
        diagrams: a diagram, or the diagrams of several degrees, which are added.
        power: >= 1.

    Raises:
        InputError: the power is below 1 (its gradient has no bound at short bars) or there is no diagram.
    """
    check_positive("power", power)
    if power < 1:
        raise InputError("power", "a number >= 1", repr(power))
    every = (diagrams,) if isinstance(diagrams, Diagram) else diagrams.diagrams
    if not every:
        raise InputError("diagrams", "at least one diagram", "none")
    return torch.stack([(diagram.persistence**power).sum() for diagram in every]).sum()


def betti_loss(
    field: Float[Tensor, "*shape"] | Persistence,
    *,
    betti: Sequence[int | None],
    level: float | int = 0.0,
    margin: float | int = 0.0,
    power: float | int = 1.0,
    other_end: float | int = 0.1,
    superlevel: bool = False,
) -> Float[Tensor, ""]:
    """How far a level set is from the Betti numbers that it should have.

    A bar is alive at the level t with the score ``s = min(t - b, d - t)``, the least change of one of its ends that
    puts it to the other side, where it is positive; it is not alive where s is negative. With B wanted in a degree, the
    B bars that are alive with the highest scores are to stay, others are to go. The loss is

    ``sum over those to stay of max(0, margin - s)^power + sum over the others of max(0, s + margin)^power``,

    zero exactly where the Betti numbers are those wanted and each bar is at least the margin away from a change. Its
    gradient moves the cheaper end of each bar. One pixel may be the cheap end of two bars that want it on different
    sides, and hold both; so the other end of a bar that is to go is pulled along with the weight ``other_end`` until
    the bar is gone, when that term vanishes with a jump. (Ours. On three noise images of 12 x 13 pixels, gradient steps
    of 0.1 reached one component without holes in 80 steps with a weight of 0.1, and in one of three without it.)

    If fewer than B bars are alive, the most persistent of the others are opened. If there are fewer than B bars at all,
    the missing ones are no one's to open: the loss has no term for them, which is logged, and a higher resolution or
    another start is needed. Essential classes are bars without an end.

    Args:
        field: values on a grid, shape (nx, ny) or (nx, ny, nz), whose set below the level is meant; or the result of
            any persistence function with the wanted degrees, for fields on graphs and meshes, for the T-construction,
            or to share a result with other losses.
        betti: wanted Betti numbers by degree from 0; None for a degree that may have any. Degrees that are not named
            are free.
        level: where the set is cut; birth < level <= death means alive.
        margin: how far bars should stay from the level, in the unit of the field, >= 0; a fraction of a voxel for a
            signed distance.
        power: 1 for a constant pull, 2 for one that fades near the goal; >= 1.
        other_end: weight of the dearer end of bars that are to go, >= 0.
        superlevel: mean the set above the level of the field; a result says itself what it is.

    Raises:
        InputError: negative Betti numbers or none, more than the field has degrees, wrong margin or power, NaN.

    References:
        Clough et al. 2022, "A topological loss function for deep-learning based image segmentation using persistent
        homology", with a level; Hu et al. 2019, "Topology-preserving deep image segmentation".
    """
    check_positive("margin", margin, allow_zero=True)
    check_positive("other_end", other_end, allow_zero=True)
    check_positive("power", power)
    if power < 1:
        raise InputError("power", "a number >= 1", repr(power))
    if not math.isfinite(level):
        raise InputError("level", "a finite number", repr(level))
    wanted = {degree: count for degree, count in enumerate(betti) if count is not None}
    if not wanted or min(wanted.values()) < 0:
        raise InputError("betti", "numbers >= 0 or None, at least one number", repr(tuple(betti)))
    if not isinstance(field, Persistence):
        field = cubical_persistence(field, degrees=tuple(wanted), superlevel=superlevel)
    sign = -1.0 if field.superlevel else 1.0
    terms = [
        _degree_loss(field[degree], count, sign, sign * level, margin=margin, power=power, other_end=other_end)
        for degree, count in wanted.items()
    ]
    return torch.stack(terms).sum()


def _degree_loss(
    diagram: Diagram,
    wanted: int,
    sign: float,
    level: float | int,
    *,
    margin: float | int,
    power: float | int,
    other_end: float | int,
) -> Float[Tensor, ""]:
    """The loss of one degree; `sign` turns a superlevel filtration into a sublevel one."""
    births = sign * torch.cat((diagram.births, diagram.essential_births))
    opened, closed = level - births, sign * diagram.deaths - level
    score = torch.cat((torch.minimum(opened[: len(diagram)], closed), opened[len(diagram) :]))
    if wanted > len(score):
        logger.info("degree %d: %d classes wanted, %d bars to open", diagram.degree, wanted, len(score))
    stays = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    stays[_ranking(diagram, score)[:wanted]] = True
    lacking = torch.where(stays, margin - score, score + margin).clamp_min(0)
    loss = (lacking**power).sum()
    if other_end > 0:
        goes = (~stays & (score.detach() > -margin))[: len(diagram)]
        dearer = torch.maximum(opened[: len(diagram)], closed)[goes]
        loss = loss + other_end * ((dearer + margin) ** power).sum()
    return loss


def _ranking(diagram: Diagram, score: Tensor) -> Tensor:
    """Bars in the order in which they are kept: the living by score, then the others by persistence."""
    endless = diagram.persistence.new_full((len(diagram.essential_births),), math.inf)
    length = torch.cat((diagram.persistence, endless)).detach().cpu().numpy()
    value = score.detach().cpu().numpy()
    alive = value > 0
    order = np.lexsort((np.where(alive, -value, -length), ~alive))
    return torch.from_numpy(order).to(score.device)
