"""Solvers of relaxed problems: a plan between the nodes, to be rounded by a linear assignment.

All take plans of shape (\\*s, \\*b, n, m), where s are restarts, and work on them at once.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.matching.assignment import assign
from diffmatch.matching.quadratic.affinity import Affinity, one_hot_plan

__all__ = ["Relaxed", "frank_wolfe", "project", "random_plans", "rrwm", "spectral", "uniform_plan"]

_ROUNDS = 20
"""Row and column normalisations in each reweighting."""


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A plan to round, and how its solver ended.

    Attributes:
        plan: shape (\\*s, \\*b, n, m).
        steps: rounds that were made.
        converged: whether the plan stopped to change, shape (\\*s, \\*b).
    """

    plan: Float[Tensor, "*sb n m"]
    steps: int
    converged: Bool[Tensor, "*sb"]


def uniform_plan(affinity: Affinity) -> Float[Tensor, "*b n m"]:
    """The plan that prefers nothing: rows (columns, where they are fewer) sum to one."""
    *_, n, m = affinity.shape
    valid = affinity.valid()
    plan = affinity.like.new_full(affinity.shape, 1 / max(n, m, 1))
    return plan if valid is None else project(valid.to(plan.dtype), valid, rounds=1)


def random_plans(affinity: Affinity, count: int, *, generator: torch.Generator | None) -> Float[Tensor, "s *b n m"]:
    """Plans half way between the uniform one and a random doubly stochastic one (Vogelstein et al. 2015)."""
    valid = affinity.valid()
    like = affinity.like
    noise = torch.rand((count, *affinity.shape), generator=generator, dtype=like.dtype, device=like.device)
    noise = noise if valid is None else noise * valid
    return (project(noise, valid) + uniform_plan(affinity)) / 2


def project(
    positive: Float[Tensor, "*sb n m"], valid: Bool[Tensor, "*b n m"] | None, *, rounds: int = _ROUNDS
) -> Float[Tensor, "*sb n m"]:
    """Scale rows and columns so that the sums of the shorter side are one and those of the longer at most one.

    Args:
        positive: matrices >= 0, zero for pairs that are not real.
        valid: pairs of real nodes; None for all.
        rounds: normalisations of both sides.
    """
    *_, n, m = positive.shape
    rows_full = torch.tensor(n <= m, device=positive.device)
    columns_full = torch.tensor(n >= m, device=positive.device)
    if valid is not None:
        count_n, count_m = valid.any(-1).sum(-1, keepdim=True), valid.any(-2).sum(-1, keepdim=True)
        rows_full, columns_full = count_n <= count_m, count_n >= count_m
    tiny = torch.finfo(positive.dtype).tiny
    v = torch.ones_like(positive[..., 0, :])
    u = torch.ones_like(positive[..., 0])
    for _ in range(rounds):
        u = 1 / (positive @ v.unsqueeze(-1)).squeeze(-1).clamp_min(tiny)
        u = torch.where(rows_full, u, u.clamp_max(1))
        v = 1 / (u.unsqueeze(-2) @ positive).squeeze(-2).clamp_min(tiny)
        v = torch.where(columns_full, v, v.clamp_max(1))
    return u.unsqueeze(-1) * positive * v.unsqueeze(-2)


def spectral(
    affinity: Affinity, start: Float[Tensor, "*sb n m"], *, max_steps: int = 100, tol: float = 1e-5
) -> Relaxed:
    """The leading eigenvector of K by power iteration (Leordeanu and Hebert 2005); U is added to K's diagonal.

    Args:
        affinity: K and U without negative entries.
        start: first plan.
        max_steps: largest number of products.
        tol: largest relative change of the plan at which it stops.
    """
    plan, converged, step = _unit(start), _flags(start, False), 0
    for step in range(1, max_steps + 1):
        new = _unit(_applied(affinity, plan))
        converged = torch.linalg.vector_norm(new - plan, dim=(-2, -1)) <= tol
        plan = new
        if step % 10 == 0 and bool(converged.all()):
            break
    return Relaxed(plan, step, converged)


def rrwm(
    affinity: Affinity,
    start: Float[Tensor, "*sb n m"],
    *,
    walk: float = 0.2,
    beta: float = 30.0,
    max_steps: int = 50,
    tol: float = 1e-4,
) -> Relaxed:
    """Reweighted random walks (Cho, Lee and Lee 2010): a walk on the pairs that jumps to likely and distinct ones.

    Args:
        affinity: K and U without negative entries.
        start: first plan.
        walk: weight of the walk; the rest jumps to ``exp(beta K x / max)`` after row and column normalisation.
        beta: sharpness of the jumps.
        max_steps: largest number of steps.
        tol: largest relative change of the plan at which it stops.
    """
    valid = affinity.valid()
    plan, converged, step = _mass(start), _flags(start, False), 0
    for step in range(1, max_steps + 1):
        walked = _applied(affinity, plan)
        peak = walked.amax((-2, -1), keepdim=True).clamp_min(torch.finfo(walked.dtype).tiny)
        jumps = torch.exp(beta * (walked / peak - 1))
        jumps = jumps if valid is None else jumps * valid
        new = _mass(walk * _mass(walked) + (1 - walk) * _mass(project(jumps, valid)))
        change = torch.linalg.vector_norm(new - plan, dim=(-2, -1))
        converged = change <= tol * torch.linalg.vector_norm(plan, dim=(-2, -1))
        plan = new
        if step % 5 == 0 and bool(converged.all()):
            break
    return Relaxed(plan, step, converged)


def frank_wolfe(
    affinity: Affinity, start: Float[Tensor, "*sb n m"], *, max_steps: int = 60, tol: float = 1e-5
) -> Relaxed:
    """Frank-Wolfe with exact line search, which for one Kronecker term is FAQ (Vogelstein et al. 2015).

    It ends in the best corner that it met, as IPFP does (Leordeanu, Hebert and Sukthankar 2009), if that is better than
    the corner nearest to its last plan.

    Args:
        affinity: any signs.
        start: doubly stochastic plans.
        max_steps: largest number of assignments.
        tol: stop where the rise along the step is below this share of the absolute gradient at its two ends.
    """
    plan, converged, steps = start, _flags(start, False), 0
    slope = affinity.gradient(plan)
    best, best_value = start, start.new_full(start.shape[:-2], -math.inf)
    for steps in range(1, max_steps + 1):  # noqa: B007 (returned)
        corner = one_hot_plan(_rounded(affinity, slope), affinity)
        direction = corner - plan
        change = 2 * affinity.product(direction)
        rise = (slope * direction).sum((-2, -1))
        bend = (change * direction).sum((-2, -1)) / 2
        value = ((slope + change) * corner).sum((-2, -1))
        unary = 0 if affinity.unary is None else (affinity.unary * corner).sum((-2, -1))
        value = (value + unary) / 2  # the gradient at the corner is slope + change
        better = value > best_value
        best = torch.where(better[..., None, None], corner, best)
        best_value = torch.where(better, value, best_value)
        size = (slope.abs() * (corner + plan)).sum((-2, -1))
        converged = converged | (rise <= tol * size)
        if bool(converged.all()):
            break
        length = torch.where(bend >= 0, 1.0, (-rise / (2 * bend.clamp_max(-torch.finfo(bend.dtype).tiny))).clamp(0, 1))
        length = torch.where(converged, 0.0, length)[..., None, None]
        plan, slope = plan + length * direction, slope + length * change
    last = one_hot_plan(_rounded(affinity, plan), affinity)
    behind = affinity.objective(last) < best_value
    return Relaxed(torch.where(behind[..., None, None], best, plan), steps, converged)


def _rounded(affinity: Affinity, score: Tensor) -> Tensor:
    rows, columns = affinity.mask
    return assign(score, mask=(rows, columns), maximize=True).assignment


def _applied(affinity: Affinity, plan: Tensor) -> Tensor:
    """K x + U o x: affinities of single matches on the diagonal of K."""
    product = affinity.product(plan)
    return product if affinity.unary is None else product + affinity.unary * plan


def _mass(plan: Tensor) -> Tensor:
    return plan / plan.sum((-2, -1), keepdim=True).clamp_min(torch.finfo(plan.dtype).tiny)


def _unit(plan: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(plan, dim=(-2, -1), keepdim=True)
    unit: Tensor = plan / norm.clamp_min(torch.finfo(plan.dtype).tiny)
    return unit


def _flags(plan: Tensor, value: bool) -> Tensor:
    return torch.full(plan.shape[:-2], value, dtype=torch.bool, device=plan.device)
