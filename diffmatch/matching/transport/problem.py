"""The one problem behind all entropic ones: two marginals, each held exactly or by a KL penalty.

In the potentials of ``P = exp((f + g - C) / eps)`` the optimality conditions of the balanced and of the unbalanced
problem (reference measure a b^T, penalties ``rho KL(P 1 | a)``) have one form,

    sum_j P_ij = a_i^(1 + s_a) exp(-s_a f_i / eps),    s_a = eps / rho_a,

and alike for the columns; s = 0 holds a marginal exactly. Its fixed-point iteration is

    f <- eps log a - tau_a eps LSE_j((g_j - C_ij) / eps),    tau = 1 / (1 + s)

(Chizat, Peyré, Schmitzer, Vialard 2018, "Scaling algorithms for unbalanced optimal transport problems").
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Problem", "damped_update", "guarded_log"]


@dataclass(frozen=True)
class Problem:
    """Marginals and strengths of a batch of problems; the cost stands beside it.

    Attributes:
        a: mass of the rows, shape (b, m), 0 for padding.
        b: mass of the columns, shape (b, n).
        eps: entropic strength, shape (b,), in the unit of the cost.
        slack_a: eps / rho of the rows, shape (b,); 0 holds them exactly.
        slack_b: eps / rho of the columns, shape (b,).
    """

    a: Float[Tensor, "b m"]
    b: Float[Tensor, "b n"]
    eps: Float[Tensor, " b"]
    slack_a: Float[Tensor, " b"]
    slack_b: Float[Tensor, " b"]

    def select(self, index: Int[Tensor, " k"]) -> "Problem":
        """The problems of some batch elements."""
        return Problem(self.a[index], self.b[index], self.eps[index], self.slack_a[index], self.slack_b[index])

    def at(self, eps: Float[Tensor, " b"]) -> "Problem":
        """The same penalties at another entropic strength."""
        scale = eps / self.eps
        return Problem(self.a, self.b, eps, self.slack_a * scale, self.slack_b * scale)


def guarded_log(x: Tensor) -> Tensor:
    """Logarithm with -inf at 0, and a gradient of 0 there."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), -torch.inf)


def damped_update(
    mass: Float[Tensor, "b m"], eps: Float[Tensor, " b"], slack: Float[Tensor, " b"], lse: Float[Tensor, "b m"]
) -> Float[Tensor, "b m"]:
    """The potential that meets the marginal of one side, ``eps (log a - tau LSE)``.

    Rows without mass, and rows whose every entry is forbidden, get -inf.
    """
    held = (mass > 0) & (lse > -torch.inf)
    f = eps[:, None] * (torch.where(held, mass, 1.0).log() - torch.where(held, lse, 0.0) / (1 + slack[:, None]))
    return torch.where(held, f, -torch.inf)
