"""The results of the benchmarks: one document, one section a subject, and the Markdown page that shows it."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from harness import Bench

OURS = "diffmatch"

Section = dict[str, Any]


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
        "versions": {name: version for name in distributions if (version := installed(name))},
    }


def section(bench: "Bench") -> Section:
    """What a benchmark measured, where and with what."""
    return {
        "title": bench.title,
        "measured": metadata(bench.device),
        "peers": bench.versions,
        "skipped": bench.skipped,
        "rows": [{key: value for key, value in asdict(row).items() if key != "benchmark"} for row in bench.rows],
    }


def render(sections: Mapping[str, Section]) -> str:
    """The Markdown page of the results: one table a task, slower or faster as it came out."""
    lines = [
        "# Benchmark results",
        "",
        "Median and interquartile range of alternating rounds in one process, after warm-up. "
        f"`ratio` is the contender's median over that of {OURS}: above 1, {OURS} is faster. "
        "Memory is the peak on top of what was held before the call.",
    ]
    for name, found in sections.items():
        lines += ["", f"## {name}", "", found["title"], "", _circumstances(found["measured"])]
        for task in dict.fromkeys(row["task"] for row in found["rows"]):
            lines += ["", f"### {task}", "", *_table([row for row in found["rows"] if row["task"] == task])]
        if found["peers"]:
            lines += ["", "Peers: " + ", ".join(f"{peer} {version}" for peer, version in found["peers"].items()) + "."]
        if found["skipped"]:
            lines += ["", "Not installed, skipped: " + ", ".join(found["skipped"]) + "."]
    return "\n".join(lines) + "\n"


def write_results(benches: "Sequence[Bench]", folder: Path) -> None:
    """Write the sections of some benchmarks into ``results.json`` of a folder, and ``results.md`` anew from all of it.

    Sections of other subjects stay, so that a run over all of them may be interrupted, and one repeated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    sections: dict[str, Section] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    sections |= {bench.name: section(bench) for bench in benches}
    sections = dict(sorted(sections.items()))
    _write(path, json.dumps(sections, indent=1) + "\n")
    _write(folder / "results.md", render(sections))


def _circumstances(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, torch threads: {facts['torch_threads']}, "
        f"device {facts['device']}, Python {facts['python']}, {versions}."
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown lines of the rows of one task."""
    ours = {row["size"]: row["median"] for row in rows if row["contender"] == OURS}
    qualities = list(dict.fromkeys(key for row in rows for key in row["quality"]))
    head = ["size", "contender", "median", "IQR", "rounds", "ratio", "memory", *qualities]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        base, quality = ours.get(row["size"]), row["quality"]
        cells = [
            row["size"],
            row["contender"],
            seconds(row["median"]),
            seconds(row["iqr"]),
            str(row["rounds"]),
            f"{row['median'] / base:.3g}" if base else "",
            _bytes(row["peak_memory"]),
            *(f"{quality[key]:.4g}" if key in quality else "" for key in qualities),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def installed(distribution: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return None


def seconds(value: float) -> str:
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
