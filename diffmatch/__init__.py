"""Differentiable geometry and matching on PyTorch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffmatch.fitting import fit as fit

__all__ = ["fit"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported at first use: torch takes seconds to import, and `diffmatch --help` should not.
    if name == "fit":
        from diffmatch.fitting import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
