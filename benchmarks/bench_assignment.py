"""Linear assignment against SciPy's solver in a loop and lap's, by batch and size, on four kinds of costs.

Ours also gives dual variables and checks its input; the peers give neither. The value stands beside each time.
`auction`
is the solver for other devices, here on the CPU, to its default tolerance.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffmatch.matching import assign

OURS = "diffmatch"


def make(kind: str, batch: int, n: int, generator: torch.Generator) -> Tensor:
    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)

    if kind == "geometric":
        return torch.cdist(rand(batch, n, 2), rand(batch, n, 2))
    if kind == "integer":
        return (100 * rand(batch, n, n)).floor()
    if kind == "rectangular":
        return rand(batch, n, 2 * n)
    return rand(batch, n, n)


def run(bench: Any) -> None:
    """All kinds of costs at sizes from many small problems to one large one."""
    scipy, lap = bench.peer("scipy.optimize"), bench.peer("lap")
    sizes = bench.sizes([(1000, 5), (1000, 10), (200, 30), (32, 128), (4, 512), (1, 2000)], tiny=[(3, 4)])
    for kind in ("uniform", "geometric", "integer", "rectangular"):
        for batch, n in sizes:
            cost = make(kind, batch, n, bench.generator())
            compare(bench, kind, cost, scipy, lap, auction=n <= 128 and kind != "rectangular")


def compare(bench: Any, kind: str, cost: Tensor, scipy: Any, lap: Any, *, auction: bool) -> None:
    arrays = cost.cpu().numpy()

    def by_scipy() -> float:
        return float(sum(c[scipy.linear_sum_assignment(c)].sum() for c in arrays))

    def by_lap() -> float:
        return float(sum(lap.lapjv(c, extend_cost=True)[0] for c in arrays))

    bench.compare(
        kind,
        {
            OURS: lambda: float(assign(cost).value.sum()),
            "SciPy": by_scipy if scipy else None,
            "lap": by_lap if lap else None,
            "diffmatch auction": (lambda: float(assign(cost, solver="auction").value.sum())) if auction else None,
        },
        size="x".join(map(str, np.shape(arrays))),
        quality=lambda value: {"total cost": value},
    )


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
