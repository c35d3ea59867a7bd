"""Merging from file to file against loading, matching and averaging in memory, on LLaMA-shaped checkpoints in bfloat16.

The second model is the first one with its units permuted and noise added. Beside the time stand the share of permuted
units that were found again, and whether the files hold the same bits. ``python benchmarks/bench_streaming_merge.py
FOLDER`` makes a pair of 2 GB together in FOLDER, merges it in a process whose anonymous memory is watched, kills the
process in the middle, lets it go on, and prints what it measured.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffmatch.matching.weights import (
    PermutationSpec,
    apply_permutations,
    average_states,
    match_weights,
    permutation_spec,
    random_permutations,
)
from diffmatch.matching.weights.checkpoint_files import INDEX_NAME, open_checkpoint, write_checkpoint
from diffmatch.matching.weights.file_merge import merge_files, read_permutations, write_permutations
from diffmatch.matching.weights.plan import merge_plan

OURS = "diffmatch"
NOISE = 0.3  # of a weight's standard deviation
TWO_GB = {"d": 1024, "hidden": 2816, "layers": 40, "vocabulary": 32000}


class Layer(nn.Module):
    """Attention with grouped heads and rotated queries and keys, and a gated hidden layer."""

    def __init__(self, d: int, hidden: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, d // heads
        self.q_proj, self.o_proj = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(d, groups * self.size, bias=False) for _ in "kv")
        self.gate_proj, self.up_proj = (nn.Linear(d, hidden, bias=False) for _ in "gu")
        self.down_proj = nn.Linear(hidden, d, bias=False)
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(d), nn.RMSNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        y = self.input_layernorm(x)
        q, k = rotated(self._split(self.q_proj(y), self.heads)), rotated(self._split(self.k_proj(y), self.groups))
        v, repeats = self._split(self.v_proj(y), self.groups), self.heads // self.groups
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.o_proj(z)
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.size)).transpose(1, 2)


class Llama(nn.Module):
    def __init__(self, *, d: int, hidden: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        heads = max(d // 64, 4)
        self.embed_tokens = nn.Embedding(vocabulary, d)
        self.layers = nn.ModuleList(Layer(d, hidden, heads, heads // 2) for _ in range(layers))
        self.norm, self.lm_head = nn.RMSNorm(d), nn.Linear(d, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def rotated(x: Tensor) -> Tensor:
    """Rotary embedding of pairs of dimensions."""
    t, half = x.shape[-2], x.shape[-1] // 2
    angle = torch.arange(t, device=x.device)[:, None] / 1e4 ** (torch.arange(half, device=x.device) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def spec_of(shape: dict[str, int]) -> PermutationSpec:
    """Derived from the architecture alone: no weight is made."""
    with torch.device("meta"):
        return permutation_spec(Llama(**shape), torch.zeros(1, 4, dtype=torch.int64))


def make_pair(folder: Path, shape: dict[str, int], *, shards: int) -> dict[str, Tensor]:
    """Write the models a and b as sharded folders; gives the permutations that bring b back to a."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Llama(**shape).state_dict().items()}
    spec, generator = spec_of(shape), torch.Generator().manual_seed(0)
    state = {name: torch.randn(size, generator=generator).mul_(size[-1] ** -0.5) for name, size in shapes.items()}
    write_folder(folder / "a", {name: tensor.bfloat16() for name, tensor in state.items()}, shards)
    planted = random_permutations(spec, generator=generator)
    for tensor in state.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=NOISE * float(tensor.std()))
    other = apply_permutations({name: tensor.bfloat16() for name, tensor in state.items()}, spec, planted)
    write_folder(folder / "b", other, shards)
    return planted


def write_folder(folder: Path, state: dict[str, Tensor], shards: int) -> None:
    """A checkpoint as Hugging Face shards it."""
    folder.mkdir(parents=True)
    names = list(state)
    size = -(-len(names) // shards)
    weight_map = {}
    for k in range(shards):
        file = f"model-{k + 1:05}-of-{shards:05}.safetensors"
        part = names[k * size : (k + 1) * size]
        write_checkpoint(folder / file, {name: state[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in state.values())
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def in_memory(folder: Path, spec: PermutationSpec) -> dict[str, Tensor]:
    a, b = (open_checkpoint(folder / name).state_dict() for name in "ab")
    match = match_weights(a, b, spec, frank_wolfe=False)
    return average_states([a, apply_permutations(b, spec, match.permutations)])


def found_again(permutations: dict[str, Tensor], planted: dict[str, Tensor]) -> float:
    """Share of units, atoms without parents alone, that were brought back."""
    right = total = 0
    for name, permutation in permutations.items():
        if permutation.ndim == 1:
            right += int((planted[name][permutation] == torch.arange(len(permutation))).sum())
            total += len(permutation)
    return right / total


def run(bench: Any) -> None:
    full = [{"d": 256, "hidden": 704, "layers": 4, "vocabulary": 2000}]
    for shape in bench.sizes(full, tiny=[{"d": 32, "hidden": 48, "layers": 1, "vocabulary": 40}]):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            planted, spec = make_pair(folder, shape, shards=2), spec_of(shape)
            wanted = in_memory(folder, spec)
            out = folder / "out.safetensors"

            def streamed() -> tuple[Any, float]:
                found = merge_files([folder / "a", folder / "b"], spec, out)
                return open_checkpoint(found.output), found_again(found.permutations[1], planted)

            contenders = {OURS: streamed, "in memory": lambda: (in_memory(folder, spec), 1.0)}
            bench.compare(
                "merge",
                contenders,
                size=f"d {shape['d']}, {shape['layers']} layers",
                quality=lambda found: {
                    "same bits": all(torch.equal(found[0][name], wanted[name]) for name in wanted),
                    "units found": found[1],
                },
            )


def anonymous_memory() -> int:
    """Bytes that this process holds and that are no pages of files (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise OSError("RssAnon is not in /proc/self/status")


class Watch:
    """Largest anonymous memory inside the block, looked at every two milliseconds."""

    def __enter__(self) -> "Watch":
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, anonymous_memory())


def child(folder: Path) -> None:
    """Merge the pair, watched, after a tiny merge that loads all code; says so at each saving of the state."""
    with tempfile.TemporaryDirectory() as name:
        tiny = {"d": 32, "hidden": 48, "layers": 1, "vocabulary": 40}
        make_pair(Path(name), tiny, shards=1)
        merge_files([Path(name) / "a", Path(name) / "b"], spec_of(tiny), Path(name) / "o.safetensors")
    spec = spec_of(TWO_GB)
    before, began, processor = anonymous_memory(), time.perf_counter(), time.process_time()
    with Watch() as watch:
        found = merge_files(
            [folder / "a", folder / "b"],
            spec,
            folder / "out",
            checkpoint=folder / "state",
            progress=lambda text: print(text, file=sys.stderr, flush=True),
        )
    measured = {
        "peak": watch.peak - before,
        "seconds": time.perf_counter() - began,
        "processor seconds": time.process_time() - processor,
        "found": found_again(found.permutations[1], read_permutations(folder / "planted.safetensors")[0]),
        "sweeps": found.matches[0].sweeps,
    }
    print(json.dumps(measured))


def main(folder: Path) -> None:
    """Make, merge, kill, go on; see the top of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = spec_of(TWO_GB)
    if not (folder / "planted.safetensors").exists():
        write_permutations(folder / "planted.safetensors", [make_pair(folder, TWO_GB, shards=4)], spec)
    layout = open_checkpoint(folder / "a")
    plan = merge_plan(spec, layout.shapes, layout.dtypes)
    bound = 1.5 * (plan.largest_pair + plan.largest_gram)
    command = [sys.executable, __file__, str(folder), "child"]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert killed.stderr is not None
    for line in killed.stderr:  # killed once half of the atoms have been looked at and the state was saved
        if f"atom {plan.atoms // 2} of" in line:
            break
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    print(f"killed; a state is there: {(folder / 'state').exists()}")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(done.stdout)
    merged = open_checkpoint(folder / "out")
    print(f"models of {layout.nbytes / 1e9:.2f} GB, {len(layout.shards)} shards; merged {merged.nbytes / 1e9:.2f} GB")
    print(f"anonymous memory {measured['peak'] / 1e6:.0f} MB over the interpreter's, allowed {bound / 1e6:.0f} MB")
    print(f"after the kill {measured['seconds']:.0f} s, {measured['processor seconds']:.0f} s of processor time")
    print(f"{100 * measured['found']:.2f} % of the permuted units found again in {measured['sweeps']} sweeps")


if __name__ == "__main__":
    if sys.argv[2:] == ["child"]:
        child(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]))
