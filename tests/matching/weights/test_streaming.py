"""Merging from file to file against the same merge in memory."""

import errno
import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from diffmatch.errors import InputError
from diffmatch.matching.weights import (
    apply_permutations,
    average_states,
    file_merge,
    match_weights,
    permutation_spec,
    random_permutations,
)
from diffmatch.matching.weights.checkpoint_files import INDEX_NAME, open_checkpoint, write_checkpoint
from diffmatch.matching.weights.file_merge import merge_files, read_permutations, write_permutations

ARCHITECTURES = ["mlp", "resnet8", "decoder", "decoder, gqa", "vit", "grouped", "recurrent"]


def drawn(model: nn.Module, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A state with random values; what is tied stays tied."""
    done: dict[int, torch.Tensor] = {}
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in done:
            value = tensor.detach().clone()
            if value.is_floating_point():
                value = torch.rand(value.shape, generator=generator).add_(0.1).to(dtype)
            done[id(tensor)] = value
        state[name] = done[id(tensor)]
    return state


def same_bits(x: dict[str, torch.Tensor], y) -> bool:
    return set(x) == set(y) and all(
        x[name].dtype == y[name].dtype
        and torch.equal(x[name].isnan(), y[name].isnan())
        and torch.equal(x[name], y[name])
        for name in x
    )


def in_memory(states, spec, weights=None):
    matches = [match_weights(states[0], state, spec, start={}) for state in states[1:]]
    aligned = [
        states[0],
        *(apply_permutations(s, spec, m.permutations) for s, m in zip(states[1:], matches, strict=True)),
    ]
    return average_states(aligned, weights=weights), matches


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_has_the_bits_of_the_merge_in_memory(cases, name, tmp_path, generator):
    torch.manual_seed(0)
    model = cases[name].make().eval()
    spec = permutation_spec(model, cases[name].inputs())
    states = [drawn(model, generator) for _ in range(2)]
    wanted, matches = in_memory(states, spec)
    for m, state in enumerate(states):
        write_checkpoint(tmp_path / f"{m}.safetensors", state)
    found = merge_files([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], spec, tmp_path / "out.safetensors")
    assert same_bits(wanted, open_checkpoint(found.output))
    assert all(torch.equal(p, found.permutations[1][atom]) for atom, p in matches[0].permutations.items())
    assert found.matches[0].objective == pytest.approx(matches[0].objective, rel=1e-12)
    assert found.matches[0].initial == pytest.approx(matches[0].initial, rel=1e-12)
    assert matches[0].objective > matches[0].initial
    assert (found.matches[0].sweeps, found.matches[0].converged) == (matches[0].sweeps, True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_stay_and_three_models_have_their_shares(cases, dtype, tmp_path, generator):
    model = cases["mlp"].make().eval()
    spec = permutation_spec(model, cases["mlp"].inputs())
    states = [drawn(model, generator, dtype) for _ in range(3)]
    paths = [tmp_path / "a.pt", tmp_path / "b.safetensors", tmp_path / "c.pth"]
    for path, state in zip(paths, states, strict=True):
        if path.suffix == ".safetensors":
            write_checkpoint(path, state)
        else:
            torch.save({"state_dict": state}, path)
    shares = [0.5, 0.3, 0.2]
    wanted, _ = in_memory(states, spec, shares)
    found = open_checkpoint(merge_files(paths, spec, tmp_path / "out.safetensors", weights=shares).output)
    assert same_bits(wanted, found)
    assert found["0.weight"].dtype == dtype
    assert found["2.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("name", ["resnet8", "decoder, gqa", "grouped", "recurrent"])
def test_blocks_of_some_numbers_find_planted_permutations(cases, name, tmp_path, generator):
    model = cases[name].make().eval()
    spec = permutation_spec(model, cases[name].inputs())
    state = {
        n: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
        for n, t in drawn(model, generator).items()
    }
    if "head.weight" in state and "embed.weight" in state and state["head.weight"].shape == state["embed.weight"].shape:
        state["head.weight"] = state["embed.weight"]
    blocks = [merged(state, spec, tmp_path / str(size), size) for size in (512, 1 << 20)]
    assert blocks[0].matches[0].objective == pytest.approx(blocks[1].matches[0].objective, rel=1e-5)
    assert all(torch.equal(p, blocks[1].permutations[1][atom]) for atom, p in blocks[0].permutations[1].items())


def merged(state, spec, folder, block_bytes):
    folder.mkdir()
    other = apply_permutations(state, spec, random_permutations(spec, generator=torch.Generator().manual_seed(7)))
    write_checkpoint(folder / "0.safetensors", state)
    write_checkpoint(folder / "1.safetensors", other)
    return merge_files(
        [folder / "0.safetensors", folder / "1.safetensors"], spec, folder / "out.safetensors", block_bytes=block_bytes
    )


def decoder(cases):
    """A decoder whose output is tied to its embedding, and its spec from the architecture alone."""
    with torch.device("meta"):
        model = cases["decoder"].make().eval()
        spec = permutation_spec(model, torch.zeros(2, 5, dtype=torch.int64))
    return model, spec


@pytest.fixture
def folders(cases, tmp_path, generator):
    """Two models in two shards each, the tied output left out, as Hugging Face writes them."""
    model, spec = decoder(cases)
    states = []
    for name in "ab":
        folder, state = tmp_path / name, drawn(cases["decoder"].make(), generator, torch.bfloat16)
        folder.mkdir()
        states.append(state)
        names = [n for n in state if n != "head.weight"]
        shards = {"x-1.safetensors": names[:5], "x-2.safetensors": names[5:]}
        for shard, part in shards.items():
            write_checkpoint(folder / shard, {n: state[n] for n in part})
        weight_map = {n: shard for shard, part in shards.items() for n in part}
        (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
        (folder / "config.json").write_text(f'{{"of": "{name}"}}')
    return model, spec, states, [tmp_path / "a", tmp_path / "b"]


def opened(paths, model):
    return [open_checkpoint(path).with_ties_of(model) for path in paths]


def test_a_sharded_folder_without_a_model_that_has_weights(folders, tmp_path):
    model, spec, states, paths = folders
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    merge_files(opened(paths, model), spec, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"x-1.safetensors", "x-2.safetensors", INDEX_NAME, "config.json"}
    assert (tmp_path / "out" / "config.json").read_text() == '{"of": "a"}'
    assert (tmp_path / "out" / INDEX_NAME).read_bytes() == (paths[0] / INDEX_NAME).read_bytes()
    found = open_checkpoint(tmp_path / "out")
    assert found.shards == open_checkpoint(paths[0]).shards
    assert "head.weight" not in found
    tied = found.with_ties_of(model)
    assert tied["head.weight"].data_ptr() == tied["embed.weight"].data_ptr()
    assert same_bits(in_memory(states, spec)[0], tied)


def test_one_file_from_shards_remembers_what_is_tied(folders, tmp_path):
    model, spec, states, paths = folders
    merge_files(opened(paths, model), spec, tmp_path / "out.safetensors")
    found = open_checkpoint(tmp_path / "out.safetensors")
    assert found.ties == {"head.weight": "embed.weight"}
    assert same_bits(in_memory(states, spec)[0], found)


@pytest.fixture
def one_thread():
    """A forked process has none of the threads that torch computes with, and would wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def killed(job, event: str, count: int) -> int:
    """Run something in a process that ends, as if killed, at the n-th renaming of a file whose name holds a word."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen, replace = [], os.replace

    def deadly(source, target) -> None:
        replace(source, target)
        if event in os.path.basename(target):
            seen.append(target)
            if len(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)

    os.replace = deadly
    try:
        job()
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills")
@pytest.mark.parametrize(("event", "count"), [("state", 1), ("state", 4), ("x-1", 1), ("x-2", 1), ("config", 1)])
@pytest.mark.usefixtures("one_thread")
def test_a_killed_merge_goes_on_to_the_same_bits(folders, tmp_path, monkeypatch, event, count):
    model, spec, _, paths = folders
    monkeypatch.setattr(file_merge, "SAVE_SECONDS", 0.0)
    whole = merge_files(opened(paths, model), spec, tmp_path / "whole")

    def job(progress=None):
        checkpoint = tmp_path / "state"
        return merge_files(opened(paths, model), spec, tmp_path / "out", checkpoint=checkpoint, progress=progress)

    assert killed(job, event, count) == -signal.SIGKILL
    assert (tmp_path / "state").exists()
    told: list[str] = []
    found = job(told.append)
    assert not (tmp_path / "state").exists()
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert found.matches[0].sweeps == whole.matches[0].sweeps
    assert found.matches[0].initial == whole.matches[0].initial
    if event != "state":
        assert not any("sweep" in line for line in told)  # nothing was matched again
    if event in ("x-2", "config"):
        assert not any("x-1" in line for line in told)


def test_the_state_of_another_run_is_refused(folders, tmp_path, monkeypatch):
    model, spec, _, paths = folders
    monkeypatch.setattr(file_merge, "SAVE_SECONDS", 0.0)
    state = tmp_path / "state"

    def stop(_: str) -> None:
        if state.exists():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        merge_files(opened(paths, model), spec, tmp_path / "out", checkpoint=state, progress=stop)
    with pytest.raises(InputError, match="checkpoint: want the state of this merge "):
        merge_files(opened(paths, model), spec, tmp_path / "out", checkpoint=state, weights=[0.9, 0.1])
    merge_files(opened(paths, model), spec, tmp_path / "out", checkpoint=state, weights=[0.9, 0.1], resume=False)
    state.write_bytes(b"no state")
    with pytest.raises(InputError, match="checkpoint"):
        merge_files(opened(paths, model), spec, tmp_path / "new", checkpoint=state)


def test_a_full_disk_leaves_nothing_half_written(folders, tmp_path):
    model, spec, _, paths = folders
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"the old one")
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # a real write that fails half-way
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            merge_files(opened(paths, model), spec, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert out.read_bytes() == b"the old one"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.untyped
def test_what_does_not_fit_is_refused(folders, tmp_path):
    model, spec, states, paths = folders
    with pytest.raises(InputError, match="checkpoints: want two models or more, got 1"):
        merge_files(paths[:1], spec, tmp_path / "out")
    with pytest.raises(InputError, match=r"checkpoints: want the entries and shapes of the spec, got no head\.weight"):
        merge_files(paths, spec, tmp_path / "out")
    with pytest.raises(InputError, match="output: want a folder that is new or empty"):
        merge_files(opened(paths, model), spec, paths[0])
    single = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    write_checkpoint(single[0], states[0])
    write_checkpoint(single[1], {**states[1], "norm.weight": torch.full_like(states[1]["norm.weight"], torch.nan)})
    with pytest.raises(InputError, match=r"output: want a file that ends in .safetensors, got '.*out'"):
        merge_files(single, spec, tmp_path / "out")
    with pytest.raises(InputError, match=r"b.safetensors\['norm.weight'\]: want finite values, got NaN or infinity"):
        merge_files(single, spec, tmp_path / "out.safetensors")
    write_checkpoint(single[1], {**states[1], "norm.weight": torch.ones(3), "extra": torch.ones(2)})
    wanted = (
        r"models: want the same .* got extra in b.safetensors only, norm.weight \(10,\) and, in b.safetensors, \(3,\)"
    )
    with pytest.raises(InputError, match=wanted):
        merge_files(single, spec, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_permutations_on_disk(folders, tmp_path, generator):
    _, spec, _, _ = folders
    wanted = [random_permutations(spec, generator=generator) for _ in range(2)]
    write_permutations(tmp_path / "p.safetensors", wanted, spec)
    found = read_permutations(tmp_path / "p.safetensors")
    assert [set(p) for p in found] == [set(spec.atoms)] * 2
    assert all(torch.equal(x[n], y[n]) for x, y in zip(found, wanted, strict=True) for n in x)
    assert (tmp_path / "p.safetensors").stat().st_size < 8 * sum(p.numel() for q in wanted for p in q.values()) + 20_000
    with pytest.raises(InputError, match="permutations in a safetensors file"):
        read_permutations(Path(__file__))
