"""`python -m diffmatch mesh`, killed at every point where it matters and run again.

The file is a script too: it runs the command in forked processes that really die, by SIGKILL, at a named event, and
writes down what each death left behind. A process of its own, because forking one that runs tests is not safe.
"""

import hashlib
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

STEPS = 54  # with a checkpoint after 50 and at the end
OUTPUT, CHECKPOINT, METRICS = "out.obj", "out.obj.checkpoint", "out.json"
COMMAND = f"mesh ../box.obj -o {OUTPUT} --resolution 12 --steps {STEPS} --device cpu --quiet".split()
OLD = b"# an output of an earlier day\n"
BOX = """v 0 0 0\nv 3 0 0\nv 3 2 0\nv 0 2 0\nv 0 0 1\nv 3 0 1\nv 3 2 1\nv 0 2 1
f 4 3 2 1\nf 5 6 7 8\nf 1 2 6 5\nf 2 3 7 6\nf 3 4 8 7\nf 4 1 5 8\n"""

FIRST_CHECKPOINT = f"after the rename to {CHECKPOINT} 1"
FROM_OUTSIDE = "by its parent, as soon as it sees the checkpoint"

# What a process is doing when it dies, and which output there is then. In runs that begin anew:
EARLY = {
    "step 20": "old",
    f"writing {CHECKPOINT} 1": "old",
    f"before the rename to {CHECKPOINT} 1": "old",
}
# In runs that go on from the first checkpoint of one that was killed:
LATE = {
    "step 52": "old",
    f"writing {CHECKPOINT} 1": "old",
    f"before the rename to {CHECKPOINT} 1": "old",
    f"after the rename to {CHECKPOINT} 1": "old",
    f"writing {OUTPUT} 1": "old",
    f"before the rename to {OUTPUT} 1": "old",
    f"after the rename to {OUTPUT} 1": "new",
    f"writing {METRICS} 1": "new",
    f"before the removal of {CHECKPOINT} 1": "new",
}
IN_TURN = [
    "step 20",
    f"writing {CHECKPOINT} 1",
    FIRST_CHECKPOINT,
    f"before the rename to {CHECKPOINT} 1",
    f"writing {OUTPUT} 1",
]


def die_at(death: str) -> None:
    """Arrange for this process to be killed at an event, named as in `EARLY` and `LATE`, and counted."""
    import torch

    from diffmatch.evaluation import Evaluation

    begin, save, replace = Evaluation.begin, torch.save, os.replace
    write_bytes, unlink, counts = Path.write_bytes, Path.unlink, Counter[str]()

    def happens(event: str) -> bool:
        counts[event] += 1
        return death == f"{event} {counts[event]}"

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def final_name(temporary: Path) -> str:
        return temporary.name.split(".", 2)[-1]  # .diffmatch-<host>-<process>-<number>.<final name>

    def dying_begin(self: Evaluation, step: int) -> None:
        begin(self, step)
        if death == f"step {step}":
            kill()

    def dying_save(content: Any, path: Path) -> None:
        save(content, path)
        if happens(f"writing {final_name(path)}"):
            os.truncate(path, path.stat().st_size // 2)
            kill()

    def dying_write_bytes(self: Path, content: bytes) -> int:
        if happens(f"writing {final_name(self)}"):
            write_bytes(self, content[: len(content) // 2])
            kill()
        return write_bytes(self, content)

    def dying_replace(source: Any, target: Any) -> None:
        name = os.path.basename(target)
        if happens(f"before the rename to {name}"):
            kill()
        replace(source, target)
        if happens(f"after the rename to {name}"):
            kill()

    def dying_unlink(self: Path, missing_ok: bool = False) -> None:
        if happens(f"before the removal of {self.name}"):
            kill()
        unlink(self, missing_ok=missing_ok)

    Evaluation.begin, torch.save, os.replace = dying_begin, dying_save, dying_replace
    Path.write_bytes, Path.unlink = dying_write_bytes, dying_unlink


def run(folder: Path, death: str | None = None) -> int:
    """The command in a forked process with this folder as its current one; returns how it ended."""
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            if death is not None:
                die_at(death)
            sys.argv = ["diffmatch", *COMMAND]
            runpy.run_module("diffmatch", run_name="__main__", alter_sys=True)  # what python -m does
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException:
            sys.excepthook(*sys.exc_info())
        os._exit(1)
    if death == FROM_OUTSIDE:
        kill_when_there(child, folder / CHECKPOINT)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_when_there(child: int, path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def story(folder: Path, deaths: list[str]) -> dict[str, Any]:
    """Die some times in turn, then finish: how the processes ended, the output after each, and all files at the end."""
    ends, outputs = [], []
    for death in [*deaths, None]:
        ends.append(run(folder, death))
        outputs.append(digest(folder / OUTPUT))
    return {"ends": ends, "outputs": outputs, "files": sorted(os.listdir(folder))}


def warm_up() -> None:
    """Import what the command does and load its kernels, once and not in each process.

    No backward pass: it may start threads, which do not survive a fork.
    """
    import torch

    torch.set_num_threads(1)
    for module in ("diffmatch.cli", "diffmatch.report.environment", "igl", "torch._dynamo", "trimesh"):
        importlib.import_module(module)
    from diffmatch.meshing import Grid, flexicubes
    from diffmatch.meshing.shapes import sphere

    grid = Grid.cube(4)
    for training in (True, False):
        flexicubes(grid, sphere(grid.nodes(), radius=0.5), training=training, boundary="close")


def main(base: Path) -> None:
    (base / "box.obj").write_text(BOX)
    warm_up()
    fresh, killed, whole = (base / name for name in ("fresh", "killed", "whole"))
    fresh.mkdir()
    (fresh / OUTPUT).write_bytes(OLD)
    shutil.copytree(fresh, whole)
    assert run(whole) == 0
    shutil.copytree(fresh, killed)
    assert run(killed, FIRST_CHECKPOINT) == -signal.SIGKILL
    stories = [(fresh, [death]) for death in (*EARLY, FROM_OUTSIDE)] + [(fresh, IN_TURN)]
    stories += [(killed, [death]) for death in LATE]
    told = {
        f"{start.name}: {', '.join(deaths)}": story(Path(shutil.copytree(start, base / str(i))), deaths)
        for i, (start, deaths) in enumerate(stories)
    }
    known = {hashlib.sha256(OLD).hexdigest(): "old", digest(whole / OUTPUT): "new"}
    for result in told.values():
        result["outputs"] = [known.get(output, "neither") for output in result["outputs"]]
    (base / "report.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    for needed in ("igl", "trimesh"):
        pytest.importorskip(needed)
    base = tmp_path_factory.mktemp("kill")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, base], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((base / "report.json").read_text())


needs = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and sends signals")


@needs
@pytest.mark.parametrize(
    ("start", "death", "output"),
    [("fresh", *pair) for pair in EARLY.items()] + [("killed", *pair) for pair in LATE.items()],
)
def test_a_killed_command_run_again_writes_the_bytes_of_one_left_alone(told, start, death, output):
    result = told[f"{start}: {death}"]
    assert result["ends"] == [-signal.SIGKILL, 0]
    assert result["outputs"] == [output, "new"]
    assert result["files"] == [METRICS, OUTPUT]  # nothing temporary, no checkpoint


@needs
def test_killed_again_and_again(told):
    result = told[f"fresh: {', '.join(IN_TURN)}"]
    assert result["ends"] == [-signal.SIGKILL] * len(IN_TURN) + [0]
    assert result["outputs"] == ["old"] * len(IN_TURN) + ["new"]
    assert result["files"] == [METRICS, OUTPUT]


@needs
def test_killed_from_outside(told):
    result = told[f"fresh: {FROM_OUTSIDE}"]
    assert result["ends"][-1] == 0
    assert result["outputs"][0] in ("old", "new")  # on a busy machine the signal may come late
    assert result["outputs"][1] == "new"
    assert result["files"] == [METRICS, OUTPUT]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
