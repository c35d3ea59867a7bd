"""Merging nets fine-tuned from one base: Concrete subspace learning against task arithmetic, TIES, DARE and AdaMerging.

One base net is trained on Fashion-MNIST (average-pooled to 14 x 14, without shirts) and fine-tuned for six tasks: three
groups of three classes, each seen twice, moved or turned in its own way, with the rows of the base's last layer as the
fixed head of a task. The merged net answers all six. Scales and learning rates are chosen for each method from one grid
on a seed and images that are not used again; the learned merges see unlabelled images only. Accuracies are on test
images, mean and spread over three seeds; the time is that of one merge. Without ``DIFFMATCH_DATA`` prototypes take the
place of the images.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import trained_nets
from harness import Row, median_and_iqr
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from diffmatch.matching.weights import (
    ada_merging,
    average_states,
    concrete_merging,
    dare,
    regmean,
    task_arithmetic,
    ties,
)

OURS = "diffmatch"
State = dict[str, Tensor]
View = Callable[[Tensor], Tensor]
GROUPS = ((0, 1, 5), (2, 3, 7), (4, 8, 9))
"""T-shirt, trouser, sandal; pullover, dress, sneaker; coat, bag, boot."""
LABEL_SMOOTHING = 0.1
"""So that wrong answers are less sure than right ones: entropy is all that the learned merges have to go by."""


class Net(nn.Module):
    """Three hidden layers that the tasks share, and a head."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in in (196, width, width):
            layers += [nn.Linear(n_in, width), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def turned(degrees: float) -> View:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def view(images: Tensor) -> Tensor:
        theta = images.new_tensor([[cos, -sin, 0], [sin, cos, 0]]).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False, padding_mode="border")

    return view


def tasks() -> list[tuple[int, View]]:
    """The group of classes and the view of each task."""
    return [
        (0, lambda x: x.roll(2, -2)),
        (1, turned(15)),
        (2, lambda x: x.roll(-2, -1)),
        (0, turned(-15)),
        (1, lambda x: x.flip(-1)),
        (2, lambda x: 0.6 * x),
    ]


@dataclass(frozen=True)
class Problem:
    """A base, its fine-tunings without heads, nets with heads, unlabelled batches, and labelled images of each task."""

    base: State
    states: list[State]
    models: list[nn.Module]
    unlabelled: list[list[Tensor]]
    test: list[tuple[Tensor, Tensor]]
    validation: list[tuple[Tensor, Tensor]]

    def accuracy(self, state: State, *, validation: bool = False) -> float:
        parts = self.validation if validation else self.test
        return statistics.mean(accuracy(model, state, *part) for model, part in zip(self.models, parts, strict=True))

    def own(self) -> float:
        """Accuracy of each task's own net, the ceiling."""
        found = zip(self.models, self.states, self.test, strict=True)
        return statistics.mean(accuracy(model, state, *part) for model, state, part in found)


def accuracy(model: nn.Module, state: State, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((functional_call(model, state, (images,)).argmax(1) == labels).double().mean())


def body(model: nn.Module) -> State:
    return {name: t.detach().clone() for name, t in model.state_dict().items() if name.startswith("body")}


def train(
    model: nn.Module, parameters: Sequence[Tensor], data: tuple[Tensor, Tensor], steps: int, lr: float, seed: int
) -> None:
    images, labels = data
    optimizer = torch.optim.Adam(parameters, lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=LABEL_SMOOTHING).backward()
        optimizer.step()


def of_group(images: Tensor, labels: Tensor, group: int, view: View) -> tuple[Tensor, Tensor]:
    """The images of a group of classes as a task sees them, and their numbers in the group."""
    classes = torch.tensor(GROUPS[group])
    chosen = torch.isin(labels, classes)
    return view(images[chosen]), (labels[chosen, None] == classes).long().argmax(1)


def make(seed: int, *, tiny: bool) -> Problem:
    """Base and fine-tunings of a seed."""
    width, steps, tuning = (16, 5, 3) if tiny else (256, 400, 100)
    images, labels = (torch.cat(x) for x in zip(*trained_nets.batches("cnn", train=True, tiny=tiny), strict=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order], labels[order]
    quarter = len(images) // 4
    first, second, third, last = ((images[i:j], labels[i:j]) for i, j in _cuts(quarter))
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    whole = Net(width, 9)
    every = [of_group(*first, group, lambda x: x) for group in range(3)]
    joint = torch.cat([x for x, _ in every]), torch.cat([y + 3 * group for group, (_, y) in enumerate(every)])
    train(whole, list(whole.parameters()), joint, steps, 1e-3, seed)
    models: list[nn.Module] = []
    states = []
    for number, (group, view) in enumerate(tasks()):
        model = Net(width, 3)
        model.body.load_state_dict(whole.body.state_dict())
        rows = slice(3 * group, 3 * group + 3)
        model.head.load_state_dict({"weight": whole.head.weight[rows], "bias": whole.head.bias[rows]})
        train(model, list(model.body.parameters()), of_group(*second, group, view), tuning, 3e-4, seed + number)
        models.append(model)
        states.append(body(model))
    torch.set_rng_state(state)
    batches = trained_nets.batches("cnn", train=False, tiny=tiny)
    unseen = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    return Problem(
        body(whole),
        states,
        models,
        [list(of_group(*third, group, view)[0].split(64)) for group, view in tasks()],
        [of_group(*unseen, group, view) for group, view in tasks()],
        [of_group(*last, group, view) for group, view in tasks()],
    )


def _cuts(quarter: int) -> list[tuple[int, int]]:
    return [(k * quarter, (k + 1) * quarter) for k in range(4)]


@dataclass(frozen=True)
class Settings:
    """What was chosen on a seed that is not used again."""

    steps: int
    scale: float = 0.3
    ties_scale: float = 1.0
    coefficient_lr: float = 1e-3
    mask_lr: float = 1e-2
    joint_mask_lr: float = 1e-2


def concrete(p: Problem, s: Settings, seed: int, granularity: str) -> State:
    return concrete_merging(
        p.base,
        p.states,
        p.models,
        p.unlabelled,
        granularity=granularity,
        scale=s.scale,
        steps=s.steps,
        lr=s.mask_lr if granularity == "fixed" else s.joint_mask_lr,
        coefficient_lr=s.coefficient_lr,
        refine_steps=s.steps,
        generator=torch.Generator().manual_seed(seed),
        progress=False,
    ).state


def ada(p: Problem, s: Settings, granularity: str) -> State:
    found = ada_merging(
        p.base,
        p.states,
        p.models,
        p.unlabelled,
        granularity=granularity,
        scale=s.scale,
        steps=s.steps,
        lr=s.coefficient_lr,
        progress=False,
    )
    return found.state


def thinned(p: Problem, s: Settings, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return task_arithmetic(p.base, [dare(p.base, x, generator=generator) for x in p.states], scale=s.scale)


Merge = Callable[[Problem, Settings, int], State]
FIXED: dict[str, Merge] = {
    OURS: lambda p, s, seed: concrete(p, s, seed, "fixed"),
    "task arithmetic": lambda p, s, seed: task_arithmetic(p.base, p.states, scale=s.scale),
    "TIES": lambda p, s, seed: ties(p.base, p.states, scale=s.ties_scale),
    "DARE": thinned,
    "average": lambda p, s, seed: average_states(p.states),
    "RegMean": lambda p, s, seed: regmean(p.models, p.states, p.unlabelled),
}
LEARNED: dict[str, Merge] = {
    OURS: lambda p, s, seed: concrete(p, s, seed, "layer"),
    "AdaMerging, layers": lambda p, s, seed: ada(p, s, "layer"),
    "AdaMerging, tasks": lambda p, s, seed: ada(p, s, "task"),
}


def choose(bench: Any) -> Settings:
    """Scales and learning rates by labelled images of a seed that is not used again."""
    p = make(100, tiny=bench.tiny)
    (steps,) = bench.sizes([150], tiny=[2])

    def best(tried: Sequence[float], merged: Callable[[float], State]) -> float:
        return max(tried, key=lambda value: p.accuracy(merged(value), validation=True))

    found = Settings(steps)
    scale = best((0.2, 0.3, 0.4, 0.5, 0.6), lambda x: task_arithmetic(p.base, p.states, scale=x))
    ties_scale = best((0.6, 0.9, 1.2, 1.5, 2.0), lambda x: ties(p.base, p.states, scale=x))
    found = replace(found, scale=scale, ties_scale=ties_scale)
    rates = bench.sizes((3e-4, 1e-3, 3e-3), tiny=(1e-3,))
    found = replace(found, coefficient_lr=best(rates, lambda x: ada(p, replace(found, coefficient_lr=x), "layer")))
    rates = bench.sizes((3e-3, 1e-2, 3e-2), tiny=(1e-2,))
    fixed = best(rates, lambda x: concrete(p, replace(found, mask_lr=x), 100, "fixed"))
    joint = best(rates, lambda x: concrete(p, replace(found, joint_mask_lr=x), 100, "layer"))
    return replace(found, mask_lr=fixed, joint_mask_lr=joint)


def run(bench: Any) -> None:
    """Choose the settings, then merge by every method on every seed."""
    settings = choose(bench)
    problems = {seed: make(seed, tiny=bench.tiny) for seed in bench.sizes((1, 2, 3), tiny=(1,))}
    size = f"6 tasks, {settings.steps} steps"
    for name, methods in (("fixed scales", FIXED), ("learned scales", LEARNED)):
        for contender, merged in methods.items():
            seconds, found = [], []
            for seed, problem in problems.items():
                begin = time.perf_counter()
                state = merged(problem, settings, seed)
                seconds.append(time.perf_counter() - begin)
                found.append(100 * problem.accuracy(state))
            median, iqr = median_and_iqr(seconds)
            quality = {
                "accuracy %": statistics.mean(found),
                "spread": statistics.stdev(found) if len(found) > 1 else 0.0,
                "worst": min(found),
            }
            bench.rows.append(Row(bench.name, name, contender, size, median, iqr, len(found), None, quality))
    ends = {
        "base %": statistics.mean(100 * p.accuracy(p.base) for p in problems.values()),
        "own nets %": statistics.mean(100 * p.own() for p in problems.values()),
        "scale": settings.scale,
        "TIES scale": settings.ties_scale,
        "scale rate": settings.coefficient_lr,
        "mask rate": settings.mask_lr,
        "joint mask rate": settings.joint_mask_lr,
    }
    bench.rows[-len(FIXED) - len(LEARNED)].quality.update(ends)


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
