from pathlib import Path

import pytest
import torch
from torch.optim import SGD, Adam

from diffmatch.checkpoints import (
    CheckpointFile,
    all_finite,
    load_history,
    load_optimizer,
    optimizer_settings,
    random_state,
    restore_random_state,
    save_history,
    tensors_in,
)
from diffmatch.errors import InputError
from diffmatch.history import History

SETTINGS = {"optimizer": "adam", "lr": "0.1", "ema": None, "shapes": ["(3,)"]}


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, requires_grad=True)


def written(path: Path, **fingerprint: object) -> CheckpointFile:
    file = CheckpointFile(path, settings=SETTINGS, fingerprint=fingerprint)
    file.write({"params": [torch.arange(200.0)]})
    return file


def test_content_comes_back_without_code(tmp_path):
    file = written(tmp_path / "run.pt")
    content = file.read()
    assert torch.equal(content["params"][0], torch.arange(200.0))
    plain = torch.load(tmp_path / "run.pt", weights_only=True)
    assert (plain["format"], plain["version"], plain["settings"]) == ("diffmatch.fit", 1, SETTINGS)


def test_no_file_is_no_content(tmp_path):
    assert CheckpointFile(tmp_path / "run.pt", settings=SETTINGS).read() is None


def test_object_that_could_not_be_loaded_is_found_at_the_first_writing(tmp_path):
    file = CheckpointFile(tmp_path / "run.pt", settings=SETTINGS)
    with pytest.raises(InputError, match="checkpoint: want states of tensors, numbers, strings"):
        file.write({"objects": {"folder": tmp_path}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, 100, 1000, -1, -30])
def test_truncated_file_is_named(tmp_path, size):
    file = written(tmp_path / "run.pt")
    data = (tmp_path / "run.pt").read_bytes()
    (tmp_path / "run.pt").write_bytes(data[:size])
    with pytest.raises(InputError, match=r"checkpoint: want a checkpoint of fit, got .*run\.pt with"):
        file.read()


def test_flipped_bit_is_found(tmp_path):
    file = written(tmp_path / "run.pt")
    data = bytearray((tmp_path / "run.pt").read_bytes())
    place = data.index(torch.arange(200.0).numpy().tobytes()) + 401
    data[place] ^= 4
    (tmp_path / "run.pt").write_bytes(data)
    with pytest.raises(InputError, match=r"with a wrong checksum of .*data/"):
        file.read()


def test_other_files_are_named(tmp_path):
    file = CheckpointFile(tmp_path / "run.pt", settings=SETTINGS)
    torch.save({"weight": torch.ones(3)}, tmp_path / "run.pt")
    with pytest.raises(InputError, match=r"a checkpoint of fit, got .*run\.pt, which is something else"):
        file.read()
    torch.save({"format": "diffmatch.fit", "version": 99}, tmp_path / "run.pt")
    with pytest.raises(InputError, match="want version 1, got version 99"):
        file.read()
    (tmp_path / "run.pt").write_text("text")
    with pytest.raises(InputError, match="BadZipFile"):
        file.read()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": "0.5"}, r"checkpoint: want lr '0\.5', as in this call, got '0\.1' in .*run\.pt \(resume=False"),
        ({"ema": 0.9}, r"want ema 0\.9, as in this call, got None"),
        ({"steps": 5}, "want steps 5, as in this call, got 'nothing'"),
        ({"shapes": ["(4,)"]}, r"want shapes \['\(4,\)'\]"),
    ],
)
def test_other_settings_are_named(tmp_path, changes, message):
    written(tmp_path / "run.pt")
    with pytest.raises(InputError, match=message):
        CheckpointFile(tmp_path / "run.pt", settings=SETTINGS | changes).read()


@pytest.mark.parametrize(
    ("fingerprint", "message"),
    [
        ({"mesh": "b.obj", "size": (1, 2)}, r"want fingerprint: mesh 'b\.obj', as in this call, got 'a\.obj'"),
        ({"size": [1, 2]}, r"want fingerprint: mesh 'nothing', as in this call, got 'a\.obj'"),
        ({"mesh": "a.obj", "size": [1, 2], "seed": 3}, "want fingerprint: seed 3, as in this call, got 'nothing'"),
    ],
)
def test_other_fingerprint_is_named(tmp_path, fingerprint, message):
    written(tmp_path / "run.pt", mesh="a.obj", size=(1, 2))
    with pytest.raises(InputError, match=message):
        CheckpointFile(tmp_path / "run.pt", settings=SETTINGS, fingerprint=fingerprint).read()


def test_same_fingerprint_is_accepted_in_any_order(tmp_path):
    written(tmp_path / "run.pt", mesh="a.obj", size=(1, 2))
    file = CheckpointFile(tmp_path / "run.pt", settings=SETTINGS, fingerprint={"size": [1, 2], "mesh": "a.obj"})
    assert file.read() is not None


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(InputError, match="fingerprint: want JSON-like settings"):
        CheckpointFile(tmp_path / "run.pt", settings=SETTINGS, fingerprint={"x": torch.ones(3)})
    with pytest.raises(InputError, match="checkpoint: want a writable folder"):
        CheckpointFile(tmp_path / "nowhere" / "run.pt", settings=SETTINGS)


def test_random_states_come_back(generator):
    other = torch.Generator().manual_seed(5)
    saved = random_state([generator, other])

    def draw() -> list[torch.Tensor]:
        return [
            torch.rand(3),
            torch.rand(3, generator=generator, device=generator.device),
            torch.rand(3, generator=other),
        ]

    first = draw()
    restore_random_state(saved, [generator, other])
    assert all(torch.equal(a, b) for a, b in zip(first, draw(), strict=True))
    with pytest.raises(InputError, match="generators: want 2 generators, as in the checkpoint, got 1"):
        restore_random_state(saved, [generator])


def test_history_comes_back_exactly():
    history = History(seconds=1.5, evaluations=3, status="stopped", message="why")
    for i in range(3):
        history.record(0.1 * i, {"a": 0.1 * i}, 1e-3 / 3)
    assert load_history(save_history(history)) == history
    assert load_history(save_history(History())) == History()


def test_settings_tell_class_shapes_and_plain_options():
    settings = optimizer_settings(Adam([leaf(3, 2)], lr=0.1))
    assert settings["optimizer"] == "torch.optim.adam.Adam"
    assert settings["parameters"] == ["(3, 2) torch.float32"]
    assert (settings["lr"], settings["betas"]) == ("0.1", "(0.9, 0.999)")
    groups = optimizer_settings(SGD([{"params": leaf(3)}, {"params": leaf(2), "lr": 0.5}]))
    assert (groups["group 0 lr"], groups["group 1 lr"]) == ("0.001", "0.5")


def test_settings_are_those_before_a_scheduler_changed_them():
    optimizer = SGD([leaf(3)], lr=0.1)
    before = optimizer_settings(optimizer)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.5)
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer_settings(optimizer) == before


def test_rate_in_a_tensor_reads_like_a_number():
    one = optimizer_settings(Adam([leaf(3)], lr=torch.tensor(0.5), foreach=False))
    assert one == optimizer_settings(Adam([leaf(3)], lr=0.5, foreach=False))


def test_state_wider_than_its_parameters_keeps_its_bits():
    x, y = leaf(3, dtype=torch.bfloat16), leaf(3, dtype=torch.bfloat16)
    first, second = SGD([x]), SGD([y])
    wide = torch.full((3,), 1 / 3, dtype=torch.float64)
    first.state[x] = {"mean": wide, "pairs": [(wide, 2)], "nested": {"deep": wide}, "same": x.detach()}
    load_optimizer(second, first.state_dict())
    state = second.state[y]
    assert state["mean"].dtype == torch.float64
    assert all(torch.equal(t, wide) for t in (state["mean"], state["pairs"][0][0], state["nested"]["deep"]))
    assert state["pairs"][0][1] == 2
    assert state["same"].dtype == torch.bfloat16


def test_tensors_are_found_anywhere():
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    assert [len(t) for t in tensors_in({"x": [a, (b, 1, None)], "y": {"z": c}})] == [1, 2, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_found(bad):
    tensors = [torch.full((3,), 3e38), torch.ones(2, dtype=torch.int64), torch.ones(0), torch.full((2,), 6e4).half()]
    assert all_finite(tensors)
    assert not all_finite({"x": [*tensors, torch.tensor([1.0, bad])]})
    assert all_finite([])
