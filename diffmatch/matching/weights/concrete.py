"""Concrete subspace learning: a mask, shared by all task vectors, that keeps what they do not fight over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffmatch.errors import check_choice, check_positive
from diffmatch.fitting import fit
from diffmatch.history import History
from diffmatch.matching.weights.evaluate import Batches
from diffmatch.matching.weights.tasks import Tasks

__all__ = ["ConcreteMerge", "concrete_mask", "concrete_merging"]


@dataclass(frozen=True)
class ConcreteMerge:
    """A model merged in a learned subspace.

    Attributes:
        state: of the merged model, without the heads.
        logits: x of each learned tensor; σ(x) is the probability that an entry is kept.
        mask: that was applied, mean one over each tensor.
        coefficients: λ of each learned entry and model, shape (m,).
        history: the entropy under random masks, over the steps of the mask.
        refinement: the entropy while the coefficients were trained with the mask fixed; None where they are fixed.
    """

    state: dict[str, Tensor]
    logits: dict[str, Tensor]
    mask: dict[str, Tensor]
    coefficients: dict[str, Tensor]
    history: History
    refinement: History | None


def concrete_mask(
    logits: Float[Tensor, "*d"], uniform: Float[Tensor, "*d"] | float = 0.5, *, temperature: float = 0.5
) -> Float[Tensor, "*d"]:
    """A relaxed Bernoulli mask, scaled to mean one.

    m = σ((log u − log(1 − u) + x) / T), then m / mean(m), so that the mask does not shrink what it is applied to. As T
    goes to 0 the unscaled mask becomes 1 with probability σ(x) and 0 otherwise. Gradients pass to the logits, the
    scaling included.

    Args:
        logits: x, of any shape.
        uniform: u in [0, 1], one an entry; 0.5 gives the mask without noise.
        temperature: T > 0.

    References:
        Maddison, Mnih, Teh 2017, "The Concrete Distribution", section 3 and appendix B (the binary case).
    """
    check_positive("temperature", temperature)
    tiny = torch.finfo(logits.dtype).eps
    u = torch.as_tensor(uniform, dtype=logits.dtype, device=logits.device).clamp(tiny, 1 - tiny)
    mask = ((u.logit() + logits) / temperature).sigmoid()
    return mask / mask.mean()


def concrete_merging(
    base: Mapping[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
    models: nn.Module | Sequence[nn.Module],
    data: Sequence[Batches],
    *,
    granularity: Literal["fixed", "task", "layer"] = "fixed",
    scale: float = 0.3,
    temperature: float = 0.5,
    steps: int = 1000,
    lr: float = 1e-3,
    coefficient_lr: float = 1e-3,
    refine_steps: int = 500,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> ConcreteMerge:
    """Merge fine-tuned models in a subspace that is learned without labels.

    One mask over the parameters, shared by all task vectors, takes out the coordinates that interfere:
    θ(λ, m) = θ₀ + Σ_i λ_i (m ∘ τ_i), with m from :func:`concrete_mask` and

    min_x E_u[Σ_i H_i(θ(λ*(m), m))]  subject to  λ*(m) = argmin_λ Σ_i H_i(θ(λ, m)),

    where H_i is the entropy of the answers on unlabelled inputs of task i. Each step draws a mask, takes one step of
    Adam on λ with the mask held (the inner problem, where λ is learned) and one on x with λ held (first order: nothing
    is differentiated through the inner step). In the end the mask is the one without noise, and λ is trained anew, from
    where it began.

    With fixed coefficients this is Concrete task arithmetic, otherwise Concrete AdaMerging. It holds the task vectors
    and three tensors of the model's size (the logits and the state of Adam).

    Args:
        base: state of the model that all were fine-tuned from, without the heads that differ.
        states: one a task, same entries and shapes.
        models: what runs a state and returns logits: one module for all tasks, or one a task, whose own head is used.
            They are neither changed nor moved.
        data: for each task its batches of inputs (targets are ignored); one batch of each a step, over and over.
        granularity: ``"fixed"`` coefficients, one learned a ``"task"``, or one a task and ``"layer"``.
        scale: coefficients to begin with, and those of what is not learned, such as running statistics.
        temperature: T of the mask.
        steps: of Adam on the logits.
        lr: learning rate of the logits.
        coefficient_lr: learning rate of λ.
        refine_steps: steps on λ in the end, with the mask fixed.
        generator: source of the masks, on the device of the base.
        progress: show a bar on a terminal.

    Returns:
        The merged state, the mask and the coefficients.

    Raises:
        InputError: the states differ in entries or shapes, or numbers of models, states and data do.

    References:
        Tang et al. 2023, "Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion".
    """
    check_choice("granularity", granularity, ("fixed", "task", "layer"))
    check_positive("temperature", temperature)
    tasks = Tasks(base, states, models, data)
    learned = granularity != "fixed"
    coefficients = tasks.coefficients(scale, layerwise=granularity == "layer").requires_grad_(learned)
    logits = {name: torch.zeros_like(vectors[0]).requires_grad_() for name, vectors in tasks.vectors.items()}
    inner = torch.optim.Adam([coefficients], lr=coefficient_lr)

    def loss() -> Tensor:
        batches = tasks.next_batches()
        masks = {name: concrete_mask(x, _uniform(x, generator), temperature=temperature) for name, x in logits.items()}
        if learned:
            held = {name: mask.detach() for name, mask in masks.items()}
            value = tasks.entropy(tasks.merged(coefficients, held), batches)
            (coefficients.grad,) = torch.autograd.grad(value, [coefficients])
            inner.step()
        return tasks.entropy(tasks.merged(coefficients.detach(), masks), batches)

    with tasks.evaluating():
        history = fit(
            list(logits.values()),
            loss,
            optimizer="adam",
            lr=lr,
            steps=steps,
            progress=progress,
            generators=[] if generator is None else [generator],
        )
    mask = {name: concrete_mask(x.detach(), temperature=temperature) for name, x in logits.items()}
    # Learned coefficients begin again: those of the loop belong to masks that were still changing.
    found, refinement = tasks.coefficients(scale, layerwise=granularity == "layer"), None
    if learned:
        found, refinement = tasks.train(found, mask, steps=refine_steps, lr=coefficient_lr, progress=progress)
    return ConcreteMerge(
        tasks.state(found, mask, scale),
        {name: x.detach() for name, x in logits.items()},
        mask,
        tasks.by_name(found),
        history,
        refinement,
    )


def _uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
