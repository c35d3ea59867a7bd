"""Weight matching against a plain SciPy loop and rebasin: time, and the objective, each tensor counted once.

Pairs of nets trained on Fashion-MNIST from two seeds (see ``trained_nets.py``), and ResNet50-sized ones of random
weights: a pair that has nothing in common, and one whose second is the first with noise of half a standard deviation
and its units shuffled. The plain loop goes through the atoms in our order from the identity: the whole Gram matrix in
single precision from the weights as they were, SciPy's assignment, until a sweep changes nothing; our second row begins
there too. rebasin does the same in random order and sums the Gram matrix of a layer several times; its time includes
the derivation of its spec, since it offers no other way in.
"""

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from trained_nets import make, trained

from diffmatch.matching.weights import (
    PermutationSpec,
    apply_permutations,
    identity_permutations,
    match_weights,
    permutation_spec,
    random_permutations,
    weight_objective,
)

OURS = "diffmatch"
State = Mapping[str, Tensor]


def run(bench: Any) -> None:
    peer = bench.peer("rebasin")
    for kind in bench.sizes(["mlp", "mlp, 1024 wide", "resnet20"], tiny=["mlp"]):
        model = make(kind, tiny=bench.tiny)
        example = torch.randn(2, 1, 28, 28) if kind.startswith("mlp") else torch.randn(2, 1, 7, 7)
        spec = permutation_spec(model, example)
        states = [trained(kind, seed, tiny=bench.tiny) for seed in (0, 1)]
        compare(bench, kind, spec, states, (lambda *s, m=model, x=example: rebasin(*s, m, x)) if peer else None)
    model = ResNet50(2 if bench.tiny else 64)
    spec = permutation_spec(model, torch.randn(1, 3, 32, 32))
    first, second = (random_state(model, bench.generator(seed)) for seed in (0, 1))
    compare(bench, "resnet50, random", spec, [first, second], None)
    noisy = {
        name: first[name] + 0.5 * first[name].std() * tensor / tensor.std() if tensor.ndim > 1 else tensor
        for name, tensor in second.items()
    }
    shuffled = apply_permutations(noisy, spec, random_permutations(spec, generator=bench.generator(2)))
    compare(bench, "resnet50, shuffled", spec, [first, shuffled], None)


def compare(
    bench: Any,
    task: str,
    spec: PermutationSpec,
    states: list[dict[str, Tensor]],
    peer: Callable[[State, State], State] | None,
) -> None:
    a, b = states

    def ours(start: State | None = None) -> State:
        return apply_permutations(b, spec, match_weights(a, b, spec, start=start).permutations)

    contenders: dict[str, Callable[[], State] | None] = {
        OURS: ours,
        "diffmatch, from the identity": lambda: ours({}),
        "plain loop, SciPy": lambda: plain_loop(a, b, spec),
        "rebasin": (lambda: peer(a, b)) if peer else None,
    }
    size = f"{sum(tensor.numel() for tensor in a.values()) / 1e6:.2g} M weights, {len(spec.atoms)} atoms"
    bench.compare(task, contenders, size=size, quality=lambda state: {"objective": weight_objective(a, state, spec)})


def plain_loop(a: State, b: State, spec: PermutationSpec) -> State:
    permutations = identity_permutations(spec)
    changed = True
    while changed:
        changed = False
        for atom in spec.atoms:
            moved = apply_permutations(b, spec, {name: p for name, p in permutations.items() if name != atom})
            gram = torch.zeros(spec.atoms[atom].size, spec.atoms[atom].size)
            for name, axis in spec.touched(atom):
                if name not in spec.buffers:
                    x, y = (state[name].movedim(axis, 0).reshape(len(gram), -1) for state in (a, moved))
                    gram += x @ y.T
            column = torch.from_numpy(linear_sum_assignment(gram.numpy(), maximize=True)[1])
            rows = torch.arange(len(gram))
            gain = gram[rows, column].double().sum() - gram[rows, permutations[atom]].double().sum()
            if gain > 1e-6 * gram[rows, column].abs().sum():
                permutations[atom], changed = column, True
    return apply_permutations(b, spec, permutations)


def rebasin(a: State, b: State, model: nn.Module, example: Tensor) -> State:
    import rebasin as package

    models = [copy.deepcopy(model).eval() for _ in range(2)]
    for net, state in zip(models, (a, b), strict=True):
        net.load_state_dict(state)
    descent = package.PermutationCoordinateDescent(*models, example)
    descent.rebasin()
    return models[1].state_dict()


def random_state(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """He-normal weights; norms as they are."""
    return {
        name: torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        if tensor.ndim > 1
        else tensor.clone()
        for name, tensor in model.state_dict().items()
    }


class Bottleneck(nn.Module):
    """Bottleneck block of ResNet50."""

    def __init__(self, n_in: int, n_mid: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_mid, 1, bias=False), nn.BatchNorm2d(n_mid)
        self.conv2, self.bn2 = nn.Conv2d(n_mid, n_mid, 3, stride, 1, bias=False), nn.BatchNorm2d(n_mid)
        self.conv3, self.bn3 = nn.Conv2d(n_mid, 4 * n_mid, 1, bias=False), nn.BatchNorm2d(4 * n_mid)
        self.shortcut: nn.Module = nn.Identity()
        if first:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, 4 * n_mid, 1, stride, bias=False), nn.BatchNorm2d(4 * n_mid))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet50(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        n_in = width
        for stage, depth in enumerate((3, 4, 6, 3)):
            for i in range(depth):
                n = width * 2**stage
                layers.append(Bottleneck(n_in, n, 2 if stage and not i else 1, first=not i))
                n_in = 4 * n
        self.net = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, 1000 if width > 8 else 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
