"""Merging nets trained from different seeds on Fashion-MNIST: loss barriers by method, many models, singular vectors.

Set ``DIFFMATCH_DATA`` to the folder that holds ``fashion_mnist`` and ``DIFFMATCH_CACHE`` to one that keeps the trained
nets. Pairs: mean and range over the pairs of three seeds of the barrier of the loss (largest rise above the straight
line between the ends, at 1/4, 1/2 and 3/4), accuracy of the midpoint, and how much nearer the models came. Batch norm
is reset everywhere, "repaired" adds REPAIR. Activations, losses that choose and statistics come from 2000 images
trained on (1000 for convolutions), on which "seen" is measured too; "unseen" is as many others trained on. Perceptrons
are merged with 12000 images too, and judged on the same 2000 others. Times are those of the alignment, one run each.
"""

import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import Row
from line_chart import Panel, write_chart
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from trained_nets import batches, make, trained

from diffmatch.matching.weights import (
    PermutationSpec,
    apply_permutations,
    average_states,
    compose_permutations,
    identity_permutations,
    interpolate_states,
    match_activations,
    match_many,
    match_sinkhorn,
    match_straight_through,
    match_weights,
    mean_barrier,
    merge,
    permutation_spec,
    repair,
    reset_batch_norm,
    singular_alignment,
    weight_objective,
)

OURS = "diffmatch"
State = dict[str, Tensor]
Permutations = dict[str, Tensor]
PLACES = (0.25, 0.5, 0.75)
STEPS = {"STE": 60, "Sinkhorn": 100}


class Nets:
    """Trained nets of a kind with what it takes to merge and to judge them; ``given`` batches are seen."""

    def __init__(self, kind: str, seeds: Sequence[int], *, tiny: bool, given: int = 4) -> None:
        self.kind, self.tiny = kind, tiny
        self.model = make(kind, tiny=tiny).eval()
        self.states = [trained(kind, seed, tiny=tiny) for seed in seeds]
        size = 100 if tiny else 500 if kind.startswith("mlp") else 250
        train, test = (batches(kind, train=own, tiny=tiny, size=size) for own in (True, False))
        n = 1 if tiny else 4
        self.seen, self.unseen, self.test = train[: 1 if tiny else given], train[-n:], test[: 2 * n]
        self.label = kind if given == 4 else f"{kind}, {given * size} images seen"
        self.spec = permutation_spec(self.model, self.seen[0][0][:2])
        self.normed = any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules())
        self._ends: dict[int, dict[str, float]] = {}

    def barriers(self, a: State, b: State, moved: State, sets: Sequence[str]) -> dict[str, float]:
        """Barriers of the loss between a model and another, permuted from ``b``; with "test" also the accuracy."""
        for state in (a, b):
            if id(state) not in self._ends:
                self._ends[id(state)] = self.evaluate(state, ("seen", "unseen", "test"))
        ends = [self._ends[id(state)] for state in (a, b)]
        found = dict.fromkeys(sets, 0.0)
        for t in PLACES:
            between = interpolate_states(a, moved, t)
            states = {"reset": reset_batch_norm(self.model, between, self.seen) if self.normed else between}
            if any("repaired" in name for name in sets):
                states["repaired"] = repair(self.model, between, [a, moved], self.seen, weights=(1 - t, t))
            for name in sets:
                kind = "repaired" if "repaired" in name else "reset"
                data = name.split(",")[0]
                values = self.evaluate(states[kind], (data,))
                line = (1 - t) * ends[0][data] + t * ends[1][data]
                found[name] = max(found[name], values[data] - line)
                if name == "test" and t == 0.5:
                    found["accuracy"] = values["accuracy"]
        return found

    def evaluate(self, state: State, sets: Sequence[str]) -> dict[str, float]:
        """Mean loss of a state on sets of images, and its accuracy on the last."""
        found: dict[str, float] = {}
        for name in sets:
            data = getattr(self, name)
            with torch.no_grad():
                logits = torch.cat([functional_call(self.model, state, (images,)) for images, _ in data])
            labels = torch.cat([own for _, own in data])
            found[name] = float(F.cross_entropy(logits, labels))
            found["accuracy"] = float((logits.argmax(1) == labels).double().mean())
        return found


def run(bench: Any) -> None:
    for kind in bench.sizes(["mlp", "cnn", "resnet8", "resnet8, 16 wide", "resnet8, 64 wide"], tiny=["mlp"]):
        seeds = (0, 1) if " wide" in kind or bench.tiny else (0, 1, 2)
        pairs(bench, Nets(kind, seeds, tiny=bench.tiny))
    more = Nets("mlp", (0, 1) if bench.tiny else (0, 1, 2), tiny=bench.tiny, given=24)
    pairs(bench, more, ["weights", "activations, weights", OURS])
    for n in bench.sizes([3, 5], tiny=[3]):
        many(bench, Nets("mlp", range(n), tiny=bench.tiny))
    directions(bench, Nets("mlp", (0, 1) if bench.tiny else (0, 1, 2), tiny=bench.tiny))


def methods(nets: Nets) -> dict[str, Callable[[State, State], Permutations]]:
    """How the units of a pair may be aligned, by the names of the rows."""
    model, spec, seen = nets.model, nets.spec, nets.seen
    steps = {name: 2 if nets.tiny else count for name, count in STEPS.items()}

    def activations(a: State, b: State) -> Permutations:
        return match_activations(model, a, b, spec, seen).permutations

    return {
        "naive": lambda a, b: identity_permutations(spec),
        "weights": lambda a, b: match_weights(a, b, spec).permutations,
        "activations": activations,
        "activations, weights": lambda a, b: match_weights(a, b, spec, start=activations(a, b)).permutations,
        "straight-through": lambda a, b: match_straight_through(
            model, [a, b], spec, seen, steps=steps["STE"], progress=False
        ).permutations[1],
        "Sinkhorn": lambda a, b: match_sinkhorn(a, b, spec, steps=steps["Sinkhorn"], progress=False).permutations[1],
        OURS: lambda a, b: merge([a, b], spec, model=model, data=seen).permutations[1],
    }


def pairs(bench: Any, nets: Nets, names: Sequence[str] | None = None) -> None:
    """The table of one kind of net: a row a method, means over the pairs of seeds."""
    for name, method in methods(nets).items():
        if names is not None and name not in names:
            continue
        seconds, found = [], []
        for a, b in itertools.combinations(nets.states, 2):
            begun = time.process_time()
            moved = apply_permutations(b, nets.spec, method(a, b))
            seconds.append(time.process_time() - begun)
            barriers = nets.barriers(a, b, moved, ("seen", "unseen", "test", "seen, repaired", "unseen, repaired"))
            found.append(barriers | {"nearer": 1 - _distance(nets.spec, a, moved) / _distance(nets.spec, a, b)})
        _row(bench, f"pairs, {nets.label}", name, f"{len(found)} pairs", seconds, _means(found) | _ranges(found))


def many(bench: Any, nets: Nets) -> None:
    """Several models into one order; then how models aligned to the first fit each other."""
    spec, states = nets.spec, nets.states

    def first() -> list[Permutations]:
        return [identity_permutations(spec), *(match_weights(states[0], s, spec).permutations for s in states[1:])]

    contenders: dict[str, Callable[[], list[Permutations]]] = {
        "naive": lambda: [identity_permutations(spec)] * len(states),
        "all to the first": first,
        "coordinate method": lambda: in_turns(states, spec),
        "diffmatch, no relaxation": lambda: match_many(states, spec, frank_wolfe=False).permutations,
        OURS: lambda: match_many(states, spec).permutations,
    }
    if len(states) == 3:
        steps = 2 if nets.tiny else STEPS["STE"]
        contenders["straight-through"] = lambda: (
            match_straight_through(nets.model, states, spec, nets.seen, steps=steps, progress=False).permutations
        )
        contenders["straight-through, pairs"] = lambda: [
            identity_permutations(spec),
            *(
                match_straight_through(
                    nets.model, [states[0], s], spec, nets.seen, steps=steps, progress=False
                ).permutations[1]
                for s in states[1:]
            ),
        ]
    for name, method in contenders.items():
        begun = time.process_time()
        permutations = method()
        seconds = time.process_time() - begun
        moved = [apply_permutations(state, spec, p) for state, p in zip(states, permutations, strict=True)]
        quality = {
            "objective": sum(weight_objective(a, b, spec) for a, b in itertools.combinations(moved, 2)),
            "train barrier": mean_barrier(nets.model, moved, nets.seen).barrier,
            "test barrier": mean_barrier(nets.model, moved, nets.test).barrier,
            "barrier of 2 and 3": nets.barriers(moved[1], states[2], moved[2], ("seen",))["seen"],
        }
        _row(bench, "many models", name, f"{len(states)} MLPs", [seconds], quality)


def in_turns(states: Sequence[State], spec: PermutationSpec, rounds: int = 100) -> list[Permutations]:
    """The coordinate method as published: each model in turn by weight matching to the mean of the others."""
    generator = torch.Generator().manual_seed(0)
    found = [identity_permutations(spec) for _ in states]
    moved = list(states)
    for _ in range(rounds):
        gain = 0.0
        for m in torch.randperm(len(states), generator=generator).tolist():
            mean = average_states([state for j, state in enumerate(moved) if j != m])
            match = match_weights(mean, moved[m], spec, start={})
            gain += (match.objective - match.initial) / abs(match.objective)
            moved[m] = apply_permutations(moved[m], spec, match.permutations)
            found[m] = compose_permutations(spec, found[m], match.permutations)
        if gain < 1e-6:
            break
    return found


def directions(bench: Any, nets: Nets) -> None:
    """Distance, barrier, spectra and singular vectors before and after weight matching, means over the pairs."""
    spec, found = nets.spec, {"before": [], OURS: []}  # type: dict[str, Any]
    for a, b in itertools.combinations(nets.states, 2):
        moved = apply_permutations(b, spec, match_weights(a, b, spec).permutations)
        for name, other in (("before", b), (OURS, moved)):
            statistics = singular_alignment(a, other, spec)
            merged = singular_alignment(a, average_states([a, other]), spec)
            row = {
                "distance": _distance(spec, a, other),
                "train barrier": nets.barriers(a, b, other, ("seen",))["seen"],
                "spectra": float(statistics.spectra.mean()),
                "R, all layers": statistics.mean_agreement,
                "R with the mean": merged.mean_agreement,
                "weighted R, all layers": statistics.mean_weighted,
            }
            row |= {f"R, layer {k + 1}": float(r) for k, r in enumerate(statistics.agreement)}
            row |= {f"weighted R, layer {k + 1}": float(r) for k, r in enumerate(statistics.weighted)}
            found[name].append(row)
    for name, rows in found.items():
        _row(bench, "singular vectors", name, f"{len(rows)} pairs of MLPs", [0.0], _means(rows))


def draw(path: Path, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Draw what `directions` found, by the names of its rows: agreement by layer, without its sign."""
    titles = {"R": "|R|, leading singular vectors", "weighted R": "|R|, all, weighted"}
    write_chart(
        path,
        [
            Panel(
                title,
                "layer",
                {
                    "before" if name == "before" else "after weight matching": [
                        (float(k), abs(row[f"{kind}, layer {k}"])) for k in range(1, 5)
                    ]
                    for name, row in rows.items()
                },
            )
            for kind, title in titles.items()
        ],
    )


def _row(
    bench: Any, task: str, contender: str, size: str, seconds: Sequence[float], quality: Mapping[str, float]
) -> None:
    mean = sum(seconds) / len(seconds)
    bench.rows.append(Row(bench.name, task, contender, size, mean, 0.0, 1, None, dict(quality)))


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def _ranges(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Smallest and largest barrier on the images seen."""
    names = [name for name in rows[0] if name.startswith("seen")]
    return {f"{name}, {f.__name__}": f(row[name] for row in rows) for name in names for f in (min, max)}


def _distance(spec: PermutationSpec, a: State, b: State) -> float:
    squares = weight_objective(a, a, spec) + weight_objective(b, b, spec) - 2 * weight_objective(a, b, spec)
    return max(squares, 0.0) ** 0.5


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
