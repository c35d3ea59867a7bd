"""One evaluation of a loss, looked at before the optimizer sees it."""

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import LBFGS, SGD, Optimizer, SparseAdam

from diffmatch.errors import InputError
from diffmatch.snapshots import Snapshot

__all__ = ["Evaluation", "Loss", "NotFiniteError", "OverflowedError", "loss_scaler", "takes_step"]

Loss = Callable[..., Tensor | Mapping[str, Tensor]]


class NotFiniteError(ArithmeticError):
    """A value is NaN or infinite; the message says which."""


class OverflowedError(ArithmeticError):
    """A gradient overflowed under loss scaling: the step is to be skipped, the scale reduced."""


class Evaluation:
    """The closure that optimizers call: loss, backward pass, a look at the numbers, clipping.

    An evaluation that is not finite raises before the optimizer can take it in; a finite one is kept as the last good
    parameters if it is the first of its step (where every optimizer starts from what it holds) or better than that.
    Each call waits for the device once, to read the loss, its terms and the norms of all gradients together.

    Args:
        loss: the user's function.
        optimizer: whose parameters are differentiated.
        names: parameter names for messages, by ``id``.
        clip_norm: largest norm of all gradients together.
        autocast: dtype of mixed precision in the loss.
        scaler: loss scaling, for float16.
        backward: False for optimizers that differentiate the returned loss themselves. They look at the gradients, and
            may evaluate points that they then refuse: a loss that is not finite is an error at the start of a step
            only, and the point is kept as good once :meth:`accept` says that its gradients were finite too.
        generators: what the loss draws from. With ``backward=False`` all evaluations of a step see the same numbers,
            so that they are values of one function.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: Optimizer,
        *,
        names: Mapping[int, str],
        clip_norm: float | None = None,
        autocast: torch.dtype | None = None,
        scaler: GradScaler | None = None,
        backward: bool = True,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.params: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.good = Snapshot(self.params)
        self._start = None if backward else Snapshot(self.params)
        self._generators, self._drawn = tuple(generators), list[Tensor]()
        self.count = 0
        self.untouched = True
        self.loss, self.terms, self._lowest = math.nan, dict[str, float](), math.inf
        self._function, self._takes_step, self._step = loss, takes_step(loss), 0
        self._optimizer, self._scaler, self._names = optimizer, scaler, names
        self._clip_norm, self._backward = clip_norm, backward
        self._by_rows = {
            id(p) for group in optimizer.param_groups if _takes_rows(optimizer, group) for p in group["params"]
        }
        self._one_device = len({p.device for p in self.params}) == 1
        dtypes = {p.dtype for p in self.params}
        wide = torch.float64 if torch.float64 in dtypes else torch.float32
        self._norm_dtype = None if dtypes <= {torch.float32, torch.float64} else wide  # norms of halves overflow
        device = self.params[0].device.type
        self._autocast = torch.autocast(device, dtype=autocast) if autocast else contextlib.nullcontext()

    def begin(self, step: int) -> None:
        """Say which step the next calls belong to."""
        self._step, self.untouched = step, True

    def closure(self) -> Tensor:
        """Evaluate the loss and its gradients at the parameters as they are.

        Returns:
            The loss, with its graph only where the optimizer differentiates it.

        Raises:
            NotFiniteError: the loss or a gradient is not finite.
            OverflowedError: a gradient is not finite, and the loss is scaled.
            InputError: the loss is not a scalar tensor, or does not depend on the parameters.
        """
        for p in self.params:
            p.grad = None
        if not self._backward:
            self._repeat_draws()
        with torch.enable_grad(), self._autocast:
            total, terms = _named_terms(self._function(self._step) if self._takes_step else self._function())
        if not total.requires_grad:
            raise InputError("loss", "a value that depends on the parameters", "one without a gradient")
        moving = self._differentiate(total) if self._backward else []
        gradients = [self._entries(p) for p in moving]
        values, norms = self._read([total, *terms.values()], gradients)
        loss, parts = values[0], dict(zip(terms, values[1:], strict=True))
        if self._backward or self.untouched:
            _check_loss(loss, parts)
        if self.untouched:
            self.loss, self.terms = loss, parts
        self._check_gradients(moving, norms)
        self._clip(gradients, math.hypot(*norms))
        if self._start is not None:
            if self.untouched:
                self._start.take()
        elif self.untouched or loss < self._lowest:
            self._lowest = loss
            self.good.take()
        self.untouched = False
        self.count += 1
        return total.detach() if self._backward else total

    def accept(self) -> None:
        """Note that the step has ended, so that all gradients at its start were finite."""
        if self._start is not None and self._start.taken:
            self.good, self._start = self._start, self.good

    def _repeat_draws(self) -> None:
        """Let a further evaluation of a step draw what the first one drew."""
        if self.untouched:
            self._drawn = [generator.get_state() for generator in self._generators]
        else:
            for generator, state in zip(self._generators, self._drawn, strict=True):
                generator.set_state(state)

    def _differentiate(self, total: Tensor) -> list[Tensor]:
        """Backward pass; returns the parameters that received a gradient."""
        if self._scaler is None:
            total.backward()
        else:
            self._scaler.scale(total).backward()
        moving = [p for p in self.params if p.grad is not None]
        if not moving:
            raise InputError("loss", "a value that depends on the parameters", "one that depends on other tensors only")
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        return moving

    def _entries(self, param: Tensor) -> Tensor:
        """The numbers of a gradient, as they lie in memory: all of a dense one, those of the rows of a sparse one."""
        grad = param.grad
        assert grad is not None
        if grad.layout is torch.strided:
            return grad
        if grad.layout is not torch.sparse_coo or id(param) not in self._by_rows:
            wanted = 'dense gradients, or an optimizer that takes sparse ones (optimizer_options={"sparse": "rows"})'
            raise InputError("loss", wanted, f"a sparse one of {self._names[id(param)]}")
        param.grad = grad = grad.coalesce()  # a row may be named twice: its norm is that of the sum
        return grad.values()

    def _read(self, values: list[Tensor], gradients: list[Tensor]) -> tuple[list[float], list[float]]:
        """Loss, terms and gradient norms on the host, in one transfer."""
        total = values[0].detach()
        if total.dtype not in (torch.float32, torch.float64):
            total = total.float()
        norms = torch._foreach_norm(gradients, 2, dtype=self._norm_dtype) if gradients else ()
        if not self._one_device:
            norms = tuple(norm.to(total.device) for norm in norms)
        numbers = torch.stack([total, *(term.detach().to(total) for term in values[1:]), *norms]).tolist()
        return numbers[: len(values)], numbers[len(values) :]

    def _check_gradients(self, moving: Sequence[Tensor], norms: Sequence[float]) -> None:
        for p, norm in zip(moving, norms, strict=True):
            if not math.isfinite(norm):
                if self._scaler is not None:
                    raise OverflowedError
                raise NotFiniteError(f"the norm of the gradient of {self._names[id(p)]} is {norm}")

    @torch.no_grad()
    def _clip(self, gradients: list[Tensor], norm: float) -> None:
        if self._clip_norm is not None and norm > self._clip_norm:
            torch._foreach_mul_(gradients, self._clip_norm / norm)


def loss_scaler(optimizer: Optimizer, autocast: torch.dtype | None) -> GradScaler | None:
    """Loss scaling for mixed precision in float16, whose gradients would underflow; None for the other dtypes.

    Raises:
        InputError: the optimizer evaluates at several places or differentiates itself, or a parameter is float16.
    """
    if autocast != torch.float16:
        return None
    if isinstance(optimizer, LBFGS) or getattr(optimizer, "needs_graph", False):
        raise InputError(
            "autocast", "None or torch.bfloat16 with this optimizer", f"{autocast} with {type(optimizer).__name__}"
        )
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if any(p.dtype == torch.float16 for p in params):
        raise InputError("params", "float32 or wider with autocast=torch.float16", "float16")
    return GradScaler(params[0].device.type)


def takes_step(loss: Loss) -> bool:
    """Whether a loss wants the step index: it has one required positional parameter, or one named ``step``.

    Raises:
        InputError: it is not callable or requires more than that.
    """
    if not callable(loss):
        raise InputError("loss", "a function of no argument or of the step", type(loss).__name__)
    try:
        parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values()
    except ValueError:  # some builtins have no signature
        return False
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise InputError("loss", "a function of no argument or of the step", f"one of {len(required)} arguments")
    return bool(required) or any(p.name == "step" and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


def _takes_rows(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Whether an optimizer takes sparse gradients for a group and keeps dense states."""
    if isinstance(optimizer, SparseAdam) or (isinstance(optimizer, SGD) and not group["momentum"]):
        return True
    return bool(group.get("sparse", "refuse") != "refuse")


def _check_loss(loss: float, terms: Mapping[str, float]) -> None:
    if not math.isfinite(loss):
        guilty = [f"its term {name!r} is {value}" for name, value in terms.items() if not math.isfinite(value)]
        raise NotFiniteError(", ".join([f"the loss is {loss}", *guilty]))


def _named_terms(result: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise, and its named terms where it came as a mapping."""
    terms = dict(result) if isinstance(result, Mapping) else {}
    for name, term in terms.items() if isinstance(result, Mapping) else [("", result)]:
        if not isinstance(term, Tensor) or term.ndim:
            got = f"shape {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
            raise InputError("loss", "a scalar tensor" + (f" as term {name!r}" if name else ""), got)
    if isinstance(result, Mapping):
        if not terms:
            raise InputError("loss", "at least one term", "an empty mapping")
        return reduce(torch.add, terms.values()), terms
    return result, {}
