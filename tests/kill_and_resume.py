"""Fits that are killed and resumed, against the same fits left alone; ``test_fitting.py`` runs it and reads the output.

Every run is a forked process that really ends at the moment of its death, without any cleaning up: before or after a
checkpoint gets its name, or in the middle of an evaluation. That is why this is a script with a process of its own.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers import it at their first step: once here, not in each process
from torch import Tensor

from diffmatch import fit
from diffmatch.checkpoints import tensors_in
from diffmatch.optim import optimizer_names, optimizer_spec

STEPS, EVERY, DIED = 13, 3, 9

# (what, which): die at the n-th renaming of a checkpoint, just before or just after it; or in the n-th evaluation
DEATHS = [("before", 2), ("evaluation", 5), ("after", 1)]
EVERYWHERE = [(what, n) for n in (1, 2) for what in ("before", "after")] + [("evaluation", n) for n in range(1, 10)]


class Doubling(torch.optim.Optimizer):
    """Differentiates the loss itself, twice, and keeps a state wider than its parameters."""

    needs_graph = True

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        params = [p for group in self.param_groups for p in group["params"]]
        loss = closure()
        grads = torch.autograd.grad(loss, params, create_graph=True)
        curvature = torch.autograd.grad(sum(g.square().sum() for g in grads), params)
        with torch.no_grad():
            for p, g, h in zip(params, grads, curvature, strict=True):
                mean = self.state[p].setdefault("mean", torch.zeros_like(p, dtype=torch.float64))
                mean.lerp_(g.double(), 1 / 3)
                p.sub_(self.param_groups[0]["lr"] * (mean + 0.01 * h).to(p.dtype))
        return loss


class Counter:
    """An object with a state of its own."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, state: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def unclipped(name: str) -> dict[str, None]:
    """Optimizers that differentiate the loss themselves take no clipping."""
    return {"clip_norm": None} if getattr(optimizer_spec(name).factory, "needs_graph", False) else {}


def scenarios() -> dict[str, dict[str, Any]]:
    """Settings of the fits, one of each kind; a function stands for an optimizer instance."""
    everything = {"schedule": "cosine", "warmup": 3, "clip_norm": 0.5, "ema": 0.8}
    step_lr = partial(torch.optim.lr_scheduler.StepLR, step_size=4, gamma=0.5)
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=1, factor=0.5)
    return {
        **{name: {"optimizer": name, **everything, **unclipped(name)} for name in optimizer_names()},
        "lbfgs alone": {"optimizer": "lbfgs", "optimizer_options": {"max_iter": 4}},
        "instance": {"optimizer": lambda params: torch.optim.Adam(params, lr=0.1, amsgrad=True), **everything},
        "float16": {"optimizer": "adamw", "autocast": torch.float16, "lr": 0.05, **everything},
        "scheduler of torch": {"optimizer": "sgd", "schedule": step_lr},
        "plateau": {"optimizer": "sgd", "schedule": plateau},
        "function of the step": {"optimizer": "adam", "schedule": lambda step: 0.9**step},
        "differentiates itself": {"optimizer": Doubling, "ema": 0.5},
        "converges": {"optimizer": "adam", "tol": 10.0, "patience": 4},
        "is stopped": {"optimizer": "adam", "callbacks": [lambda state: state.step == 8]},
        "everywhere": {"optimizer": "adamw", "lr": 0.1, **everything},
    }


def one_fit(settings: dict[str, Any], checkpoint: Path, on_evaluation: Callable[[], None]) -> dict[str, Any]:
    """One of the fits, from its beginning or its checkpoint; bits of everything it ends with."""
    torch.manual_seed(1)
    generator, counter = torch.Generator().manual_seed(2), Counter()
    a, b = torch.full((5, 3), 2.0, requires_grad=True), torch.ones(4, requires_grad=True)
    target, mix = torch.linspace(-1, 1, 15).reshape(5, 3), torch.linspace(0, 1, 12).reshape(3, 4)

    def loss() -> dict[str, Tensor]:
        on_evaluation()
        noise = 0.01 * torch.randn(5, 3, generator=generator)
        data = (a - target + noise).square().mean()
        return {
            "data": data,
            "mixed": (1 + ((a @ mix).float() * b).square()).sqrt().mean() * (1 + 0.01 * torch.rand(())),
        }

    optimizer = settings["optimizer"]
    by_name = isinstance(optimizer, str)
    history = fit(
        [a, b] if by_name else None,
        loss,
        steps=STEPS,
        checkpoint=checkpoint,
        checkpoint_every=EVERY,
        generators=[generator],
        state={"counter": counter},
        callbacks=[counter, *settings.get("callbacks", [])],
        optimizer=optimizer if by_name else optimizer([a, b]),
        **{key: value for key, value in settings.items() if key not in ("optimizer", "callbacks")},
    )
    kept = torch.load(checkpoint, weights_only=True)["content"]
    return {
        "params": bits([a, b]),
        "optimizer": bits(kept["optimizer"]),
        "raw": bits(kept["params"]),
        "random": bits([torch.get_rng_state(), generator.get_state()]),
        "calls": counter.count,
        "history": history.to_dict() | {"seconds": 0},
    }


def bits(value: Any) -> str:
    """Digest of all tensors in a structure."""
    digest = hashlib.sha256()
    for tensor in tensors_in(value):
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def process(settings: dict[str, Any], checkpoint: Path, out: Path, death: tuple[str, int] | None) -> int:
    """Run one fit in a process of its own, which dies as told; returns its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        what, when = death or ("", 0)
        counts = {"replace": 0, "evaluation": 0}
        replace = os.replace

        def deadly_replace(*args: Any) -> None:
            counts["replace"] += 1
            if what == "before" and counts["replace"] == when:
                os._exit(DIED)
            replace(*args)
            if what == "after" and counts["replace"] == when:
                os._exit(DIED)

        def on_evaluation() -> None:
            counts["evaluation"] += 1
            if what == "evaluation" and counts["evaluation"] == when:
                os._exit(DIED)

        os.replace = deadly_replace
        result = one_fit(settings, checkpoint, on_evaluation)
        os.replace = replace
        out.write_text(json.dumps(result))
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def compare(name: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fit left alone, the one that kept dying, and how its processes ended."""
    folder.mkdir()
    out = {kind: folder / f"{kind}.json" for kind in ("saved", "resumed", "again")}
    process(settings, folder / "saved.pt", out["saved"], None)
    deaths = EVERYWHERE if name == "everywhere" else DEATHS
    ends = [process(settings, folder / "resumed.pt", out["resumed"], death) for death in deaths]
    process(settings, folder / "resumed.pt", out["resumed"], None)
    process(settings, folder / "resumed.pt", out["again"], None)  # a finished fit is returned as it is
    results = {kind: json.loads(path.read_text()) for kind, path in out.items() if path.exists()}
    return {"results": results, "ends": ends, "files": sorted(path.name for path in folder.glob("*.pt*"))} | {
        "hidden": sorted(path.name for path in folder.glob(".*"))
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    base = Path(sys.argv[1])
    report = {name: compare(name, settings, base / name) for name, settings in scenarios().items()}
    (base / "report.json").write_text(json.dumps(report))
