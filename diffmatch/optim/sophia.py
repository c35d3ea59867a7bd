"""Sophia: momentum over a diagonal of second derivatives, clipped entry by entry."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffmatch.autodiff.hessian import Curvature, gradients_or_none
from diffmatch.errors import InputError, check_positive
from diffmatch.optim.elementwise import ElementwiseOptimizer, Rule, Steps, decay
from diffmatch.optim.kernels import sophia_kernel
from diffmatch.optim.second_order import DiagonalOptimizer

__all__ = ["SophiaG", "SophiaH"]


def _coefficients(group: Mapping[str, Any], step: int) -> tuple[float, ...]:
    lr, b1 = float(group["lr"]), group["betas"][0]
    sign = -1.0 if group["maximize"] else 1.0
    return lr, 1 - lr * group["weight_decay"], b1, 1 - b1, group["gamma"], group["eps"], sign


def _reference(
    params: list[Tensor], grads: list[Tensor], buffers: list[list[Tensor]], steps: Steps, group: Mapping[str, Any]
) -> None:
    (momenta, curvatures), b1 = buffers, group["betas"][0]
    decay(params, group)
    torch._foreach_mul_(momenta, b1)
    torch._foreach_add_(momenta, grads, alpha=1 - b1)
    denominator = torch._foreach_mul(curvatures, group["gamma"])
    torch._foreach_clamp_min_(denominator, group["eps"])
    update = torch._foreach_div(momenta, denominator)
    torch._foreach_clamp_max_(update, 1.0)
    torch._foreach_clamp_min_(update, -1.0)
    torch._foreach_mul_(update, group["lr"])
    torch._foreach_sub_(params, update)


_RULE = Rule(buffers=("exp_avg", "curvature"), reference=_reference, coefficients=_coefficients, kernel=sophia_kernel)


def _check(group: Mapping[str, Any]) -> None:
    check_positive("gamma", group["gamma"])


def unclipped_share(optimizer: ElementwiseOptimizer) -> float:
    """Share of the entries whose last step was shorter than the bound; waits for the device.

    The authors tune gamma (rho) so that it is 0.1 to 0.5. NaN before the first step.
    """
    inside, total = 0, 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if state:
                bound = (group["gamma"] * state["curvature"]).clamp_min(group["eps"])
                inside += int((state["exp_avg"].abs() < bound).sum())
                total += p.numel()
    return inside / total if total else float("nan")


class SophiaH(DiagonalOptimizer):
    """Sophia with Hutchinson's estimate of the Hessian's diagonal (Liu et al., "Sophia", 2023, Algorithm 3).

        m <- b1 m + (1 - b1) g;   every k steps  h <- b2 h + (1 - b2) u * (H u)
        p <- (1 - lr weight_decay) p - lr clip(m / max(gamma h, eps), -1, 1)

    u are random signs, whose variance is below that of the paper's normal numbers. Where the curvature is small or
    negative the entry moves by ``lr``, as in sign descent. The step is one pass over the memory; a refresh costs about
    two gradients. For least squares, ``curvature=GaussNewton(residuals)`` keeps h from below zero in the mean.

    Args:
        params: tensors or groups.
        lr: learning rate, between those of Lion and AdamW.
        betas: decay of momentum and curvature.
        gamma: scale of the curvature; tune :attr:`unclipped` by it.
        eps: least denominator.
        weight_decay: decoupled, relative to ``lr``; the authors take about twice AdamW's.
        k: steps between two refreshes of h.
        samples: probes of a refresh.
        curvature: whose diagonal; the Hessian of the loss where None.
        maximize: ascend.
        seed: of the probes.
        fused: None uses the compiled kernel on the CPU; False uses tensor operations everywhere.

    Raises:
        InputError: a setting is out of range, or a parameter is not real floating point.
    """

    rule = _RULE

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float = 0.01,
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        k: int = 10,
        samples: int = 1,
        curvature: Curvature | None = None,
        maximize: bool = False,
        seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "weight_decay": weight_decay, "k": k}
        super().__init__(
            params,
            settings,
            k=k,
            samples=samples,
            curvature=curvature,
            maximize=maximize,
            seed=seed,
            fused=fused,
        )

    @property
    def unclipped(self) -> float:
        """Share of the entries whose last step was shorter than the bound; 0.1 to 0.5 is wanted."""
        return unclipped_share(self)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        _check(group)

    def _take_in(self, state: dict[str, Any], estimate: Tensor, group: Mapping[str, Any]) -> None:
        state["curvature"].lerp_(-estimate if group["maximize"] else estimate, 1 - group["betas"][1])


class SophiaG(ElementwiseOptimizer):
    """Sophia with squared gradients on sampled labels as curvature (Liu et al., 2023, Algorithm 2; first order).

        every k steps  h <- b2 h + (1 - b2) B s^2;   the step is that of :class:`SophiaH`

    s is the gradient of the mean loss over B samples whose labels were drawn from the model's own predictions; then
    B s^2 has the diagonal of the Gauss-Newton matrix as its mean. Without ``sampled_loss`` the gradient of the loss
    itself takes its place (the empirical Fisher): cheap, and a heuristic.

    Args:
        params: tensors or groups.
        lr: learning rate.
        betas: decay of momentum and curvature.
        rho: scale of the curvature.
        eps: least denominator.
        weight_decay: decoupled, relative to ``lr``.
        batch_size: B.
        k: steps between two refreshes, which come before the step; 0 leaves them to :meth:`update_hessian`.
        sampled_loss: function without arguments that returns the loss on sampled labels, with its graph.
        maximize: ascend.
        seed: of the stochastic rounding of parameters in half precision.
        fused: None uses the compiled kernel on the CPU; False uses tensor operations everywhere.

    Raises:
        InputError: a setting is out of range, or a parameter is not real floating point.
    """

    rule = _RULE

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        eps: float = 1e-15,
        weight_decay: float = 0.0,
        batch_size: int = 1,
        k: int = 10,
        sampled_loss: Callable[[], Tensor] | None = None,
        maximize: bool = False,
        seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        if k < 0:
            raise InputError("k", "a whole number of at least 0", repr(k))
        check_positive("batch_size", float(batch_size))
        self._k, self._sampled_loss, self._batch_size = k, sampled_loss, batch_size
        settings = {"lr": lr, "betas": betas, "gamma": rho, "eps": eps, "weight_decay": weight_decay, "k": k}
        super().__init__(params, settings, maximize=maximize, seed=seed, fused=fused)

    @property
    def unclipped(self) -> float:
        """Share of the entries whose last step was shorter than the bound; 0.1 to 0.5 is wanted."""
        return unclipped_share(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients as they are; see :meth:`ElementwiseOptimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        due = [
            (p, group)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and self._k and self.state[p].get("step", 0) % self._k == 0
        ]
        if due:
            self._refresh(due)
        super().step()
        return loss

    def update_hessian(self) -> None:
        """Refresh the curvature from the gradients as they are, those of a loss on sampled labels."""
        pairs = [(p, group) for group in self.param_groups for p in group["params"]]
        self._take_in([(p, p.grad, group) for p, group in pairs])

    def _refresh(self, due: list[tuple[Tensor, dict[str, Any]]]) -> None:
        slopes: list[Tensor | None] = [p.grad for p, _ in due]
        if self._sampled_loss is not None:
            with torch.enable_grad():
                slopes = gradients_or_none(self._sampled_loss(), [p for p, _ in due])
        self._take_in([(p, slope, group) for (p, group), slope in zip(due, slopes, strict=True)])

    @torch.no_grad()
    def _take_in(self, found: list[tuple[Tensor, Tensor | None, dict[str, Any]]]) -> None:
        for p, slope, group in found:
            if slope is None:
                continue
            state, b2 = self.state[p], group["betas"][1]
            if not state:
                self._init_state(state, p, group)
            slope = slope.to(state["curvature"].dtype)
            state["curvature"].mul_(b2).addcmul_(slope, slope, value=(1 - b2) * self._batch_size)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        _check(group)
