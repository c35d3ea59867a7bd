"""The common contract of the benchmarks: what is timed, how, and what is written beside every time.

A benchmark is a file ``bench_<subject>.py`` with a docstring and one function ``run(bench)``. It makes its inputs, asks
for its peers by name and hands the contenders of one task to `Bench.compare`, which runs them in alternating rounds in
this process, so that whatever else the machine does hits all of them alike.
"""

import argparse
import contextlib
import ctypes
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

T = TypeVar("T")

logger = logging.getLogger("benchmarks")

HERE = Path(__file__).resolve().parent
OURS = "diffmatch"
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
        rows: what was measured.
        skipped: peers that are not installed, by name.
        versions: versions of the peers that took part.
    """

    name: str
    title: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tiny: bool = False
    seconds: float = 2.0
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
            logger.info("%s %s %s: %s %s +- %s", self.name, task, size, name, _seconds(median), _seconds(iqr))
        self.rows += rows
        return rows

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


def metadata(device: torch.device) -> dict[str, Any]:
    """Where and with what the numbers were measured."""
    distributions = ["diffmatch-torch", "torch", "numpy", "scipy", "numba"]
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "versions": {name: version for name in distributions if (version := _installed(name))},
    }


def load(path: Path) -> ModuleType:
    """Import a benchmark file under its own name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_file(path: Path, *, device: torch.device, tiny: bool = False, seconds: float = 2.0) -> Bench:
    """Run one benchmark file and return what it measured."""
    module = load(path)
    title = (module.__doc__ or "").strip().split("\n")[0]
    bench = Bench(path.stem.removeprefix("bench_"), title, device=device, tiny=tiny, seconds=seconds)
    module.run(bench)
    return bench


def render(benches: Sequence[Bench], facts: Mapping[str, Any]) -> str:
    """The Markdown page of the results: one table a benchmark, ours first, slower or faster as it came out."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        "# Benchmark results",
        "",
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {facts['torch_threads']} torch threads, "
        f"device {facts['device']}, Python {facts['python']}, {versions}.",
        "",
        "Median and interquartile range of alternating rounds in one process, after warm-up. "
        f"`ratio` is the contender's median over that of {OURS}: above 1, {OURS} is faster. "
        "Memory is the peak on top of what was held before the call.",
    ]
    for bench in benches:
        lines += ["", f"## {bench.name}", "", bench.title, "", *_table(bench.rows)]
        if bench.versions:
            lines += ["", "Peers: " + ", ".join(f"{name} {version}" for name, version in bench.versions.items()) + "."]
        if bench.skipped:
            lines += ["", "Not installed, skipped: " + ", ".join(bench.skipped) + "."]
    return "\n".join(lines) + "\n"


def write_results(benches: Sequence[Bench], folder: Path, *, device: torch.device) -> None:
    """Write ``results.md`` and ``results.json`` into a folder."""
    facts = metadata(device)
    document = {
        "metadata": facts,
        "peers": {bench.name: {"versions": bench.versions, "skipped": bench.skipped} for bench in benches},
        "rows": [asdict(row) for bench in benches for row in bench.rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "results.json", json.dumps(document, indent=1) + "\n")
    _write(folder / "results.md", render(benches, facts))


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
    benches = [run_file(path, device=options.device, tiny=options.tiny, seconds=options.seconds) for path in chosen]
    if options.out:
        write_results(benches, options.out, device=options.device)
    else:
        sys.stdout.write(render(benches, metadata(options.device)))
    return 0


def _table(rows: Sequence[Row]) -> list[str]:
    """Markdown lines of one benchmark's table."""
    ours = {(row.task, row.size): row.median for row in rows if row.contender == OURS}
    qualities = list(dict.fromkeys(key for row in rows for key in row.quality))
    head = ["task", "size", "contender", "median", "IQR", "rounds", "ratio", "memory", *qualities]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        base = ours.get((row.task, row.size))
        cells = [
            row.task,
            row.size,
            row.contender,
            _seconds(row.median),
            _seconds(row.iqr),
            str(row.rounds),
            f"{row.median / base:.3g}" if base else "",
            _bytes(row.peak_memory),
            *(f"{row.quality[key]:.6g}" if key in row.quality else "" for key in qualities),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


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


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str, module: ModuleType) -> str:
    return str(getattr(module, "__version__", None) or _installed(name.split(".")[0]) or "of unknown version")


def _installed(distribution: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return None


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def _bytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.1f} MiB"


def _write(path: Path, text: str) -> None:
    """Write to a temporary name and rename, so that a reader never sees half a file."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
