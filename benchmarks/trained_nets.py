"""Small nets trained on Fashion-MNIST for the benchmarks of merging, kept in a folder between runs.

The images are read from ``fashion_mnist`` in the folder that ``DIFFMATCH_DATA`` names; without it, and at the
tiny size, ten noisy prototypes take their place. Trained nets are kept in the folder that ``DIFFMATCH_CACHE`` names.
Two seeds differ in the initial weights and in the order of the data.
"""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Setup:
    """How nets of one kind are made.

    Attributes:
        pool: images are averaged over squares of this side.
        images: number of images trained on.
        epochs: over them.
    """

    pool: int
    images: int
    epochs: int


SETUPS = {
    "mlp": Setup(pool=1, images=20_000, epochs=7),
    "mlp, 1024 wide": Setup(pool=1, images=10_000, epochs=2),
    "cnn": Setup(pool=2, images=12_000, epochs=6),
    "resnet8": Setup(pool=4, images=12_000, epochs=6),
    "resnet8, 16 wide": Setup(pool=4, images=12_000, epochs=6),
    "resnet8, 64 wide": Setup(pool=4, images=12_000, epochs=6),
    "resnet20": Setup(pool=4, images=6_000, epochs=2),
}


class Block(nn.Module):
    """Residual block with a convolution on the shortcut where shapes change."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def mlp(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(784, width), nn.ReLU()]
    layers += [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return nn.Sequential(*layers)


def cnn() -> nn.Module:
    """Four convolutions with batch norm, one hidden linear layer without."""
    layers: list[nn.Module] = []
    n_in = 1
    for n, pool in ((24, False), (48, True), (48, False), (96, True)):
        layers += [nn.Conv2d(n_in, n, 3, padding=1), nn.BatchNorm2d(n), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        n_in = n
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 9, 128), nn.ReLU(), nn.Linear(128, 10))


def resnet(depth: int, width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    n_in = width
    for stage in range(3):
        for i in range(depth):
            n = width * 2**stage
            layers.append(Block(n_in, n, 2 if stage and not i else 1))
            n_in = n
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, 10))


def make(kind: str, *, tiny: bool = False) -> nn.Module:
    """An untrained net of a kind."""
    if kind.startswith("mlp"):
        return mlp(12 if tiny else 1024 if "1024" in kind else 512)
    if kind == "cnn":
        return cnn()
    width = 4 if tiny else {"resnet8": 32, "resnet8, 64 wide": 64}.get(kind, 16)
    return resnet(3 if kind == "resnet20" else 1, width)


def batches(kind: str, *, train: bool, tiny: bool = False, size: int = 1000) -> Batches:
    """The images that a kind of net is trained on, or all test images, in batches."""
    setup = SETUPS[kind]
    folder = Path(os.environ.get("DIFFMATCH_DATA", "")) / "fashion_mnist"
    if tiny or not folder.is_dir():
        images, labels = _prototypes(200 if tiny else setup.images, seed=int(train))
    else:
        images, labels = _fashion_mnist(folder, train=train)
    if train:
        images, labels = images[: setup.images], labels[: setup.images]
    images = F.avg_pool2d((images - 0.286) / 0.353, setup.pool)
    return list(zip(images.split(size), labels.split(size), strict=True))


def trained(kind: str, seed: int, *, tiny: bool = False) -> dict[str, Tensor]:
    """The state of a net after training, from the cache where it is there."""
    folder = os.environ.get("DIFFMATCH_CACHE")
    path = Path(folder) / f"{kind.replace(', ', '_').replace(' ', '_')}_{seed}.safetensors" if folder else None
    if path is not None and not tiny and path.exists():
        return load_file(path)
    generator = torch.Generator().manual_seed(seed)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = make(kind, tiny=tiny)
    torch.set_rng_state(state)
    images, labels = (torch.cat(parts) for parts in zip(*batches(kind, train=True, tiny=tiny), strict=True))
    epochs = 1 if tiny else SETUPS[kind].epochs
    steps = epochs * -(-len(images) // 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-4)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
            schedule.step()
    found = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if path is not None and not tiny:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(found, path)
    return found


def _fashion_mnist(folder: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    prefix = "train" if train else "t10k"
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return torch.from_numpy(pixels.astype(np.float32)) / 255, torch.from_numpy(labels.astype(np.int64))


def _prototypes(n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    prototypes = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1 + seed)
    labels = torch.randint(10, (n,), generator=generator)
    return (prototypes[labels] + 0.5 * torch.randn(n, 1, 28, 28, generator=generator)).clamp(0, 1), labels
