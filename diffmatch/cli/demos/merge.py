"""The demo's models: two nets that learned the same shapes from different seeds, merged."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffmatch.cli.demos.settings import DemoSettings
from diffmatch.cli.outcome import write_json

if TYPE_CHECKING:
    from diffmatch.report import Metric, Report

__all__ = ["drawn_shapes", "run"]

SHAPES = ("disc", "ring", "square", "frame", "cross", "stripes")
_SIDE = 12
_TRAIN, _TEST = 3000, 1500
_EPOCHS, _BATCH, _WIDTH = 6, 64, 256


def run(report: "Report", settings: DemoSettings) -> "list[Metric]":
    """Train two nets, merge them: merge.safetensors, the permutations, and what was measured in merge.json."""
    from diffmatch.cli.merge_inputs import MergeInputs
    from diffmatch.cli.merge_job import merge_in_memory
    from diffmatch.cli.status import Status
    from diffmatch.matching.weights import permutation_spec
    from diffmatch.matching.weights.checkpoint_files import open_checkpoint, write_checkpoint
    from diffmatch.matching.weights.file_merge import write_permutations
    from diffmatch.report.merge import add_merge, merge_metrics

    status = Status(settings.progress)
    generator = torch.Generator().manual_seed(settings.seed)
    train, test = (drawn_shapes(count, generator) for count in (_TRAIN, _TEST))
    model = _net()
    paths = [settings.folder / f"net-{name}.safetensors" for name in "ab"]
    for number, path in enumerate(paths):
        status(f"training net {number + 1} of {len(paths)}")
        write_checkpoint(path, _trained(model, train, seed=settings.seed + number))
    spec = permutation_spec(model, train[0][:2])
    batches = list(zip(train[0].split(500), train[1].split(500), strict=True))
    inputs = MergeInputs(
        checkpoints=[open_checkpoint(path) for path in paths],
        model=model,
        spec=spec,
        batches=batches,
        unlabelled=None,
        inputs=train[0][:100],
        loss=F.cross_entropy,
        streamed=False,
    )
    outcome = merge_in_memory(
        inputs, method="auto", repair="auto", device=settings.device, seed=settings.seed, progress=status
    )
    status.clear()
    assert outcome.state is not None
    write_checkpoint(settings.folder / "merge.safetensors", outcome.state)
    write_permutations(settings.folder / "merge.permutations.safetensors", outcome.permutations, spec)

    report.add_section("Merge: two nets that learned the same shapes")
    report.add_text(
        f"Two nets of two hidden layers of {_WIDTH} units tell {len(SHAPES)} drawn shapes apart: {', '.join(SHAPES)}. "
        "They differ in their random start and the order of the pictures. Their average is of little use, until the "
        "units of the second are brought into the order of the first."
    )
    add_merge(report, outcome)
    found = merge_metrics(outcome)[:2] + _accuracies(model, inputs.states(settings.device), outcome.state, test)
    report.add_metrics(found, caption=f"The merged net on {_TEST} other pictures")
    write_json(settings.folder / "merge.json", {metric.name: metric.value for metric in found})
    return found


def drawn_shapes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Small noisy pictures of shapes of any size and place.

    Args:
        count: how many.
        generator: source of randomness, on the CPU.

    Returns:
        Pictures, shape (count, side²), and which of the shapes they show, shape (count,).
    """
    grid = torch.linspace(-1, 1, _SIDE)
    kind = torch.randint(len(SHAPES), (count,), generator=generator)
    centre = 0.5 * torch.rand(2, count, 1, 1, generator=generator) - 0.25
    size = 0.45 + 0.3 * torch.rand(count, 1, 1, generator=generator)
    x, y = (grid[None, None, :] - centre[0]) / size, (grid[None, :, None] - centre[1]) / size
    radius, box = (x.square() + y.square()).sqrt(), torch.maximum(x.abs(), y.abs())
    least = torch.minimum(x.abs(), y.abs()).expand_as(box)
    inside = (box < 1).expand_as(box)
    every = torch.stack(
        [
            radius < 1,
            (radius < 1) & (radius > 0.55),
            inside,
            inside & (box > 0.55),
            inside & (least < 0.3),
            inside & ((3 * x).sin() > 0).expand_as(box),
        ]
    )
    pictures = every[kind, torch.arange(count)].float()
    pictures += 0.25 * torch.randn(pictures.shape, generator=generator)
    return pictures.flatten(1), kind


def _net() -> nn.Module:
    hidden = nn.Sequential(nn.Linear(_SIDE**2, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(_WIDTH, len(SHAPES)))


def _trained(model: nn.Module, data: tuple[Tensor, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Weights after training from a random start of one's own."""
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for parameter in model.parameters():
            bound = parameter.shape[-1] ** -0.5
            parameter.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = data
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(x), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _accuracies(
    model: nn.Module, states: list[dict[str, Tensor]], merged: dict[str, Tensor], test: tuple[Tensor, Tensor]
) -> "list[Metric]":
    """Share of right answers of the nets, of their plain average and of the merged one."""
    from diffmatch.matching.weights import average_states
    from diffmatch.matching.weights.evaluate import outputs
    from diffmatch.report import Metric

    def share(state: dict[str, Tensor]) -> float:
        with torch.no_grad():
            answers = outputs(model, state, test[0]).argmax(1).cpu()
        return 100 * float((answers == test[1]).double().mean())

    own = sum(share(state) for state in states) / len(states)
    return [
        Metric("accuracy of the nets", own, "%", "mean of the two"),
        Metric("accuracy of their average", share(average_states(states)), "%", "units as they are"),
        Metric("accuracy merged", share(merged), "%", "units aligned"),
    ]
