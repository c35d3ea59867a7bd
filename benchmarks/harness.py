"""The common contract of the benchmarks: what is timed, how, and what is written beside every time.

A benchmark is a file ``bench_<subject>.py`` with a docstring and one function ``run(bench)``. It makes its inputs, asks
for its peers by name and hands the contenders of one task to `Bench.compare`, which runs them in alternating rounds in
this process, so that whatever else the machine does hits all of them alike.
"""

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from results import installed, render, seconds, section, write_results

T = TypeVar("T")

logger = logging.getLogger("benchmarks")

HERE = Path(__file__).resolve().parent
MIN_ROUNDS = 5
MAX_ROUNDS = 200


@dataclass(frozen=True)
class Row:
    """One contender on one task at one size. Times in seconds, memory in bytes."""

    benchmark: str
    task: str
    contender: str
    size: str
    median: float
    iqr: float
    rounds: int
    peak_memory: int | None
    quality: dict[str, float]


@dataclass
class Bench:
    """What a benchmark file is given: sizes, peers, and the clock.

    Attributes:
        name: name of the benchmark, for its rows.
        title: what it measures, the first line of its docstring.
        device: where the inputs are to be made.
        tiny: the smallest run that still executes every line; the times mean nothing.
        seconds: time that each contender may spend in timed rounds, at least five rounds are run whatever it is.
        folder: where long benchmarks keep what they have and draw pictures; None keeps nothing.
        rows: what was measured.
        skipped: peers that are not installed, by name.
        versions: versions of the peers that took part.
    """

    name: str
    title: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tiny: bool = False
    seconds: float = 2.0
    folder: Path | None = None
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def sizes(self, full: Sequence[T], *, tiny: Sequence[T]) -> Sequence[T]:
        """The sizes to run: several, so that growth shows, or the tiny ones."""
        return tiny if self.tiny else full

    def generator(self, seed: int = 0) -> torch.Generator:
        """A seeded generator on the device of the benchmark."""
        return torch.Generator(self.device).manual_seed(seed)

    def peer(self, module: str) -> ModuleType | None:
        """Import a peer by its public module name, or note that it was skipped and return None."""
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            if module not in self.skipped:
                self.skipped.append(module)
                logger.info("%s: %s skipped (%s)", self.name, module, error)
            return None
        self.versions[module] = _version(module, found)
        return found

    def compare(
        self,
        task: str,
        contenders: Mapping[str, Callable[[], Any] | None],
        *,
        size: object,
        quality: Callable[[Any], Mapping[str, float]] | None = None,
    ) -> list[Row]:
        """Time contenders that solve the same task on the same input.

        Args:
            task: what is solved, such as ``"forward"``.
            contenders: a callable without arguments by name, ours under ``"diffmatch"``; None stands for a peer that
                is absent. A callable returns what `quality` reads.
            size: size of the input, for the table.
            quality: what is reached (error, objective, counts), computed from a contender's result outside the clock.

        Returns:
            The new rows, also appended to `rows`.
        """
        present = {name: run for name, run in contenders.items() if run is not None}
        reached = {name: self._warm_up(run, quality) for name, run in present.items()}
        memory = {name: None if self.tiny else peak_memory(run, self.device) for name, run in present.items()}
        times = self._rounds(present)
        rows = []
        for name in present:
            median, iqr = median_and_iqr(times[name])
            rows.append(
                Row(self.name, task, name, str(size), median, iqr, len(times[name]), memory[name], reached[name])
            )
            logger.info("%s %s %s: %s %s +- %s", self.name, task, size, name, seconds(median), seconds(iqr))
        self.rows += rows
        return rows

    def once(self, part: str, measure: Callable[[], T]) -> T:
        """Measure a part of a long benchmark, or read what an interrupted run found of it.

        Args:
            part: its name, unique in this benchmark.
            measure: adds its rows to `rows` and returns what JSON can hold.
        """
        if part in self.journal:
            kept = self.journal[part]
            self.rows += [Row(**row) for row in kept["rows"]]
            return kept["result"]
        before = len(self.rows)
        result = measure()
        if self.folder:
            entry = {"part": part, "rows": [asdict(row) for row in self.rows[before:]], "result": result}
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.journal_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        return result

    @functools.cached_property
    def journal(self) -> dict[str, Any]:
        """What an interrupted run left, by part."""
        if not self.folder or not self.journal_path.exists():
            return {}
        with self.journal_path.open(encoding="utf-8") as file:
            return {entry["part"]: entry for entry in map(json.loads, file)}

    @property
    def journal_path(self) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.name}.jsonl"

    def _warm_up(
        self, run: Callable[[], Any], quality: Callable[[Any], Mapping[str, float]] | None
    ) -> dict[str, float]:
        """Two untimed calls (compilation, caches, allocator), the second one judged."""
        run()
        result = run()
        return {key: float(value) for key, value in quality(result).items()} if quality else {}

    def _rounds(self, contenders: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Times of alternating rounds, until each contender has spent its seconds."""
        times: dict[str, list[float]] = {name: [] for name in contenders}
        least, most = (1, 1) if self.tiny else (MIN_ROUNDS, MAX_ROUNDS)
        with _no_garbage_collection():
            for _ in range(most):
                waiting = [name for name, t in times.items() if len(t) < least or sum(t) < self.seconds]
                if not waiting:
                    break
                for name in waiting:
                    times[name].append(clock(contenders[name], self.device))
        return times


def clock(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds that one call takes, until the device has finished its work."""
    _synchronize(device)
    start = time.perf_counter()
    result = run()
    _synchronize(device)
    elapsed = time.perf_counter() - start
    del result  # freed after the clock has stopped
    return elapsed


def peak_memory(run: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that one call needs on top of what was held before it.

    On CUDA this is what torch's allocator counts; on the CPU the growth of the process's resident set, which the kernel
    records (Linux only, elsewhere None). A small call that fits into memory the allocator already holds shows as 0.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        _return_free_memory()
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


def median_and_iqr(values: Sequence[float]) -> tuple[float, float]:
    """Median and interquartile range; the range of a single value is 0."""
    if len(values) < 2:
        return values[0], 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, high - low


def load(path: Path) -> ModuleType:
    """Import a benchmark file under its own name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_file(
    path: Path, *, device: torch.device, tiny: bool = False, seconds: float = 2.0, folder: Path | None = None
) -> Bench:
    """Run one benchmark file and return what it measured."""
    module = load(path)
    title = (module.__doc__ or "").strip().split("\n")[0]
    name = path.stem.removeprefix("bench_")
    bench = Bench(name, title, device=device, tiny=tiny, seconds=seconds, folder=folder)
    module.run(bench)
    return bench


def main(arguments: Sequence[str] | None = None, *, files: Sequence[str | Path] | None = None) -> int:
    """Run the benchmarks and write the results; a benchmark file calls it with ``files=[__file__]`` to run alone."""
    parser = argparse.ArgumentParser(description="Run the benchmarks, write results.md and results.json.")
    parser.add_argument("subjects", nargs="*", help="subjects to run, such as flexicubes (default: all)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--tiny", action="store_true", help="run every line once, at the smallest size")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each contender (default: 2)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: print them)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    paths = [Path(file).resolve() for file in files] if files else sorted(HERE.glob("bench_*.py"))
    if unknown := set(options.subjects) - {path.stem.removeprefix("bench_") for path in paths}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    chosen = [path for path in paths if not options.subjects or path.stem.removeprefix("bench_") in options.subjects]
    measured = {}
    for path in chosen:
        bench = run_file(path, device=options.device, tiny=options.tiny, seconds=options.seconds, folder=options.out)
        measured[bench.name] = section(bench)
        if options.out:
            write_results([bench], options.out)
            bench.journal_path.unlink(missing_ok=True)
    if not options.out:
        sys.stdout.write(render(measured))
    return 0


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect now, and not between the rounds."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident(key: str) -> int:
    """A memory figure of this process in bytes, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{key} is not in /proc/self/status")


def _return_free_memory() -> None:
    """Give freed memory back to the system, so that the next allocation shows as growth (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _version(name: str, module: ModuleType) -> str:
    return str(getattr(module, "__version__", None) or installed(name.split(".")[0]) or "of unknown version")
