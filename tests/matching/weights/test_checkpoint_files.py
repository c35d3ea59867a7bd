"""Checkpoints in the formats that are read, and those that are refused."""

import json
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffmatch.errors import InputError
from diffmatch.matching.weights.checkpoint_files import INDEX_NAME, open_checkpoint, write_checkpoint

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def test_safetensors_reads_back_what_was_written(tmp_path, generator):
    state = {f"t.{i}": torch.randint(0, 2, (i, 3), generator=generator).to(d) for i, d in enumerate(DTYPES)}
    state["scalar"], state["turned"] = torch.tensor(2.5), torch.rand(3, 4, generator=generator).T
    write_checkpoint(tmp_path / "x.safetensors", state)
    for found in (load_file(tmp_path / "x.safetensors"), open_checkpoint(tmp_path / "x.safetensors")):
        assert set(found) == set(state)
        assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in state.items())
    with open(tmp_path / "x.safetensors", "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    assert length % 8 == 0
    for name, tensor in state.items():
        assert header[name]["data_offsets"][0] % tensor.dtype.itemsize == 0  # aligned


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_without_pickled_code(tmp_path, wrap, zipped):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model.append(model[0])
    state = model.state_dict()
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = open_checkpoint(tmp_path / "x.pt")
    assert found.ties == {"3.weight": "0.weight", "3.bias": "0.bias"}
    assert set(found) == set(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    write_checkpoint(tmp_path / "y.safetensors", found.state_dict())
    again = open_checkpoint(tmp_path / "y.safetensors")
    assert again.ties == found.ties  # stored once, and not forgotten
    assert set(load_file(tmp_path / "y.safetensors")) == set(state) - set(found.ties)


class Surprise:
    def __reduce__(self):
        return print, ("pickled code ran",)


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"x": torch.ones(2), "y": Surprise()}])
def test_pickles_are_refused(tmp_path, capsys, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"first: want a state dict saved by torch\.save.*holds other objects"):
        open_checkpoint(tmp_path / "x.pt", argument="first")
    assert capsys.readouterr().out == ""


def test_what_is_no_checkpoint_is_refused(tmp_path):
    def refused(name: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            open_checkpoint(tmp_path / name)

    refused("none.safetensors", "want a checkpoint file or folder")
    (tmp_path / "x.txt").write_text("")
    refused("x.txt", "that ends in .safetensors, .pt")
    (tmp_path / "x.safetensors").write_bytes(b"\x10" * 30)
    refused("x.safetensors", "want a safetensors file that is whole")
    save_file({"a": torch.ones(100)}, tmp_path / "half.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "half.safetensors").read_bytes()[:-9])
    refused("half.safetensors", "want a safetensors file that is whole")
    (tmp_path / "x.pt").write_bytes(b"nothing")
    refused("x.pt", "x.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    refused("list.pt", "want a state dict, tensors by name, got .* with list")
    torch.save(OrderedDict(), tmp_path / "empty.pt")
    refused("empty.pt", "want a state dict")
    (tmp_path / "folder").mkdir()
    refused("folder", "which has none")
    (tmp_path / "folder" / INDEX_NAME).write_text("[]")
    refused("folder", "want an index of shards")
    index = {"weight_map": {"a": "../half.safetensors"}}
    (tmp_path / "folder" / INDEX_NAME).write_text(json.dumps(index))
    refused("folder", "want shards in the folder of their index")
    index = {"weight_map": {"a": "1.safetensors", "b": "1.safetensors"}}
    (tmp_path / "folder" / INDEX_NAME).write_text(json.dumps(index))
    refused("folder", "1.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "folder" / "1.safetensors")
    refused("folder", "without b")


def test_a_folder_with_one_file(tmp_path):
    (tmp_path / "in").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    (tmp_path / "in" / "other.bin").write_bytes(b"other weights")
    like = open_checkpoint(tmp_path / "in")
    write_checkpoint(tmp_path / "out", {"a": torch.full((2,), 3.0)}, like=like)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.safetensors", "tokenizer.json"]
    found = open_checkpoint(tmp_path / "out")
    assert found["a"].tolist() == [3, 3]
    assert found.metadata == {"model.safetensors": {"format": "pt"}}
