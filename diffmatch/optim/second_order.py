"""What optimizers share that are elementwise but for a diagonal of second derivatives, refreshed every few steps."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffmatch.autodiff.hessian import Curvature, Probes, gradients_or_none, hessian_diagonal
from diffmatch.errors import InputError
from diffmatch.optim.closures import check_gradients, evaluate, need_closure
from diffmatch.optim.elementwise import ElementwiseOptimizer

__all__ = ["DiagonalOptimizer"]


class DiagonalOptimizer(ElementwiseOptimizer):
    """Base of elementwise optimizers that estimate the Hessian's diagonal by random signs.

    A parameter is due at its own steps 1, k + 1, 2 k + 1, ...; the products of a step are taken for those that are due
    alone. Probes are a function of ``seed`` and the number of steps, so that they repeat after a reload.

    Args:
        params: tensors or groups.
        defaults: settings of groups that do not bring their own.
        k: steps between two refreshes.
        samples: probes of a refresh, each one product.
        curvature: what to take the diagonal of; the Hessian where None.
        maximize: ascend.
        seed: of the probes, and of the rounding of parameters in half precision.
        fused: see :class:`ElementwiseOptimizer`.
    """

    needs_graph = True

    def __init__(
        self,
        params: Any,
        defaults: Mapping[str, Any],
        *,
        k: int,
        samples: int,
        curvature: Curvature | None,
        maximize: bool,
        seed: int,
        fused: bool | None,
    ) -> None:
        for name, count in (("k", k), ("samples", samples)):
            if count < 1:
                raise InputError(name, "a whole number of at least 1", repr(count))
        self._k, self._samples, self._curvature, self._seed = k, samples, curvature, seed
        super().__init__(params, defaults, maximize=maximize, seed=seed, fused=fused)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: returns the loss, with its graph.

        Returns:
            The loss, without its graph. ``grad`` of the parameters is left as it was.

        Raises:
            FloatingPointError: a gradient is not finite; nothing was changed.
            InputError: no closure, or one whose loss has no graph, a freed one, or one that cannot be
                differentiated twice.
        """
        loss = evaluate(need_closure(closure))
        pairs = [(p, group) for group in self.param_groups for p in group["params"]]
        params = [p for p, _ in pairs]
        due = [self.state[p].get("step", 0) % self._k == 0 if p in self.state else True for p in params]
        graph = any(due) and (self._curvature is None or self._curvature.needs_graph)
        grads = gradients_or_none(loss, params, graph=graph)
        check_gradients(grads)
        chosen = [i for i, g in enumerate(grads) if g is not None and due[i]]
        if chosen:
            estimates = self._estimates([params[i] for i in chosen], [grads[i] for i in chosen])  # type: ignore[misc]
            with torch.no_grad():
                for i, estimate in zip(chosen, estimates, strict=True):
                    p, group = pairs[i]
                    self._take_in(self._state_of(p, group), estimate.to(_wide(p)), group)
        kept = [p.grad for p in params]
        try:
            for p, g in zip(params, grads, strict=True):
                p.grad = None if g is None else g.detach()
            super().step()
        finally:
            for p, grad in zip(params, kept, strict=True):
                p.grad = grad
        return loss.detach()

    def _estimates(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """Estimates of the diagonal for some parameters."""
        number = self.state[params[0]].get("step", 0) * self._samples
        probes = Probes(self._seed, number)
        if self._curvature is None:
            return hessian_diagonal(grads, params, probes, samples=self._samples)
        product = self._curvature.at(params, grads)
        total = [torch.zeros_like(p) for p in params]
        for _ in range(self._samples):
            v = probes.draw(params)
            for t, a, b in zip(total, v, product(v), strict=True):
                t.addcmul_(a, b, value=1 / self._samples)
        return total

    def _state_of(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = self.state[param]
        if not state:
            self._init_state(state, param, group)
        return state

    @abstractmethod
    def _take_in(self, state: dict[str, Any], estimate: Tensor, group: Mapping[str, Any]) -> None:
        """Bring a new estimate of the diagonal, in the dtype of the states, into the state."""


def _wide(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32
