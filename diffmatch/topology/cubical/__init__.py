"""Persistence of scalar fields on grids."""

from diffmatch.topology.cubical.persistence import (
    Construction,
    Pairing,
    cubical_persistence,
    cubical_persistence_batch,
)

__all__ = ["Construction", "Pairing", "cubical_persistence", "cubical_persistence_batch"]
