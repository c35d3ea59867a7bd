"""The public function: checks, choice of the solver, and the result with its gradients."""

import dataclasses
import math

import torch
from jaxtyping import Bool, Num
from torch import Tensor

from diffmatch.autodiff import BlackBox, Estimator, ImplicitMLE, Perturbed, StraightThrough
from diffmatch.errors import InputError, check_choice, check_positive, check_same_device, check_shape
from diffmatch.matching.assignment.auction import solve_auction
from diffmatch.matching.assignment.compiled import solve_compiled
from diffmatch.matching.assignment.kernels import NOT_A_NUMBER, SOLVED, UNBOUNDED
from diffmatch.matching.assignment.result import AssignmentResult, one_hot
from diffmatch.matching.assignment.solution import Solution

__all__ = ["assign"]

ESTIMATORS: dict[str, type[BlackBox] | type[Perturbed] | type[ImplicitMLE] | type[StraightThrough]] = {
    "blackbox": BlackBox,
    "perturbed": Perturbed,
    "implicit_mle": ImplicitMLE,
    "straight_through": StraightThrough,
}
SOLVERS = ("auto", "compiled", "auction")


def assign(
    cost: Num[Tensor, "*b n m"],
    *,
    mask: tuple[Bool[Tensor, "*c n"] | None, Bool[Tensor, "*d m"] | None] | None = None,
    maximize: bool = False,
    grad: str | Estimator | None = None,
    generator: torch.Generator | None = None,
    solver: str = "auto",
    tol: float | None = None,
    max_steps: int = 100_000,
) -> AssignmentResult:
    """Assign rows to columns, each at most once, so that the total cost is smallest.

    As many pairs are made as the shorter side has members. The value is differentiable: its gradient by the costs is
    the assignment itself, a subgradient where there are ties. The assignment has no useful derivative; ``grad`` names
    an estimate of one, which the ``plan`` of the result then carries.

    NaN or an unbounded cost is looked for in every call, so that a call waits for the device.

    Args:
        cost: shape (\\*b, n, m); inf forbids a pair. Integers are solved in float64, half precision in float32.
        mask: which rows and which columns are real, shapes (\\*b, n) and (\\*b, m), either of them None for all; what
            stands in the padding does not matter, NaN included, and its gradient is zero.
        maximize: take the largest total instead (-inf then forbids a pair).
        grad: ``"blackbox"``, ``"perturbed"``, ``"implicit_mle"`` or ``"straight_through"`` with their defaults, or an
            estimator of :mod:`diffmatch.autodiff` with your own settings; None for a plan without gradient.
        generator: source of the noise of ``grad``.
        solver: ``"compiled"``, shortest augmenting paths on the CPU, exact; ``"auction"``, tensor operations on any
            device, within ``tol``; ``"auto"`` takes the first for tensors on the CPU and the second elsewhere.
        tol: for the auction, how far the value may be from the optimum, relative to the largest minus the smallest cost
            of a problem; None for 1e-6 in single precision and 1e-9 in double. ``error`` is what was reached.
        max_steps: for the auction, rounds of bidding after which a problem counts as not converged.

    Returns:
        The assignment, its value, dual variables that certify it, and whether it is complete. An element without a
        complete assignment is no error: ``converged`` is false there, and ``require_converged()`` raises.

    Raises:
        InputError: wrong shapes, dtypes or devices; NaN, or an infinity that is not the forbidding one, with the number
            of the first such batch element.

    References:
        Crouse 2016, "On implementing 2D rectangular assignment algorithms"; Bertsekas 1988, "The auction algorithm".
    """
    check_shape("cost", cost, ("n", "m"), batch=True)
    if cost.is_complex() or cost.dtype == torch.bool:
        raise InputError("cost", "a real dtype", str(cost.dtype))
    check_choice("solver", solver, SOLVERS)
    if solver == "compiled" and cost.device.type != "cpu":
        raise InputError("solver", "'auction' for tensors that are not on the CPU", repr(solver))
    rows, columns = _masks(mask, cost)
    exact = cost.dtype == torch.float64 or not cost.is_floating_point()
    work = cost.to(torch.float64 if exact else torch.float32)
    tol = tol if tol is not None else (1e-9 if exact else 1e-6)
    check_positive("tol", tol)
    check_positive("max_steps", max_steps)
    auction = solver == "auction" or (solver == "auto" and cost.device.type != "cpu")

    def solve(costs: Tensor) -> Solution:
        """Solve costs of shape (\\*samples, \\*b, n, m)."""
        *batch, n, m = costs.shape
        flat = costs.detach().reshape(math.prod(batch), n, m)
        masks = (
            side.expand(*batch, side.shape[-1]).flatten(0, -2) if batch else side[None] for side in (rows, columns)
        )
        found = (
            solve_auction(flat, *masks, maximize=maximize, tol=tol, max_steps=max_steps)
            if auction
            else solve_compiled(flat, *masks, maximize=maximize)
        )
        _check_values(found, maximize)
        return found

    result = _result(work, solve(work), dtype=cost.dtype if cost.is_floating_point() else torch.float64)
    if grad is None:
        return result
    if not cost.is_floating_point():
        raise InputError("cost", "a floating-point dtype where grad is given", str(cost.dtype))
    clean = torch.where(rows.unsqueeze(-1) & columns.unsqueeze(-2), work, 0)
    plan = one_hot(result.assignment, cost.shape[-1], dtype=clean.dtype)

    def plan_of(costs: Tensor) -> Tensor:
        if torch.equal(costs, clean):  # solved above
            return plan
        found = solve(costs).assignment.reshape(costs.shape[:-1])
        return one_hot(found, costs.shape[-1], dtype=costs.dtype)

    estimated = _estimator(grad)(plan_of, clean, maximize=maximize, generator=generator)
    assert isinstance(estimated, Tensor)  # one cost, one solution
    return dataclasses.replace(result, estimated=estimated.to(cost.dtype))


def _estimator(grad: str | Estimator) -> Estimator:
    if not isinstance(grad, str):
        return grad
    check_choice("grad", grad, ESTIMATORS)
    return ESTIMATORS[grad]()


def _masks(mask: tuple[Tensor | None, Tensor | None] | None, cost: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = mask if mask is not None else (None, None)
    *batch, n, m = cost.shape
    return _one_mask("mask_a", rows, (*batch, n), cost), _one_mask("mask_b", columns, (*batch, m), cost)


def _one_mask(name: str, mask: Tensor | None, shape: tuple[int, ...], cost: Tensor) -> Tensor:
    if mask is None:
        return torch.ones((), dtype=torch.bool, device=cost.device).expand(shape)
    check_shape(name, mask, shape[-1:], batch=True)
    check_same_device(name, mask, cost.device)
    if mask.dtype != torch.bool:
        raise InputError(name, "bool, true for real entries", str(mask.dtype))
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise InputError(name, f"a shape that expands to {shape}", str(tuple(mask.shape))) from None


def _check_values(solution: Solution, maximize: bool) -> None:
    bad = (solution.status >= NOT_A_NUMBER).nonzero()
    if len(bad):
        first = int(bad[0, 0])
        found = {NOT_A_NUMBER: "NaN", UNBOUNDED: "inf" if maximize else "-inf"}[int(solution.status[first])]
        forbidding = "-inf" if maximize else "inf"
        raise InputError("cost", f"finite values or {forbidding}", f"{found} in batch element {first}")


def _result(work: Tensor, solution: Solution, *, dtype: torch.dtype) -> AssignmentResult:
    *batch, n, m = work.shape
    assignment = solution.assignment.reshape(*batch, n)
    converged = (solution.status == SOLVED).reshape(batch)
    value = _total(work, assignment)
    gap = (value.detach() - (solution.u.sum(-1) + solution.v.sum(-1)).reshape(batch)).abs()
    return AssignmentResult(
        assignment=assignment,
        value=value.to(dtype),
        f=solution.u.reshape(*batch, n).to(dtype),
        g=solution.v.reshape(*batch, m).to(dtype),
        error=torch.where(converged, gap, torch.inf).to(dtype),
        steps=solution.steps.reshape(batch),
        converged=converged,
    )


def _total(cost: Tensor, assignment: Tensor) -> Tensor:
    """Sum of the costs of the pairs; what is not matched is not read, nor is its gradient anything but zero."""
    if cost.shape[-1] == 0:
        return cost.sum((-1, -2))
    picked = cost.gather(-1, assignment.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(assignment >= 0, picked, 0).sum(-1)
