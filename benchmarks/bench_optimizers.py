"""A step of our optimizers against torch's AdamW and the peers' own, on one large tensor and on 200 small ones.

All get the same parameters and gradients, and step them as they are. `move` is how far the parameters went in the two
warm-up steps, in learning rates: it tells a step from none. torchao compiles its step and is timed after that, on the
largest sizes that are whole multiples of its block: at others it silently keeps states of 32 bits. What a step costs
that refreshes Sophia's curvature is told in evaluations of the loss and its gradient, which it contains.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from convergence_problems import field_problem
from torch import Tensor, nn

from diffmatch.optim import AdamW8bit, DCTAdamW, EXAdam, Lion, Lion8bit, SophiaG, SophiaH

OURS = "diffmatch"
LR = 1e-6

Make = Callable[[list[Tensor]], torch.optim.Optimizer]


def run(bench: Any) -> None:
    """Each of our optimizers against its peers, all against torch's AdamW."""
    peers = find_peers(bench)
    for shapes in bench.sizes(([10**6], [10**7], [5000] * 200), tiny=([4200], [300] * 3)):
        size = f"{shapes[0]:,}" if len(shapes) == 1 else f"{len(shapes)} x {shapes[0]:,}"
        params = make(shapes, bench.generator())
        for task, (ours, names) in TASKS.items():
            contenders = {OURS: contender(ours, params)}
            contenders |= {name: contender(maker, params) for name, maker in torchs(bench.device).items()}
            for name in names:
                contenders[name] = contender(peers[name], params) if peers.get(name) else None
            bench.compare(f"{task} step", contenders, size=size, quality=lambda move: {"move": move()})
    for shape in bench.sizes(((1024, 1024), (4096, 1024)), tiny=((16, 8),)):
        (weight,) = make([shape[0] * shape[1]], bench.generator())
        matrix = weight.detach().reshape(shape).requires_grad_()
        matrix.grad = weight.grad.reshape(shape)
        contenders = {OURS: contender(lambda p: DCTAdamW(p, lr=LR), [matrix])}
        contenders |= {name: contender(maker, [matrix]) for name, maker in torchs(bench.device).items()}
        bench.compare(
            "DCT AdamW step", contenders, size=f"{shape[0]} x {shape[1]}", quality=lambda move: {"move": move()}
        )
    compare_refresh(bench)


def compare_refresh(bench: Any) -> None:
    """SophiaH with and without a refresh of the curvature, beside one evaluation of the loss and its gradient."""
    for name, (params, loss) in losses(bench).items():
        refreshing, ordinary = SophiaH(params, lr=LR, k=1), SophiaH(params, lr=LR, k=2**31)
        ordinary.step(loss)  # its only refresh

        def evaluate(params: list[Tensor] = params, loss: Callable[[], Tensor] = loss) -> Any:
            return torch.autograd.grad(loss(), params)

        contenders = {
            OURS: lambda optimizer=refreshing, loss=loss: optimizer.step(loss),
            f"{OURS}, a step without refresh": lambda optimizer=ordinary, loss=loss: optimizer.step(loss),
            "loss and gradient alone": evaluate,
        }
        bench.compare("Sophia-H refresh", contenders, size=name, quality=lambda _, loss=loss: {"loss": loss().item()})


def losses(bench: Any) -> dict[str, tuple[list[Tensor], Callable[[], Tensor]]]:
    """A field fitted to distances, and a network."""
    n, width, batch = (6, 8, 8) if bench.tiny else (32, 256, 512)
    field = field_problem("squares", n, 0, samples=40 if bench.tiny else 4000)
    layers = [nn.Linear(32, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
    model = nn.Sequential(*layers)
    inputs = torch.randn(batch, 32, generator=torch.Generator().manual_seed(0))
    return {
        f"field of {n}^3 nodes": (field.params, field.loss),
        f"network, {width} wide": (list(model.parameters()), lambda: (model(inputs) - 1).square().mean()),
    }


TASKS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "Lion": (lambda p: Lion(p, lr=LR), ("lion-pytorch", "pytorch-optimizer Lion")),
    "EXAdam": (lambda p: EXAdam(p, lr=LR), ("pytorch-optimizer EXAdam",)),
    "Sophia": (lambda p: SophiaG(p, lr=LR), ()),
    "AdamW, 8 bit": (lambda p: AdamW8bit(p, lr=LR), ("bitsandbytes AdamW8bit", "torchao AdamW8bit")),
    "Lion, 8 bit": (lambda p: Lion8bit(p, lr=LR), ("bitsandbytes Lion8bit",)),
}


def torchs(device: torch.device) -> dict[str, Make]:
    return {
        "torch AdamW fused": lambda p: torch.optim.AdamW(p, lr=LR, fused=True),
        "torch AdamW foreach": lambda p: torch.optim.AdamW(p, lr=LR, foreach=True),
    }


def find_peers(bench: Any) -> dict[str, Make]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lion, many = bench.peer("lion_pytorch"), bench.peer("pytorch_optimizer")
        bits, ao = bench.peer("bitsandbytes"), bench.peer("torchao.optim")
    found: dict[str, Make] = {}
    if lion:
        found["lion-pytorch"] = lambda p: lion.Lion(p, lr=LR)
    if many:
        found["pytorch-optimizer Lion"] = lambda p: many.Lion(p, lr=LR)
        found["pytorch-optimizer EXAdam"] = lambda p: many.EXAdam(p, lr=LR)
    if bits:
        found["bitsandbytes AdamW8bit"] = lambda p: bits.optim.AdamW8bit(p, lr=LR)
        found["bitsandbytes Lion8bit"] = lambda p: bits.optim.Lion8bit(p, lr=LR)
    if ao and not bench.tiny:  # its compilation alone takes a minute
        found["torchao AdamW8bit"] = lambda p: ao.AdamW8bit(whole_blocks(p), lr=LR)
    return found


def whole_blocks(params: list[Tensor]) -> list[Tensor]:
    """As much of the tensors as fills blocks of 256 entries."""
    whole = [p.detach()[: p.numel() // 256 * 256].requires_grad_() for p in params]
    for short, p in zip(whole, params, strict=True):
        short.grad = p.grad[: short.numel()]
    return whole


def make(shapes: list[int], generator: torch.Generator) -> list[Tensor]:
    params = []
    for n in shapes:
        p = torch.randn(n, generator=generator, device=generator.device).requires_grad_()
        p.grad = torch.randn(n, generator=generator, device=generator.device)
        params.append(p)
    return params


def contender(maker: Make, params: list[Tensor]) -> Callable[[], Callable[[], float]]:
    """A step of this optimizer on parameters of its own; returns what tells how far they went so far."""
    own = [p.detach().clone().requires_grad_() for p in params]
    for p, q in zip(own, params, strict=True):
        p.grad = q.grad
    optimizer = maker(own)

    def move() -> float:
        pairs = zip(own, params, strict=True)
        return max(float((p - q).detach().abs().max()) for p, q in pairs) / LR

    def step() -> Callable[[], float]:
        optimizer.step()
        return move

    return step
