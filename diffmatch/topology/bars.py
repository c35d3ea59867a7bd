"""The diagram of critical simplices of points: which bars are kept, and in what order."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.topology.diagram import Diagram

__all__ = ["simplex_diagram"]


def simplex_diagram(
    degree: int,
    births: Float[Tensor, " p"],
    deaths: Float[Tensor, " p"],
    birth_index: Int[Tensor, "p c"],
    death_index: Int[Tensor, "p d"],
    essential_births: Float[Tensor, " e"],
    essential_index: Int[Tensor, "e c"],
    *,
    min_persistence: float | int,
) -> Diagram:
    """The diagram of bars longer than ``min_persistence``, longest first, equal ones by their indices."""
    length = (deaths - births).detach()
    kept = (length > min_persistence).nonzero().squeeze(1)
    cells = torch.cat((birth_index[kept], death_index[kept]), dim=1)
    bars = kept[_lexicographic(-length[kept], cells)]
    classes = _lexicographic(essential_births.detach(), essential_index)
    return Diagram(
        degree=degree,
        births=births[bars],
        deaths=deaths[bars],
        birth_index=birth_index[bars],
        death_index=death_index[bars],
        essential_births=essential_births[classes],
        essential_index=essential_index[classes],
    )


def _lexicographic(first: Tensor, then: Tensor) -> Tensor:
    """The order by a first key, then by the columns of a table."""
    keys = [first, *then.unbind(1)]
    order = np.lexsort([key.cpu().numpy() for key in reversed(keys)])
    return torch.from_numpy(order).to(first.device)
