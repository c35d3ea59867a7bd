"""Weights of the matcher on disk: safetensors with the network's shape and a model card in the header."""

import functools
import importlib.resources
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from diffmatch.errors import InputError
from diffmatch.io import write_bytes_atomic
from diffmatch.matching.keypoints.matcher import Matcher, MatcherConfig

__all__ = ["load_matcher", "save_matcher", "shipped_matcher"]

FORMAT = "diffmatch.matcher"
SHIPPED = "matcher_rootsift.safetensors"


def save_matcher(path: str | os.PathLike[str], matcher: Matcher, *, card: Mapping[str, object] | None = None) -> None:
    """Write a matcher to a safetensors file, whole or not at all.

    Args:
        path: the file.
        matcher: the network.
        card: what a user should know, JSON-like: images, licences, steps, results.

    Raises:
        InputError: the file cannot be written, or the card is not JSON-like.
    """
    try:
        header = {
            "format": FORMAT,
            "config": json.dumps(asdict(matcher.config)),
            "card": json.dumps(dict(card or {}), ensure_ascii=False),
        }
    except (TypeError, ValueError) as error:
        raise InputError("card", "JSON-like values", str(error)) from error
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in matcher.state_dict().items()}
    write_bytes_atomic(path, save(state, metadata=header))


def load_matcher(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> tuple[Matcher, dict[str, object]]:
    """Read a matcher, in evaluation mode, and its card.

    Args:
        path: a file that :func:`save_matcher` wrote.
        device: where the network goes.

    Raises:
        InputError: no such file, not a safetensors file, or not that of a matcher.
    """
    if not Path(path).is_file():
        raise InputError("weights", "a file with the weights of a matcher", f"{os.fspath(path)!r}, which is not there")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
    except (SafetensorError, OSError) as error:
        raise InputError("weights", "a safetensors file", f"{os.fspath(path)!r} ({error})") from error
    if header.get("format") != FORMAT:
        raise InputError("weights", "the weights of a matcher", f"{os.fspath(path)!r}, which holds something else")
    matcher = Matcher(MatcherConfig.from_dict(json.loads(header["config"])))
    try:
        matcher.load_state_dict(state)
    except RuntimeError as error:
        raise InputError("weights", "tensors that fit its configuration", str(error)) from error
    card: dict[str, object] = json.loads(header["card"])
    return matcher.to(device).eval(), card


@functools.lru_cache(maxsize=4)
def shipped_matcher(device: str = "cpu") -> Matcher:
    """The matcher for RootSIFT that comes with the package, read once a device.

    Args:
        device: where it is used. It is shared by all callers: do not train it, copy it first.
    """
    file = importlib.resources.files("diffmatch.matching.keypoints") / "data" / SHIPPED
    with importlib.resources.as_file(file) as path:
        matcher, _ = load_matcher(path, device=device)
    return matcher.requires_grad_(False)
