"""What each job of the demo is run with."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["DemoSettings"]


@dataclass(frozen=True)
class DemoSettings:
    """What each job of the demo is run with; ``optimizer`` None leaves the choice to the job."""

    folder: Path
    device: str
    seed: int
    optimizer: str | None
    progress: bool
