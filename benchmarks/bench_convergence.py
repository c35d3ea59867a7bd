"""How far the optimizers come in a number of steps, on fields, a regression, a valley, a soft matching and a mesh.

All start at the same point and decay their rate by a cosine (L-BFGS and Newton keep theirs). The rate of each is found
on the first seed, by a walk over half decades from 0.03 to the next local best; the loss is the median over seeds.
Times are CPU seconds of one fit. With ``--out FOLDER`` the curves of the first seed are drawn there, and a run that was
interrupted goes on where it was.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from convergence_problems import Problem, field_problem, matching, regression, rosenbrock
from harness import Bench, Row, median_and_iqr, seconds
from line_chart import Panel, write_chart

from diffmatch import fit
from diffmatch.meshing import FieldTarget, fit_mesh
from diffmatch.meshing.shapes import demo_part
from diffmatch.optim import GridFilter, optimizer_names, optimizer_spec

logger = logging.getLogger("benchmarks")

OURS = "diffmatch"
OWN_RATE = ("lbfgs", "newton")
START = -3  # 0.03, in half decades
FIRST = {"adafactor": 1, "adahessian": 0, "adagrad": -1, "sgd": 4, "sgd8bit": 4, "lion": -4, "lion8bit": -4}
"""Where the walk begins for optimizers whose rates are of another size: less to walk, no other end."""
DRAWN = 300
"""Steps of the longest fits whose curves are drawn: in more of them nearly all reach the same loss."""
PATIENCE = 120.0
"""CPU seconds of one fit, and of the seeds after the first: slower ones are left out, or get fewer seeds."""


@dataclass(frozen=True)
class Outcome:
    """One fit: what it reached, in what time, and how; its properties are measured where they are wanted."""

    loss: float
    seconds: float
    evaluations: int
    curve: list[float]
    properties: Callable[[], dict[str, float]]
    rate: float = 0.0


class Curve(TypedDict):
    """The losses of a fit, from its start on, and its CPU seconds."""

    losses: list[float]
    seconds: float


@dataclass(frozen=True)
class Family:
    """Problems of one kind, by seed, and what is run on them."""

    name: str
    make: Callable[[int], Problem]
    seeds: int
    steps: Sequence[int]


def families(bench: Bench) -> list[Family]:
    """The families of the first part."""
    if bench.tiny:
        small = partial(field_problem, n=6, samples=40)
        return [
            Family("field, squares", lambda s: small("squares", seed=s), 1, (3,)),
            Family("soft matching", lambda s: matching(s, n=6, d=2), 1, (3,)),
        ]
    return [
        Family("field, squares", lambda s: field_problem("squares", 32, s), 5, (100, 300, 1000)),
        Family("field, absolute values", lambda s: field_problem("absolute values", 32, s), 5, (100, 300, 1000)),
        Family("logistic regression", regression, 5, (100, 300, 1000)),
        Family("Rosenbrock", rosenbrock, 5, (100, 300, 1000)),
        Family("soft matching", matching, 5, (100, 300)),
    ]


def run(bench: Bench) -> None:
    """All families, then the filtered fits, the peers and the mesh."""
    for family in families(bench):
        shown = compare_optimizers(bench, family)
        if bench.folder:
            file = "optimizers-" + family.name.lower().replace(", ", "-").replace(" ", "-") + ".svg"
            draw(bench.folder / file, family.name, shown)
    compare_structure(bench)
    bench.once("peers", partial(compare_peers, bench))
    compare_meshes(bench)


def compare_optimizers(bench: Bench, family: Family) -> dict[str, Curve]:
    """Rows of every optimizer; the curves of the first seed, of the longest fit that is drawn."""

    def measure(name: str) -> Curve | None:
        start, pace, drawn = FIRST.get(name, START), 0.0, None
        for steps in family.steps:
            if pace * steps > PATIENCE:
                logger.info("%s: %s would take long in %d steps: left out", family.name, name, steps)
                break
            runs, start = tuned(bench, family.make, name, steps, seeds=family.seeds, start=start)
            add_row(bench, family.name, name, f"{steps} steps", runs)
            pace = runs[0].seconds / steps
            if steps <= DRAWN and math.isfinite(runs[0].loss):
                drawn = Curve(seconds=runs[0].seconds, losses=runs[0].curve)
        return drawn

    names = ("adamw", "lbfgs") if bench.tiny else optimizer_names()
    shown = {name: bench.once(f"{family.name}, {name}", partial(measure, name)) for name in names}
    return {name: curve for name, curve in shown.items() if curve}


def compare_structure(bench: Bench) -> None:
    """Fields by AdamW in N steps and with filtered gradients in a part of them."""
    sizes = bench.sizes(((32, 5, (100, 300)), (64, 3, (100, 300))), tiny=((6, 1, (12,)),))
    for kind in ("squares", "absolute values"):
        for n, seeds, lengths in sizes:
            for steps in lengths:
                part = f"filter, {kind}, {n}^3, {steps} steps"
                bench.once(part, partial(compare_filtered, bench, kind, n, seeds, steps))


def compare_filtered(bench: Bench, kind: str, n: int, seeds: int, steps: int) -> None:
    """One field problem: the best tuned AdamW in all steps, the filtered fits in a third, a quarter and a sixth.

    Ours is the filtered fit in a quarter for squares, with `AdamUniform`, and in a third for absolute values, with
    AdamW under a filter that fades. "AdamW, same" has the latter's settings, in all steps and without the filter.
    """
    samples = 40 if bench.tiny else 4000 * (n // 32) ** 2
    make = partial(field_problem, kind, n, samples=samples)
    tune = partial(tuned, bench, make, seeds=seeds)
    row = partial(add_row, bench, f"filter, {kind}")
    size = f"{n}^3, N = {steps}"
    rivals = [tune("adamw", steps, options=adamw(betas))[0] for betas in ((0.9, 0.999), (0.9, 0.99))]
    row("AdamW, N", size, min(rivals, key=lambda runs: runs[0].loss))
    for part in (3, 4, 6):
        few = max(1, steps // part)
        runs, _ = tune(
            "adam-uniform", few, start=-1, options={"betas": (0.8, 0.95)}, structure=lambda step: GridFilter(3.0)
        )
        row(OURS if kind == "squares" and part == 4 else f"{OURS}, constant filter, N/{part}", size, runs)
    few = max(1, steps // 3)
    runs, _ = tune("adamw", few, options=adamw((0.6, 0.6)), structure=fading(few), schedule=quartic(few))
    row(f"{OURS}, fading filter, N/3" if kind == "squares" else OURS, size, runs)
    runs, _ = tune("adamw", steps, options=adamw((0.6, 0.6)), schedule=quartic(steps))
    row("AdamW, same, N", size, runs)


def adamw(betas: tuple[float, float]) -> dict[str, Any]:
    return {"betas": betas, "weight_decay": 0.0}


def quartic(steps: int) -> Callable[[int], float]:
    return lambda step: (1 - step / steps) ** 4


def fading(steps: int) -> Callable[[int], GridFilter]:
    """A filter whose strength falls from 5 to nothing over the first half of the steps."""
    return lambda step: GridFilter(max(0.0, 5.0 * (1 - 2 * step / steps)), power=1)


def compare_peers(bench: Bench) -> None:
    """Ours and the peers' on the regression, at equal rates and settings."""
    lion, many = bench.peer("lion_pytorch"), bench.peer("pytorch_optimizer")
    steps, seeds = (3, 1) if bench.tiny else (300, 5)
    peers: dict[str, dict[str, Callable[..., torch.optim.Optimizer]]] = {"lion": {}, "exadam": {}}
    if lion:
        peers["lion"]["lion-pytorch"] = lion.Lion
    if many:
        peers["lion"]["pytorch-optimizer"] = many.Lion
        peers["exadam"]["pytorch-optimizer"] = many.EXAdam
    for name, rivals in peers.items():
        options = {"weight_decay": 0.0}
        runs, _ = tuned(bench, regression, name, steps, seeds=seeds, options=options)
        task, size = f"peers, {name}", f"{steps} steps"
        add_row(bench, task, OURS, size, runs)
        for peer, make in rivals.items():
            theirs = []
            for seed in range(seeds):
                problem = regression(seed)
                optimizer = make(problem.params, lr=runs[0].rate, **options)
                theirs.append(outcome(problem, optimizer, steps, rate=runs[0].rate))
            add_row(bench, task, peer, size, theirs)


def compare_meshes(bench: Bench) -> None:
    """The demo's part through `fit_mesh`, which brings its own schedule; the loss is the one that it minimises."""
    cells, steps = (10, 2) if bench.tiny else (24, 100)
    target = FieldTarget(demo_part)

    def measure(name: str) -> None:
        def at(rate: float) -> Outcome:
            begin = time.process_time()
            made = fit_mesh(target, resolution=cells, steps=steps, optimizer=name, lr=rate, progress=False)
            seconds = time.process_time() - begin

            def properties() -> dict[str, float]:
                figures = made.metrics.as_dict()
                return {
                    "mean distance": figures["mean"],
                    "normals > 5°, %": figures["normal_error_percent"],
                    "angle < 10°, %": figures["small_angle_percent"],
                    "self-intersecting, %": figures["self_intersection_percent"],
                }

            losses = made.history.loss
            return Outcome(losses[-1], seconds, made.history.evaluations, losses, properties, rate)

        best = (
            at(optimizer_spec(name).lr)
            if name in OWN_RATE
            else walk(at, FIRST.get(name, START), 1 if bench.tiny else 6)[0]
        )
        add_row(bench, "mesh, 24 cells", name, f"{steps} steps", [best])

    for name in ("adam",) if bench.tiny else optimizer_names():
        bench.once(f"mesh, {name}", partial(measure, name))


def tuned(
    bench: Bench,
    make: Callable[[int], Problem],
    name: str,
    steps: int,
    *,
    seeds: int,
    start: int = START,
    options: Mapping[str, Any] | None = None,
    structure: Callable[[int], GridFilter] | None = None,
    schedule: Any = "cosine",
) -> tuple[list[Outcome], int]:
    """The outcomes of an optimizer at its best rate, the first seed's first, and the place of that rate on the grid."""

    def at(rate: float, seed: int = 0) -> Outcome:
        problem = make(seed)
        return outcome(problem, name, steps, rate, options, structure, schedule)

    outcome(make(0), name, 2, optimizer_spec(name).lr)  # compiles what is compiled
    if name in OWN_RATE:
        first, place = at(optimizer_spec(name).lr), start
    else:
        first, place = walk(at, start, 1 if bench.tiny else 12)
    runs = [first]
    while len(runs) < seeds and sum(run.seconds for run in runs[1:]) <= PATIENCE:
        runs.append(at(first.rate, len(runs)))
    return runs, place


def walk(at: Callable[[float], Outcome], start: int, most: int) -> tuple[Outcome, int]:
    """The best rate of a grid of half decades between two worse ones, from a start, in at most so many fits."""
    found: dict[int, Outcome] = {}

    def loss(place: int) -> float:
        if place not in found and len(found) < most:
            found[place] = at((3.0 if place % 2 else 1.0) * 10.0 ** (place // 2))
        return found[place].loss if place in found else math.inf

    place = start
    loss(place)
    while True:
        better = min((place, place - 1, place + 1), key=loss)
        if better == place and not (math.isinf(loss(place)) and len(found) < most):
            return found[place], place
        place = better if better != place else place - 1


def outcome(
    problem: Problem,
    optimizer: str | torch.optim.Optimizer,
    steps: int,
    rate: float,
    options: Mapping[str, Any] | None = None,
    structure: Callable[[int], GridFilter] | None = None,
    schedule: Any = "cosine",
) -> Outcome:
    """One fit of a problem; its loss is infinite where it diverged."""
    begin = time.process_time()
    history = fit(
        problem.params,
        problem.loss,
        optimizer=optimizer,
        lr=rate if isinstance(optimizer, str) else None,
        steps=steps,
        schedule="constant" if optimizer in OWN_RATE else schedule,
        optimizer_options=options,
        structure=(lambda step: {problem.params[0]: structure(step)}) if structure else None,
        progress=False,
    )
    seconds = time.process_time() - begin
    with torch.no_grad():
        loss = float(problem.loss())
    if history.status == "diverged" or not math.isfinite(loss):
        return Outcome(math.inf, seconds, history.evaluations, history.loss, dict, rate)
    return Outcome(loss, seconds, history.evaluations, [*history.loss, loss], problem.properties, rate)


def add_row(bench: Bench, task: str, contender: str, size: str, runs: Sequence[Outcome]) -> None:
    """The medians over the seeds; seeds that diverged are counted, and so is the spread."""
    good = [run for run in runs if math.isfinite(run.loss)]
    quality: dict[str, float] = {"diverged": float(len(runs) - len(good)), "rate": runs[0].rate}
    if good:
        losses = [run.loss for run in good]
        quality |= {"loss": statistics.median(losses), "least": min(losses), "largest": max(losses)}
        quality["evaluations"] = statistics.median(run.evaluations for run in good)
        properties = [run.properties() for run in good]
        quality |= {key: statistics.median(found[key] for found in properties) for key in properties[0]}
    median, iqr = median_and_iqr([run.seconds for run in runs])
    logger.info("%s, %s, %s: %.4g in %s", task, contender, size, quality.get("loss", math.inf), seconds(median))
    bench.rows.append(Row(bench.name, task, contender, size, median, iqr, len(runs), None, quality))


def draw(path: Path, title: str, shown: Mapping[str, Curve]) -> None:
    """Loss over steps and over CPU seconds, the latter to four times AdamW's."""
    limit = 4 * shown["adamw"]["seconds"]
    steps = {name: list(enumerate(lowest(curve["losses"]))) for name, curve in shown.items()}
    times = {
        name: [(curve["seconds"] * step / max(1, len(curve["losses"]) - 1), loss) for step, loss in steps[name]]
        for name, curve in shown.items()
    }
    times = {name: [(x, y) for x, y in line if x <= limit] for name, line in times.items()}
    write_chart(path, [Panel(title, "steps", steps), Panel(title, "CPU seconds", times)])


def lowest(curve: Sequence[float]) -> list[float]:
    """The lowest loss so far, so that lines that jump up and down stay apart."""
    return [min(curve[: index + 1]) for index in range(len(curve))]


if __name__ == "__main__":
    from harness import main

    raise SystemExit(main(files=[__file__]))
