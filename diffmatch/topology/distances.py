"""Distances between persistence diagrams: Wasserstein, bottleneck, sliced Wasserstein, each with gradients."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_positive, check_shape
from diffmatch.matching import assign
from diffmatch.topology.bottleneck import bottleneck_edge
from diffmatch.topology.diagram import Diagram

__all__ = ["bottleneck_distance", "sliced_wasserstein_distance", "wasserstein_distance"]


def wasserstein_distance(
    a: Diagram | Float[Tensor, "m 2"],
    b: Diagram | Float[Tensor, "n 2"],
    *,
    order: float | int = 2.0,
    norm: float | int = 2.0,
) -> Float[Tensor, ""]:
    """The Wasserstein distance between two diagrams, whose points may also be matched to the diagonal.

    ``(min sum |x - y|^q + sum of unmatched |x - diagonal|^q)^(1/q)`` over the partial matchings of the points of `a`
    and `b`. The optimal matching is found without gradients (the envelope theorem), so the gradient is exact where that
    matching is unique; at distance zero it is zero. As a loss, take the power ``q`` of it. Only pairs that cost less
    than their two ways to the diagonal are ever matched, so the assignment is one of m rows to n columns.

    Essential classes are matched among themselves by the order of their births. Where the two diagrams have different
    numbers of them the distance is inf, without gradients; compare ``diagram.points()`` to leave them out.

    Args:
        a: a diagram, or points (birth, death), shape (m, 2); a row with an infinite death is an essential class.
        b: the other one; the value's gradient reaches both.
        order: q, >= 1.
        norm: p of the norm between points, >= 1 or inf.

    Raises:
        InputError: wrong shapes, dtypes or orders; NaN, or an infinite birth.

    References:
        Cohen-Steiner et al. 2010, "Lipschitz functions have L_p-stable persistence"; the assignment in its reduced
        form.
    """
    check_positive("order", order)
    if order < 1:
        raise InputError("order", "a number >= 1", repr(order))
    if not norm >= 1:
        raise InputError("norm", "a number >= 1 or inf", repr(norm))
    (x, x_born), (y, y_born) = _split("a", a), _split("b", b)
    if len(x_born) != len(y_born):
        return x.new_full((), math.inf)
    with torch.no_grad():
        between = _distances(x.unsqueeze(1), y, norm) ** order
        saved = between - (_to_diagonal(x, norm) ** order).unsqueeze(1) - _to_diagonal(y, norm) ** order
        partner = assign(saved.double().clamp_max(0)).assignment
        row = (partner >= 0).nonzero().squeeze(1)
        row = row[saved[row, partner[row]] < 0]
        column = partner[row]
        x_left, y_left = _all_but(row, len(x)), _all_but(column, len(y))
    total = (
        (_distances(x[row], y[column], norm) ** order).sum()
        + (_to_diagonal(x[x_left], norm) ** order).sum()
        + (_to_diagonal(y[y_left], norm) ** order).sum()
        + ((x_born.sort().values - y_born.sort().values).abs() ** order).sum()
    )
    return _root(total, order)


def bottleneck_distance(a: Diagram | Float[Tensor, "m 2"], b: Diagram | Float[Tensor, "n 2"]) -> Float[Tensor, ""]:
    """The bottleneck distance between two diagrams: the longest way of the best partial matching, in the maximum norm.

    Its gradient is that of the one pair, or the one point and the diagonal, which is the longest: right where that is
    unique, and too sparse to be a good loss. The matching runs on the CPU.

    Essential classes are treated as by :func:`wasserstein_distance`.

    Args:
        a: a diagram, or points (birth, death), shape (m, 2); a row with an infinite death is an essential class.
        b: the other one; the value's gradient reaches both.

    Raises:
        InputError: wrong shapes or dtypes; NaN, or an infinite birth.

    References:
        Efrat, Itai, Katz 2001, "Geometry helps in bottleneck matching": binary search over the candidate distances,
        here with Hopcroft and Karp's algorithm on the points that are too far from the diagonal.
    """
    (x, x_born), (y, y_born) = _split("a", a), _split("b", b)
    if len(x_born) != len(y_born):
        return x.new_full((), math.inf)
    ways = [(x_born.sort().values - y_born.sort().values).abs()]
    if len(x) + len(y):
        with torch.no_grad():
            tables = _distances(x.unsqueeze(1), y, math.inf), _to_diagonal(x, math.inf), _to_diagonal(y, math.inf)
            i, j = bottleneck_edge(*(t.double().cpu().numpy() for t in tables))
        if i is not None and j is not None:
            ways.append(_distances(x[i], y[j], math.inf).reshape(1))
        elif i is not None:
            ways.append(_to_diagonal(x[i], math.inf).reshape(1))
        elif j is not None:
            ways.append(_to_diagonal(y[j], math.inf).reshape(1))
    longest = torch.cat(ways)
    return longest.max() if len(longest) else x.sum() + y.sum()


def sliced_wasserstein_distance(
    a: Diagram | Float[Tensor, "m 2"],
    b: Diagram | Float[Tensor, "n 2"],
    *,
    directions: int = 50,
) -> Float[Tensor, ""]:
    """The sliced Wasserstein distance of order 1: the mean over directions of a distance of numbers, found by sorting.

    Each diagram is joined by the projections of the other one to the diagonal; both are projected on lines and compared
    there. It costs ``directions * (m + n) log(m + n)``, has dense gradients and is at most ``2 sqrt(2)`` times the
    Wasserstein distance of order 1. Essential classes have no place in it: it compares finite points only.

    Args:
        a: a diagram, or points (birth, death), shape (m, 2), finite.
        b: the other one; the value's gradient reaches both.
        directions: number of lines, at equal angles in the half circle.

    Raises:
        InputError: wrong shapes or dtypes, NaN, rows with infinite entries, no directions.

    References:
        Carrière, Cuturi, Oudot 2017, "Sliced Wasserstein kernel for persistence diagrams".
    """
    check_positive("directions", directions)
    (x, x_born), (y, y_born) = _split("a", a), _split("b", b)
    for name, given, born in (("a", a, x_born), ("b", b, y_born)):
        if isinstance(given, Tensor) and len(born):
            raise InputError(name, "finite points", f"{len(born)} infinite deaths")
    angle = torch.arange(directions, dtype=x.dtype, device=x.device) * (math.pi / directions) - math.pi / 2
    lines = torch.stack((angle.cos(), angle.sin()))  # (2, directions)
    onto = x.new_full((2, 2), 0.5)
    first, second = torch.cat((x, y @ onto)), torch.cat((y, x @ onto))
    apart = (first @ lines).sort(dim=0).values - (second @ lines).sort(dim=0).values
    return apart.abs().sum() / directions


def _split(name: str, given: Diagram | Tensor) -> tuple[Tensor, Tensor]:
    """Finite points, shape (m, 2), and births of essential classes, shape (e,)."""
    if isinstance(given, Diagram):
        points, born = given.points(), given.essential_births
    else:
        check_shape(name, given, ("m", 2))
        check_floating(name, given)
        endless = given[:, 1].detach().isinf()
        points, born = given[~endless], given[endless, 0]
    bad = int((~points.detach().isfinite()).sum() + (~born.detach().isfinite()).sum())
    if bad:
        raise InputError(name, "finite births and deaths that are no NaN", f"{bad} others")
    return points, born


def _distances(x: Tensor, y: Tensor, norm: float | int) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(x - y, ord=norm, dim=-1)
    return distance


def _to_diagonal(x: Tensor, norm: float | int) -> Tensor:
    return (x[..., 1] - x[..., 0]).abs() * (0.5 if math.isinf(norm) else 2 ** (1 / norm - 1))


def _all_but(index: Tensor, n: int) -> Tensor:
    mask = torch.ones(n, dtype=torch.bool, device=index.device)
    mask[index] = False
    return mask.nonzero().squeeze(1)


def _root(total: Tensor, order: float | int) -> Tensor:
    """``total^(1 / order)`` with gradient zero at zero."""
    if order == 1:
        return total
    some = total > 0
    return torch.where(some, torch.where(some, total, 1) ** (1 / order), 0)
