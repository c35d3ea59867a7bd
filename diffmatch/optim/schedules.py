"""Learning rates over the steps of a fit: by name, by a function of the step, or by a scheduler of torch."""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from diffmatch.errors import InputError, check_choice

__all__ = ["Schedule", "ScheduleLike", "make_schedule"]

ScheduleLike = str | Callable[[int], float] | Callable[[Optimizer], LRScheduler]

# Factor at progress p in [0, 1) through the steps that follow the warm-up.
_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda p: 1.0,
    "linear": lambda p: 1.0 - p,
    "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * p)),
    "exponential": lambda p: 0.01**p,  # two orders of magnitude, whatever the number of steps
}


@runtime_checkable
class Schedule(Protocol):
    """What the loop asks of a schedule."""

    label: str
    """Name for the checkpoint."""
    needs_steps: bool
    """Whether the rates depend on the total number of steps."""

    def apply(self, step: int) -> None:
        """Set the learning rates of the step with this index, from 0."""

    def advance(self, loss: float) -> None:
        """Note that a step was taken at this loss."""

    def restore(self) -> None:
        """Give the optimizer its own learning rates back after the fit."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take that back."""


def make_schedule(schedule: ScheduleLike, optimizer: Optimizer, *, steps: int, warmup: int = 0) -> Schedule:
    """Make a schedule for an optimizer.

    Args:
        schedule: ``"constant"``, ``"linear"`` (to 0), ``"cosine"`` (to 0), ``"exponential"`` (to 1 %); or a function
            that maps the step, from 0, to a factor on each group's learning rate; or a function of the optimizer that
            returns one of torch's schedulers, which is stepped once a step.
        optimizer: whose groups are changed.
        steps: total number of steps, for the named schedules.
        warmup: number of first steps over which the factor rises linearly to 1.

    Raises:
        InputError: unknown name, a function of neither kind, or a warm-up together with a scheduler of torch.
    """
    if isinstance(schedule, str):
        check_choice("schedule", schedule, _SHAPES)
        factor = _named_factor(schedule, steps=steps, warmup=warmup)
        varies = schedule != "constant"
        return _FactorSchedule(optimizer, factor, label=schedule, needs_steps=varies, constant=not (varies or warmup))
    if not callable(schedule):
        raise InputError("schedule", "a name or a callable", type(schedule).__name__)
    scheduler = _try_scheduler(schedule, optimizer)
    if scheduler is None:
        return _FactorSchedule(optimizer, _after_warmup(schedule, warmup), label="function", needs_steps=False)
    if warmup:
        raise InputError("warmup", "0 with a scheduler of torch (chain a warm-up there)", str(warmup))
    return _TorchSchedule(scheduler)


def _named_factor(name: str, *, steps: int, warmup: int) -> Callable[[int], float]:
    shape, span = _SHAPES[name], max(1, steps - warmup)
    return _after_warmup(lambda step: shape(max(0, step - warmup) / span), warmup)


def _after_warmup(factor: Callable[[Any], Any], warmup: int) -> Callable[[int], float]:
    return lambda step: float(factor(step)) * (min(1.0, (step + 1) / warmup) if warmup else 1.0)


def _try_scheduler(schedule: Callable[[Any], Any], optimizer: Optimizer) -> LRScheduler | None:
    """The scheduler that a factory makes, or None where ``schedule`` is a function of the step.

    Both are callables of one argument; a factory given the number 0 fails on its type, so that is tried first.
    """
    try:
        float(schedule(0))
    except (TypeError, AttributeError) as error:
        try:
            scheduler = schedule(optimizer)
        except (TypeError, AttributeError):
            raise InputError("schedule", "a function of the step or of the optimizer", f"an error: {error}") from error
        if not isinstance(scheduler, LRScheduler):
            wanted = "a factor or a torch scheduler from the function"
            raise InputError("schedule", wanted, type(scheduler).__name__) from error
        return scheduler
    return None


class _FactorSchedule:
    """Each group's own learning rate times a factor of the step."""

    def __init__(
        self,
        optimizer: Optimizer,
        factor: Callable[[int], float],
        *,
        label: str,
        needs_steps: bool,
        constant: bool = False,
    ) -> None:
        self.label, self.needs_steps = label, needs_steps
        self._optimizer, self._factor, self._constant = optimizer, factor, constant
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]

    def apply(self, step: int) -> None:
        if self._constant:  # leave the rates alone: a callback may have changed them
            return
        factor = self._factor(step)
        if not (math.isfinite(factor) and factor >= 0):
            raise InputError("schedule", "a finite factor >= 0", f"{factor} at step {step}")
        self._scale(factor)

    def advance(self, loss: float) -> None:
        pass

    def restore(self) -> None:
        if not self._constant:
            self._scale(1.0)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def _scale(self, factor: float) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            if isinstance(group["lr"], Tensor):  # compiled and captured optimizers hold it in a tensor
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor


class _TorchSchedule:
    """A scheduler of torch, stepped once a step."""

    needs_steps = False

    def __init__(self, scheduler: LRScheduler) -> None:
        self.label = type(scheduler).__name__
        self._scheduler = scheduler

    def apply(self, step: int) -> None:
        pass

    def advance(self, loss: float) -> None:
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(loss)
        else:
            self._scheduler.step()

    def restore(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scheduler.load_state_dict(state)
