"""From what a user gives to a batch of problems: shapes, masks, dtypes and checks, once for all doors."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_positive, check_same_device, check_shape
from diffmatch.matching.transport.result import TransportResult

__all__ = [
    "Mask",
    "Masses",
    "Penalty",
    "check_mask",
    "flat_init",
    "flat_masses",
    "flat_strength",
    "held",
    "masked_cost",
    "mean_cost",
    "real_counts",
    "slacks",
    "working_dtype",
]

Mask = tuple[Tensor | None, Tensor | None] | None
"""Which rows and which columns are real, bool; None for all of them."""

Penalty = float | tuple[float, float] | None
"""Strength of the KL penalties on both marginals or on each, in the unit of the cost; inf or None hold them exactly."""


@dataclass(frozen=True)
class Masses:
    """Marginals with the batch axes flattened, and the axes that they had."""

    a: Float[Tensor, "b m"]
    b: Float[Tensor, "b n"]
    batch: torch.Size


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that potentials and sums are held in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def flat_masses(
    a: Tensor | None,
    b: Tensor | None,
    *,
    batch: torch.Size,
    sizes: tuple[int, int],
    mask: Mask,
    like: Tensor,
    balanced: bool,
    check: bool,
) -> Masses:
    """Both marginals, uniform over the real entries where none was given, zero in the padding.

    Raises:
        InputError: wrong shapes or devices; with `check`, negative or non-finite masses, or, if `balanced`, totals that
            differ by more than 1e-4.
    """
    mask_a, mask_b = mask if mask is not None else (None, None)
    first = _one_side("a", a, mask_a, batch=batch, size=sizes[0], like=like, check=check)
    second = _one_side("b", b, mask_b, batch=batch, size=sizes[1], like=like, check=check)
    if balanced:
        if a is None or b is None or 0 in sizes:
            # Where one side has no entries there is nothing to move: a uniform mass on the other side is not a debt.
            some = ((first.sum(-1) > 0) & (second.sum(-1) > 0))[:, None]
            first, second = torch.where(some, first, 0.0), torch.where(some, second, 0.0)
        total_a, total_b = first.sum(-1), second.sum(-1)
        if check and bool(((total_a - total_b).abs() > 1e-4 * total_a.abs()).any()):
            worst = int((total_a - total_b).abs().argmax())
            got = f"totals {float(total_a[worst]):.6g} and {float(total_b[worst]):.6g}"
            raise InputError("a, b", "equal totals (or a finite rho, or mass=)", got)
        ratio = total_a / torch.where(total_b > 0, total_b, 1.0)
        second = second * ratio.detach()[:, None]
    return Masses(first, second, batch)


def _one_side(
    name: str, mass: Tensor | None, mask: Tensor | None, *, batch: torch.Size, size: int, like: Tensor, check: bool
) -> Tensor:
    dtype = working_dtype(like.dtype)
    if mask is not None:
        mask = _expand(f"mask_{name}", mask, batch, size)
    if mass is None:
        if mask is None:
            return like.new_full((math.prod(batch), size), 1 / max(size, 1), dtype=dtype)
        real = mask.to(dtype)
        return real / real.sum(-1, keepdim=True).clamp(min=1)
    check_shape(name, mass, (size,), batch=True)
    check_floating(name, mass)
    check_same_device(name, mass, like.device)
    mass = _expand(name, mass.to(dtype), batch, size)
    if mask is not None:
        mass = torch.where(mask, mass, 0.0)
    if check and not bool(((mass >= 0) & (mass < torch.inf)).all()):
        bad = ~((mass >= 0) & (mass < torch.inf))
        raise InputError(name, "finite masses >= 0", f"{int(bad.sum())} negative, infinite or NaN")
    return mass


def _expand(name: str, tensor: Tensor, batch: torch.Size, size: int) -> Tensor:
    try:
        return tensor.expand(*batch, size).reshape(math.prod(batch), size)
    except RuntimeError:
        raise InputError(name, f"batch axes that expand to {tuple(batch)}", str(tuple(tensor.shape[:-1]))) from None


def flat_strength(eps: float | Tensor, *, batch: torch.Size, like: Tensor, check: bool) -> Float[Tensor, " b"]:
    """The entropic strength of each batch element.

    Raises:
        InputError: it is not positive, or its shape is not that of the batch axes.
    """
    dtype = working_dtype(like.dtype)
    if not isinstance(eps, Tensor):
        check_positive("eps", eps)
        return like.new_full((math.prod(batch),), eps, dtype=dtype)
    check_floating("eps", eps)
    check_same_device("eps", eps, like.device)
    if check and not bool(((eps > 0) & (eps < torch.inf)).all()):
        raise InputError("eps", "finite and > 0", "an entry that is not")
    return _expand("eps", eps.to(dtype)[..., None], batch, 1)[:, 0]


def held(rho: Penalty) -> bool:
    """Whether both marginals are held exactly."""
    return rho is None or rho == math.inf or rho == (math.inf, math.inf)


def slacks(rho: Penalty, eps: Float[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """``eps / rho`` of both sides, 0 where a marginal is held.

    Raises:
        InputError: a penalty that is not positive.
    """
    if rho is None:
        rho = math.inf
    both = rho if isinstance(rho, tuple) else (rho, rho)
    for value in both:
        if not value > 0:
            raise InputError("rho", "penalties > 0 (inf holds a marginal)", repr(rho))
    return eps / both[0], eps / both[1]


def check_mask(mask: Mask, sizes: tuple[int, int] | torch.Size, device: torch.device) -> None:
    """Check both masks.

    Raises:
        InputError: wrong shapes, dtypes or devices.
    """
    for name, side, size in zip("ab", mask or (None, None), sizes, strict=True):
        if side is not None:
            check_shape(f"mask_{name}", side, (size,), batch=True)
            check_same_device(f"mask_{name}", side, device)
            if side.dtype != torch.bool:
                raise InputError(f"mask_{name}", "bool, true for real entries", str(side.dtype))


def masked_cost(
    cost: Float[Tensor, "*b m n"],
    mask: Mask,
    *,
    check: bool,
) -> Float[Tensor, "*b m n"]:
    """The cost with zeros in the padding, whatever stood there, and no gradient to it.

    Raises:
        InputError: with `check`, NaN or -inf among the real entries.
    """
    if mask is not None:
        check_mask(mask, cost.shape[-2:], cost.device)
        for side, axis in zip(mask, (-1, -2), strict=True):
            if side is not None:
                cost = torch.where(side.unsqueeze(axis), cost, 0.0)
    # The least entry is NaN where any entry is.
    if check and cost.numel() and not bool(cost.amin() > -torch.inf):
        bad = cost.isnan() | (cost == -torch.inf)
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise InputError("cost", "no NaN and no -inf", f"{int(bad.sum())} of {cost.numel()}, the first at {where}")
    return cost


def mean_cost(cost: Float[Tensor, "b m n"], masses: Masses) -> Float[Tensor, " b"]:
    """Mean absolute cost of the allowed pairs of rows and columns with mass, 1 where there is none."""
    allowed = (masses.a > 0)[:, :, None] & (masses.b > 0)[:, None, :] & (cost < torch.inf)
    mean = torch.where(allowed, cost, 0.0).abs().sum((-2, -1)) / allowed.sum((-2, -1)).clamp(min=1)
    return torch.where(mean > 0, mean, 1.0)


def flat_init(
    init: tuple[Tensor, Tensor] | TransportResult | None, *, batch: torch.Size, size: int, like: Tensor
) -> Float[Tensor, "b n"] | None:
    """Column potentials to start from; the first update finds the rows. Infinite ones start from 0.

    Raises:
        InputError: they do not have the shape of the columns.
    """
    if init is None:
        return None
    g = (init.g if isinstance(init, TransportResult) else init[1]).detach()
    check_shape("init", g, (size,), batch=True)
    g = _expand("init", g.to(like.dtype), batch, size)
    return torch.where(torch.isfinite(g), g, 0.0)


def real_counts(
    mask: Mask, *, batch: torch.Size, sizes: tuple[int, int], like: Tensor
) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b n"]]:
    """Mass 1 for each real row and column, 0 in the padding."""
    found = []
    for name, side, size in zip("ab", mask if mask is not None else (None, None), sizes, strict=True):
        if side is None:
            found.append(like.new_ones(math.prod(batch), size))
        else:
            found.append(_expand(f"mask_{name}", side, batch, size).to(like.dtype))
    return found[0], found[1]
