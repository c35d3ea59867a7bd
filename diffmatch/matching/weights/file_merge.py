"""Models merged from file to file: aligned and averaged tensor by tensor, resumed after an interruption."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffmatch.errors import InputError, check_positive
from diffmatch.interrupts import Interrupts
from diffmatch.io import check_writable, write_bytes_atomic
from diffmatch.matching.weights.ascent import Structure, packed
from diffmatch.matching.weights.checkpoint_files import (
    Checkpoint,
    check_same_checkpoints,
    finish_folder,
    merged_metadata,
    open_checkpoint,
    prepare_folder,
    write_rows,
    write_safetensors,
)
from diffmatch.matching.weights.interpolation import check_weights
from diffmatch.matching.weights.permute import Permutations, full_permutations, identity_permutations
from diffmatch.matching.weights.spec import PermutationSpec
from diffmatch.matching.weights.streaming import (
    BLOCK_BYTES,
    StreamedAlignment,
    StreamedAscent,
    chunks,
    permuted,
    stored_spec,
)
from diffmatch.matching.weights.weight_matching import WeightMatch

__all__ = ["FileMerge", "check_target", "merge_files", "read_permutations", "write_permutations"]

SAVE_SECONDS = 5.0
"""Least time between two savings of the state of a run."""


@dataclass(frozen=True)
class FileMerge:
    """What :func:`merge_files` made.

    Attributes:
        output: the merged checkpoint.
        permutations: that were applied, one dict a model; the first model's are the identity.
        matches: how the models after the first were aligned; empty where the permutations were given.
    """

    output: Path
    permutations: list[Permutations]
    matches: list[WeightMatch]


def merge_files(
    checkpoints: Sequence[str | os.PathLike[str] | Checkpoint],
    spec: PermutationSpec,
    output: str | os.PathLike[str],
    *,
    permutations: Sequence[Mapping[str, Tensor]] | None = None,
    weights: Sequence[float] | None = None,
    max_sweeps: int = 100,
    tol: float = 1e-7,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[str], object] | None = None,
) -> FileMerge:
    """Merge models that need not fit into memory, from safetensors to safetensors.

    Each model after the first is aligned to it by weight matching and the average is written, both tensor by tensor:
    what is held in memory is one pair of tensors and one Gram matrix. The result has the bits of
    ``match_weights(..., start={})`` and :func:`average_states`, except that sums over tensors larger than
    ``block_bytes`` may round differently. Nothing is repaired. Dtypes stay; half precision is averaged in single.

    Args:
        checkpoints: files or folders, or opened ones, two at least.
        spec: what may be permuted. A model on the meta device is enough for :func:`permutation_spec`.
        output: a file that ends in ``.safetensors``, or, where the first model is a folder, a folder that is new,
            empty or of the same run; it gets the same shards, index and small files.
        permutations: one dict a model, applied instead of looking for any.
        weights: shares of the models in the average; equal if None.
        max_sweeps: largest number of passes over the atoms.
        tol: as for :func:`match_weights`.
        checkpoint: where the state of the run is kept; none if None. It is removed when the merge is done.
        resume: go on from that state if it is there.
        block_bytes: size, in working precision, above which a tensor is gone through in blocks.
        progress: called with a line at the start of each stage and after each atom.

    Raises:
        InputError: the checkpoints do not fit each other or the spec, hold NaN or infinity, the output cannot be
            written, or the state is that of another run.
        OSError: the disk is full; what was done until then can be gone on from.
    """
    opened = [c if isinstance(c, Checkpoint) else open_checkpoint(c, argument="checkpoints") for c in checkpoints]
    if len(opened) < 2:
        raise InputError("checkpoints", "two models or more", str(len(opened)))
    if permutations is not None and len(permutations) != len(opened):
        raise InputError("permutations", f"{len(opened)} dicts, one a model", str(len(permutations)))
    check_positive("max_sweeps", max_sweeps)
    check_positive("tol", tol, allow_zero=True)
    check_positive("block_bytes", block_bytes)
    check_same_checkpoints(opened)
    _check_fits(opened[0], spec)
    shares = check_weights(weights, len(opened))
    target = Path(output)
    check_target(target, opened[0], resumed=resume and checkpoint is not None and Path(checkpoint).exists())
    job = _fingerprint(opened, spec, shares, permutations, max_sweeps, tol, block_bytes, target)
    state = _State(None if checkpoint is None else Path(checkpoint), job)
    with Interrupts() as interrupts:
        run = _Run(opened, spec, state, interrupts, max_sweeps, tol, block_bytes, progress or _silent)
        if resume:
            state.load()
        identity = identity_permutations(spec)
        if permutations is not None:
            found = [full_permutations(spec, given) for given in permutations]
        else:
            found = [identity, *(run.align(m) for m in range(1, len(opened)))]
        run.write(target, found, shares)
    state.remove()
    return FileMerge(target, found, list(state.matches))


@dataclass
class _State:
    """What is saved of a run: the alignments found, the one under way, and the shards written."""

    path: Path | None
    job: str
    matches: list[WeightMatch] = field(default_factory=list)
    ascent: StreamedAscent | None = None
    constant: float = 0.0
    initial: float = 0.0
    least_gain: float = 0.0
    shards: list[str] = field(default_factory=list)
    _saved: float = field(default_factory=time.monotonic)

    def save(self, *, now: bool = False) -> None:
        """Write it, if the last time is long enough ago or it must be now."""
        if self.path is None or (not now and time.monotonic() - self._saved < SAVE_SECONDS):
            return
        tensors = {f"{m}/{k}": p for m, match in enumerate(self.matches) for k, p in match.permutations.items()}
        content: dict[str, Any] = {
            "job": self.job,
            "shards": self.shards,
            "matches": [[m.objective, m.initial, m.sweeps, m.converged] for m in self.matches],
            "ascent": None,
            "numbers": [self.constant, self.initial, self.least_gain],
        }
        if self.ascent is not None:
            tensors |= {f"ascent/{k}": p for k, p in self.ascent.permutations.items()}
            content["ascent"] = [sorted(self.ascent.dirty), self.ascent.sweeps, self.ascent.position]
        small = {name: tensor.int() for name, tensor in tensors.items()}
        write_bytes_atomic(self.path, save(small, {"diffmatch": json.dumps(content)}), argument="checkpoint")
        self._saved = time.monotonic()

    def load(self) -> None:
        """Read it where it is there.

        Raises:
            InputError: it is no state, or that of another run.
        """
        if self.path is None or not self.path.exists():
            return
        wanted = "the state of a merge (--no-resume starts anew)"
        try:
            with safe_open(self.path, framework="pt") as file:
                content = json.loads((file.metadata() or {})["diffmatch"])
                tensors = {name: file.get_tensor(name).long() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError("checkpoint", wanted, f"{self.path} ({error})") from error
        if content["job"] != self.job:
            raise InputError("checkpoint", wanted.replace("a merge", "this merge"), f"{self.path}, that of another one")

        def group(prefix: str) -> Permutations:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.shards = content["shards"]
        self.constant, self.initial, self.least_gain = content["numbers"]
        self.matches = [WeightMatch(group(f"{m}/"), *values) for m, values in enumerate(content["matches"])]
        if content["ascent"] is not None:
            dirty, sweeps, position = content["ascent"]
            self.ascent = StreamedAscent(group("ascent/"), set(dirty), sweeps, position)

    def remove(self) -> None:
        """Nothing is left to go on from."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclass
class _Run:
    """A merge under way."""

    checkpoints: Sequence[Checkpoint]
    spec: PermutationSpec
    state: _State
    interrupts: Interrupts
    max_sweeps: int
    tol: float
    block_bytes: int
    progress: Callable[[str], object]

    def align(self, m: int) -> Permutations:
        """Bring model m to the first one, or take what was found before."""
        state, label = self.state, self.checkpoints[m].path.name
        if m <= len(state.matches):
            return state.matches[m - 1].permutations
        first = self.checkpoints[0]
        spec = stored_spec(self.spec, list(first.shapes))
        learned = [n for n in spec.layouts if n not in spec.buffers and first.dtypes[n].is_floating_point]
        (a, b), moving = packed([first, self.checkpoints[m]], spec, learned)
        structure = Structure(moving)
        begin = structure.identity if state.ascent is None else state.ascent.permutations
        labels = (first.path.name, label)
        alignment = StreamedAlignment(structure, a, b, begin, block_bytes=self.block_bytes, labels=labels)
        if state.ascent is None:
            self.progress(f"{label}: reading")
            total = alignment.measure(learned, first, self.checkpoints[m], tol=self.tol)
            initial = alignment.objective()
            state.constant, state.least_gain = total - initial, alignment.least_gain
            state.initial = state.constant + initial
            state.ascent = StreamedAscent(begin, {name for name in spec.atoms if structure.occurs(name)})
        ascent, alignment.least_gain = state.ascent, state.least_gain

        def after(atom: str) -> None:
            self.progress(f"{label}: sweep {ascent.sweeps + 1}, atom {ascent.position} of {len(spec.atoms)}: {atom}")
            self._save()

        converged = ascent.run(alignment, max_sweeps=self.max_sweeps, after=after)
        reached = state.constant + alignment.objective()
        state.matches.append(WeightMatch(ascent.permutations, reached, state.initial, ascent.sweeps, converged))
        state.ascent = None
        self._save(now=True)
        return ascent.permutations

    def write(self, target: Path, permutations: Sequence[Permutations], shares: Sequence[float]) -> None:
        """The average, shard by shard."""
        layout = self.checkpoints[0]

        def write_tensor(name: str, file: BinaryIO) -> None:
            self.interrupts.raise_pending()
            self._write_average(name, file, permutations, shares)

        if target.suffix.lower() == ".safetensors":
            self.progress(f"writing {target.name}")
            metadata = merged_metadata(layout)
            write_safetensors(target, list(layout.shapes), layout, write_tensor, metadata=metadata)
            return
        prepare_folder(target, layout)
        for number, (shard, names) in enumerate(layout.shards.items(), 1):
            if shard in self.state.shards and (target / shard).is_file():
                continue
            self.progress(f"writing {shard} ({number} of {len(layout.shards)})")
            write_safetensors(target / shard, names, layout, write_tensor, metadata=layout.metadata.get(shard))
            self.state.shards.append(shard)
            self._save(now=True)
        finish_folder(target, layout)

    def _write_average(
        self, name: str, file: BinaryIO, permutations: Sequence[Permutations], shares: Sequence[float]
    ) -> None:
        first = self.checkpoints[0][name]
        if not (first.is_floating_point() or first.is_complex()):
            write_rows(first, file)
            return
        tensors = [
            permuted(c[name].detach(), name, self.spec, p) for c, p in zip(self.checkpoints, permutations, strict=True)
        ]
        work = torch.promote_types(first.dtype, torch.float32)
        for piece, *others in chunks(*tensors, elements=max(self.block_bytes // work.itemsize, 1)):
            total = piece.to(work) * shares[0]
            for other, share in zip(others, shares[1:], strict=True):
                total.add_(other.to(work), alpha=share)
            write_rows(total.to(first.dtype), file)

    def _save(self, *, now: bool = False) -> None:
        """Save the state where it is time, and always before an interruption is let through."""
        self.state.save(now=now or self.interrupts.pending is not None)
        self.interrupts.raise_pending()


def write_permutations(
    path: str | os.PathLike[str], permutations: Sequence[Mapping[str, Tensor]], spec: PermutationSpec
) -> None:
    """Write the permutations of models with the spec that they are of, as safetensors, whole or not at all.

    Args:
        path: of the file.
        permutations: one dict a model; stored as int32 under ``number of the model/atom``, numbers from 0.
        spec: goes into the metadata as JSON, under ``spec``.
    """
    tensors = {f"{m}/{k}": p.int() for m, found in enumerate(permutations) for k, p in found.items()}
    metadata = {"models": str(len(permutations)), "spec": json.dumps(spec.to_json())}
    write_bytes_atomic(path, save(tensors, metadata), argument="permutations")


def read_permutations(path: str | os.PathLike[str]) -> list[Permutations]:
    """Read what :func:`write_permutations` wrote, one dict a model.

    Raises:
        InputError: it was not written by it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found: list[Permutations] = [{} for _ in range(int((file.metadata() or {})["models"]))]
            for name in file.keys():  # noqa: SIM118
                m, atom = name.split("/", 1)
                found[int(m)][atom] = file.get_tensor(name).long()
            return found
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        raise InputError("path", "permutations in a safetensors file", f"{path} ({error})") from error


def _check_fits(checkpoint: Checkpoint, spec: PermutationSpec) -> None:
    wrong = []
    for name, layouts in spec.layouts.items():
        shape = tuple(layout.size for layout in layouts)
        if name not in checkpoint:
            wrong.append(f"no {name}")
        elif (found := checkpoint.shapes[checkpoint.ties.get(name, name)]) != shape:
            wrong.append(f"{name} {found} for {shape}")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError("checkpoints", "the entries and shapes of the spec", ", ".join(wrong[:8]) + more)


def check_target(target: Path, layout: Checkpoint, *, resumed: bool) -> None:
    """Check that a merged checkpoint can be written, before any work.

    Args:
        target: a file that ends in ``.safetensors``, or a folder.
        layout: the checkpoint whose shards a folder gets.
        resumed: whether the folder may hold what an earlier run has written.

    Raises:
        InputError: it cannot be written, or it is a folder with files in it.
    """
    if target.suffix.lower() == ".safetensors":
        check_writable(target)
        return
    if not layout.is_folder:
        raise InputError("output", "a file that ends in .safetensors", repr(str(target)))
    if target.is_dir() and any(target.iterdir()) and not resumed:
        raise InputError("output", "a folder that is new or empty", f"{target}, which holds files")
    if not target.exists():
        check_writable(target)


def _fingerprint(
    checkpoints: Sequence[Checkpoint],
    spec: PermutationSpec,
    shares: Sequence[float],
    permutations: Sequence[Mapping[str, Tensor]] | None,
    max_sweeps: int,
    tol: float,
    block_bytes: int,
    target: Path,
) -> str:
    """What a state must belong to, to be gone on from: the files as they are, the spec and the settings."""
    digest = hashlib.sha256()
    settings = [list(shares), max_sweeps, tol, block_bytes, os.path.realpath(target)]
    digest.update(json.dumps([spec.to_json(), settings]).encode())
    for checkpoint in checkpoints:
        folder = checkpoint.path if checkpoint.is_folder else checkpoint.path.parent
        files = [folder / shard for shard in checkpoint.shards] if checkpoint.metadata else [checkpoint.path]
        for file in files:
            status = file.stat()
            digest.update(f"{os.path.realpath(file)} {status.st_size} {status.st_mtime_ns}\n".encode())
    for given in permutations or ():
        for name, permutation in sorted(given.items()):
            digest.update(name.encode() + permutation.numpy().tobytes())
    return digest.hexdigest()


def _silent(_: str) -> None:
    return None
