"""Maximise a quadratic form of assignments: choice of the solver, restarts, rounding and polish."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_choice, check_finite, check_shape
from diffmatch.matching.assignment import assign
from diffmatch.matching.quadratic.affinity import Affinity, one_hot_plan
from diffmatch.matching.quadratic.exchange import exchange_ascent
from diffmatch.matching.quadratic.relaxed import frank_wolfe, random_plans, rrwm, spectral, uniform_plan
from diffmatch.matching.quadratic.result import QuadraticResult

__all__ = ["SOLVERS", "chosen_solver", "match_affinity"]

SOLVERS = {"rrwm": rrwm, "frank_wolfe": frank_wolfe, "spectral": spectral}


def match_affinity(
    affinity: Affinity,
    *,
    solver: str = "auto",
    init: Float[Tensor, "*sb n m"] | None = None,
    restarts: int = 1,
    polish: bool = True,
    max_steps: int | None = None,
    generator: torch.Generator | None = None,
) -> QuadraticResult:
    """An assignment with a large ``J(X) = <U, X> + <X, K X>``.

    A relaxed problem is solved, its plan rounded by a linear assignment, and the assignment improved by exchanges of
    two partners. Nothing here is differentiable; :mod:`diffmatch.autodiff` has estimators of gradients around it.

    Args:
        affinity: the quadratic form.
        solver: ``"rrwm"``, reweighted random walks, and ``"spectral"`` want affinities without negative entries;
            ``"frank_wolfe"`` takes any. ``"auto"``: the walks where nothing is negative.
        init: first plans, shape (\\*b, n, m); by default the uniform plan.
        restarts: how many starts, all but the first at random; the best end is kept.
        polish: improve by exchanges.
        max_steps: largest number of steps of the relaxation; None for that of the solver.
        generator: source of the starts, on the device of the affinity.

    Returns:
        The best assignment of each problem, its value J, and the plan that it was rounded from.

    Raises:
        InputError: an unknown solver, a wrong shape, values that are not finite, a count below one.
    """
    check_choice("solver", solver, ("auto", *SOLVERS))
    if restarts < 1:
        raise InputError("restarts", "at least 1", str(restarts))
    if max_steps is not None and max_steps < 1:
        raise InputError("max_steps", "at least 1", str(max_steps))
    *batch, n, m = affinity.shape
    first = uniform_plan(affinity) if init is None else init
    check_shape("init", first, tuple(affinity.shape))
    check_finite("init", first)
    if not n or not m or not math.prod(batch):
        return _empty(affinity, first)
    starts = first.unsqueeze(0)
    if restarts > 1:
        starts = torch.cat([starts, random_plans(affinity, restarts - 1, generator=generator)])
    name = chosen_solver(affinity) if solver == "auto" else solver
    with torch.no_grad():
        settings = {} if max_steps is None else {"max_steps": max_steps}
        relaxed = SOLVERS[name](affinity, starts, **settings)
        rows, columns = affinity.mask
        assignment = assign(relaxed.plan, mask=(rows, columns), maximize=True).assignment
        steps = relaxed.steps
        if polish:
            assignment, exchanges = exchange_ascent(affinity, assignment)
            steps += exchanges
        value = affinity.objective(one_hot_plan(assignment, affinity))
    best = value.argmax(0, keepdim=True)

    def pick(tensor: Tensor) -> Tensor:
        index = best.reshape(*best.shape, *[1] * (tensor.dim() - best.dim())).expand(1, *tensor.shape[1:])
        return tensor.gather(0, index).squeeze(0)

    return QuadraticResult(pick(assignment), pick(value), pick(relaxed.plan), steps, pick(relaxed.converged))


def chosen_solver(affinity: Affinity) -> str:
    """What ``solver="auto"`` takes."""
    negative = bool((affinity.product_of_ones() < 0).any())
    unary = affinity.unary is not None and bool((affinity.unary < 0).any())
    return "frank_wolfe" if negative or unary else "rrwm"


def _empty(affinity: Affinity, plan: Tensor) -> QuadraticResult:
    *batch, n, _ = affinity.shape
    return QuadraticResult(
        torch.full((*batch, n), -1, dtype=torch.int64, device=plan.device),
        plan.new_zeros(batch),
        plan,
        0,
        torch.ones(batch, dtype=torch.bool, device=plan.device),
    )
