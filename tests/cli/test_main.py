"""The program as a whole: help, version, usage errors, exit codes; through `main` and as a process."""

import os
import subprocess
import sys

import pytest

import diffmatch
from diffmatch.cli import app as app_module
from diffmatch.cli import main
from diffmatch.cli.outcome import Failure, resumable
from diffmatch.errors import InputError, MissingExtraError


def run(*words, **environment):
    command = [sys.executable, "-m", "diffmatch", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def one_line(text):
    assert text.startswith("diffmatch: error: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text.removeprefix("diffmatch: error: ").strip()


def test_help_and_version_are_shown(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "mesh" in shown
    assert "demo" in shown
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == diffmatch.__version__


@pytest.mark.parametrize("command", ["mesh", "demo"])
def test_each_job_takes_the_common_options(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--device", "--seed", "--optimizer", "--report", "--quiet"):
        assert option in shown


def test_help_does_not_import_torch():
    script = "import sys, diffmatch.cli as c; c.main(['--help']); print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["mehs"], 'Unknown command "mehs". Did you mean "mesh"?'),
        (["mesh"], "TARGET requires an argument"),
        (["mesh", "a.obj"], "--output requires an argument"),
        (["mesh", "a.obj", "-o", "b.obj", "--optimzer", "adam"], "Did you mean --optimizer?"),
        (["mesh", "a.obj", "-o", "b.obj", "--steps", "many"], 'unable to convert "many" into int'),
        (["mesh", "a.obj", "b.obj", "-o", "c.obj"], "b.obj"),
    ],
)
def test_usage_errors_are_one_line(words, part, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert part in one_line(captured.err)
    assert captured.out == ""


def replace_job(monkeypatch, error):
    """A program whose only command raises."""

    def fail(*, debug: bool = False):
        raise error

    app = app_module.App(name="diffmatch", version="0")
    app.command(fail)
    monkeypatch.setattr(app_module, "app", app)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("steps", "a whole number", "2.5"), 2, "steps: want a whole number, got 2.5"),
        (MissingExtraError("plotly is needed here"), 2, "plotly is needed here"),
        (Failure("the fit\ndiverged"), 1, "the fit diverged"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_expected_errors_have_a_code_and_a_line(error, code, message, monkeypatch, capsys):
    replace_job(monkeypatch, error)
    assert main(["fail"]) == code
    assert one_line(capsys.readouterr().err) == message


def test_a_bug_keeps_its_traceback(monkeypatch):
    replace_job(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["fail"])


def test_debugging_shows_the_traceback_of_every_error(monkeypatch):
    replace_job(monkeypatch, InputError("steps", "a whole number", "2.5"))
    with pytest.raises(InputError):
        main(["fail", "--debug"])
    monkeypatch.setenv("DIFFMATCH_DEBUG", "1")
    with pytest.raises(InputError):
        main(["fail"])
    monkeypatch.setenv("DIFFMATCH_DEBUG", "0")
    assert main(["fail"]) == 2


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (SystemExit, 143)])
def test_an_interruption_says_how_to_go_on(error, code, monkeypatch, tmp_path, capsys):
    checkpoint = tmp_path / "run.checkpoint"
    checkpoint.touch()
    interruption = error(143)
    with pytest.raises(error), resumable(checkpoint):
        raise interruption
    replace_job(monkeypatch, interruption)
    assert main(["fail"]) == code
    assert f"the same command goes on from {checkpoint}" in one_line(capsys.readouterr().err)


def test_without_a_checkpoint_nothing_is_promised(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught, resumable(tmp_path / "none"):
        raise KeyboardInterrupt
    assert not hasattr(caught.value, "__notes__")


def test_as_a_process_errors_end_with_code_2():
    done = run("mesh", "no such file.obj", "-o", "out.glb", "--device", "cuda:99")
    assert done.returncode == 2
    assert one_line(done.stderr).startswith("device: want ")
    assert done.stdout == ""


def test_as_a_process_debugging_shows_the_traceback():
    done = run("mesh", "a.obj", "-o", "b.obj", "--resolution", "x", DIFFMATCH_DEBUG="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "InputError: resolution" in done.stderr
