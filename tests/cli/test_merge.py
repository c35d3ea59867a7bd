"""`diffmatch merge`: the plan, what is written, and what is refused before anything is."""

import json
import re
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from diffmatch.cli import main, merge_inputs, merge_job
from diffmatch.matching.weights import apply_permutations, permutation_spec
from diffmatch.matching.weights.checkpoint_files import open_checkpoint, write_checkpoint
from diffmatch.matching.weights.file_merge import read_permutations

pytest.importorskip("plotly")

MODULE = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))

def with_inputs():
    return model(), torch.zeros(2, 4)

def points():
    return torch.randn(256, 4, generator=torch.Generator().manual_seed(3))

def batches():
    for x in points().split(64):
        yield x, (x[:, :3] + x[:, 1:].abs()).argmax(1)

def unlabelled():
    return list(points().split(64))

def wrong():
    raise RuntimeError("no weights today")

def number():
    return 3

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = model()

    def forward(self, x):
        return self.layers(x) if x.sum() > 0 else self.layers(-x)

def branching():
    return Branching(), torch.ones(2, 4)
"""


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def trained(seed: int) -> dict[str, torch.Tensor]:
    """A small net after some steps, so that permutations matter."""
    namespace: dict = {}
    exec(MODULE, namespace)
    torch.manual_seed(seed)
    model = namespace["model"]()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(15):
        for x, y in namespace["batches"]():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.state_dict()


@pytest.fixture(scope="module")
def states() -> list[dict[str, torch.Tensor]]:
    return [trained(seed) for seed in range(3)]


@pytest.fixture
def folder(tmp_path, monkeypatch, states, request) -> Path:
    """The current folder, with a module of its own and three models."""
    monkeypatch.chdir(tmp_path)
    name = re.sub(r"\W", "_", request.node.name)  # a module of this name is not imported yet
    (tmp_path / f"net_{name}.py").write_text(MODULE)
    torch.save(states[0], "a.pt")
    write_checkpoint("b.safetensors", states[1])
    write_checkpoint("c.safetensors", states[2])
    tmp_path.joinpath("module").write_text(f"net_{name}")
    return tmp_path


def run(folder: Path, *words: str, model: str = "with_inputs", out: str = "out.safetensors") -> int:
    module = (folder / "module").read_text()
    named = [word.replace("net:", f"{module}:") for word in words]
    models = [] if any(not word.startswith("-") for word in named[:1]) else ["a.pt", "b.safetensors"]
    return main(["merge", *models, *named, "--model", f"{module}:{model}", "-o", out, "--device", "cpu"])


def refused(capsys, code: int) -> str:
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("diffmatch: error: ")
    assert error.count("\n") == 1
    return error.removeprefix("diffmatch: error: ").strip()


def test_with_data_it_chooses_verifies_measures_and_reports(folder, states, capsys):
    assert run(folder, "--data", "net:batches", "--report", "out.html") == 0
    shown = capsys.readouterr().out
    assert "1 set of units can be permuted (function checked)" in shown
    assert "stays: 2 axes, such as 3.weight axis 0: an axis of the model's output" in shown
    assert re.search(r"in memory: up to about .* available\nweight matching: about a second", shown)
    assert "out.safetensors: 2 models by " in shown
    content = json.loads(Path("out.json").read_text())
    assert content["verification"]["passed"]
    assert content["verification"]["differences"][0] < 1e-12
    assert len(content["candidates"]) >= 3
    best = min(content["candidates"], key=lambda candidate: candidate["loss"])
    assert (content["method"], content["repair"]) == (best["method"], best["repair"])
    assert content["losses"]["merged"] == pytest.approx(best["loss"], rel=1e-5)
    assert content["barrier"]["barrier"] <= content["barrier_before"]["barrier"]
    layers = {layer["name"]: layer for layer in content["layers"]}
    assert list(layers) == ["0.weight", "3.weight"]
    if content["method"] != "identity":
        assert layers["3.weight"]["cosine"][1] > layers["3.weight"]["cosine"][0]
    assert content["plan"]["movable"] == 4 * 12 + 3 * 12 + 3 * 12
    found, permutations = open_checkpoint("out.safetensors"), read_permutations("out.permutations.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in states[0].items()}
    spec = permutation_spec(
        nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)), torch.zeros(2, 4)
    )
    moved = apply_permutations(states[1], spec, permutations[1])
    torch.testing.assert_close(found["3.weight"], (states[0]["3.weight"] + moved["3.weight"]) / 2)
    page = Path("out.html").read_text(encoding="utf-8")
    for text in (
        "a.pt and b.safetensors merged",
        "Loss between the models",
        "What stays",
        "--data",
        "axis of the input",
    ):
        assert text in page
    files = {path.name for path in folder.iterdir()} - {"__pycache__"}
    assert {"out.safetensors", "out.json", "out.html", "out.permutations.safetensors"} <= files
    assert len(files) == 4 + 5


def test_inputs_alone_reset_batch_norm(folder, states):
    assert run(folder, "--data", "net:unlabelled", "--quiet", model="model") == 0
    content = json.loads(Path("out.json").read_text())
    assert (content["method"], content["repair"], content["notes"]) == ("weights", "reset", [])
    assert content["barrier"] is None
    found = open_checkpoint("out.safetensors")
    points = torch.randn(256, 4, generator=torch.Generator().manual_seed(3))
    before = points @ found["0.weight"].T + found["0.bias"]
    torch.testing.assert_close(found["1.running_mean"], before.mean(0), rtol=1e-4, atol=1e-5)


def test_three_models_in_memory_and_from_disk(folder, capsys):
    models = ["a.pt", "b.safetensors", "c.safetensors"]
    assert run(folder, *models, "--method", "identity", out="x.safetensors") == 0
    assert run(folder, *models, "--method", "identity", "--stream", out="y.safetensors") == 0
    x, y = open_checkpoint("x.safetensors"), open_checkpoint("y.safetensors")
    assert all(torch.equal(x[name], y[name]) for name in x)
    shown = capsys.readouterr().out
    assert "(function not checked)" in shown
    assert "they were not run" in shown
    assert "statistics of batch norm are averages" in shown
    assert not Path("y.safetensors.checkpoint").exists()


def test_a_dry_run_writes_nothing(folder, capsys):
    before = set(folder.iterdir())
    assert run(folder, "--dry-run") == 0
    assert "1 set of units can be permuted" in capsys.readouterr().out
    assert set(folder.iterdir()) - {folder / "__pycache__"} == before


def test_a_model_too_large_for_the_memory_stays_on_disk(folder, monkeypatch, capsys):
    monkeypatch.setattr(merge_inputs, "available_memory", lambda: 1000.0)
    assert run(folder) == 0
    assert "on disk, tensor by tensor: up to about " in capsys.readouterr().out
    assert json.loads(Path("out.json").read_text())["streamed"]


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("words", "model", "message"),
    [
        (
            [],
            "wrong",
            "model: want a function that can be called .*RuntimeError: no weights today",
        ),
        ([], "number", "model: want a function that returns an nn.Module"),
        ([], "missing", "model: want a name in module '.*', got 'missing'"),
        ([], "model", "model: want a factory that returns .model, example inputs., or batches"),
        (["--data", "net:number"], "model", "data: want a function that returns batches, got "),
        (["--data", "nothing:here"], "model", "data: want a module that can be imported, got 'nothing'"),
        (["--data", "nothing"], "model", "data: want module:function, got 'nothing'"),
        (["--loss", "cross"], "with_inputs", "loss: want a name in torch.nn.functional"),
        (["--method", "magic"], "with_inputs", "method: want one of "),
        (["--method", "activations"], "with_inputs", "data: want "),
        (["--method", "activations", "--stream"], "with_inputs", "method: want one of auto, identity, weights"),
        (["--repair", "repair"], "with_inputs", "data: want "),
        (["--spec", "none.json"], "with_inputs", "spec: want an existing file"),
        (["--optimizer", "adam"], "with_inputs", "optimizer: want none"),
        (["a.pt", "missing.pt"], "with_inputs", "models: want a checkpoint file or folder, got 'missing.pt'"),
    ],
)
def test_what_cannot_be_met_is_refused_before_anything_is_written(folder, capsys, words, model, message):
    before = set(folder.iterdir())
    assert re.search(message, refused(capsys, run(folder, *words, "--quiet", model=model)))
    assert set(folder.iterdir()) - {folder / "__pycache__"} == before


@pytest.mark.untyped
def test_bad_files_are_named(folder, states, capsys):
    torch.save(nn.Linear(2, 2), "pickle.pt")
    assert "models: want a state dict saved by torch.save" in refused(
        capsys, run(folder, "a.pt", "pickle.pt", "--quiet")
    )
    write_checkpoint("nan.safetensors", {**states[1], "0.bias": torch.full((12,), torch.nan)})
    assert "0.bias" in refused(capsys, run(folder, "a.pt", "nan.safetensors", "--quiet"))
    write_checkpoint("other.safetensors", {**states[1], "0.bias": torch.ones(2), "more": torch.ones(1)})
    message = refused(capsys, run(folder, "a.pt", "other.safetensors", "--quiet"))
    assert message.endswith("got more in other.safetensors only, 0.bias (12,) and, in other.safetensors, (2,)")
    for state in "ab":
        write_checkpoint(f"{state}2.safetensors", {"0.weight": torch.ones(12, 4), "z": torch.ones(2)})
    message = refused(capsys, run(folder, "a2.safetensors", "b2.safetensors", "--quiet"))
    assert message.startswith("models: want the entries and shapes of the model, got a2.safetensors: no 0.bias, ")
    assert message.endswith("no 3.bias and 1 more")
    assert "output: want another file than that of model 1" in refused(
        capsys, run(folder, "b.safetensors", "c.safetensors", "--quiet", out="b.safetensors")
    )
    assert "output: want a file that ends in .safetensors" in refused(capsys, run(folder, "--quiet", out="out.pt"))


@pytest.mark.untyped
def test_a_model_that_cannot_be_traced_says_what_to_do(folder, states, capsys):
    for file in ("a2.safetensors", "b2.safetensors"):
        write_checkpoint(file, {f"layers.{name}": tensor for name, tensor in states[0].items()})
    message = refused(capsys, run(folder, "a2.safetensors", "b2.safetensors", model="branching"))
    assert re.search(r"model: want a model that torch.export can trace .*by_hand.* --spec", message)


def test_a_full_disk_ends_with_one_line_and_the_old_file(folder, capsys):
    Path("out.safetensors").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for stream in ("--stream", "--no-stream"):
        assert run(folder, "--dry-run", stream) == 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        try:
            code = run(folder, "--quiet", stream)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert code == 1
        assert "the disk is full (File too large): out.safetensors was not replaced" in capsys.readouterr().err
        assert Path("out.safetensors").read_bytes() == b"old"
    assert not [path for path in folder.iterdir() if path.name.startswith(".diffmatch")]


def test_a_model_that_changes_when_it_is_permuted_is_not_written(folder, monkeypatch, capsys):
    monkeypatch.setattr(merge_job, "permuted_difference", lambda *_: 0.5)
    assert run(folder, "--quiet") == 1
    assert "a permuted model does not compute what it did: outputs differ by 5.0e-01" in capsys.readouterr().err
    assert not Path("out.safetensors").exists()


def test_a_spec_written_by_hand(folder, states, capsys):
    permutation_spec(net(), torch.zeros(2, 4)).save("spec.json")
    assert run(folder, "--spec", "spec.json", "--data", "net:unlabelled", model="model") == 0
    assert run(folder, "--spec", "spec.json", "--quiet", model="model", out="blind.safetensors") == 0
    assert "the permuted models were not compared" in json.loads(Path("blind.json").read_text())["notes"][-1]
