"""`fit`, the one loop that every fit runs in."""

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from tqdm import tqdm

from diffmatch.checkpoints import (
    CheckpointFile,
    all_finite,
    load_history,
    load_optimizer,
    optimizer_settings,
    random_state,
    restore_random_state,
    save_history,
)
from diffmatch.errors import InputError, check_positive
from diffmatch.evaluation import Evaluation, Loss, NotFiniteError, OverflowedError, loss_scaler
from diffmatch.history import FitState, History, Status
from diffmatch.interrupts import Interrupts
from diffmatch.optim.choice import Problem, choose_optimizer
from diffmatch.optim.parameters import Parameters, parameter_groups, parameter_names
from diffmatch.optim.registry import as_optimizer
from diffmatch.optim.schedules import Schedule, ScheduleLike, make_schedule
from diffmatch.optim.structure import Structure, precondition
from diffmatch.snapshots import MovingAverage

__all__ = ["DivergedError", "FitState", "History", "fit"]

logger = logging.getLogger(__name__)

_BAR_DELAY = 2.0
"""Seconds before the progress bar shows."""

_MAX_OVERFLOWS = 30
"""Overflows in a row under loss scaling: by then the scale, halved each time, is below 1e-4."""


class DivergedError(RuntimeError):
    """A fit met a value that is not finite; ``history`` holds what came before."""

    def __init__(self, history: History) -> None:
        super().__init__(history.message)
        self.history = history

    def __reduce__(self) -> tuple[type["DivergedError"], tuple[History]]:
        return type(self), (self.history,)


@runtime_checkable
class Stateful(Protocol):
    """An object whose state a checkpoint can hold."""

    def state_dict(self) -> Any:
        """Tensors and plain Python values."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take that back."""


def fit(
    params: Parameters | None,
    loss: Loss,
    *,
    optimizer: str | Optimizer = "auto",
    problem: Problem = "sampled",
    lr: float | None = None,
    optimizer_options: Mapping[str, Any] | None = None,
    steps: int = 500,
    schedule: ScheduleLike = "constant",
    warmup: int = 0,
    clip_norm: float | None = None,
    structure: Mapping[Tensor, Structure] | Callable[[int], Mapping[Tensor, Structure]] | None = None,
    ema: float | None = None,
    autocast: torch.dtype | None = None,
    callbacks: Sequence[Callable[[FitState], object]] = (),
    tol: float | None = None,
    patience: int = 50,
    max_seconds: float | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 50,
    resume: bool = True,
    generators: Sequence[torch.Generator] = (),
    state: Mapping[str, Stateful] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    throw: bool = False,
) -> History:
    """Minimise a loss over parameters, in place.

    A value that is not finite never reaches the parameters, the optimizer or the checkpoint: the fit stops with the
    parameters of the last evaluation whose loss and gradients were finite. With a checkpoint, a fit that was
    interrupted or killed anywhere continues to the same bits as one that was not. Each evaluation waits for the device
    once, to read the loss and the norms of all gradients together.

    Args:
        params: tensors, parameter groups (mappings with ``"params"`` and settings of their own) or a module; real
            leaf tensors that require gradients. None with an optimizer instance, whose own parameters are taken.
        loss: function that returns a scalar tensor, or a mapping of named ones whose sum is minimised; it calls no
            ``backward``. A required argument, or one named ``step``, receives the index of the step, from 0.
        optimizer: a name (see :func:`diffmatch.optim.optimizer_names`) or an instance; ``"auto"`` takes what suits the
            kind of problem, and ``history.optimizer`` and ``history.reason`` say which and why.
        problem: what ``"auto"`` goes by: ``"smooth"`` (twice differentiable, the same at every evaluation),
            ``"absolute"`` (with kinks, as sums of absolute values) or ``"sampled"`` (drawn anew at each).
        lr: learning rate of the groups that bring none; None takes the optimizer's default.
        optimizer_options: further settings of a named optimizer.
        steps: number of steps in all, those before a resumption included.
        schedule: ``"constant"``, ``"linear"``, ``"cosine"``, ``"exponential"``, a function from the step to a factor
            on each group's learning rate, or a function from the optimizer to one of torch's schedulers.
        warmup: first steps over which the learning rate rises linearly.
        clip_norm: largest norm of all gradients together.
        structure: for parameters that live on a grid or a mesh, the filter of their gradients; see
            :class:`~diffmatch.optim.GridFilter`. A function from the step to these lets them change during the fit.
            With an optimizer that reads gradients once a step.
        ema: decay of a moving average of the parameters, in [0, 1). The fit ends with the averages in the
            parameters, unless it diverged; the raw values stay in the checkpoint.
        autocast: ``torch.bfloat16`` or ``torch.float16`` (with loss scaling) for mixed precision in the loss.
        callbacks: each called with a :class:`FitState` after every step; one that returns True stops the fit.
        tol: relative change of the loss between two stretches of ``patience`` steps, by their means, at which the fit
            has converged; None never stops.
        patience: length of a stretch, in steps.
        max_seconds: time limit of this call; a checkpointed fit may be called again.
        progress: show a bar where standard error is a terminal and the fit takes longer than two seconds.
        checkpoint: file that the fit can be resumed from, written every ``checkpoint_every`` steps, on interruption
            and at the end.
        checkpoint_every: steps between two writings.
        resume: continue from the checkpoint if it exists; a finished fit is returned as it is unless ``steps`` grew.
        generators: the generators that the loss draws from, kept in the checkpoint beside torch's global ones.
        state: named objects with ``state_dict`` and ``load_state_dict`` that change during the fit.
        fingerprint: settings of the caller, JSON-like, that must agree for a checkpoint to be used.
        throw: raise when the fit diverges, rather than say so in the history.

    Returns:
        The curves, how the fit ended, and what it took.

    Raises:
        InputError: an argument, the loss or the checkpoint is not usable.
        DivergedError: the fit diverged, and ``throw`` is set.
        KeyboardInterrupt: Ctrl-C, after the step under way is finished and the checkpoint written.
        SystemExit: the same for SIGTERM.

    Examples:
        >>> x = torch.zeros(3, requires_grad=True)
        >>> history = fit([x], lambda: (x - 1).square().sum(), optimizer="lbfgs", steps=5)
        >>> history.status, x.detach().round(decimals=4).tolist()
        ('completed', [1.0, 1.0, 1.0])
    """
    limits = _Limits(steps, tol, patience, max_seconds, checkpoint_every)
    _check_options(warmup, clip_norm, ema, autocast)
    given: Parameters | None = params
    reason = ""
    if optimizer == "auto" and params is not None:
        given = parameter_groups(params)
        choice = choose_optimizer(
            [p for group in given for p in group["params"]],
            problem=problem,
            groups=len(given),
            reads_once=bool(structure) or clip_norm is not None or autocast == torch.float16,
        )
        optimizer, reason = choice.name, choice.reason
        logger.info("%s: %s", optimizer, reason)
    name = optimizer if isinstance(optimizer, str) else type(optimizer).__name__
    optimizer = as_optimizer(optimizer, given, lr=lr, options=optimizer_options)
    settings = optimizer_settings(optimizer)
    names = parameter_names(params, optimizer)
    rates = make_schedule(schedule, optimizer, steps=steps, warmup=warmup)
    backward = not getattr(optimizer, "needs_graph", False)
    scaler = loss_scaler(optimizer, autocast)
    if clip_norm is not None and not backward:
        raise InputError("clip_norm", "None with an optimizer that differentiates the loss itself", str(clip_norm))
    evaluation = Evaluation(
        loss,
        optimizer,
        names=names,
        clip_norm=clip_norm,
        autocast=autocast,
        scaler=scaler,
        backward=backward,
        generators=generators,
    )
    file = None
    if checkpoint is not None:
        settings |= {"schedule": rates.label, "warmup": warmup, "clip_norm": clip_norm, "ema": ema}
        first = structure(0) if callable(structure) else structure
        settings |= {"structure": [str(smooth) for smooth in (first or {}).values()]}
        settings |= {"autocast": str(autocast)} | ({"steps": steps} if rates.needs_steps else {})
        file = CheckpointFile(checkpoint, settings=settings, fingerprint=fingerprint)
    run = _Run(
        optimizer=optimizer,
        evaluation=evaluation,
        schedule=rates,
        limits=limits,
        scaler=scaler,
        average=None if ema is None else MovingAverage(evaluation.params, decay=ema),
        callbacks=callbacks,
        file=file,
        generators=generators,
        objects=state or {},
        history=History(optimizer=name, reason=reason),
    )
    filters = (lambda: structure(run.history.steps)) if callable(structure) else structure
    filtering = precondition(optimizer, filters) if filters else None
    try:
        history = run.run(resume=resume, progress=progress)
    finally:
        if filtering is not None:
            filtering.remove()
    if throw and history.status == "diverged":
        raise DivergedError(history)
    return history


@dataclass(frozen=True)
class _Limits:
    """When to stop, and how often to save."""

    steps: int
    tol: float | None
    patience: int
    max_seconds: float | None
    checkpoint_every: int

    def __post_init__(self) -> None:
        for argument, least in (("steps", 0), ("patience", 1), ("checkpoint_every", 1)):
            _check_count(argument, getattr(self, argument), least)
        if self.tol is not None:
            check_positive("tol", self.tol, allow_zero=True)
        if self.max_seconds is not None:
            check_positive("max_seconds", self.max_seconds)

    def verdict(self, losses: Sequence[float], seconds: float) -> tuple[Status, str]:
        """Whether the fit ends after these losses and this time, and why."""
        if self._converged(losses):
            return "converged", f"the loss changed by less than {self.tol:g} over {self.patience} steps"
        if len(losses) >= self.steps:
            return "completed", f"all {self.steps} steps were taken"
        if self.max_seconds is not None and seconds >= self.max_seconds:
            return "timed out", f"{self.max_seconds:g} seconds were over at step {len(losses)}"
        return "running", ""

    def _converged(self, losses: Sequence[float]) -> bool:
        """Compares the last two stretches, at the end of each stretch."""
        length = self.patience
        if self.tol is None or len(losses) < 2 * length or len(losses) % length:
            return False
        new, old = sum(losses[-length:]), sum(losses[-2 * length : -length])
        return abs(new - old) <= self.tol * max(abs(new), abs(old))


@dataclass
class _Run:
    """A fit under way: the parts that make a step, and the loop around them."""

    optimizer: Optimizer
    evaluation: Evaluation
    schedule: Schedule
    limits: _Limits
    scaler: GradScaler | None
    average: MovingAverage | None
    callbacks: Sequence[Callable[[FitState], object]]
    file: CheckpointFile | None
    generators: Sequence[torch.Generator]
    objects: Mapping[str, Stateful]
    history: History = field(default_factory=History)
    overflows: int = 0
    random_at_start: dict[str, Any] | None = None
    """Random state at the start of the step under way; None between steps."""

    def run(self, *, resume: bool, progress: bool) -> History:
        """Take steps until one of the limits, a callback or a value that is not finite ends the fit."""
        if resume:
            self._load()
        if self.history.status == "running":  # there may be nothing left to do
            self.history.status, self.history.message = self.limits.verdict(self.history.loss, 0.0)
        try:
            self._loop(progress)
        except NotFiniteError as fault:
            self.evaluation.good.restore()
            self.history.status, self.history.message = "diverged", f"step {self.history.steps}: {fault}"
        except BaseException:
            self._rescue()
            raise
        finally:
            self.schedule.restore()
        if self.average is not None and self.history.status != "diverged":
            self.average.apply()
        return self.history

    def _loop(self, progress: bool) -> None:
        history, limits = self.history, self.limits
        begun, before = time.perf_counter(), history.seconds
        with Interrupts() as interrupts, _bar(limits.steps, history.steps, progress) as bar:
            while history.status == "running":
                self._step()
                elapsed = time.perf_counter() - begun
                history.seconds = before + elapsed
                history.status, history.message = self._verdict(elapsed)
                over = history.status != "running"
                if over or history.steps % limits.checkpoint_every == 0:
                    self._save(final=over)
                interrupts.raise_pending()
                if not bar.disable:
                    bar.set_description_str(f"loss {history.loss[-1]:.4g}", refresh=False)
                    bar.update()

    def _step(self) -> None:
        """One step of the optimizer, and what goes with it."""
        step, evaluation = self.history.steps, self.evaluation
        self.schedule.apply(step)
        lr = float(self.optimizer.param_groups[0]["lr"])
        if self.file is not None:
            self.random_at_start = random_state(self.generators)
        evaluation.begin(step)
        try:
            self.optimizer.step(cast(Callable[[], float], evaluation.closure))  # torch means: a tensor or a float
            self.overflows = 0
            evaluation.accept()
        except FloatingPointError as fault:  # from an optimizer that differentiates the loss itself
            raise NotFiniteError(str(fault)) from None
        except OverflowedError:
            self.overflows += 1
            if self.overflows == _MAX_OVERFLOWS:
                raise NotFiniteError(f"gradients overflowed in {_MAX_OVERFLOWS} steps in a row") from None
        if self.scaler is not None:
            self.scaler.update()
        self.schedule.advance(evaluation.loss)
        if self.average is not None:
            self.average.update()
        self.history.evaluations = evaluation.count
        self.history.record(evaluation.loss, evaluation.terms, lr)
        evaluation.untouched, self.random_at_start = True, None

    def _verdict(self, elapsed: float) -> tuple[Status, str]:
        """Ask the callbacks, every one of them, then the limits."""
        if self.callbacks:
            state = self._state()
            if True in [callback(state) is True for callback in self.callbacks]:
                return "stopped", f"a callback stopped the fit after {state.step} steps"
        return self.limits.verdict(self.history.loss, elapsed)

    def _state(self) -> FitState:
        history, evaluation = self.history, self.evaluation
        return FitState(
            step=history.steps,
            loss=evaluation.loss,
            terms=evaluation.terms,
            lr=history.lr[-1],
            params=evaluation.params,
            history=history,
        )

    def _save(self, *, final: bool = False) -> None:
        """Write the checkpoint; what is not finite never gets there, nor to the user at the end.

        The last update has not been evaluated yet, so it is looked at here.
        """
        if self.file is None and not final:
            return
        content = self._content()
        for part, what in (
            ("params", "the parameters"),
            ("optimizer", "the optimizer's state"),
            ("average", "the mean"),
        ):
            if not all_finite(content[part]):
                raise NotFiniteError(f"the last update left a value in {what} that is not finite")
        if self.file is not None:
            self.file.write(content)

    def _rescue(self) -> None:
        """After an exception: consistent parameters, and a checkpoint where everything in it is consistent too."""
        if not self.evaluation.untouched:  # in the middle of an update
            self.evaluation.good.restore()
        elif self.file is not None and self.history.steps and (self.random_at_start is None or not self.objects):
            try:
                self._save()
            except (NotFiniteError, OSError) as error:
                logger.warning("no checkpoint could be written: %s", error)

    def _content(self) -> dict[str, Any]:
        evaluation, average, scaler = self.evaluation, self.average, self.scaler
        return {
            "params": [p.detach() for p in evaluation.params],
            "good": evaluation.good.values if evaluation.good.taken else None,
            "average": None if average is None else {"values": average.values, "updates": average.updates},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if scaler is None else {**scaler.state_dict(), "overflows": self.overflows},
            "random": self.random_at_start or random_state(self.generators),
            "objects": {name: thing.state_dict() for name, thing in self.objects.items()},
            "history": save_history(self.history),
            "steps": self.limits.steps,
        }

    @torch.no_grad()
    def _load(self) -> None:
        """Continue from the file, if there is one."""
        content = self.file.read() if self.file is not None else None
        if content is None:
            return
        if content["objects"].keys() != self.objects.keys():
            wanted = f"{', '.join(content['objects']) or 'nothing'}, as in the checkpoint"
            raise InputError("state", wanted, ", ".join(self.objects) or "nothing")
        restore_random_state(content["random"], self.generators)
        evaluation = self.evaluation
        torch._foreach_copy_(evaluation.params, content["params"])
        if content["good"] is not None:
            torch._foreach_copy_(evaluation.good.values, content["good"])
            evaluation.good.taken = True
        if self.average is not None:
            torch._foreach_copy_(self.average.values, content["average"]["values"])
            self.average.updates = content["average"]["updates"]
        if self.scaler is not None:
            self.overflows = content["scaler"].pop("overflows")
            self.scaler.load_state_dict(content["scaler"])
        load_optimizer(self.optimizer, content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        for name, thing in self.objects.items():
            thing.load_state_dict(content["objects"][name])
        self.history = load_history(content["history"])
        evaluation.count = self.history.evaluations
        if self.history.status == "timed out" or self.limits.steps > content["steps"]:
            self.history = dataclasses.replace(self.history, status="running", message="")


def _check_options(warmup: int, clip_norm: float | None, ema: float | None, autocast: torch.dtype | None) -> None:
    _check_count("warmup", warmup, 0)
    if clip_norm is not None:
        check_positive("clip_norm", clip_norm)
    if ema is not None and not 0 <= ema < 1:
        raise InputError("ema", "a decay in [0, 1)", repr(ema))
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise InputError("autocast", "None, torch.bfloat16 or torch.float16", str(autocast))


def _check_count(argument: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise InputError(argument, f"a whole number >= {least}", repr(value))


def _bar(total: int, initial: int, wanted: bool) -> "tqdm[None]":
    """A progress bar that shows after two seconds, on a terminal only."""
    hidden = not (wanted and sys.stderr.isatty())
    return tqdm(total=total, initial=initial, delay=_BAR_DELAY, disable=hidden, unit="step")
