"""Affinities between pairs of matches as operators, so that the matrix of all pairs of pairs is never built.

Every affinity is the quadratic form ``J(X) = <U, X> + sum K[ia, jb] X[i, a] X[j, b]`` (Lawler 1963) of a plan X between
n and m nodes, and gives the symmetric part of K applied to a plan. All solvers maximise J.
"""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_same_device, check_shape

__all__ = ["Affinity", "EdgeAffinity", "KroneckerAffinity", "SumAffinity", "one_hot_plan"]

_CHUNK = 2**24
"""Numbers that an intermediate table of all terms may have."""


class Affinity(ABC):
    """A quadratic form of plans.

    Attributes:
        unary: affinities U of single matches, shape (\\*b, n, m), or None for none.
        mask: which nodes of the two graphs are real, shapes (\\*b, n) and (\\*b, m), each None for all; the padding may
            hold anything.
    """

    unary: Float[Tensor, "*b n m"] | None
    mask: tuple[Bool[Tensor, "*b n"] | None, Bool[Tensor, "*b m"] | None]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of a plan, (\\*b, n, m)."""

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the dtype and device of the affinity."""

    @abstractmethod
    def product(self, plan: Float[Tensor, "*sb n m"]) -> Float[Tensor, "*sb n m"]:
        """The symmetric part of K applied to plans; leading axes in front of the batch are allowed."""

    @abstractmethod
    def curvature(self, assignment: Int[Tensor, "*sb n"], rows: Int[Tensor, "*sb k"]) -> Float[Tensor, "*sb k n"]:
        """``<D, K D>`` for the change D of the plan when one of the rows exchanges its partner with any row; n = m."""

    def exchange_product(self, rows: Int[Tensor, "*sb 2"], columns: Int[Tensor, "*sb 2"]) -> Float[Tensor, "*sb n m"]:
        """The symmetric part of K applied to the change of the plan when two rows with these columns exchange them."""
        change = self.like.new_zeros((*rows.shape[:-1], *self.shape[-2:]))
        flat = rows.unsqueeze(-1) * self.shape[-1] + columns.unsqueeze(-2)  # [own, other; other, own]
        signs = self.like.new_tensor([-1.0, 1.0, 1.0, -1.0]).expand(*rows.shape[:-1], 4)
        return self.product(change.flatten(-2).scatter(-1, flat.flatten(-2), signs).unflatten(-1, self.shape[-2:]))

    @abstractmethod
    def padded(self, n: int, m: int) -> "Affinity":
        """The same affinity between more nodes, the new ones without any affinity."""

    def product_of_ones(self) -> Float[Tensor, "*b n m"]:
        """The symmetric part of K applied to the plan of ones."""
        return self.product(self.like.new_ones(self.shape))

    def objective(self, plan: Float[Tensor, "*sb n m"]) -> Float[Tensor, "*sb"]:
        """J of plans."""
        total = (plan * self.product(plan)).sum((-2, -1))
        return total if self.unary is None else total + (self.unary * plan).sum((-2, -1))

    def gradient(self, plan: Float[Tensor, "*sb n m"]) -> Float[Tensor, "*sb n m"]:
        """Derivative of J by the plan."""
        slope = 2 * self.product(plan)
        return slope if self.unary is None else slope + self.unary

    def valid(self) -> Bool[Tensor, "*b n m"] | None:
        """Pairs of real nodes, or None for all."""
        rows, columns = self.mask
        if rows is None and columns is None:
            return None
        both = torch.ones(self.shape, dtype=torch.bool, device=self.like.device)
        both = both if rows is None else both & rows.unsqueeze(-1)
        return both if columns is None else both & columns.unsqueeze(-2)


@dataclass(frozen=True, eq=False)
class KroneckerAffinity(Affinity):
    """``K = sum_r A_r (x) B_r``: a product costs two matrix products for each of the R terms.

    One term is the problem of Koopmans and Beckmann (1957), ``J(X) = <A, X B X^T>``. Several are a kernel of edge
    attributes in factors; see :func:`.factors.gaussian_factors`.

    Attributes:
        a: factors of the first graph, shape (\\*b, R, n, n).
        b: factors of the second graph, shape (\\*b, R, m, m).
        unary: affinities of single matches, shape (\\*b, n, m).
        mask: which nodes are real.
        symmetric: all factors are symmetric matrices, which halves the work.
    """

    a: Float[Tensor, "*b r n n"]
    b: Float[Tensor, "*b r m m"]
    unary: Float[Tensor, "*b n m"] | None = None
    mask: tuple[Bool[Tensor, "*b n"] | None, Bool[Tensor, "*b m"] | None] = (None, None)
    symmetric: bool = False

    def __post_init__(self) -> None:
        for name, tensor in (("a", self.a), ("b", self.b)):
            check_shape(name, tensor, ("r", "n", "n"), batch=True)
            check_floating(name, tensor)
            if tensor.shape[-1] != tensor.shape[-2]:
                raise InputError(name, "square factors", str(tuple(tensor.shape)))
        if self.b.shape[:-2] != self.a.shape[:-2]:
            raise InputError("b", f"batch and terms {tuple(self.a.shape[:-2])}", str(tuple(self.b.shape[:-2])))
        check_same_device("b", self.b, self.a.device)
        if self.unary is not None:
            check_shape("unary", self.unary, self.shape)
            check_same_device("unary", self.unary, self.a.device)
        rows, columns = self.mask
        object.__setattr__(self, "a", _cleaned(self.a, rows, rows, terms=True))
        object.__setattr__(self, "b", _cleaned(self.b, columns, columns, terms=True))
        if self.unary is not None:
            object.__setattr__(self, "unary", _cleaned(self.unary, rows, columns))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a plan, (\\*b, n, m)."""
        return (*self.a.shape[:-3], self.a.shape[-1], self.b.shape[-1])

    @property
    def like(self) -> Tensor:
        """The first of its tensors."""
        return self.a

    def product(self, plan: Float[Tensor, "*sb n m"]) -> Float[Tensor, "*sb n m"]:
        """See :class:`Affinity`."""
        forth = _sandwich(self.a, plan, self.b)
        return forth if self.symmetric else (forth + _sandwich(self.a.mT, plan, self.b.mT)) / 2

    def product_of_ones(self) -> Float[Tensor, "*b n m"]:
        """See :class:`Affinity`; sums of rows and columns take the place of matrix products."""
        forth = self.a.sum(-1).mT @ self.b.sum(-1)
        return forth if self.symmetric else (forth + self.a.sum(-2).mT @ self.b.sum(-2)) / 2

    def curvature(self, assignment: Int[Tensor, "*sb n"], rows: Int[Tensor, "*sb k"]) -> Float[Tensor, "*sb k n"]:
        """See :class:`Affinity`."""
        # The change is (e_r - e_s)(e_p(s) - e_p(r))^T, of rank one, so each term is a product of two numbers.
        total = self.a.new_zeros((*rows.shape, self.a.shape[-1]))
        terms = max(1, _CHUNK // max(total.numel(), 1))
        columns = assignment.gather(-1, rows)
        for a, b in zip(self.a.split(terms, -3), self.b.split(terms, -3), strict=True):
            form_a, form_b = _pair_form(a, rows), _pair_form(b, columns)
            index = assignment[..., None, None, :].expand(*form_a.shape)
            total += (form_a * form_b.gather(-1, index)).sum(-3)
        return total

    def exchange_product(self, rows: Int[Tensor, "*sb 2"], columns: Int[Tensor, "*sb 2"]) -> Float[Tensor, "*sb n m"]:
        """See :class:`Affinity`."""
        forth = self._outer(self.a, self.b, rows, columns)
        return forth if self.symmetric else (forth + self._outer(self.a.mT, self.b.mT, rows, columns)) / 2

    @staticmethod
    def _outer(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """``sum_r A_r (e_0 - e_1) (B_r (e_1 - e_0))^T`` for the two rows and their columns."""

        def difference(matrix: Tensor, ends: Tensor) -> Tensor:  # (*sb, r, n)
            batch = ends.shape[:-1]
            wide = matrix.expand(*batch, *matrix.shape[-3:])
            picked = wide.gather(-1, ends[..., None, None, :].expand(*wide.shape[:-1], 2))
            return picked[..., 0] - picked[..., 1]

        return -difference(a, rows).mT @ difference(b, columns)

    def padded(self, n: int, m: int) -> "KroneckerAffinity":
        """See :class:`Affinity`."""
        extra_n, extra_m = n - self.a.shape[-1], m - self.b.shape[-1]
        return dataclasses.replace(
            self,
            a=torch.nn.functional.pad(self.a, (0, extra_n, 0, extra_n)),
            b=torch.nn.functional.pad(self.b, (0, extra_m, 0, extra_m)),
            unary=None if self.unary is None else torch.nn.functional.pad(self.unary, (0, extra_m, 0, extra_n)),
            mask=_padded_mask(self.mask, extra_n, extra_m),
        )


@dataclass(frozen=True, eq=False)
class EdgeAffinity(Affinity):
    """Affinities of listed edges: ``sum_ef K[e, f] X[tail e, tail f] X[head e, head f]``.

    A product costs one pass over the (e, f) table. An edge must not join a node with itself.

    Attributes:
        edges_a: tails and heads in the first graph, shape (2, e), int64.
        edges_b: tails and heads in the second graph, shape (2, f), int64.
        values: affinity of each pair of edges, shape (\\*b, e, f).
        unary: affinities of single matches, shape (\\*b, n, m); its shape is the number of nodes.
        mask: which nodes are real.
    """

    edges_a: Int[Tensor, "2 e"]
    edges_b: Int[Tensor, "2 f"]
    values: Float[Tensor, "*b e f"]
    unary: Float[Tensor, "*b n m"]
    mask: tuple[Bool[Tensor, "*b n"] | None, Bool[Tensor, "*b m"] | None] = (None, None)

    def __post_init__(self) -> None:
        check_shape("edges_a", self.edges_a, (2, "e"))
        check_shape("edges_b", self.edges_b, (2, "f"))
        check_floating("values", self.values)
        check_shape("values", self.values, (self.edges_a.shape[1], self.edges_b.shape[1]), batch=True)
        check_shape("unary", self.unary, ("n", "m"), batch=True)
        object.__setattr__(self, "unary", _cleaned(self.unary, *self.mask))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a plan, (\\*b, n, m)."""
        return tuple(self.unary.shape)

    @property
    def like(self) -> Tensor:
        """The first of its tensors."""
        return self.values

    def product(self, plan: Float[Tensor, "*sb n m"]) -> Float[Tensor, "*sb n m"]:
        """See :class:`Affinity`."""
        return (self._gathered(plan, 0) + self._gathered(plan, 1)) / 2

    def _gathered(self, plan: Tensor, to: int) -> Tensor:
        """Affinity of the edges, weighed by the plan at one end, summed at the other end."""
        (to_a, from_a), (to_b, from_b) = (
            (self.edges_a, self.edges_b) if to == 0 else (self.edges_a.flip(0), self.edges_b.flip(0))
        )
        weighed = self.values * plan[..., from_a, :][..., from_b]
        half = plan.new_zeros((*weighed.shape[:-2], plan.shape[-2], weighed.shape[-1])).index_add(-2, to_a, weighed)
        return torch.zeros_like(plan).index_add(-1, to_b, half)

    def curvature(self, assignment: Int[Tensor, "*sb n"], rows: Int[Tensor, "*sb k"]) -> Float[Tensor, "*sb k n"]:
        """See :class:`Affinity`."""
        *lead, n = assignment.shape
        tail, head = self.edges_a
        count = self.edges_b.shape[1]
        number = self.edges_b.new_full((n, n), count)  # which edge of the second graph joins two nodes
        number[self.edges_b[0], self.edges_b[1]] = torch.arange(count, device=number.device)
        partner_tail, partner_head = assignment[..., tail], assignment[..., head]
        values = torch.nn.functional.pad(self.values, (0, 1)).expand(*lead, len(tail), count + 1)
        along = values.gather(-1, number[partner_tail, partner_head].unsqueeze(-1))
        against = values.gather(-1, number[partner_head, partner_tail].unsqueeze(-1))
        table = self.values.new_zeros((*lead, n * n)).index_add(-1, tail * n + head, (along + against).squeeze(-1))
        table = table.reshape(*lead, n, n)
        return (table + table.mT).gather(-2, rows.unsqueeze(-1).expand(*rows.shape, n))

    def padded(self, n: int, m: int) -> "EdgeAffinity":
        """See :class:`Affinity`."""
        extra_n, extra_m = n - self.unary.shape[-2], m - self.unary.shape[-1]
        unary = torch.nn.functional.pad(self.unary, (0, extra_m, 0, extra_n))
        return dataclasses.replace(self, unary=unary, mask=_padded_mask(self.mask, extra_n, extra_m))


@dataclass(frozen=True, eq=False)
class SumAffinity(Affinity):
    """The sum of two affinities between the same nodes.

    Attributes:
        first: an affinity.
        second: another one of the same shape, with the same mask.
    """

    first: Affinity
    second: Affinity

    def __post_init__(self) -> None:
        if self.first.shape != self.second.shape:
            raise InputError("second", f"an affinity of shape {self.first.shape}", str(self.second.shape))

    @property
    def unary(self) -> Float[Tensor, "*b n m"] | None:  # type: ignore[override]
        """Sum of both."""
        parts = [part for part in (self.first.unary, self.second.unary) if part is not None]
        return parts[0] + parts[1] if len(parts) == 2 else (parts[0] if parts else None)

    @property
    def mask(self) -> tuple[Bool[Tensor, "*b n"] | None, Bool[Tensor, "*b m"] | None]:  # type: ignore[override]
        """That of the first."""
        return self.first.mask

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a plan, (\\*b, n, m)."""
        return self.first.shape

    @property
    def like(self) -> Tensor:
        """The first of its tensors."""
        return self.first.like

    def product(self, plan: Float[Tensor, "*sb n m"]) -> Float[Tensor, "*sb n m"]:
        """See :class:`Affinity`."""
        return self.first.product(plan) + self.second.product(plan)

    def product_of_ones(self) -> Float[Tensor, "*b n m"]:
        """See :class:`Affinity`."""
        return self.first.product_of_ones() + self.second.product_of_ones()

    def curvature(self, assignment: Int[Tensor, "*sb n"], rows: Int[Tensor, "*sb k"]) -> Float[Tensor, "*sb k n"]:
        """See :class:`Affinity`."""
        return self.first.curvature(assignment, rows) + self.second.curvature(assignment, rows)

    def exchange_product(self, rows: Int[Tensor, "*sb 2"], columns: Int[Tensor, "*sb 2"]) -> Float[Tensor, "*sb n m"]:
        """See :class:`Affinity`."""
        return self.first.exchange_product(rows, columns) + self.second.exchange_product(rows, columns)

    def padded(self, n: int, m: int) -> "SumAffinity":
        """See :class:`Affinity`."""
        return SumAffinity(self.first.padded(n, m), self.second.padded(n, m))


def one_hot_plan(assignment: Int[Tensor, "*b n"], affinity: Affinity) -> Float[Tensor, "*b n m"]:
    """An assignment (-1 for none) as a plan in the dtype of the affinity."""
    plan = affinity.like.new_zeros((*assignment.shape, affinity.shape[-1] + 1))
    target = torch.where(assignment >= 0, assignment, affinity.shape[-1])
    return plan.scatter(-1, target.unsqueeze(-1), 1.0)[..., :-1]


def _sandwich(a: Tensor, plan: Tensor, b: Tensor) -> Tensor:
    """``sum_r A_r X B_r^T`` as two large matrix products."""
    r, n, m = a.shape[-3], a.shape[-1], b.shape[-1]
    left = a.flatten(-3, -2) @ plan  # (*sb, r n, m)
    wide = left.unflatten(-2, (r, n)).transpose(-3, -2).flatten(-2)  # (*sb, n, r m)
    product: Tensor = wide @ b.mT.reshape(*b.shape[:-3], r * m, m)
    return product


def _pair_form(matrix: Tensor, rows: Tensor) -> Tensor:
    """``(e_r - e_s)^T M (e_r - e_s)`` for some r, shape (\\*sb, k), and all s."""
    wide = matrix.expand(*rows.shape[:-1], *matrix.shape[-3:])
    diagonal = wide.diagonal(dim1=-2, dim2=-1)
    index = rows[..., None, :].expand(*wide.shape[:-2], rows.shape[-1])
    own = diagonal.gather(-1, index).unsqueeze(-1)
    index = index.unsqueeze(-1).expand(*index.shape, wide.shape[-1])
    form: Tensor = own + diagonal.unsqueeze(-2) - wide.gather(-2, index) - wide.mT.gather(-2, index)
    return form


def _cleaned(values: Tensor, rows: Tensor | None, columns: Tensor | None, *, terms: bool = False) -> Tensor:
    """Zero where a row or a column is not real."""
    for side, axis in ((rows, -1), (columns, -2)):
        if side is not None:
            side = side.unsqueeze(axis)
            values = torch.where(side.unsqueeze(-3) if terms else side, values, 0)
    return values


def _padded_mask(
    mask: tuple[Tensor | None, Tensor | None], extra_n: int, extra_m: int
) -> tuple[Tensor | None, Tensor | None]:
    rows, columns = mask
    return (
        None if rows is None else torch.nn.functional.pad(rows, (0, extra_n), value=True),
        None if columns is None else torch.nn.functional.pad(columns, (0, extra_m), value=True),
    )
