"""Checkpoints on disk: tensors read when they are asked for, safetensors written whole or not at all.

Read are safetensors files, folders of them with an index as Hugging Face writes them, and state dicts saved by
``torch.save``, without running pickled code. Tensors that are read lie in the page cache of the file, so that a model
larger than the memory can be gone through.
"""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffmatch.errors import InputError
from diffmatch.io import atomic_write
from diffmatch.matching.weights.interpolation import tensor_key

__all__ = [
    "INDEX_NAME",
    "Checkpoint",
    "check_same_checkpoints",
    "open_checkpoint",
    "write_checkpoint",
    "write_safetensors",
]

INDEX_NAME = "model.safetensors.index.json"
_SINGLE_NAME = "model.safetensors"
_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_CARRIED_BYTES = 64 << 20  # larger files of a folder are other weights, not what belongs to these
_CARRIED_SUFFIXES = (".json", ".txt", ".model", ".md", ".py", ".jinja", "")
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, Tensor]):
    """The state dict in a file or folder; an entry is read when it is asked for.

    Attributes:
        path: the file or folder.
        shards: names of the stored tensors in the order of the file, by the name of the file.
        shapes: of each stored tensor.
        dtypes: of each stored tensor.
        ties: entries that are another name of a stored tensor, by that name.
        metadata: of each safetensors file, as far as it has any.
        read: a stored tensor by its name.
    """

    path: Path
    shards: dict[str, list[str]]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    ties: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    read: Callable[[str], Tensor] = field(repr=False, kw_only=True)

    def __getitem__(self, name: str) -> Tensor:
        stored = self.ties.get(name, name)
        if stored not in self.shapes:
            raise KeyError(name)
        return self.read(stored)

    def __iter__(self) -> Iterator[str]:
        yield from self.shapes
        yield from self.ties

    def __len__(self) -> int:
        return len(self.shapes) + len(self.ties)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes or name in self.ties

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, of which more than tensors is carried over."""
        return self.path.is_dir()

    @property
    def nbytes(self) -> int:
        """Size of all stored tensors."""
        return sum(self.size_of(name) for name in self.shapes)

    def size_of(self, name: str) -> int:
        """Bytes of a stored tensor."""
        return torch.Size(self.shapes[name]).numel() * self.dtypes[name].itemsize

    def state_dict(self) -> dict[str, Tensor]:
        """All entries; those of tied names share their memory."""
        stored = {name: self.read(name) for name in self.shapes}
        return stored | {name: stored[target] for name, target in self.ties.items()}

    def with_ties_of(self, model: nn.Module) -> "Checkpoint":
        """The checkpoint with the entries that it leaves out because the model ties them to others."""
        first: dict[object, str] = {}
        named = list(model.state_dict(keep_vars=True).items())
        for name, tensor in named:
            if name in self.shapes:
                first.setdefault(tensor_key(tensor), name)
        missing = {
            name: first[tensor_key(tensor)]
            for name, tensor in named
            if name not in self and tensor_key(tensor) in first
        }
        return replace(self, ties={**self.ties, **missing})

    def companions(self) -> list[Path]:
        """Small files of the folder beside the tensors, such as the configuration."""
        if not self.is_folder:
            return []
        return [
            file
            for file in sorted(self.path.iterdir())
            if file.is_file()
            and not file.name.startswith(".")
            and file.name != INDEX_NAME
            and not file.name.endswith(".safetensors.index.json")
            and file.suffix in _CARRIED_SUFFIXES
            and file.stat().st_size <= _CARRIED_BYTES
        ]


def open_checkpoint(path: str | os.PathLike[str], *, argument: str = "path") -> Checkpoint:
    """Open a checkpoint without reading its tensors.

    Args:
        path: a ``.safetensors`` file; a folder of them, with or without index; or a state dict in a ``.pt``, ``.pth``
            or ``.bin`` file, at the top or under ``state_dict``, ``model_state_dict`` or ``model``.
        argument: name for error messages.

    Raises:
        InputError: there is none, it is damaged, or reading it would run pickled code.
    """
    place = Path(path)
    if place.name.endswith(".safetensors.index.json"):
        place = place.parent
    if place.is_dir():
        return _open_folder(place, argument)
    if not place.is_file():
        raise InputError(argument, "a checkpoint file or folder", repr(str(path)))
    if place.suffix.lower() == ".safetensors":
        return _open_safetensors(place, {place.name: place}, argument)
    if place.suffix.lower() in _TORCH_SUFFIXES:
        return _open_torch(place, argument)
    wanted = f"a folder or a file that ends in .safetensors, {', '.join(_TORCH_SUFFIXES)}"
    raise InputError(argument, wanted, repr(str(path)))


def check_same_checkpoints(checkpoints: Iterable[Checkpoint]) -> None:
    """Check that checkpoints have the same entries and shapes, without reading them.

    Raises:
        InputError: listing what differs.
    """
    first, *others = checkpoints
    wrong = []
    for other in others:
        shown = other.path.name
        wrong += [f"no {name} in {shown}" for name in first if name not in other]
        wrong += [f"{name} in {shown} only" for name in other if name not in first]
        for name, shape in first.shapes.items():
            theirs = other.shapes.get(other.ties.get(name, name), shape)
            if theirs != shape:
                wrong.append(f"{name} {shape} and, in {shown}, {theirs}")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError("models", "the same entries and shapes in all", ", ".join(wrong[:8]) + more)


def write_checkpoint(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], *, like: Checkpoint | None = None
) -> None:
    """Write a state dict as safetensors; tensors that share memory are stored once.

    Args:
        path: a file that ends in ``.safetensors``, or a new or empty folder if ``like`` is one.
        state: tensors of any layout and device.
        like: whose shards, order, ties, metadata and, for a folder, further files are kept.

    Raises:
        InputError: the place cannot be written.
        OSError: the disk is full; nothing is left behind that looks whole.
    """
    layout = like or _layout_of(state)
    place = Path(path)
    if place.suffix.lower() != ".safetensors":
        prepare_folder(place, layout)
        for shard, names in layout.shards.items():
            _write_shard(place / shard, layout, names, state, layout.metadata.get(shard))
        finish_folder(place, layout)
        return
    _write_shard(place, layout, list(layout.shapes), state, merged_metadata(layout))


def merged_metadata(layout: Checkpoint) -> dict[str, str]:
    """The metadata of all shards together, with the ties."""
    together: dict[str, str] = {}
    for each in layout.metadata.values():
        together |= each
    return {"format": "pt", **together, **layout.ties}


def prepare_folder(folder: Path, layout: Checkpoint) -> None:
    """Make the folder of a sharded checkpoint.

    Raises:
        InputError: ``layout`` is no folder itself, or ``folder`` cannot be made.
    """
    if not layout.is_folder:
        raise InputError("output", "a file that ends in .safetensors", repr(str(folder)))
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError("output", "a folder that exists or can be made", f"{folder} ({error.strerror})") from error


def finish_folder(folder: Path, layout: Checkpoint) -> None:
    """Carry the further files of a checkpoint over, and last write the index: a folder without it is unfinished."""
    for file in layout.companions():
        with atomic_write(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)
    index = layout.path / INDEX_NAME
    if index.is_file():
        with atomic_write(folder / INDEX_NAME) as temporary:
            shutil.copyfile(index, temporary)


def write_safetensors(
    path: Path,
    names: Iterable[str],
    layout: Checkpoint,
    write_tensor: Callable[[str, BinaryIO], None],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file, tensor by tensor, whole or not at all.

    Args:
        path: of the file.
        names: of the tensors, in the order of the file.
        layout: has their shapes and dtypes.
        write_tensor: called with each name, writes its bytes (row-major, little endian) to the open file.
        metadata: texts by name.

    Raises:
        InputError: a dtype that the format does not know, or the place cannot be written.
        OSError: the disk is full.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    chosen = list(names)
    for name in chosen:
        dtype = layout.dtypes[name]
        if dtype not in _NAMES:
            raise InputError(name, "a dtype that safetensors can hold", str(dtype))
        end = offset + layout.size_of(name)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(layout.shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in chosen:
            write_tensor(name, file)


def write_rows(tensor: Tensor, file: BinaryIO) -> None:
    """Write the bytes of a tensor, row-major."""
    flat = tensor.detach().cpu().contiguous().flatten()
    file.write(flat.view(torch.uint8).numpy().data)


def _write_shard(
    path: Path,
    layout: Checkpoint,
    names: list[str],
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None,
) -> None:
    write_safetensors(path, names, layout, lambda name, file: write_rows(state[name], file), metadata=metadata)


def _layout_of(state: Mapping[str, Tensor]) -> Checkpoint:
    """How a state that comes from no file is stored: wide dtypes first, so that each is aligned."""
    stored: dict[object, str] = {}
    ties = {}
    for name, tensor in state.items():
        kept = stored.setdefault(tensor_key(tensor) if tensor.numel() else name, name)
        if kept != name:
            ties[name] = kept
    names = sorted(stored.values(), key=lambda name: -state[name].dtype.itemsize)
    shapes = {name: tuple(state[name].shape) for name in names}
    dtypes = {name: state[name].dtype for name in names}
    return Checkpoint(Path(), {_SINGLE_NAME: names}, shapes, dtypes, ties, read=state.__getitem__)


def _open_folder(folder: Path, argument: str) -> Checkpoint:
    index = folder / INDEX_NAME
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {str(shard): folder / str(shard) for shard in dict.fromkeys(weight_map.values())}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(argument, "an index of shards", f"{index} ({type(error).__name__}: {error})") from error
        if any(Path(shard).name != shard for shard in files):
            raise InputError(argument, "shards in the folder of their index", f"{index}, which names others")
        found = _open_safetensors(folder, files, argument)
        missing = [name for name in weight_map if name not in found.shapes]
        if missing:
            raise InputError(argument, "the tensors of the index", f"{folder} without {', '.join(missing[:8])}")
        return found
    files = {file.name: file for file in sorted(folder.glob("*.safetensors"))}
    if _SINGLE_NAME in files:
        files = {_SINGLE_NAME: files[_SINGLE_NAME]}
    if len(files) != 1:
        raise InputError(argument, f"a folder with {INDEX_NAME} or one .safetensors file", f"{folder}, which has none")
    return _open_safetensors(folder, files, argument)


def _open_safetensors(path: Path, files: Mapping[str, Path], argument: str) -> Checkpoint:
    shards: dict[str, list[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    ties: dict[str, str] = {}
    metadata: dict[str, dict[str, str]] = {}
    handles: dict[str, Any] = {}
    for shard, file in files.items():
        try:
            handle = safe_open(file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise InputError(argument, "a safetensors file that is whole", f"{file} ({error})") from error
        shards[shard] = list(handle.offset_keys())
        for name in shards[shard]:
            part = handle.get_slice(name)
            shapes[name], handles[name] = tuple(part.get_shape()), handle
            if part.get_dtype() not in _DTYPES:
                raise InputError(argument, "tensors of dtypes that torch has", f"{name} of {part.get_dtype()}")
            dtypes[name] = _DTYPES[part.get_dtype()]
        metadata[shard] = dict(handle.metadata() or {})
    for each in metadata.values():
        # Where tied tensors are stored once, the names that were left out point to those that were kept.
        ties |= {name: kept for name, kept in each.items() if kept in shapes and name not in shapes}
    return Checkpoint(path, shards, shapes, dtypes, ties, metadata, read=lambda name: handles[name].get_tensor(name))


def _open_torch(path: Path, argument: str) -> Checkpoint:
    try:
        content = _load(path)
    except pickle.UnpicklingError as error:
        wanted = "a state dict saved by torch.save(model.state_dict(), ...), which needs no pickled code to be run"
        raise InputError(argument, wanted, f"{path}, which holds other objects") from error
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(argument, "a file that torch.save wrote", f"{path} ({text})") from error
    state = content
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            state = content[name]
            break
    tensors = isinstance(state, Mapping) and all(isinstance(tensor, Tensor) for tensor in state.values())
    if not tensors or not state:
        raise InputError(argument, "a state dict, tensors by name", f"{path} with {type(state).__name__}")
    return replace(_layout_of(state), path=path)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # of before the zip format
