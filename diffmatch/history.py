"""What a fit tells: its curves, how it ended, and the state that callbacks see."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from diffmatch.errors import InputError

__all__ = ["FitState", "History", "Status"]

Status = Literal["running", "completed", "converged", "stopped", "timed out", "diverged"]


@dataclass
class History:
    """The curves of a fit and how it ended.

    Args:
        loss: loss at the start of each step, one entry a finished step; always finite.
        terms: the same for each named term of the loss.
        lr: learning rate of the first parameter group in each step.
        seconds: time spent, over all runs that the fit was resumed in.
        steps: steps finished.
        evaluations: evaluations of the loss that reached the optimizer; more than ``steps`` where it line-searches.
        status: ``"completed"`` (all steps), ``"converged"`` (the loss changed less than ``tol``), ``"stopped"`` (by a
            callback), ``"timed out"``, ``"diverged"`` (a value was not finite), or ``"running"``.
        message: the same in a sentence, with the step and the culprit where it diverged.
        optimizer: name of the optimizer, or the class of an instance.
        reason: why it was taken, where the choice was left to the fit.
    """

    loss: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    lr: list[float] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    evaluations: int = 0
    status: Status = "running"
    message: str = ""
    optimizer: str = ""
    reason: str = ""

    @property
    def best(self) -> float:
        """The lowest loss of all steps; infinite before the first."""
        return min(self.loss, default=float("inf"))

    def record(self, loss: float, terms: dict[str, float], lr: float) -> None:
        """Add a finished step to the curves.

        Raises:
            InputError: the loss has other terms than in the steps before.
        """
        if self.steps and terms.keys() != self.terms.keys():
            raise InputError("loss", f"the terms {', '.join(self.terms) or '(none)'} in every step", ", ".join(terms))
        self.loss.append(loss)
        for name, value in terms.items():
            self.terms.setdefault(name, []).append(value)
        self.lr.append(lr)
        self.steps += 1

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, as JSON can hold them."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class FitState:
    """What a callback sees after a step.

    Args:
        step: number of finished steps; 1 at the first call.
        loss: loss at the start of the step.
        terms: its named terms, where it has some.
        lr: learning rate of the first parameter group.
        params: the parameters after the step, in the optimizer's order (not their moving average).
        history: the curves so far.
    """

    step: int
    loss: float
    terms: dict[str, float]
    lr: float
    params: list[Tensor]
    history: History
