"""Second-order graph matching as self-supervision against a contrastive loss: a linear probe on scikit-learn's digits.

A small convolutional encoder is trained on pairs of augmented views without labels; then a linear classifier is trained
on its pooled features with five labels a class. The accuracy of a seed is the mean over some draws of these labels. The
settings below were chosen on seeds and a part of the data that are not used here: learning rate and temperature of the
contrastive loss from a grid, those of the matching beside it. The time is that of one training; mean and spread of the
accuracy are over the seeds. `initial encoder` is the probe without training, `InfoNCE` the contrastive baseline, `both`
adds the matching loss to it.
"""

import math
import statistics
import sys
import time
from functools import partial
from typing import Any

import torch
from harness import Row, median_and_iqr
from torch import Tensor, nn
from torch.nn import functional

from diffmatch.matching.losses import info_nce
from diffmatch.matching.lvm_med import SecondOrderMatching, frank_wolfe

OURS = "diffmatch"
LEARNING_RATE = 3e-3
LABELS_A_CLASS = 5
LABEL_DRAWS = 8
TEMPERATURE = 0.04
MATCHING_WEIGHT = 10.0
"""Beside the contrastive loss; as large as 30 it gains nothing more."""


class Encoder(nn.Module):
    """Feature maps of 4 x 4 cells, and a projection of their mean."""

    def __init__(self, channels: int = 48, dim: int = 32) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.project = nn.Sequential(nn.Linear(channels, 64), nn.ReLU(), nn.Linear(64, dim))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.maps(images)
        return self.project(maps.mean((2, 3))), maps


def load(bench: Any) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8) in [0, 1] and their classes; made up where scikit-learn is missing."""
    datasets = bench.peer("sklearn.datasets")
    if datasets is None:
        generator = bench.generator()
        prototypes = torch.rand(10, 1, 8, 8, generator=generator, device=bench.device)
        classes = torch.arange(600, device=bench.device) % 10
        noise = torch.rand(600, 1, 8, 8, generator=generator, device=bench.device)
        return 0.7 * prototypes[classes] + 0.3 * noise, classes
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    return images.to(bench.device), torch.from_numpy(digits.target).to(bench.device)


def view(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An augmented view of each image, and where the 4 x 4 cells of its feature map lie in the image."""
    n, device = len(images), images.device

    def spread(scale: float, *shape: int) -> Tensor:
        return scale * (2 * torch.rand(n, *shape, generator=generator, device=device) - 1)

    angle, size, shift = spread(math.radians(20)), 1 + spread(0.2), spread(0.25, 2)
    cos, sin = size * angle.cos(), size * angle.sin()
    theta = torch.stack((cos, -sin, shift[:, 0], sin, cos, shift[:, 1]), 1).view(n, 2, 3)
    grid = functional.affine_grid(theta, [n, 1, 8, 8], align_corners=False)
    seen = functional.grid_sample(images, grid, align_corners=False)
    seen = seen * (1 + spread(0.3, 1, 1, 1)) + spread(0.15, 1, 8, 8)
    cells = functional.affine_grid(theta, [n, 1, 4, 4], align_corners=False)
    return seen, cells.flatten(1, 2)


def train(images: Tensor, method: str, *, seed: int, steps: int, batch: int = 64) -> Encoder:
    """An encoder trained without labels by ``"matching"``, ``"InfoNCE"`` or ``"both"``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder().to(images.device)
    matching = SecondOrderMatching(
        32, layers=0, neighbours=3, noise=0.5, edge_weight=0.1, solver=partial(frank_wolfe, max_steps=5)
    )
    generator = torch.Generator(images.device).manual_seed(seed)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        chosen = images[torch.randperm(len(images), generator=generator, device=images.device)[:batch]]
        (s, cells_s), (t, cells_t) = view(chosen, generator), view(chosen, generator)
        (z_s, maps_s), (z_t, maps_t) = encoder(s), encoder(t)
        loss = z_s.new_zeros(())
        if method != "InfoNCE":
            found = matching(z_s, z_t, maps_s, maps_t, locations=(cells_s, cells_t), generator=generator)
            loss = loss + MATCHING_WEIGHT * found.loss
        if method != "matching":
            loss = loss + info_nce(z_s, z_t, temperature=TEMPERATURE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder


def probe(encoder: Encoder, images: Tensor, classes: Tensor, *, seed: int, test: Tensor, train: Tensor) -> float:
    """Accuracy of a linear classifier on `test`, from a few labels of each class among `train`."""
    generator = torch.Generator().manual_seed(seed)
    order = train[torch.randperm(len(train), generator=generator).to(train.device)]
    labelled = torch.cat([order[classes[order] == c][:LABELS_A_CLASS] for c in range(10)])
    with torch.no_grad():
        features = encoder.maps(images).mean((2, 3))
    features = (features - features[train].mean(0)) / features[train].std(0).clamp_min(1e-6)
    classifier = nn.Linear(features.shape[1], 10).to(images.device)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(classifier(features[labelled]), classes[labelled])
        loss = loss + 0.01 * classifier.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return float((classifier(features[test]).argmax(1) == classes[test]).double().mean())


def run(bench: Any) -> None:
    """Train with every loss on every seed."""
    images, classes = load(bench)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(images.device)
    third = len(order) // 3
    training, test = order[:third], order[2 * third :]
    (steps,) = bench.sizes([200], tiny=[2])
    (draws,) = bench.sizes([LABEL_DRAWS], tiny=[1])

    def measure(method: str, seed: int) -> tuple[float, float]:
        """Seconds of a training and mean accuracy of its probes."""
        begin = time.perf_counter()
        encoder = train(images[training], method, seed=seed, steps=0 if method == "initial encoder" else steps)
        taken = time.perf_counter() - begin
        seeds = [1000 * seed + draw if draw else seed for draw in range(draws)]
        found = [probe(encoder, images, classes, seed=k, test=test, train=training) for k in seeds]
        return taken, statistics.mean(found)

    names = {OURS: "both", "matching alone": "matching", "InfoNCE": "InfoNCE", "initial encoder": "initial encoder"}
    for name, method in names.items():
        record(bench, name, steps, [measure(method, seed) for seed in bench.sizes(range(5), tiny=[1])])


def record(bench: Any, name: str, steps: int, measured: list[tuple[float, float]]) -> None:
    seconds, accuracies = [s for s, _ in measured], [100 * a for _, a in measured]
    median, iqr = median_and_iqr(seconds)
    quality = {
        "accuracy %": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "worst": min(accuracies),
    }
    bench.rows.append(Row(bench.name, "probe", name, f"{steps} steps", median, iqr, len(measured), None, quality))


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
