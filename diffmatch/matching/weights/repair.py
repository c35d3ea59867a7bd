"""Statistics of a merged model put right: batch norm reset, and REPAIR for layers without a norm."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from diffmatch.errors import InputError, check_choice
from diffmatch.matching.weights.evaluate import (
    Batches,
    check_batches,
    check_model_state,
    entry,
    evaluating,
    inputs_of,
    outputs,
    size_of,
    untied,
)
from diffmatch.matching.weights.interpolation import check_same_entries, check_weights

__all__ = ["Repair", "has_batch_norm", "mend", "repair", "repairable_layers", "reset_batch_norm"]

Repair = Literal["none", "reset", "repair"]
"""What is done to a merged state: nothing, :func:`reset_batch_norm`, or :func:`repair`."""

State = Mapping[str, Tensor]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def reset_batch_norm(model: nn.Module, state: State, data: Batches) -> dict[str, Tensor]:
    """Running means and variances of batch norm measured anew.

    The averages of two models' statistics are not those of the averaged model, and with them a merged model is of no
    use. Here every batch norm normalises by the batch while its input is measured; dropout stays off. Mean and
    (unbiased) variance are those of all samples together, not averages over batches, so that one batch with all the
    data and several differ only by what the layers before see.

    Args:
        model: any module; it is neither changed nor moved.
        state: of the merged model.
        data: batches of inputs (targets are ignored), two samples at least in each; some thousand samples in all.

    Returns:
        The state with new statistics; the other tensors are the given ones. A model without batch norm gets back what
        it gave.

    Raises:
        InputError: the state does not fit the model, or there is no batch of two samples.
    """
    check_batches("data", data)
    check_model_state("state", model, state)
    if not has_batch_norm(model):
        return dict(state)
    return _measured_pass(model, state, data, {})


def repair(
    model: nn.Module,
    state: State,
    states: Sequence[State],
    data: Batches,
    *,
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Activations of a merged model brought back to the scale that they had in the models it was made of.

    The mean of two units that are not perfectly correlated varies less than either, and layer by layer the signal
    fades. For each channel before its activation, let μ*, σ* be the mean of the models' means and standard deviations
    (deviations, not variances) and μ, σ those of the merged model. Then W ← s W and b ← s (b − μ) + μ* with s = σ*/σ.
    The model's class stays what it is: the correction is folded into the weights. A layer without bias keeps its mean,
    scaled.

    Linear layers and convolutions are repaired, except those that batch norm follows (resetting it is the repair, and
    is done too), the last one, whose outputs are the model's, those used more than once and those with tied weights.
    One pass over the data corrects all: each batch is normalised by its own statistics on its way. The result is exact
    for one batch and close for several large ones.

    Args:
        model: any module; it is neither changed nor moved.
        state: of the merged model.
        states: of the models that were merged, aligned.
        data: batches of inputs (targets are ignored), two samples at least in each.
        weights: shares of the models; equal if None.

    Returns:
        The repaired state.

    Raises:
        InputError: a state does not fit the model, or there is no batch of two samples.

    References:
        Jordan, Sedghi, Saukh, Entezari, Neyshabur 2023, "REPAIR: REnormalizing Permuted Activations for Interpolation
        Repair".
    """
    check_batches("data", data)
    check_same_entries([state, *states])
    check_model_state("state", model, state)
    shares = check_weights(weights, len(states))
    layers = repairable_layers(model, state, data)
    means: dict[str, Tensor] = {}
    deviations: dict[str, Tensor] = {}
    for endpoint, share in zip(states, shares, strict=True):
        for name, found in _output_moments(model, endpoint, data, layers).items():
            means[name] = means.get(name, 0) + share * found.mean
            deviations[name] = deviations.get(name, 0) + share * found.deviation
    return _measured_pass(model, state, data, {name: (means[name], deviations[name]) for name in layers})


def mend(
    kind: Repair, model: nn.Module, state: State, states: Sequence[State], data: Batches, *, weights: Sequence[float]
) -> dict[str, Tensor]:
    """A merged state after the repair that is asked for."""
    check_choice("repair", kind, ("none", "reset", "repair"))
    if kind == "repair":
        return repair(model, state, states, data, weights=weights)
    return reset_batch_norm(model, state, data) if kind == "reset" else dict(state)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has a batch norm with running statistics."""
    return bool(_batch_norms(model))


def repairable_layers(model: nn.Module, state: State, data: Batches) -> list[str]:
    """Names of the layers that :func:`repair` rescales, found by a run of the first batch."""
    named = dict(model.named_modules())
    own = untied(model)
    layers = {
        name: module
        for name, module in named.items()
        if isinstance(module, nn.Linear | _ConvNd) and entry(name, "weight") in state and module.weight in own
    }
    called: list[str] = []
    results: dict[str, Tensor] = {}
    normalised: list[Tensor] = []  # kept alive, so that no later tensor gets the id of one of them

    def note(name: str, output: Tensor) -> None:
        called.append(name)
        results[name] = output

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in layers.items()
    ]
    handles += [
        module.register_forward_pre_hook(lambda _, args: normalised.append(args[0]))
        for module in named.values()
        if isinstance(module, _BatchNorm)
    ]
    with _removing(handles), evaluating(model), torch.no_grad():
        batch = next(iter(data), None)
        if batch is None:
            raise InputError("data", "at least one batch", "none")
        final = outputs(model, state, inputs_of(batch))
    leaves = [leaf for leaf in pytree.tree_leaves(final) if isinstance(leaf, Tensor)]
    before_norm = {id(tensor) for tensor in normalised}
    last = {leaf.untyped_storage()._cdata for leaf in leaves}
    return [
        name
        for name in dict.fromkeys(called[:-1])
        if called.count(name) == 1
        and id(results[name]) not in before_norm
        and results[name].untyped_storage()._cdata not in last
    ]


@dataclass
class _Moments:
    """Number, mean and sum of squared deviations of the rows seen so far, in float64."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def update(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take in rows of shape (n, c); returns their own mean and deviation."""
        rows = rows.detach().double()
        n, mean = len(rows), rows.mean(0)
        squares = (rows - mean).square().sum(0)
        if not self.count:
            self.count, self.mean, self.squares = n, mean, squares
        else:
            total, difference = self.count + n, mean - self.mean
            self.squares = self.squares + squares + difference.square() * (self.count * n / total)
            self.mean = self.mean + difference * (n / total)
            self.count = total
        return mean, (squares / n).sqrt()

    @property
    def deviation(self) -> Tensor:
        return (self.squares / self.count).sqrt()

    @property
    def unbiased_variance(self) -> Tensor:
        return self.squares / max(self.count - 1, 1)


class _removing:
    """Takes hooks off again."""

    def __init__(self, handles: Sequence[RemovableHandle]) -> None:
        self.handles = handles

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def _output_moments(model: nn.Module, state: State, data: Batches, layers: Sequence[str]) -> dict[str, _Moments]:
    found = {name: _Moments() for name in layers}

    def measure(name: str, module: nn.Module, output: Tensor) -> None:
        found[name].update(_rows(module, output))

    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, _, output, name=name: measure(name, module, output)
        )
        for name in layers
    ]
    with _removing(handles), evaluating(model), torch.no_grad():
        for batch in _batches_of_two(data):
            outputs(model, state, batch)
    return found


def _measured_pass(
    model: nn.Module, state: State, data: Batches, targets: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """One pass in which norms and layers with targets go by the statistics of the batch, and these pooled."""
    norms = _batch_norms(model)
    seen: dict[nn.Module, _Moments] = {module: _Moments() for module in norms}
    own = {name: _Moments() for name in targets}
    result = dict(state)
    for names in norms.values():
        for name in names:  # the pass writes to these
            for part in _STATISTICS:
                result[entry(name, part)] = state[entry(name, part)].clone()

    def measure(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen[module].update(args[0].movedim(1, -1).flatten(0, -2))

    def correct(name: str, module: nn.Module, output: Tensor) -> Tensor:
        mean, deviation = own[name].update(_rows(module, output))
        scale, shift = _correction(module, mean, deviation, *targets[name])
        shape = [1] * output.ndim
        shape[_channel_axis(module, output)] = -1
        return output * scale.to(output.dtype).reshape(shape) + shift.to(output.dtype).reshape(shape)

    handles = [module.register_forward_pre_hook(measure) for module in norms]
    handles += [
        model.get_submodule(name).register_forward_hook(
            lambda module, _, output, name=name: correct(name, module, output)
        )
        for name in targets
    ]
    batches = 0
    with _removing(handles), evaluating(model), torch.no_grad():
        for module in norms:
            module.training = True
        for batch in _batches_of_two(data):
            outputs(model, result, batch)
            batches += 1
    for module, names in norms.items():
        for name in names if seen[module].count else ():
            mean, variance = entry(name, "running_mean"), entry(name, "running_var")
            result[mean] = seen[module].mean.to(state[mean])
            result[variance] = seen[module].unbiased_variance.to(state[variance])
            result[entry(name, "num_batches_tracked")] = torch.full_like(
                state[entry(name, "num_batches_tracked")], batches
            )
    for name, target in targets.items():
        module = model.get_submodule(name)
        scale, shift = _correction(module, own[name].mean, own[name].deviation, *target)
        weight = state[entry(name, "weight")]
        result[entry(name, "weight")] = _scaled(module, weight.double(), scale).to(weight.dtype)
        if entry(name, "bias") in state:
            bias = state[entry(name, "bias")]
            result[entry(name, "bias")] = (bias.double() * scale + shift).to(bias.dtype)
    return result


def _correction(
    module: nn.Module, mean: Tensor, deviation: Tensor, wanted_mean: Tensor, wanted_deviation: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel; a channel that does not vary is shifted only."""
    varies = deviation > 1e-6 * deviation.max()
    scale = torch.where(varies, wanted_deviation / deviation, 1.0)
    shift = torch.zeros_like(scale) if module.bias is None else wanted_mean - scale * mean
    return scale, shift


def _scaled(module: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """The weight with its output channels scaled."""
    if not isinstance(module, _ConvTransposeNd):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = module.groups  # (in, out / groups, *kernel): the groups are blocks of the inputs
    blocks: Tensor = weight.unflatten(0, (groups, -1))
    return (blocks * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).flatten(0, 1)


def _channel_axis(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, _ConvNd):
        return output.ndim - 1 - len(module.kernel_size)
    return output.ndim - 1


def _rows(module: nn.Module, output: Tensor) -> Tensor:
    """Every position of every sample as a row, shape (n, c)."""
    moved = output.movedim(_channel_axis(module, output), -1)
    return moved.reshape(-1, moved.shape[-1])


def _batch_norms(model: nn.Module) -> dict[nn.Module, list[str]]:
    """The batch norms with running statistics, and all names of each."""
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            found.setdefault(module, []).append(name)
    return found


def _batches_of_two(data: Batches) -> Iterator[Any]:
    """The inputs of the batches, without a last one of a single sample, which has no deviation."""
    count = 0
    for batch in data:
        inputs = inputs_of(batch)
        if size_of(inputs) > 1:
            count += 1
            yield inputs
    if not count:
        raise InputError("data", "a batch of at least two samples", "none")
