"""Exact transport by the network simplex of POT, on the CPU, one batch element after the other."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_positive, check_shape, require
from diffmatch.matching.transport.arguments import Mask, flat_masses, masked_cost, working_dtype
from diffmatch.matching.transport.result import TransportResult

__all__ = ["exact_transport"]

SAME_TOTAL = 1e-6
"""Relative difference of the totals up to which a problem counts as balanced: single precision sums no better."""


def exact_transport(
    cost: Float[Tensor, "*b m n"],
    a: Float[Tensor, "*c m"] | None = None,
    b: Float[Tensor, "*d n"] | None = None,
    *,
    mass: float | Float[Tensor, "*e"] | None = None,
    mask: Mask = None,
    max_steps: int = 1_000_000,
    check: bool = True,
) -> TransportResult:
    """Move mass at least cost, without regularisation: ``min <plan, cost>`` over plans with marginals a and b.

    The value has the plan as its gradient by the cost and dual variables as its gradients by the marginals (one choice
    of many where the optimum is degenerate); the plan itself is piecewise constant and carries none.

    Needs POT (extra ``graphs``). Tensors on other devices are solved on the CPU, which waits for them.

    Args:
        cost: shape (\\*b, m, n); inf forbids a pair.
        a: masses of the rows, shape (\\*b, m); uniform with total 1 if missing.
        b: masses of the columns, shape (\\*b, n). Totals may differ: the lighter side then moves in full.
        mass: how much to move, at most either total, one number or one for each batch element; what stays is free of
            charge. No gradient is computed for it.
        mask: which rows and columns are real; what stands in the padding does not matter.
        max_steps: pivots after which a problem counts as not converged.
        check: look for NaN, for negative masses and for a mass that is too large.

    Returns:
        Potentials with ``f + g <= cost`` and equality where mass moves, -inf where there is no mass. They are the
        gradients by the marginals: in the balanced problem up to one constant, chosen so that both sides have the same
        weighted mean; where both sides keep some mass, that by b is g less the price of moving more. ``converged`` is
        false, and the plan lacks the mass that ``error`` counts, where forbidden pairs leave no way. ``steps`` is zero:
        pivots are not reported.

    Raises:
        MissingExtraError: POT is not installed.
        InputError: wrong shapes, or with `check` wrong values.

    References:
        Bonneel et al. 2011 (the solver); Caffarelli and McCann 2010, Chapel, Alaya and Gasso 2020 (partial transport by
        one more point on each side).
    """
    lp = require("ot.lp", extra="graphs")
    check_shape("cost", cost, ("m", "n"), batch=True)
    check_floating("cost", cost)
    check_positive("max_steps", max_steps)
    *batch, m, n = cost.shape
    cost = masked_cost(cost, mask, check=check)
    masses = flat_masses(a, b, batch=torch.Size(batch), sizes=(m, n), mask=mask, like=cost, balanced=False, check=check)
    flat = cost.reshape(math.prod(batch), m, n)
    moved = _moved(mass, masses.a, masses.b, batch=torch.Size(batch), check=check)
    arrays = (x.detach().to("cpu", torch.float64).numpy() for x in (flat, masses.a, masses.b))
    found = [
        _solve(lp, *problem, moved=None if moved is None else float(moved[k]), max_steps=max_steps)
        for k, problem in enumerate(zip(*arrays, strict=True))
    ]
    dtype = working_dtype(cost.dtype)

    def stack(name: str, *shape: int) -> Tensor:
        whole = np.array([getattr(one, name) for one in found]).reshape(len(flat), *shape)
        return torch.from_numpy(whole).to(cost.device, dtype)

    plan, error = stack("plan", m, n), stack("error")
    by_a, by_b = stack("by_a", m), stack("by_b", n)
    solved = torch.tensor([one.solved for one in found], dtype=torch.bool, device=cost.device)

    def transport_cost() -> Tensor:
        """The cost of a constant plan, whose gradient is the plan."""
        used = torch.where(plan > 0, flat.to(dtype), 0)
        return (plan * used).sum((-1, -2)).reshape(batch)

    def value() -> Tensor:
        # The terms that are added are exactly zero; they only carry the gradients.
        slope = (by_a * (masses.a - masses.a.detach())).sum(-1) + (by_b * (masses.b - masses.b.detach())).sum(-1)
        return transport_cost() + slope.reshape(batch)

    return TransportResult(
        f=stack("f", m).reshape(*batch, m),
        g=stack("g", n).reshape(*batch, n),
        error=error.reshape(batch),
        steps=torch.zeros(batch, dtype=torch.int64, device=cost.device),
        converged=solved.reshape(batch),
        make_plan=lambda: plan.reshape(*batch, m, n).to(cost.dtype),
        make_value=value,
        make_cost=transport_cost,
        recorded=torch.is_grad_enabled(),
    )


def _moved(mass: float | Tensor | None, a: Tensor, b: Tensor, *, batch: torch.Size, check: bool) -> Tensor | None:
    """The mass that each batch element moves; None where that is all of the lighter side."""
    if mass is None:
        return None
    least = torch.minimum(a.detach().sum(-1), b.detach().sum(-1))
    moved = torch.as_tensor(mass, dtype=least.dtype, device=least.device).detach()
    try:
        moved = moved.expand(batch).reshape(-1)
    except RuntimeError:
        raise InputError("mass", f"a shape that expands to {tuple(batch)}", str(tuple(moved.shape))) from None
    if check and not bool(((moved >= 0) & (moved <= least * (1 + SAME_TOTAL))).all()):
        raise InputError("mass", "numbers between 0 and the smaller total", str(moved.tolist()[:4]))
    return torch.minimum(moved, least)


@dataclass(frozen=True)
class _Solution:
    """One solved problem; the arrays have the sizes m and n of what was given.

    Attributes:
        plan: what moves.
        f: potentials of the rows.
        g: potentials of the columns.
        by_a: derivatives of the value by the masses of the rows, zero where there is no mass.
        by_b: derivatives of the value by the masses of the columns.
        error: L1 distance of the marginals to what was asked for.
        solved: whether the simplex came to its end and no forbidden pair was needed.
    """

    plan: np.ndarray
    f: np.ndarray
    g: np.ndarray
    by_a: np.ndarray
    by_b: np.ndarray
    error: float
    solved: bool


def _solve(
    lp: Any, cost: np.ndarray, a: np.ndarray, b: np.ndarray, *, moved: float | None, max_steps: int
) -> _Solution:
    rows, columns = np.flatnonzero(a > 0), np.flatnonzero(b > 0)
    mass_a, mass_b = a[rows], b[columns]
    totals = float(mass_a.sum()), float(mass_b.sum())
    target = min(totals) if moved is None else moved
    if target <= 0:
        nothing = np.zeros((len(rows), len(columns)))
        return _whole(cost.shape, rows, columns, nothing, np.zeros(len(rows)), np.zeros(len(columns)), 0.0, 0.0, True)

    priced, forbidden, low = _priced(cost[np.ix_(rows, columns)])
    apart = 2 * float(priced.max()) + 1
    # What stays goes to one more point on the other side, free of charge. The costs are >= 0, so that moving more than
    # the target never pays, and any positive price keeps the two additional points from using each other.
    stay_a, stay_b = (total - target if total - target > SAME_TOTAL * total else 0.0 for total in totals)
    if stay_a:
        priced, mass_b = np.pad(priced, ((0, 0), (0, 1))), np.append(mass_b, stay_a)
    if stay_b:
        priced, mass_a = np.pad(priced, ((0, 1), (0, 0))), np.append(mass_a, stay_b)
    if stay_a and stay_b:
        priced[-1, -1] = apart
    mass_b = mass_b * (mass_a.sum() / mass_b.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the status says it
        flow, log = lp.emd(
            mass_a, mass_b, np.ascontiguousarray(priced), numItermax=max_steps, log=True, center_dual=False
        )

    plan = np.where(forbidden, 0.0, flow[: len(rows), : len(columns)])
    f, g = log["u"][: len(rows)] + low, log["v"][: len(columns)]
    extra_f, extra_g = float(log["u"][-1]), float(log["v"][-1])
    # The one constant that is free: such that f is the derivative by a, or, if all moves, such that both have one mean.
    more = 0.0
    if stay_a:
        shift = extra_g - low
        more = low - extra_f - extra_g if stay_b else 0.0
    elif stay_b:
        shift = -extra_f
    else:
        shift = float(mass_b @ g - mass_a @ f) / (totals[0] + totals[1])
    missing = abs(target - float(plan.sum()))
    solved = log["warning"] is None and missing <= SAME_TOTAL * target
    return _whole(cost.shape, rows, columns, plan, f + shift, g - shift, more, 2 * missing, solved)


def _priced(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Costs from zero up with a finite price for what is forbidden, where that is, and what was subtracted."""
    forbidden = ~np.isfinite(cost)
    finite = cost[~forbidden]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    # No cycle of pivots saves as much as one forbidden pair costs.
    penalty = (sum(cost.shape) + 1) * (high - low if high > low else max(abs(high), 1.0))
    return np.where(forbidden, penalty, cost - low), forbidden, low


def _whole(
    shape: tuple[int, ...],
    rows: np.ndarray,
    columns: np.ndarray,
    plan: np.ndarray,
    f: np.ndarray,
    g: np.ndarray,
    more: float,
    error: float,
    solved: bool,
) -> _Solution:
    """The solution with its rows and columns without mass; `more` is the price of moving more where both sides stay."""
    m, n = shape
    whole = _Solution(
        np.zeros((m, n)), np.full(m, -np.inf), np.full(n, -np.inf), np.zeros(m), np.zeros(n), error, solved
    )
    whole.plan[np.ix_(rows, columns)] = plan
    whole.f[rows], whole.g[columns] = f, g
    whole.by_a[rows], whole.by_b[columns] = f, g - more
    return whole
