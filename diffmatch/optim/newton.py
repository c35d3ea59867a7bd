"""Newton's method, regularised by the norm of the gradient."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from diffmatch.autodiff.hessian import Curvature, DiagonalHessian, ExactHessian, gradients
from diffmatch.errors import InputError, check_choice, check_positive
from diffmatch.optim.closures import check_gradients, evaluate, need_closure
from diffmatch.optim.krylov import Krylov
from diffmatch.optim.parameters import check_parameters

__all__ = ["Newton"]

_CURVATURES = {"exact": ExactHessian, "diagonal": DiagonalHessian}


class Newton(Optimizer):
    r"""Newton steps whose length is bound to the gradient: no line search, no schedule.

    A step solves ``(H + lam I) d = -g`` with ``lam = |g| / gamma``, so that ``|d| <= gamma`` where H is positive
    semidefinite. It is taken if the loss falls by at least ``|g(x + d)|^2 / (8 lam)``, and gamma is doubled; otherwise
    gamma is halved and the step tried again (Semenov, Jaggi, Doikov, 2025, "Gradient-normalized smoothness for
    optimization with approximate Hessians").

    H is never formed. One Krylov basis a step (Lanczos, orthogonalised in full) serves every gamma that is tried: a
    rejected try costs an evaluation, not a product. It needs ``max_products`` copies of the parameters.

    When not to use it: on a loss that is sampled anew at each step, and where one product (about two gradients) costs
    more than dozens of first-order steps gain.

    Args:
        params: one group of tensors.
        lr: factor on each step; 1 is the method.
        curvature: H. ``"exact"``; ``"diagonal"`` (estimated by random signs); or a
            :class:`~diffmatch.autodiff.hessian.Curvature`, such as ``GaussNewton(residuals)`` or
            ``EmpiricalFisher(losses)``.
        gamma: trust length to begin with, in units of the parameters.
        tol: relative residual at which the linear solve stops; None for ``min(0.1, sqrt(|g|))``.
        max_products: most products with H in a step.
        max_tries: most values of gamma in a step; after that the parameters stay where they are.
        test: ``"gradient"`` as above; ``"armijo"`` wants a fall of ``-g d / 4``, which saves the gradients
            of the points tried.

    Raises:
        InputError: several groups, or a setting that is not usable.

    Attributes:
        needs_graph: True: closures return the loss with its graph and call no ``backward``.
    """

    needs_graph = True

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        *,
        curvature: str | Curvature = "exact",
        gamma: float = 1.0,
        tol: float | None = None,
        max_products: int = 50,
        max_tries: int = 40,
        test: str = "gradient",
    ) -> None:
        check_positive("lr", lr, allow_zero=True)
        check_positive("gamma", gamma)
        check_choice("test", test, ("gradient", "armijo"))
        if tol is not None:
            check_positive("tol", tol, allow_zero=True)
        for name, count in (("max_products", max_products), ("max_tries", max_tries)):
            if count < 1:
                raise InputError(name, "a whole number of at least 1", repr(count))
        settings = {"gamma": gamma, "tol": tol, "max_products": max_products, "max_tries": max_tries, "test": test}
        super().__init__(params, {"lr": lr, **settings})
        if len(self.param_groups) > 1:
            raise InputError("params", "one parameter group", f"{len(self.param_groups)}")
        check_parameters(self.param_groups[0]["params"])
        if isinstance(curvature, str):
            check_choice("curvature", curvature, _CURVATURES)
            curvature = _CURVATURES[curvature]()
        if not isinstance(curvature, Curvature):
            raise InputError("curvature", "a name or a Curvature", type(curvature).__name__)
        self._curvature = curvature

    @property
    def statistics(self) -> dict[str, int | float]:
        """Counts since the start (steps, products, solves, gradients), and the trust length as it is."""
        state = self._counts()
        return {key: state[key] for key in ("step", "products", "solves", "gradients", "gamma")}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: returns the loss, with its graph.

        Returns:
            The loss at the start of the step, without its graph.

        Raises:
            FloatingPointError: the gradient at the start is not finite; nothing was changed.
            InputError: no closure, or one whose loss has no graph or a freed one.
        """
        closure = need_closure(closure)
        group, state = self.param_groups[0], self._counts()
        params: list[Tensor] = group["params"]
        loss = evaluate(closure)
        grads = gradients(loss, params, graph=self._curvature.needs_graph)
        check_gradients(grads)
        state["step"] += 1
        state["gradients"] += 1
        solver = self._solver(params, grads)
        loss, slope, norm = loss.detach(), _flat(grads).detach(), math.hypot(*_norms(grads))
        del grads  # and with it the graph, once the basis stands
        if norm == 0:
            return loss
        gamma, tol = state["gamma"], group["tol"]
        solver.extend(norm / (gamma + 1e-8), min(0.1, math.sqrt(norm)) if tol is None else tol)
        state["products"] += solver.products
        solver.release()
        start = [p.clone() for p in params]
        try:
            accepted = self._search(closure, solver, float(loss), slope, norm)
        except BaseException:
            torch._foreach_copy_(params, start)
            raise
        if not accepted:
            torch._foreach_copy_(params, start)
            state["gamma"] = gamma
        return loss

    def _search(
        self, closure: Callable[[], Any], solver: "Krylov | _Diagonal", value: float, slope: Tensor, norm: float
    ) -> bool:
        """Move to the first point that is good enough; False where none is."""
        group, state = self.param_groups[0], self._counts()
        params: list[Tensor] = group["params"]
        start = [p.clone() for p in params]
        slack = 4 * torch.finfo(slope.dtype).eps * abs(value)
        for _ in range(group["max_tries"]):
            lam = norm / (state["gamma"] + 1e-8)
            move = float(group["lr"]) * solver.solve(lam)
            state["solves"] += 1
            for p, s, d in zip(params, start, _split(move, params), strict=True):
                torch.add(s, d.to(p.dtype), out=p)
            reached = evaluate(closure)
            wanted = -0.25 * float(slope @ move)
            if group["test"] == "gradient":
                state["gradients"] += 1
                wanted = math.hypot(*_norms(gradients(reached, params))) ** 2 / (8 * lam)
            if value - float(reached.detach()) + slack >= wanted:  # never true of NaN
                state["gamma"] = max(2 * state["gamma"], 1e-9)
                return True
            state["gamma"] /= 2
        return False

    def _solver(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> "Krylov | _Diagonal":
        if isinstance(self._curvature, DiagonalHessian):
            return _Diagonal(_flat(self._curvature.diagonal(params, grads)), _flat(grads), self._curvature.samples)
        product = self._curvature.at(params, grads)
        group = self.param_groups[0]
        return Krylov(lambda v: _flat(product(_split(v, params))), _flat(grads).detach(), limit=group["max_products"])

    def _counts(self) -> dict[str, Any]:
        """The state, kept with the first parameter."""
        state: dict[str, Any] = self.state[self.param_groups[0]["params"][0]]
        if not state:
            state.update(step=0, products=0, solves=0, gradients=0, gamma=self.param_groups[0]["gamma"])
        return state


class _Diagonal:
    """The solves with a diagonal matrix, of which the magnitudes are taken."""

    def __init__(self, entries: Tensor, right: Tensor, products: int) -> None:
        self._entries, self._right, self.products = entries.abs(), right.detach(), products

    def extend(self, shift: float, tol: float) -> None:
        """Nothing to prepare."""

    def release(self) -> None:
        """Nothing to free."""

    def solve(self, shift: float) -> Tensor:
        return -self._right / (self._entries + shift)


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    return [float(norm) for norm in torch._foreach_norm(list(tensors))]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector; halves are widened to float32, everything to the widest dtype among them."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return torch.cat([t.reshape(-1).to(dtype) for t in tensors])


def _split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    pieces = vector.split([t.numel() for t in like])
    return [piece.view(t.shape).to(t.dtype) for piece, t in zip(pieces, like, strict=True)]
