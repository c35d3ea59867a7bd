"""What a result depends on besides its settings: versions and the machine's kind."""

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["environment"]

_PACKAGES = ("torch", "numpy", "numba")


def environment(device: str = "cpu") -> dict[str, str]:
    """Versions of diffmatch, Python and the packages underneath, and the device's name.

    Args:
        device: torch device that the work ran on, such as ``"cuda:0"``.

    Returns:
        Names and values, ready for a table. Nothing that identifies the machine or its user.
    """
    import torch

    import diffmatch

    found = {"diffmatch": diffmatch.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["system"] = f"{platform.system()} {platform.machine()}"
    place = torch.device(device)
    if place.type == "cuda" and torch.cuda.is_available():
        found["device"] = f"{device} ({torch.cuda.get_device_name(place)})"
    else:
        found["device"] = f"{device} ({torch.get_num_threads()} threads)"
    return found
