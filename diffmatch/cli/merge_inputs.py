"""What `diffmatch merge` works with: checkpoints, the model they are of, data, and the permutations it allows."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmatch.cli.objects import call_named

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from diffmatch.matching.weights import PermutationSpec
    from diffmatch.matching.weights.checkpoint_files import Checkpoint

__all__ = ["MergeInputs", "available_memory", "load_inputs", "memory_needed", "shown_size"]


@dataclass(frozen=True)
class MergeInputs:
    """All that a merge needs.

    Attributes:
        checkpoints: in the order given; the first one stays.
        model: runs them; without weights where the merge is streamed.
        spec: what may move.
        batches: pairs of inputs and targets, to choose by; None without.
        unlabelled: batches of inputs alone; None where there are targets, or no data.
        inputs: of one batch, to verify with; None without.
        loss: from outputs and targets.
        streamed: whether tensors stay on disk.
    """

    checkpoints: "list[Checkpoint]"
    model: "nn.Module"
    spec: "PermutationSpec"
    batches: Iterable[Any] | None
    unlabelled: Iterable[Any] | None
    inputs: Any
    loss: Any
    streamed: bool

    def states(self, device: str) -> "list[dict[str, Tensor]]":
        """The state dicts, in the dtypes of the model and on a device; tied entries share memory."""
        own = self.model.state_dict()
        found = []
        for checkpoint in self.checkpoints:
            stored = {name: checkpoint.read(name).to(device, own[name].dtype) for name in checkpoint.shapes}
            found.append(stored | {name: stored[kept] for name, kept in checkpoint.ties.items()})
        return found


def load_inputs(
    paths: list[str],
    *,
    model: str,
    data: str | None,
    spec: Path | None,
    loss: str,
    stream: bool | None,
    seed: int,
) -> MergeInputs:
    """Open, import, derive; nothing is merged yet.

    Raises:
        InputError: naming the option that cannot be met.
    """
    import torch

    from diffmatch.errors import InputError
    from diffmatch.matching.weights.checkpoint_files import check_same_checkpoints, open_checkpoint

    checkpoints = [open_checkpoint(path, argument="models") for path in paths]
    check_same_checkpoints(checkpoints)
    loss_function = _loss(loss)
    batches = _batches(data)
    streamed = stream if stream is not None else memory_needed(checkpoints) > 0.8 * available_memory()
    with _without_weights(streamed):
        try:
            built = call_named("model", model)
        except InputError as error:
            hint = "; it was called on the meta device, where tensors have no values" if streamed else ""
            raise InputError("model", error.wanted, error.got + hint) from error
    module, inputs = _model_and_inputs(model, built)
    checkpoints = [checkpoint.with_ties_of(module) for checkpoint in checkpoints]
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        _check_fits(path, checkpoint, module)
    pairs, alone = None, None
    if batches is not None:
        first = next(iter(batches), None)
        if first is None:
            raise InputError("data", "at least one batch", f"none from {data!r}")
        has_targets = isinstance(first, list | tuple) and len(first) == 2
        inputs = first[0] if has_targets else first
        pairs, alone = (batches, None) if has_targets else (None, batches)
    generator = torch.Generator().manual_seed(seed)
    found = _spec(module, inputs, spec, streamed=streamed, generator=generator)
    return MergeInputs(checkpoints, module, found, pairs, alone, inputs, loss_function, streamed)


def memory_needed(checkpoints: "list[Checkpoint]") -> int:
    """Bytes of a merge in memory: the models, aligned copies, averages, and the two in double precision to verify."""
    first = checkpoints[0]
    numbers = sum(first.size_of(name) // max(first.dtypes[name].itemsize, 1) for name in first.shapes)
    return numbers * (4 * (2 * len(checkpoints) + 2) + 16)


def available_memory() -> float:
    """Bytes that can be had, as far as the system says."""
    found = [float("inf")]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found.append(float((group / "memory.max").read_text()) - float((group / "memory.current").read_text()))
    return min(found)


def _model_and_inputs(text: str, built: Any) -> "tuple[nn.Module, Any]":
    """The model and, where the factory gives them, inputs for it."""
    from torch import nn

    from diffmatch.errors import InputError

    module, inputs = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(module, nn.Module):
        wanted = "a function that returns an nn.Module, or a pair of it and example inputs"
        raise InputError("model", wanted, f"{text!r}, which returns {type(built).__name__}")
    if inputs is None:
        inputs = getattr(module, "dummy_inputs", None)  # as the models of transformers have them
    return module.eval(), inputs


def _batches(data: str | None) -> Iterable[Any] | None:
    """What can be gone through again and again."""
    from diffmatch.errors import InputError

    if data is None:
        return None
    found = call_named("data", data)
    try:
        iterator = iter(found)
    except TypeError:
        raise InputError("data", "a function that returns batches", f"{data!r} ({type(found).__name__})") from None
    return list(found) if iterator is found else found


def _loss(text: str) -> Any:
    """A function of torch.nn.functional by its name, or one of the user's own."""
    from torch.nn import functional

    from diffmatch.errors import InputError
    from diffmatch.named import named_object

    found = named_object(text, argument="loss") if ":" in text else getattr(functional, text, None)
    if not callable(found):
        raise InputError("loss", "a name in torch.nn.functional, or module:function", repr(text))
    return found


def _check_fits(path: str, checkpoint: "Checkpoint", module: "nn.Module") -> None:
    """Check entries and shapes against the model's, without reading a tensor."""
    from diffmatch.errors import InputError

    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    theirs = {name: checkpoint.shapes[checkpoint.ties.get(name, name)] for name in checkpoint}
    wrong = [f"no {name}" for name in own if name not in theirs]
    wrong += [f"{name}, which the model lacks" for name in theirs if name not in own]
    wrong += [f"{name} {theirs[name]} for {own[name]}" for name in own if theirs.get(name, own[name]) != own[name]]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError("models", "the entries and shapes of the model", f"{path}: {', '.join(wrong[:8])}{more}")


def _spec(
    module: "nn.Module", inputs: Any, path: Path | None, *, streamed: bool, generator: "torch.Generator"
) -> "PermutationSpec":
    from diffmatch.errors import InputError
    from diffmatch.io import existing_file
    from diffmatch.matching.weights import PermutationSpec, check_spec, permutation_spec

    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
    if path is not None:
        found = PermutationSpec.load(existing_file(path, argument="spec"))
        if streamed or inputs is None:
            return found
        return check_spec(found, module, args, example_kwargs=kwargs, generator=generator)
    if inputs is None:
        wanted = "a factory that returns (model, example inputs), or batches (--data): the model is traced with them"
        raise InputError("model", wanted, "a model without inputs")
    with _without_weights(streamed):
        if streamed:
            args, kwargs = _to_meta((args, kwargs))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # torch prints the graph of what it cannot trace
                return permutation_spec(module, args, example_kwargs=kwargs, generator=generator)
        except InputError as error:
            hint = "; a spec written by hand is given by --spec" if error.argument == "model" else ""
            raise InputError(error.argument, error.wanted, error.got + hint) from error


def _to_meta(tree: Any) -> Any:
    from torch import Tensor
    from torch.utils import _pytree as pytree

    return pytree.tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, tree)


@contextlib.contextmanager
def _without_weights(wanted: bool) -> Iterator[None]:
    """A block in which new tensors have a shape but no memory."""
    import torch

    with torch.device("meta") if wanted else contextlib.nullcontext():
        yield


def shown_size(size: float | int) -> str:
    """A number of bytes as text."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} bytes"
