"""Two nets trained from different seeds, averaged: before and after their units were brought into one order.

Run ``python examples/merge_models.py [FOLDER]``; some seconds.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffmatch.matching.weights import apply_permutations, average_states, barrier_curve, merge, permutation_spec
from diffmatch.matching.weights.checkpoint_files import write_checkpoint
from diffmatch.report import Report, format_value
from diffmatch.report.merge import barrier_figure


def main(
    folder: str | Path = "out", *, points: int = 2000, width: int = 128, epochs: int = 40, seed: int = 0
) -> tuple[float, float]:
    """Write the merged net (``spirals.safetensors``) and ``merge.html`` into a folder.

    Args:
        folder: made if needed.
        points: to learn from, and as many to test with.
        width: units of a hidden layer.
        epochs: of each training.
        seed: of the points and the trainings.

    Returns:
        The barrier between the nets as they are, and after alignment.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    train, test = spirals(points, generator), spirals(points, generator)
    model = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
    states = [trained(model, train, epochs, seed=seed + k) for k in range(2)]

    # What may be permuted is found by tracing one run, and tried out.
    spec = permutation_spec(model, train[0][:2])
    print(f"{len(spec.atoms)} sets of units can be permuted; an axis that stays: {spec.frozen[0].reason}")

    # With data, several ways to align are tried; the one whose average is best on them is taken.
    merged = merge(states, spec, model=model, data=[train])
    moved = apply_permutations(states[1], spec, merged.permutations[1])
    before = barrier_curve(model, states[0], states[1], [test])
    after = barrier_curve(model, states[0], moved, [test])
    print(f"aligned by {merged.method}; barrier {before.barrier:.3f} as they are, {after.barrier:.3f} aligned")
    nets = {"first": states[0], "second": states[1], "average": average_states(states), "merged": merged.state}
    rows = [(name, 100 * accuracy(model, state, test)) for name, state in nets.items()]
    for name, share in rows:
        print(f"{name:<8} {format_value(share, digits=3):>5} % right")

    write_checkpoint(folder / "spirals.safetensors", merged.state)
    report = Report("Two nets merged", summary=f"Aligned by {merged.method}.")
    report.add_figure(
        barrier_figure(after, before), alt="Loss on the way between two nets.", caption="Loss on the way."
    )
    report.add_table(("net", "right answers, %"), rows)
    report.write(folder / "merge.html")
    print(f"wrote {folder}/spirals.safetensors, merge.html")
    return before.barrier, after.barrier


def spirals(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points of three spirals, shape (count, 2), and which spiral each is of, shape (count,)."""
    arm = torch.randint(3, (count,), generator=generator)
    radius = torch.rand(count, generator=generator).sqrt()
    angle = 2 * torch.pi * (radius + arm / 3)
    places = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return 2 * places + 0.05 * torch.randn(count, 2, generator=generator), arm


def trained(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, *, seed: int) -> dict[str, Tensor]:
    """Weights after training from a random start of one's own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(data[0]), generator=generator).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(data[0][chosen]), data[1][chosen]).backward()
            optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def accuracy(model: nn.Module, state: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> float:
    """Share of right answers."""
    with torch.no_grad():
        answers = torch.func.functional_call(model, state, (data[0],)).argmax(1)
    return float((answers == data[1]).double().mean())


if __name__ == "__main__":
    main(*sys.argv[1:])
