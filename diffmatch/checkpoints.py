"""Checkpoints of fits: what is in the file, how it gets there whole, and when it may be used."""

import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from diffmatch.errors import InputError
from diffmatch.history import History
from diffmatch.io import atomic_write, check_writable

__all__ = [
    "CheckpointFile",
    "all_finite",
    "load_history",
    "load_optimizer",
    "optimizer_settings",
    "random_state",
    "restore_random_state",
    "save_history",
    "tensors_in",
]

FORMAT, VERSION = "diffmatch.fit", 1


class CheckpointFile:
    """The file of one fit, tied to the settings that make its continuation the same fit.

    The file is a dictionary for ``torch.load(path, weights_only=True)`` with the keys ``format``, ``version``,
    ``settings``, ``fingerprint`` and ``content``.

    Args:
        path: where it is, or will be.
        settings: the fit's own settings, JSON-like.
        fingerprint: the user's settings, JSON-like.

    Raises:
        InputError: the path cannot be written, or the fingerprint is not JSON-like.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        settings: Mapping[str, Any],
        fingerprint: Mapping[str, Any] | None = None,
    ) -> None:
        check_writable(path, argument="checkpoint")
        self.path = Path(path)
        self._settings = _as_json("settings", settings)
        self._fingerprint = _as_json("fingerprint", fingerprint or {})
        self._proven = False

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace the file by one with this content.

        The first file is read back before it gets its name, so that an object whose state cannot be loaded again is
        found at the first checkpoint and not at the first resumption.

        Raises:
            InputError: the content holds something else than tensors and plain Python values.
        """
        head = {"format": FORMAT, "version": VERSION, "settings": self._settings, "fingerprint": self._fingerprint}
        with atomic_write(self.path, argument="checkpoint") as temporary:
            torch.save({**head, "content": dict(content)}, temporary)
            if not self._proven:
                _load(temporary, wanted="states of tensors, numbers, strings and containers of them")
        self._proven = True

    def read(self) -> dict[str, Any] | None:
        """The content of the file, on the CPU; None where there is no file.

        Raises:
            InputError: the file is damaged, of another kind, or of a fit with other settings.
        """
        if not self.path.exists():
            return None
        saved = _load(self.path, wanted="a checkpoint of fit")
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise InputError("checkpoint", "a checkpoint of fit", f"{self.path}, which is something else")
        if saved["version"] != VERSION:
            raise InputError("checkpoint", f"version {VERSION}", f"version {saved['version']} in {self.path}")
        self._check_same("", saved["settings"], self._settings)
        self._check_same("fingerprint: ", saved["fingerprint"], self._fingerprint)
        content: dict[str, Any] = saved["content"]
        return content

    def _check_same(self, prefix: str, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        for key in [*asked, *(saved.keys() - asked.keys())]:
            now, before = asked.get(key, "nothing"), saved.get(key, "nothing")
            if now != before:
                got = f"{before!r} in {self.path} (resume=False starts anew)"
                raise InputError("checkpoint", f"{prefix}{key} {now!r}, as in this call", got)


def random_state(generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """The states of torch's global generators and of the given ones; no wait for any device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda, "generators": [g.get_state() for g in generators]}


def restore_random_state(saved: Mapping[str, Any], generators: Sequence[torch.Generator]) -> None:
    """Undo what was drawn since :func:`random_state`.

    Raises:
        InputError: another number of generators, or one of another device.
    """
    if len(saved["generators"]) != len(generators):
        wanted = f"{len(saved['generators'])} generators, as in the checkpoint"
        raise InputError("generators", wanted, str(len(generators)))
    torch.set_rng_state(saved["cpu"])
    if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    for generator, state in zip(generators, saved["generators"], strict=True):
        try:
            generator.set_state(state)
        except RuntimeError as error:
            raise InputError("generators", "generators of the same devices as in the checkpoint", str(error)) from error


def save_history(history: History) -> dict[str, Any]:
    """A history as a dictionary whose curves are float64 tensors, which load faster than lists."""
    saved = history.to_dict()
    curve = torch.tensor
    saved["loss"], saved["lr"] = (curve(saved[key], dtype=torch.float64) for key in ("loss", "lr"))
    saved["terms"] = {name: curve(values, dtype=torch.float64) for name, values in saved["terms"].items()}
    return saved


def load_history(saved: Mapping[str, Any]) -> History:
    """The inverse of :func:`save_history`."""
    terms = {name: values.tolist() for name, values in saved["terms"].items()}
    return History(**{**saved, "loss": saved["loss"].tolist(), "lr": saved["lr"].tolist(), "terms": terms})


def optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """What must agree for an optimizer's state to fit: its class, its parameters' shapes, its plain settings."""
    kind = type(optimizer)
    settings: dict[str, Any] = {"optimizer": f"{kind.__module__}.{kind.__qualname__}"}
    for index, group in enumerate(optimizer.param_groups):
        place = f"group {index} " if len(optimizer.param_groups) > 1 else ""
        settings[f"{place}parameters"] = [f"{tuple(p.shape)} {p.dtype}" for p in group["params"]]
        base = {"lr": group["initial_lr"]} if "initial_lr" in group else {}  # torch's schedulers keep it there
        for key, value in ({**group, **base}).items():
            value = float(value) if isinstance(value, Tensor) and value.numel() == 1 else value
            if key != "initial_lr" and isinstance(value, bool | int | float | str | tuple | None):
                settings[f"{place}{key}"] = repr(value)
    return settings


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Load a state as it was saved: torch's own loading casts it to the parameters' dtype, which loses bits."""
    optimizer.load_state_dict(dict(saved))
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for index, state in saved["state"].items():
        optimizer.state[params[index]] = _with_saved_dtype(optimizer.state[params[index]], state)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def all_finite(values: Any) -> bool:
    """Whether no tensor in a structure holds NaN or infinity.

    One pass over all tensors and one wait for the device: their largest magnitudes pass on both.
    """
    tensors = [t for t in tensors_in(values) if t.is_floating_point() and t.numel()]
    if not tensors:
        return True
    device = tensors[0].device
    largest = torch._foreach_norm(tensors, math.inf)
    return bool(torch.stack([norm.isfinite().to(device) for norm in largest]).all())


def _with_saved_dtype(loaded: Any, saved: Any) -> Any:
    if isinstance(saved, Tensor) and isinstance(loaded, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(saved, dict) and isinstance(loaded, dict):
        return {key: _with_saved_dtype(item, saved.get(key)) for key, item in loaded.items()}
    if isinstance(saved, list | tuple) and isinstance(loaded, list | tuple) and len(saved) == len(loaded):
        return type(loaded)(_with_saved_dtype(*pair) for pair in zip(loaded, saved, strict=True))
    return loaded


def _load(path: Path, *, wanted: str) -> Any:
    """Load a file with checksums verified, and without running code from it."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
        reason = f"a wrong checksum of {damaged}"
    except Exception as error:  # a damaged file fails in the archive, in the pickle or in a tensor: whatever is raised
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    raise InputError("checkpoint", wanted, f"{path} with {reason}")


def _as_json(argument: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    except (TypeError, ValueError) as error:
        raise InputError(argument, "JSON-like settings", str(error)) from error
    return plain
