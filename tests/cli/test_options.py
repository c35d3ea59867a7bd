import pytest
import torch

from diffmatch.cli.options import JobOptions, check_outputs, parse_resolution, resolve_device
from diffmatch.errors import InputError


def test_resolutions_are_one_number_or_three():
    assert parse_resolution("64") == 64
    assert parse_resolution("64,96,32") == (64, 96, 32)
    assert parse_resolution(" 8, 9,10 ") == (8, 9, 10)


@pytest.mark.untyped
@pytest.mark.parametrize("text", ["0", "-3", "", "x", "6.4", "64,64", "1,2,3,4", "64,0,64", "1e3", "64x64x64"])
def test_other_resolutions_are_refused(text):
    with pytest.raises(InputError, match="resolution: want a number of cells of at least 1, or three with commas"):
        parse_resolution(text)


@pytest.fixture
def cards(monkeypatch):
    def install(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return install


def test_the_device_is_a_card_where_there_is_one(cards):
    cards(0)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    cards(2)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda:0"
    assert resolve_device("cuda:1") == "cuda:1"
    assert resolve_device("cpu") == "cpu"


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("count", "name", "message"),
    [
        (0, "cuda", r"want cpu \(no CUDA device is available here\), got 'cuda'"),
        (2, "cuda:2", r"want cpu or cuda:0 to cuda:1, got 'cuda:2'"),
        (1, "gpu", r"want auto, cpu, cuda or cuda:NUMBER, got 'gpu'"),
        (1, "cuda:-1", r"want auto, cpu, cuda or cuda:NUMBER"),
    ],
)
def test_a_device_that_is_not_there_is_refused(cards, count, name, message):
    cards(count)
    with pytest.raises(InputError, match=f"device: {message}"):
        resolve_device(name)


@pytest.mark.untyped
def test_the_common_options_are_checked(tmp_path):
    JobOptions().check()
    with pytest.raises(InputError, match=r"optimizer: want one of .*did you mean 'adamw'"):
        JobOptions(optimizer="adanw").check()
    with pytest.raises(InputError, match=r"seed: want a whole number from 0"):
        JobOptions(seed=-1).check()
    with pytest.raises(InputError, match=r"report: want a file that ends in .html"):
        JobOptions(report=tmp_path / "report.pdf").check()


@pytest.mark.untyped
def test_no_file_replaces_another_one_or_an_input(tmp_path):
    source = tmp_path / "part.obj"
    source.touch()
    out, other = tmp_path / "out.obj", tmp_path / "out.json"
    check_outputs({"output": out, "metrics": other, "report": None}, inputs={"target": str(source)})
    with pytest.raises(InputError, match=r"output: want another file than that of target"):
        check_outputs({"output": source}, inputs={"target": str(source)})
    with pytest.raises(InputError, match=r"metrics: want another file than that of output"):
        check_outputs({"output": out, "metrics": tmp_path / "." / "out.obj"}, inputs={"target": "module:name"})
    with pytest.raises(InputError, match=r"report: want a writable folder"):
        check_outputs({"report": tmp_path / "no" / "report.html"}, inputs={})
    assert [path.name for path in tmp_path.iterdir()] == ["part.obj"]
