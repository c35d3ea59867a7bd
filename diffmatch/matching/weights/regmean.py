"""RegMean: the average of linear layers by which their outputs change least on each model's own inputs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffmatch.errors import InputError
from diffmatch.matching.weights.evaluate import (
    Batches,
    check_batches,
    check_model_state,
    entry,
    evaluating,
    inputs_of,
    outputs,
    untied,
)
from diffmatch.matching.weights.interpolation import average_states, check_same_entries

__all__ = ["regmean"]

_RIDGE = 1e-6
"""Weight of the plain average where the inputs say nothing, relative to the mean of the Gram matrix's diagonal."""


def regmean(
    models: nn.Module | Sequence[nn.Module],
    states: Sequence[Mapping[str, Tensor]],
    data: Sequence[Batches],
    *,
    shrink: float = 0.9,
) -> dict[str, Tensor]:
    """Merge models so that each linear layer answers each model's inputs as that model's layer does.

    For a layer with weights W_m (inputs by outputs, the bias as one more input that is always one) and inputs X_m it
    minimises Σ_m ‖X_m W − X_m W_m‖², by W = (Σ_m G_m)⁻¹ Σ_m G_m W_m with G_m = X_mᵀ X_m / n_m. Convolutions without
    groups are linear in their patches and treated alike. All other tensors are averaged, tied weights too. The matrices
    are summed up batch by batch, in float64.

    Args:
        models: run the states: one module for all, or one a state where their heads differ.
        states: one a model, aligned or fine-tuned from one base; entries that a model's own state dict has besides,
            such as its head, stay its own.
        data: for each model its own batches (targets are ignored).
        shrink: factor in [0, 1] on the entries of G_m off the diagonal, which guards against few samples; 1 is the
            exact minimiser, and 0 weights each input by its size alone.

    Returns:
        The merged state, dtypes and devices of the first.

    Raises:
        InputError: numbers of models, states and data differ, or they do not fit.

    References:
        Jin, Ren, Preotiuc-Pietro, Cheng 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models", eq. 2.
    """
    check_same_entries(states)
    modules = [models] * len(states) if isinstance(models, nn.Module) else list(models)
    for argument, found in (("models", len(modules)), ("data", len(data))):
        if found != len(states):
            raise InputError(argument, f"{len(states)}, one a state", str(found))
    if not 0 <= shrink <= 1:
        raise InputError("shrink", "a number in [0, 1]", str(shrink))
    result = average_states(states)
    grams: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for m, (module, state, batches) in enumerate(zip(modules, states, data, strict=True)):
        check_batches(f"data[{m}]", batches)
        check_model_state(f"states[{m}]", module, {**module.state_dict(), **state})
        for name, gram in _grams(module, state, batches).items():
            gram = torch.lerp(gram.diagonal().diag(), gram, shrink)
            # What is solved for is the difference to the average, so that the ridge pulls towards it.
            moment = gram @ (_matrix(name, state) - _matrix(name, result))
            grams[name] = grams[name] + gram if name in grams else gram
            moments[name] = moments[name] + moment if name in moments else moment
    for name, gram in grams.items():
        gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
        _store(name, result, _matrix(name, result) + torch.linalg.solve(gram, moments[name]))
    return result


def _grams(model: nn.Module, state: Mapping[str, Tensor], data: Batches) -> dict[str, Tensor]:
    """Gram matrix of the inputs of each linear layer that the state holds, (inputs + bias) a side, per sample."""
    own = untied(model)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, module: nn.Module, inputs: Tensor) -> None:
        rows = _rows(module, inputs.detach()).double()
        if module.bias is not None:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        gram = rows.T @ rows
        sums[name] = sums[name] + gram if name in sums else gram
        counts[name] = counts.get(name, 0) + len(rows)

    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: add(name, module, args[0]))
        for name, module in model.named_modules()
        if _is_linear(module) and entry(name, "weight") in state and module.weight in own
    ]
    try:
        with evaluating(model), torch.no_grad():
            for batch in data:
                outputs(model, state, inputs_of(batch))
    finally:
        for handle in handles:
            handle.remove()
    return {name: gram / counts[name] for name, gram in sums.items()}


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and not isinstance(module.padding, str) and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)


def _rows(module: nn.Module, inputs: Tensor) -> Tensor:
    """Every input vector, or patch, as a row."""
    if not isinstance(module, nn.Conv2d):
        return inputs.reshape(-1, inputs.shape[-1])
    batched = inputs if inputs.ndim == 4 else inputs.unsqueeze(0)
    padding = module.padding
    assert not isinstance(padding, str)
    patches = F.unfold(batched, module.kernel_size, module.dilation, padding, module.stride)
    return patches.mT.flatten(0, 1)


def _matrix(name: str, state: Mapping[str, Tensor]) -> Tensor:
    """Weight and bias of a layer as one matrix, inputs by outputs, in float64."""
    weight = state[entry(name, "weight")].detach().double().flatten(1).T
    bias = state.get(entry(name, "bias"))
    return weight if bias is None else torch.cat([weight, bias.detach().double()[None]])


def _store(name: str, state: dict[str, Tensor], matrix: Tensor) -> None:
    weight, bias = state[entry(name, "weight")], state.get(entry(name, "bias"))
    if bias is not None:
        state[entry(name, "bias")], matrix = matrix[-1].to(bias), matrix[:-1]
    state[entry(name, "weight")] = matrix.T.reshape(weight.shape).to(weight)
