"""Entropic transport against POT and mdot-tnt by size and eps, at an L1 marginal error of 1e-6 in double precision.

The costs are squared distances of uniform points in the unit square, divided by the largest, uniform masses. Every
contender stops by its own test; the error of its plan, of both marginals and computed by us, and the regularised
objective stand beside its time. "plain sweeps" is our own solver without scaling and Newton. The backward is timed on
the gradient of a linear function of the plan, by the implicit function and through 100 recorded sweeps.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffmatch.matching.transport import sinkhorn

OURS = "diffmatch"
TOL = 1e-6
CASES = [(1, 128, 0.1), (1, 128, 0.001), (32, 128, 0.1), (32, 128, 0.01), (32, 128, 0.001)]
CASES += [(1, 512, 0.1), (1, 512, 0.01), (1, 512, 0.001), (1, 2048, 0.1), (1, 2048, 0.01), (1, 2048, 0.001)]
PATIENCE = {"POT": 5e8, "POT batch": 1e8, "plain sweeps": 1e10}
"""Entries times 1 / eps above which a slow contender is left out, so that the table ends within minutes."""


def run(bench: Any) -> None:
    pot, mdot = bench.peer("ot"), bench.peer("mdot_tnt")
    for batch, n, eps in bench.sizes(CASES, tiny=[(1, 8, 0.1), (2, 8, 0.05)]):
        cost = problem(batch, n, bench.generator())
        work = batch * n * n / eps
        contenders: dict[str, Callable[[], Tensor] | None] = {
            OURS: lambda: sinkhorn(cost, eps=eps, tol=TOL).plan,
            "plain sweeps": lambda: sinkhorn(cost, eps=eps, tol=TOL, method="sweeps", max_steps=100_000).plan,
            "POT": (lambda: pot_single(pot, cost, eps)) if pot and batch == 1 else None,
            "POT batch": (lambda: pot_batch(pot, cost, eps)) if pot and batch > 1 else None,
            "mdot-tnt": (lambda: mdot_plan(mdot, cost, eps)) if mdot and batch == 1 and n > 8 else None,
        }
        for name, limit in PATIENCE.items():
            if work > limit:
                contenders[name] = None
        bench.compare(f"eps {eps:g}", contenders, size=f"{batch} x {n}", quality=lambda plan: quality(plan, cost, eps))
    for batch, n in bench.sizes([(32, 128), (1, 512)], tiny=[(2, 8)]):
        compare_backward(bench, problem(batch, n, bench.generator()))


def problem(batch: int, n: int, generator: torch.Generator) -> Tensor:
    x, y = (torch.rand(batch, n, 2, generator=generator, dtype=torch.float64, device=generator.device) for _ in "xy")
    cost = (x[:, :, None] - y[:, None]).square().sum(-1)
    return cost / cost.amax((-2, -1), keepdim=True)


def quality(plan: Tensor, cost: Tensor, eps: float) -> dict[str, float]:
    rows, columns = plan.sum(-1) - 1 / plan.shape[-2], plan.sum(-2) - 1 / plan.shape[-1]
    error = (rows.abs().sum(-1) + columns.abs().sum(-1)).max()
    value = (plan * cost).sum((-2, -1)) + eps * (torch.xlogy(plan, plan) - plan).sum((-2, -1))
    return {"error": float(error), "objective": float(value.mean())}


def pot_single(pot: Any, cost: Tensor, eps: float) -> Tensor:
    n = cost.shape[-1]
    mass = torch.full((n,), 1 / n, dtype=cost.dtype).numpy()
    # POT tests the L2 norm of the error of one marginal; the L1 norm is at most sqrt(n) times that.
    plan = pot.sinkhorn(
        mass, mass, cost[0].numpy(), eps, method="sinkhorn_log", stopThr=TOL / n**0.5, numItermax=100_000, warn=False
    )
    return torch.from_numpy(plan)[None]


def pot_batch(pot: Any, cost: Tensor, eps: float) -> Tensor:
    # Its test is the largest change of a potential; this tolerance leaves about 1e-6.
    found = pot.solve_batch(cost, reg=eps, max_iter=100_000, tol=10 * TOL * eps)
    plan: Tensor = found.plan
    return plan


def mdot_plan(mdot: Any, cost: Tensor, eps: float) -> Tensor:
    n = cost.shape[-1]
    mass = torch.full((n,), 1 / n, dtype=cost.dtype)
    # It has no tolerance to choose: what it reaches stands in the table.
    plan: Tensor = mdot.solve_OT(mass, mass, cost[0], gamma_f=1 / eps, return_plan=True, round=False)
    return plan[None]


def compare_backward(bench: Any, cost: Tensor) -> None:
    weights = torch.rand(cost.shape, generator=bench.generator(1), dtype=cost.dtype, device=cost.device)
    leaf = cost.clone().requires_grad_()
    settings = {"implicit": {"tol": 1e-9}, "unroll": {"max_steps": 100, "tol": 1e-15}}
    losses = {
        name: (sinkhorn(leaf, eps=0.05, adjoint=name, **chosen).plan * weights).sum()
        for name, chosen in settings.items()
    }

    def gradient(name: str) -> Tensor:
        (grad,) = torch.autograd.grad(losses[name], leaf, retain_graph=True)
        return grad

    wanted = gradient("implicit")
    bench.compare(
        "backward, eps 0.05",
        {OURS: lambda: gradient("implicit"), "unrolled, 100 sweeps": lambda: gradient("unroll")},
        size=f"{cost.shape[0]} x {cost.shape[1]}",
        quality=lambda grad: {"off": float((grad - wanted).abs().max() / wanted.abs().max())},
    )


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
