"""Graph matching and quadratic assignment: against pygmtools at equal affinity, SciPy on QAPLIB, and POT.

The research files (landmarks of the CMU hotel sequence, pairs of cars, QAPLIB) are read from the folder that
DIFFMATCH_DATA names; without it only the synthetic tasks run. Accuracy is the share of true pairs that were found; the
points are shuffled on both sides. On the files each task is run once over all its problems, and the time is the mean of
one. pygmtools is given the same affinity as a dense matrix (built outside the clock for the random walks, inside it on
the cars); on the hotel it has its usual one, a Gaussian of distances over the largest with the best of three sigmas on
the same draws.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row
from torch import Tensor

from diffmatch.matching import match_graphs
from diffmatch.matching.graphs import Graph
from diffmatch.matching.quadratic import (
    KroneckerAffinity,
    gaussian_factors,
    gromov_wasserstein,
    match_affinity,
    tabu_search,
)
from diffmatch.matching.quadratic.graph_affinity import graph_affinity

OURS = "diffmatch"
RESTARTS = 8
SIGMAS = (0.002, 0.005, 0.01)
"""Of pygmtools' kernel ``exp(-d^2 / sigma)``."""

Case = tuple[Tensor, Tensor, Tensor, Tensor]
"""Points of both sides, and which landmark each is (negative for an outlier)."""


def run(bench: Any) -> None:
    """Synthetic tasks, and those of the research files where they are."""
    random_walks(bench)
    large(bench)
    gromov(bench)
    folder = os.environ.get("DIFFMATCH_DATA")
    if folder is None:
        bench.skipped.append("research files (DIFFMATCH_DATA is not set)")
        return
    data = Path(folder) / "graph_matching"
    hotel(bench, np.load(data / "cmu_tracks.npz")["hotel"])
    cars(bench, np.load(data / "cars_pairs.npz"))
    facility_layout(bench, np.load(data / "qaplib.npz"), json.loads((data / "qaplib_index.json").read_text()))


def random_walks(bench: Any) -> None:
    """RRWM without polish on noisy points."""
    pygm = peer(bench)
    for n, noise in bench.sizes([(30, 0.03), (100, 0.02)], tiny=[(8, 0.01)]):
        generator = bench.generator(n)
        points = torch.rand(n, 2, generator=generator, device=bench.device)
        order = torch.randperm(n, generator=generator, device=bench.device)
        moved = points + noise * torch.randn(n, 2, generator=generator, device=bench.device)
        affinity = distance_affinity(points, moved[order])
        full = dense(affinity) if pygm else None

        def theirs(full: Tensor | None = full, n: int = n) -> Tensor:
            return matched(pygm, "rrwm", full, n, n)

        def accuracy(found: Tensor, order: Tensor = order, n: int = n) -> dict[str, float]:
            return {"accuracy": float((order[found] == torch.arange(n, device=order.device)).double().mean())}

        bench.compare(
            "random walks, equal affinity",
            {
                OURS: lambda affinity=affinity: match_affinity(affinity, solver="rrwm", polish=False).assignment,
                "pygmtools": theirs if pygm else None,
            },
            size=n,
            quality=accuracy,
        )


def large(bench: Any) -> None:
    """`match_graphs` as it is called by default, from positions to the polished assignment, once."""
    for n in bench.sizes([1000], tiny=[9]):
        generator = torch.Generator().manual_seed(n)
        points, order = torch.rand(n, 2, generator=generator), torch.randperm(n, generator=generator)
        moved = points + 0.003 * torch.randn(n, 2, generator=generator)
        case = (points, moved[order], torch.arange(n), order)
        bench.rows.append(
            accuracy_row(bench, f"{n} points, all defaults", OURS, lambda a, b: ours(a, b, restarts=1), [case])
        )


def gromov(bench: Any) -> None:
    """Proximal Gromov-Wasserstein, a fixed number of steps."""
    ot = bench.peer("ot")
    for n in bench.sizes([30, 100], tiny=[6]):
        generator = bench.generator(n)
        a, b = (
            torch.cdist(x, x)
            for x in torch.rand(2, n, 2, dtype=torch.float64, generator=generator, device=bench.device)
        )
        p = a.new_full((n,), 1 / n)
        steps = 20

        def theirs(a: Tensor = a, b: Tensor = b, p: Tensor = p) -> Tensor:
            return ot.gromov.entropic_gromov_wasserstein(
                a, b, p, p, epsilon=0.05, solver="PPA", max_iter=steps, tol=0.0, warn=False
            )

        def value(plan: Tensor, a: Tensor = a, b: Tensor = b) -> dict[str, float]:
            rows, columns = plan.sum(1), plan.sum(0)
            own = rows @ a.square() @ rows + columns @ b.square() @ columns
            return {"objective": float(own - 2 * (plan * (a @ plan @ b)).sum())}

        bench.compare(
            "proximal Gromov-Wasserstein, 20 steps",
            {
                OURS: lambda a=a, b=b: gromov_wasserstein(a, b, eps=0.05, max_steps=steps).plan,
                "POT": theirs if ot else None,
            },
            size=n,
            quality=value,
        )


def hotel(bench: Any, tracks: np.ndarray) -> None:
    """Landmarks of the hotel, frames far apart, distances as the only attributes; all of them, or 25 of 30 in each."""
    pygm = peer(bench)
    settings = bench.sizes([(90, 30, 1), (50, 25, 3), (90, 25, 3)], tiny=[(90, 8, 1)])
    for gap, keep, draws in settings:
        cases = landmark_cases(torch.from_numpy(tracks), gap, keep, draws)[: 1 if bench.tiny else None]
        task = f"hotel, gap {gap}, {keep} of 30 points"
        contenders: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            OURS: lambda a, b: ours(a, b, restarts=RESTARTS),
            "diffmatch, one start": lambda a, b: ours(a, b, restarts=1),
        }
        score(bench, task, contenders, cases)
        if pygm:
            rows = [
                accuracy_row(
                    bench, task, f"pygmtools rrwm, sigma {sigma}", lambda a, b, s=sigma: usual(pygm, a, b, s), cases
                )
                for sigma in SIGMAS
            ]
            bench.rows.append(max(rows, key=lambda row: row.quality["accuracy"]))


def cars(bench: Any, pairs: Any) -> None:
    """Contour points of cars with outliers; all solvers on the affinity of `match_graphs` for positions."""
    pygm = peer(bench)
    for outliers in bench.sizes([0, 10, 20], tiny=[0]):
        cases = car_cases(pairs, outliers)[: 1 if bench.tiny else None]
        contenders: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            OURS: lambda a, b: ours(a, b, restarts=RESTARTS),
            "diffmatch, one start": lambda a, b: ours(a, b, restarts=1),
        }
        for name in ("rrwm", "ipfp", "sm") if pygm else ():
            contenders[f"pygmtools {name}"] = lambda a, b, name=name: same(pygm, name, a, b)
        score(bench, f"cars, {outliers} outliers", contenders, cases)


def facility_layout(bench: Any, instances: Any, index: Any) -> None:
    """QAPLIB, gap over the best known value in percent; esc16f, whose best value is 0, is left out."""
    optimize = bench.peer("scipy.optimize")
    known = {name: entry for name, entry in index.items() if f"{name}_A" in instances.files and entry["best"]}
    for low, high in bench.sizes([(0, 50), (50, 100)], tiny=[(0, 12)]):
        names = [name for name, entry in known.items() if low < entry["n"] <= high][: 2 if bench.tiny else None]

        def tabu(a: np.ndarray, b: np.ndarray) -> float:
            generator = torch.Generator().manual_seed(0)
            return float(tabu_search(*map(torch.from_numpy, (a, b)), generator=generator).value)

        def peer_faq(a: np.ndarray, b: np.ndarray) -> float:
            return optimize.quadratic_assignment(a, b, options={"rng": np.random.default_rng(0)}).fun

        def peer_exchange(a: np.ndarray, b: np.ndarray) -> float:
            return optimize.quadratic_assignment(a, b, method="2opt", options={"rng": np.random.default_rng(0)}).fun

        for contender, solve in ((OURS, tabu), ("SciPy faq", peer_faq), ("SciPy 2opt", peer_exchange)):
            gaps, start = [], time.perf_counter()
            for name in names:
                a, b = (instances[f"{name}_{side}"].astype(np.float64) for side in "AB")
                gaps.append(100 * (solve(a, b) / known[name]["best"] - 1))
            seconds = time.perf_counter() - start
            quality = {
                "median gap %": statistics.median(gaps),
                "mean gap %": statistics.mean(gaps),
                "worst %": max(gaps),
            }
            size = f"{len(names)} instances, n <= {high}"
            bench.rows.append(Row(bench.name, "QAPLIB, all instances", contender, size, seconds, 0.0, 1, None, quality))


def landmark_cases(tracks: Tensor, gap: int, keep: int, draws: int) -> list[Case]:
    """Pairs of frames, at most eleven, evenly spread."""
    generator = torch.Generator().manual_seed(0)
    count = len(tracks) - gap
    firsts = np.unique(np.linspace(0, count - 1, min(11, count)).round().astype(int))
    cases = []
    for first in np.repeat(firsts, draws):
        kept = [torch.randperm(tracks.shape[1], generator=generator)[:keep] for _ in range(2)]
        cases.append((tracks[first][kept[0]], tracks[first + gap][kept[1]], *kept))
    return cases


def car_cases(pairs: Any, outliers: int) -> list[Case]:
    """All pairs, with so many outliers on both sides."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for name in sorted({key.split("_")[0] for key in pairs.files}):
        inliers = int(pairs[f"{name}_n"])
        sides = []
        for sign, side in ((1, "src"), (2, "dst")):
            points = torch.from_numpy(pairs[f"{name}_{side}"][:, :2].astype(np.float32))
            extra = inliers + torch.randperm(len(points) - inliers, generator=generator)[:outliers]
            chosen = torch.cat([torch.arange(inliers), extra])
            chosen = chosen[torch.randperm(len(chosen), generator=generator)]
            sides.append((points[chosen], torch.where(chosen < inliers, chosen, -sign)))
        cases.append((sides[0][0], sides[1][0], sides[0][1], sides[1][1]))
    return cases


def score(
    bench: Any, task: str, contenders: dict[str, Callable[[Tensor, Tensor], Tensor]], cases: Iterable[Case]
) -> None:
    """A row for each contender."""
    cases = list(cases)
    for name, solve in contenders.items():
        bench.rows.append(accuracy_row(bench, task, name, solve, cases))


def accuracy_row(bench: Any, task: str, name: str, solve: Callable[[Tensor, Tensor], Tensor], cases: list[Case]) -> Row:
    """Mean accuracy and mean time over all cases."""
    right, times = [], []
    for points_a, points_b, which_a, which_b in cases:
        start = time.perf_counter()
        found = solve(points_a.to(bench.device), points_b.to(bench.device)).cpu()
        times.append(time.perf_counter() - start)
        common = torch.isin(which_a, which_b)
        hit = (found >= 0) & (which_b[found.clamp_min(0)] == which_a)
        right.append(float((hit & common).sum() / common.sum().clamp_min(1)))
    quality = {"accuracy": statistics.mean(right)}
    return Row(bench.name, task, name, f"{len(cases)} pairs", statistics.mean(times), 0.0, len(cases), None, quality)


def ours(a: Tensor, b: Tensor, *, restarts: int) -> Tensor:
    """`match_graphs` of Delaunay graphs."""
    generator = torch.Generator(a.device).manual_seed(0)
    return match_graphs(a, b, restarts=restarts, generator=generator).assignment


def same(pygm: Any, name: str, a: Tensor, b: Tensor) -> Tensor:
    """A solver of pygmtools on the affinity that `match_graphs` builds."""
    affinity = graph_affinity(Graph.from_points(a), Graph.from_points(b)).affinity
    assert isinstance(affinity, KroneckerAffinity)  # of positions alone
    return matched(pygm, name, dense(affinity), len(a), len(b))


def usual(pygm: Any, a: Tensor, b: Tensor, sigma: float) -> Tensor:
    """RRWM of pygmtools on complete graphs with a Gaussian of relative distances."""
    distances = [torch.cdist(x, x) / torch.cdist(x, x).max() for x in (a, b)]
    difference = distances[0][:, None, :, None] - distances[1][None, :, None, :]  # (i, a, j, b)
    alike = torch.exp(-difference.square() / sigma)
    for graph, index in ((a, "ij"), (b, "ab")):
        apart = 1 - torch.eye(len(graph), device=graph.device)
        alike = alike * (apart[:, None, :, None] if index == "ij" else apart[None, :, None, :])
    n, m = len(a), len(b)
    return matched(pygm, "rrwm", alike.permute(1, 0, 3, 2).reshape(n * m, n * m), n, m)


def matched(pygm: Any, name: str, full: Tensor | None, n: int, m: int) -> Tensor:
    """Solve with pygmtools, round, and give the column of each row."""
    soft = getattr(pygm, name)(full, torch.tensor([n]), torch.tensor([m]))
    hard = pygm.hungarian(soft).reshape(n, m)
    return torch.where(hard.sum(1) > 0, hard.argmax(1), -1)


def distance_affinity(a: Tensor, b: Tensor) -> KroneckerAffinity:
    """Gaussian of distances over the largest, complete graphs."""
    tables = gaussian_factors(*(torch.cdist(x, x) / torch.cdist(x, x).max() for x in (a, b)), width=0.05)
    apart = [table * (1 - torch.eye(table.shape[-1], device=table.device)) for table in tables]
    return KroneckerAffinity(apart[0], apart[1], symmetric=True)


def dense(affinity: KroneckerAffinity) -> Tensor:
    """The matrix of all pairs of pairs, columns first, as pygmtools wants it."""
    n, m = affinity.shape
    return torch.einsum("rij,rab->aibj", affinity.a, affinity.b).reshape(n * m, n * m).clamp_min(0)


def peer(bench: Any) -> Any:
    """pygmtools on torch, or None."""
    pygm = bench.peer("pygmtools")
    if pygm is not None:
        pygm.set_backend("pytorch")
    return pygm


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
