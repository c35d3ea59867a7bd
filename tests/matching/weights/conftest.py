"""Small models of many architectures, with the number of atoms that each should have and why."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Residual block of a CIFAR ResNet, with a convolution on the shortcut where shapes change."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        changes = stride > 1 or n_in != n_out
        self.shortcut = (
            nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)) if changes else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Bottleneck(nn.Module):
    """Bottleneck block of ResNet50."""

    def __init__(self, n_in: int, n_mid: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_mid, 1, bias=False), nn.BatchNorm2d(n_mid)
        self.conv2, self.bn2 = nn.Conv2d(n_mid, n_mid, 3, stride, 1, bias=False), nn.BatchNorm2d(n_mid)
        self.conv3, self.bn3 = nn.Conv2d(n_mid, 4 * n_mid, 1, bias=False), nn.BatchNorm2d(4 * n_mid)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(n_in, 4 * n_mid, 1, stride, bias=False), nn.BatchNorm2d(4 * n_mid))
            if first
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    def __init__(self, depths: tuple[int, ...], width: int = 4, *, bottleneck: bool = False, classes: int = 3) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        n_in = width
        for stage, depth in enumerate(depths):
            for i in range(depth):
                n, stride = width * 2**stage, 2 if stage and not i else 1
                if bottleneck:
                    blocks.append(Bottleneck(n_in, n, stride, first=not i))
                    n_in = 4 * n
                else:
                    blocks.append(Block(n_in, n, stride))
                    n_in = n
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(n_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        return self.head(x.mean((2, 3)))


class VGG(nn.Module):
    """VGG16 with batch norm: 13 convolutions, 2 hidden linear layers, flattened positions between them."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = 3
        for n, repeats in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(repeats):
                layers += [nn.Conv2d(n_in, width * n, 3, padding=1), nn.BatchNorm2d(width * n), nn.ReLU(inplace=True)]
                n_in = width * n
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(n_in * 4, 12),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(12, 10),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(10, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class DenseNet(nn.Module):
    """Each layer reads all before it; a transition of 1 x 1 reads the concatenation, and a second block follows."""

    def __init__(self, growth: int = 3, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        n, self.blocks, self.transitions = 4, nn.ModuleList(), nn.ModuleList()
        for _ in range(2):
            block = nn.ModuleList()
            for _ in range(depth):
                block.append(nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, growth, 3, padding=1)))
                n += growth
            self.blocks.append(block)
            self.transitions.append(nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 6, 1)))
            n = 6
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            for layer in block:
                x = torch.cat([x, layer(x)], 1)
            x = F.avg_pool2d(transition(x), 2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class UNet(nn.Module):
    """Two levels down, two up by transposed convolutions, concatenated with what was on the way down."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.middle = nn.Conv2d(6, 8, 3, padding=1)
        self.up2, self.merge2 = nn.ConvTranspose2d(8, 5, 2, 2), nn.Conv2d(11, 6, 3, padding=1)
        self.up1, self.merge1 = nn.ConvTranspose2d(6, 3, 2, 2), nn.Conv2d(7, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        c = F.relu(self.middle(F.max_pool2d(b, 2)))
        b = F.relu(self.merge2(torch.cat([b, self.up2(c)], 1)))
        return self.out(F.relu(self.merge1(torch.cat([a, self.up1(b)], 1))))


class Grouped(nn.Module):
    """Plain, depthwise with a multiplier, pointwise, grouped, GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.pointwise, self.norm2 = nn.Conv2d(12, 8, 1), nn.GroupNorm(4, 8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.act, self.head = nn.PReLU(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(F.relu(self.norm1(self.stem(x))))
        x = F.silu(self.norm2(self.pointwise(F.relu(x))))
        return self.head(self.act(self.grouped(x)).mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, d)
        layer = nn.TransformerEncoderLayer(d, 3, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(d, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)))


class RMSNorm(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class DecoderLayer(nn.Module):
    def __init__(self, d: int, heads: int, kv_heads: int, d_head: int, hidden: int, *, rope: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.d_head, self.rope = heads, kv_heads, d_head, rope
        self.q, self.k, self.v = (nn.Linear(d, n * d_head, bias=False) for n in (heads, kv_heads, kv_heads))
        self.o = nn.Linear(heads * d_head, d, bias=False)
        self.gate, self.up, self.down = (
            nn.Linear(d, hidden, bias=False),
            nn.Linear(d, hidden, bias=False),
            nn.Linear(hidden, d, bias=False),
        )
        self.norm1, self.norm2 = RMSNorm(d), RMSNorm(d)
        self.register_buffer("frequency", 100.0 ** -(torch.arange(0, d_head, 2) / d_head), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] * self.frequency
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        y = self.norm1(x)
        q = self.q(y).view(b, t, self.heads, self.d_head).transpose(1, 2)
        k = self.k(y).view(b, t, self.kv_heads, self.d_head).transpose(1, 2)
        v = self.v(y).view(b, t, self.kv_heads, self.d_head).transpose(1, 2)
        if self.rope:
            q, k = self.rotate(q), self.rotate(k)
        members = self.heads // self.kv_heads
        if members > 1:
            k = k[:, :, None].expand(b, self.kv_heads, members, t, self.d_head).reshape(b, self.heads, t, self.d_head)
            v = v.repeat_interleave(members, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Two pre-norm layers with SwiGLU, output tied to the embedding."""

    def __init__(self, *, kv_heads: int = 4, rope: bool = False) -> None:
        super().__init__()
        d = 10
        self.embed, self.norm = nn.Embedding(13, d), RMSNorm(d)
        self.layers = nn.ModuleList(DecoderLayer(d, 4, kv_heads, 6, 14, rope=rope) for _ in range(2))
        self.head = nn.Linear(d, 13, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class ViT(nn.Module):
    """Patches by a convolution, class token, learned positions, two pre-norm blocks with packed q, k and v."""

    def __init__(self, d: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.patch = nn.Conv2d(3, d, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, d)), nn.Parameter(torch.randn(1, 5, d))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(5))
        self.qkv = nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(2))
        self.proj = nn.ModuleList(nn.Linear(d, d) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(d, 20), nn.GELU(), nn.Linear(20, d)) for _ in range(2))
        self.head = nn.Linear(d, 3)

    def attend(self, x: Tensor, i: int) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv[i](x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5).softmax(-1)
        return self.proj[i]((weights @ v).transpose(1, 2).reshape(b, t, d))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        for i in range(2):
            x = x + self.attend(self.norms[2 * i](x), i)
            x = x + self.mlp[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x)[:, 0])


class Recurrent(nn.Module):
    """Embedding, a bidirectional layer, a layer above it, a classifier of the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.gru, self.head = nn.GRU(10, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        y, _ = self.lstm(self.embed(tokens))
        _, state = self.gru(y)
        return self.head(state[-1])


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    atoms: int
    why: str


def _image(channels: int = 3, size: int = 8) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, channels, size, size)


def _tokens(vocabulary: int) -> Callable[[], Tensor]:
    return lambda: torch.arange(10).reshape(2, 5) % vocabulary


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))


CASES = {
    "mlp": Case(mlp, lambda: torch.randn(4, 5), 2, "two hidden layers"),
    "resnet8": Case(lambda: ResNet((1, 1, 1)), _image(), 6, "3 streams, 3 blocks of one inner layer"),
    "resnet20": Case(lambda: ResNet((3, 3, 3)), _image(), 12, "3 streams, 9 blocks of one inner layer"),
    "resnet50": Case(
        lambda: ResNet((3, 4, 6, 3), 2, bottleneck=True), _image(), 37, "the stem, 4 streams, 16 blocks of two"
    ),
    "vgg16": Case(VGG, _image(size=64), 15, "13 convolutions, 2 hidden linear layers"),
    "encoder": Case(
        Encoder,
        _tokens(11),
        9,
        "the stream; in each layer heads, q with k, v, the hidden layer. Scores see q and k only, and v only meets the "
        "output projection, so that the two insides of a head move apart although one tensor holds all three; as one "
        "they would make 7",
    ),
    "decoder": Case(Decoder, _tokens(13), 9, "the stream; in each layer heads, q with k, v, the gated hidden layer"),
    "decoder, gqa": Case(
        lambda: Decoder(kv_heads=2), _tokens(13), 11, "as before, heads being groups and members of a group"
    ),
    "decoder, rope": Case(lambda: Decoder(rope=True), _tokens(13), 7, "as before, q and k held by the rotation"),
    "densenet": Case(DenseNet, _image(), 9, "the stem, 6 layers of growth, 2 transitions"),
    "unet": Case(lambda: UNet(), _image(1), 7, "2 down, the middle, 2 up, 2 after concatenation"),
    "grouped": Case(
        Grouped,
        _image(),
        6,
        "the stem, its multiples, GroupNorm's 4 groups as 2 groups of the convolution times 2, channels in a group, "
        "outputs of each group",
    ),
    "vit": Case(ViT, _image(), 9, "the stream; in each block heads, q with k, v, the hidden layer"),
    "recurrent": Case(Recurrent, _tokens(9), 6, "the embedding, 2 layers of 2 directions, the GRU"),
}


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    """The models by name."""
    return CASES
