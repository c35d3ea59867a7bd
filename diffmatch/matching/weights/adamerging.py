"""AdaMerging: the share of each task vector learned from unlabelled data, by the entropy of the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from diffmatch.errors import check_choice
from diffmatch.history import History
from diffmatch.matching.weights.evaluate import Batches
from diffmatch.matching.weights.tasks import Tasks

__all__ = ["AdaMerge", "ada_merging"]


@dataclass(frozen=True)
class AdaMerge:
    """A model merged by AdaMerging.

    Attributes:
        state: of the merged model, without the heads.
        coefficients: λ of each learned entry and model, shape (m,).
        history: the entropy over the steps.
    """

    state: dict[str, Tensor]
    coefficients: dict[str, Tensor]
    history: History


def ada_merging(
    base: Mapping[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
    models: nn.Module | Sequence[nn.Module],
    data: Sequence[Batches],
    *,
    granularity: Literal["task", "layer"] = "layer",
    scale: float = 0.3,
    steps: int = 500,
    lr: float = 1e-3,
    progress: bool = True,
) -> AdaMerge:
    """Task arithmetic whose coefficients minimise the entropy of the merged model's answers.

    θ = θ₀ + Σ_m λ_m (θ_m − θ₀), with one λ a model or one a model and tensor, trained at test time by
    min_λ Σ_m E[H(softmax f_m(θ, x))] over unlabelled inputs of all tasks. Entropy can fall by being sure of the wrong
    answer; it works where task arithmetic is already mostly right.

    Args:
        base: state of the model that all were fine-tuned from, without the heads that differ.
        states: one a task, same entries and shapes.
        models: what runs a state and returns logits: one module for all tasks, or one a task, whose own head is used.
            They are neither changed nor moved.
        data: for each task its batches of inputs (targets are ignored); one batch of each a step, over and over.
        granularity: one coefficient a task, or one a task and tensor.
        scale: coefficients to begin with, and those of what is not learned, such as running statistics.
        steps: of Adam.
        lr: learning rate.
        progress: show a bar on a terminal.

    Returns:
        The merged state and the coefficients.

    Raises:
        InputError: the states differ in entries or shapes, or numbers of models, states and data do.

    References:
        Yang et al. 2024, "AdaMerging: Adaptive Model Merging for Multi-Task Learning".
    """
    check_choice("granularity", granularity, ("task", "layer"))
    tasks = Tasks(base, states, models, data)
    start = tasks.coefficients(scale, layerwise=granularity == "layer")
    coefficients, history = tasks.train(start, None, steps=steps, lr=lr, progress=progress)
    return AdaMerge(tasks.state(coefficients, None, scale), tasks.by_name(coefficients), history)
