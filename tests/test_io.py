import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffmatch import io
from diffmatch.errors import InputError
from diffmatch.io import atomic_write, check_writable, write_bytes_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leftover(target: Path, *, host: str, process: int, age: float = 0.0) -> Path:
    path = target.with_name(f".diffmatch-{host}-{process}-0.{target.name}")
    path.write_text("half")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.fixture(scope="module")
def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_new_file_appears_whole_and_alone(tmp_path):
    target = tmp_path / "mesh.tar.glb"
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".mesh.tar.glb")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["mesh.tar.glb"]


def test_error_keeps_the_old_file_and_removes_the_temporary_one(tmp_path):
    target = tmp_path / "out.npz"
    target.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(target) as temporary:
            temporary.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["out.npz"]


def test_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "out.obj"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_new_files_get_the_usual_permissions(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_bytes_atomic(tmp_path / "out.obj", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.obj").stat().st_mode) == 0o666 & ~mask


def test_existing_files_keep_their_permissions(tmp_path):
    target = tmp_path / "out.obj"
    target.write_bytes(b"old")
    target.chmod(0o640)
    write_bytes_atomic(target, b"new")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert target.read_bytes() == b"new"


def test_links_are_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "out.obj", tmp_path / "out.obj"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_bytes_atomic(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_interleaved_writers_of_one_target_do_not_disturb_each_other(tmp_path):
    target = tmp_path / "out.obj"
    with atomic_write(target) as first:
        first.write_bytes(b"first")
        with atomic_write(target) as second:
            second.write_bytes(b"second")
        assert first.exists()
    assert target.read_bytes() == b"first"
    assert names(tmp_path) == ["out.obj"]


def test_leftovers_of_dead_processes_are_removed(tmp_path, dead_process):
    target = tmp_path / "out.obj"
    leftover(target, host=io._host(), process=dead_process)
    leftover(target, host=io._host(), process=os.getpid())  # an earlier process with the same number
    leftover(target, host="00000000", process=dead_process, age=2 * 24 * 3600)
    write_bytes_atomic(target, b"new")
    assert names(tmp_path) == ["out.obj"]


def test_files_that_may_be_in_use_or_are_not_ours_stay(tmp_path, dead_process):
    target = tmp_path / "out[1].obj"  # no pattern for glob
    kept = [
        leftover(target, host=io._host(), process=os.getppid()),
        leftover(target, host="00000000", process=dead_process, age=3600),
        leftover(tmp_path / "other.obj", host=io._host(), process=dead_process),
        leftover(tmp_path / "out1.obj", host=io._host(), process=dead_process),
    ]
    (tmp_path / ".diffmatch-notes.out[1].obj").write_text("mine")
    write_bytes_atomic(target, b"new")
    assert names(tmp_path) == sorted([*(path.name for path in kept), ".diffmatch-notes.out[1].obj", target.name])


def test_killed_writer_leaves_the_old_file_and_the_next_one_cleans_up(tmp_path):
    target = tmp_path / "out.obj"
    target.write_bytes(b"old")
    script = (
        "import os, sys\nfrom diffmatch import io\n"
        "io.os.replace = lambda *names: os._exit(9)\n"
        "io.write_bytes_atomic(sys.argv[1], b'never')"
    )
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", script, str(target)], cwd=root, check=False).returncode == 9
    assert target.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    write_bytes_atomic(target, b"new")
    assert names(tmp_path) == ["out.obj"]
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("write", [check_writable, lambda path, **kw: write_bytes_atomic(path, b"", **kw)])
class TestRefusals:
    def test_missing_folder(self, tmp_path, write):
        with pytest.raises(InputError, match=r"output: want a writable folder, got .*nowhere, which does not exist"):
            write(tmp_path / "nowhere" / "out.obj")

    def test_folder_as_target(self, tmp_path, write):
        with pytest.raises(InputError, match="output: want the name of a file, got the folder"):
            write(tmp_path)

    def test_device_as_target(self, tmp_path, write):
        with pytest.raises(InputError, match=r"ordinary file that may be overwritten, got /dev/null"):
            write("/dev/null")

    def test_folder_without_permission(self, tmp_path, write, monkeypatch):
        monkeypatch.setattr(io.os, "access", lambda path, mode: False)
        with pytest.raises(InputError, match="without permission to write"):
            write(tmp_path / "out.obj")

    def test_write_protected_file(self, tmp_path, write, monkeypatch):
        (tmp_path / "out.obj").write_bytes(b"old")
        monkeypatch.setattr(io.os, "access", lambda path, mode: Path(path).is_dir())
        with pytest.raises(InputError, match="may be overwritten"):
            write(tmp_path / "out.obj")

    def test_name_of_the_argument(self, tmp_path, write):
        with pytest.raises(InputError, match=r"^report: "):
            write(tmp_path, argument="report")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses new files")
def test_check_finds_folders_that_only_look_writable():
    with pytest.raises(InputError, match="output: want a writable folder, got /proc"):
        check_writable("/proc/out.obj")


def test_check_touches_nothing(tmp_path):
    (tmp_path / "out.obj").write_bytes(b"old")
    check_writable(tmp_path / "out.obj")
    check_writable(tmp_path / "new.obj")
    assert names(tmp_path) == ["out.obj"]
    assert (tmp_path / "out.obj").read_bytes() == b"old"


def test_checking_a_path_removes_what_a_dead_process_left(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    target = tmp_path / "out.obj"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        leftover = temporary.with_name(temporary.name.replace(f"-{os.getpid()}-", f"-{int(dead.stdout)}-"))
        leftover.touch()
    leftover.touch()
    check_writable(target)
    assert [path.name for path in tmp_path.iterdir()] == ["out.obj"]
