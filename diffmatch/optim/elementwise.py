"""The step that elementwise optimizers share: what moves is gathered first, then stepped in as few calls as possible.

On the CPU all tensors of a dtype, of all groups, go through one compiled kernel; elsewhere, and for layouts that the
kernel does not know, all of a group, device and dtype go through one sequence of torch's ``_foreach`` operations. An
optimizer is a :class:`Rule` and a constructor.
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from diffmatch.errors import InputError, check_choice, check_positive
from diffmatch.optim.rounding import round_stochastically
from diffmatch.optim.threads import run_in_parts

__all__ = ["ElementwiseOptimizer", "Rule", "Steps", "bias_corrections", "decay"]

Steps = Sequence[int | Tensor]
"""For each tensor how many steps its entries have seen, this one included: a number, or a tensor that broadcasts."""

Reference = Callable[[list[Tensor], list[Tensor], list[list[Tensor]], Steps, Mapping[str, Any]], None]

_LEAST_PART = 2**16
"""Elements below which a further thread does not pay."""

_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rule:
    """What an elementwise optimizer does to one entry of a parameter.

    Args:
        buffers: names of the state buffers, each of the parameter's shape and zero at first.
        reference: the rule in tensor operations, in place on ``(params, grads, buffers, steps, group)``; ``buffers``
            holds one list a name. Gradients must be left as they are.
        coefficients: the numbers that the kernel wants, from a group and the number of steps.
        kernel: the compiled rule, see :mod:`diffmatch.optim.kernels`; None has only the reference.
    """

    buffers: tuple[str, ...]
    reference: Reference
    coefficients: Callable[[Mapping[str, Any], int], tuple[float, ...]] | None = None
    kernel: Callable[..., None] | None = None


@dataclass
class Batch:
    """Tensors that are stepped in one call: parallel lists, and for each tensor its group and number of steps."""

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    buffers: list[tuple[Tensor, ...]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    steps: list[int | Tensor] = field(default_factory=list)

    def add(
        self, param: Tensor, grad: Tensor, buffers: tuple[Tensor, ...], group: dict[str, Any], step: int | Tensor
    ) -> None:
        """One more tensor."""
        self.params.append(param)
        self.grads.append(grad)
        self.buffers.append(buffers)
        self.groups.append(group)
        self.steps.append(step)

    def coefficients(
        self, rule: Callable[[Mapping[str, Any], int], tuple[float, ...]], dtype: np.dtype[Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The distinct coefficients of these tensors, and which of them each tensor goes by."""
        place: dict[tuple[int, int], int] = {}
        table: list[tuple[float, ...]] = []
        rows: list[int] = []
        for group, step in zip(self.groups, self.steps, strict=True):
            key = (id(group), int(step))
            if key not in place:
                place[key] = len(table)
                table.append(rule(group, int(step)))
            rows.append(place[key])
        return np.array(table, dtype), np.array(rows, np.int64)


@dataclass
class Work:
    """All of one step: batches for the kernel by dtype, batches of tensor operations, and what is done at the end."""

    fused: dict[torch.dtype, Batch] = field(default_factory=dict)
    plain: dict[tuple[Any, ...], Batch] = field(default_factory=dict)
    finish: list[Callable[[], object]] = field(default_factory=list)


class ElementwiseOptimizer(Optimizer, ABC):
    """Base of optimizers that treat each entry of a parameter by itself.

    The state of a parameter is its own number of steps and the rule's buffers. Parameters in float16 and bfloat16 keep
    float32 states, are updated in float32 and rounded stochastically, from a stream that depends on ``seed``, the
    place of the parameter and its number of steps alone: it continues after a reload.

    Sparse gradients are refused, or made dense (``sparse="densify"``), or update the rows that they name and no
    others (``sparse="rows"``): moments, weight decay and the count of steps of the other rows stand still.

    Args:
        params: tensors or groups.
        defaults: settings of groups that do not bring their own; ``lr`` is among them.
        maximize: ascend.
        sparse: what to do with sparse gradients: ``"refuse"``, ``"densify"`` or ``"rows"``.
        seed: of the stochastic rounding of parameters in half precision.
        fused: None uses the compiled kernel where there is one; False never does.
    """

    rule: ClassVar[Rule]

    def __init__(
        self,
        params: Any,
        defaults: Mapping[str, Any],
        *,
        maximize: bool = False,
        sparse: str = "refuse",
        seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        shared = {"maximize": maximize, "sparse": sparse, "seed": seed, "fused": fused}
        super().__init__(params, {**defaults, **shared})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; settings that it lacks are the optimizer's.

        Raises:
            InputError: a setting is out of range, or a parameter is not real floating point.
        """
        super().add_param_group(param_group)
        try:
            for index, p in enumerate(param_group["params"]):
                if not p.is_floating_point():
                    raise InputError("params", "a real floating-point dtype", f"{p.dtype} at {index}")
            self._check_group(param_group)
        except InputError:
            self.param_groups.pop()
            raise

    def _check_group(self, group: Mapping[str, Any]) -> None:
        """Check the settings that a group has; optimizers add what only they know."""
        check_positive("lr", float(group["lr"]), allow_zero=True)
        check_positive("weight_decay", group.get("weight_decay", 0.0), allow_zero=True)
        if "eps" in group:
            check_positive("eps", group["eps"])
        for beta in group.get("betas", ()):
            if not 0 <= beta < 1:
                raise InputError("betas", "two numbers in [0, 1)", repr(group["betas"]))
        check_choice("sparse", group["sparse"], ("refuse", "densify", "rows"))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients as they are.

        Args:
            closure: evaluates the loss and its gradients first.

        Returns:
            What the closure returned, or None.

        Raises:
            InputError: a gradient is sparse, and the group does not say what to do with those.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work, place = Work(), 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._add(work, p, p.grad, group, place)
                place += 1
        for dtype, batch in work.fused.items():
            self._run_fused(batch, dtype)
        for batch in work.plain.values():
            self._run_plain(batch)
        for finish in work.finish:
            finish()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state to the bit: torch's own loading casts what is saved to the dtype of the parameters.

        Raises:
            InputError: a buffer has another size than its parameter.
        """
        super().load_state_dict(state_dict)
        saved_places = [place for group in state_dict["param_groups"] for place in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for place, p in zip(saved_places, params, strict=True):
            saved = state_dict["state"].get(place)
            if saved is not None:
                self.state[p] = {key: self._loaded(key, value, p) for key, value in saved.items()}

    def _loaded(self, key: str, value: Any, param: Tensor) -> Any:
        if not isinstance(value, Tensor):
            return value
        if key in self.rule.buffers and value.is_floating_point():
            if value.shape != param.shape:
                raise InputError("state_dict", f"{key} of shape {tuple(param.shape)}", str(tuple(value.shape)))
            return value.to(param.device, _wide(param.dtype), copy=True)
        return value.to(param.device, copy=True)

    def _add(self, work: Work, param: Tensor, grad: Tensor, group: dict[str, Any], place: int) -> None:
        """Sort one parameter into the batches."""
        state = self.state[param]
        if not state:
            self._init_state(state, param, group)
        state["step"] += 1
        if grad.layout is not torch.strided:
            if group["sparse"] == "refuse":
                raise InputError("sparse", '"densify" or "rows" for sparse gradients', repr(group["sparse"]))
            if group["sparse"] == "densify":
                grad = grad.to_dense()
        if grad.layout is not torch.strided or "row_steps" in state:
            self._add_rows(work, param, grad, group, place)
            return
        if param.dtype in _HALVES:
            param, grad = self._widened(work, param, group, place), grad.float()
        self._add_dense(work, param, grad, state, group)

    def _add_dense(self, work: Work, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        buffers = tuple([state[name] for name in self.rule.buffers])
        fused = self.rule.kernel is not None and group["fused"] is not False
        if fused and param.is_cpu and param.is_contiguous():
            batch = work.fused.get(param.dtype)
            if batch is None:
                batch = work.fused[param.dtype] = Batch()
            batch.add(param, grad if grad.is_contiguous() else grad.contiguous(), buffers, group, state["step"])
        else:
            key = (id(group), param.device, param.dtype)
            work.plain.setdefault(key, Batch()).add(param, grad, buffers, group, state["step"])

    def _init_state(self, state: dict[str, Any], param: Tensor, group: Mapping[str, Any]) -> None:
        state["step"] = 0
        for name in self.rule.buffers:
            state[name] = _zeros(param)

    def _widened(self, work: Work, param: Tensor, group: Mapping[str, Any], place: int) -> Tensor:
        """A float32 copy of a parameter; at the end of the step it is rounded back."""
        wide = param.detach().to(torch.float32, memory_format=torch.contiguous_format)
        stream = (group["seed"], place, self.state[param]["step"])
        work.finish.append(lambda: round_stochastically(wide, into=param, stream=stream))
        return wide

    def _add_rows(self, work: Work, param: Tensor, grad: Tensor, group: dict[str, Any], place: int) -> None:
        """Step in the rows that a gradient names, each by its own number of steps."""
        state = self.state[param]
        if grad.layout is not torch.strided:
            grad = grad.to_sparse_coo().coalesce()
            if grad.sparse_dim() != 1:
                wanted = "sparse gradients whose entries are rows (one sparse axis)"
                raise InputError("params", wanted, f"one of {grad.sparse_dim()} sparse axes")
            index, grad = grad.indices()[0], grad.values()
        else:
            index = torch.arange(len(param), device=param.device)
        if "row_steps" not in state:  # steps with dense gradients may have gone before
            state["row_steps"] = torch.full((len(param),), state["step"] - 1, dtype=torch.int32, device=param.device)
        state["row_steps"][index] += 1
        buffers = [state[name] for name in self.rule.buffers]
        fused = self.rule.kernel is not None and group["fused"] is not False
        if fused and param.is_cpu and param.is_contiguous() and param.dtype not in _HALVES:
            if len(index):
                self._run_fused_rows(param, index, grad.contiguous(), buffers, state["row_steps"][index], group)
            return
        steps = state["row_steps"][index].double().reshape(-1, *[1] * (param.ndim - 1))
        rows = param.detach()[index].to(_wide(param.dtype))
        gathered = tuple(buffer[index] for buffer in buffers)
        work.plain[(id(param),)] = batch = Batch()
        batch.add(rows, grad.to(rows.dtype), gathered, group, steps)

        def put_back() -> None:
            if param.dtype in _HALVES:
                rounded = torch.empty_like(rows, dtype=param.dtype)
                round_stochastically(rows, into=rounded, stream=(group["seed"], place, state["step"]))
                param.index_copy_(0, index, rounded)
            else:
                param.index_copy_(0, index, rows)
            for buffer, changed in zip(buffers, gathered, strict=True):
                buffer.index_copy_(0, index, changed)

        work.finish.append(put_back)

    def _run_fused_rows(
        self,
        param: Tensor,
        index: Tensor,
        grad: Tensor,
        buffers: list[Tensor],
        steps: Tensor,
        group: Mapping[str, Any],
    ) -> None:
        """One kernel call in which each row is a tensor of its own, at its place in the memory of all."""
        kernel, coefficients = self._compiled()
        check_memory([param, *buffers], [param.numel()] * (1 + len(buffers)), param.dtype)
        width = param[0].numel()
        for row in (int(index.min()), int(index.max())):
            if not 0 <= row < len(param):
                raise InputError("params", f"sparse gradients of rows 0 to {len(param) - 1}", f"row {row}")
        check_memory([grad], [len(index) * width], param.dtype)
        place = index.numpy() * (width * param.element_size())
        own = np.arange(len(index)) * (width * param.element_size())
        addresses = [param.data_ptr() + place, grad.data_ptr() + own, *[b.data_ptr() + place for b in buffers]]
        distinct, rows = np.unique(steps.numpy(), return_inverse=True)
        dtype = np.dtype(str(param.dtype).removeprefix("torch."))
        table = np.array([coefficients(group, int(step)) for step in distinct], dtype)
        starts = np.arange(len(index) + 1) * width
        run_in_parts(kernel, np.stack(addresses), starts, rows, table, total=int(starts[-1]), least=_LEAST_PART)

    def _run_fused(self, batch: Batch, dtype: torch.dtype) -> None:
        """One kernel call for all tensors of a batch."""
        kernel, rule = self._compiled()
        sizes = [p.numel() for p in batch.params]
        columns = [batch.params, batch.grads, *map(list, zip(*batch.buffers, strict=True))]
        for column in columns[1:]:
            check_memory(column, sizes, dtype)
        addresses = np.array([[t.data_ptr() for t in column] for column in columns], np.int64)
        starts = np.concatenate(([0], np.cumsum(sizes)))
        coefficients, rows = batch.coefficients(rule, np.dtype(str(dtype).removeprefix("torch.")))
        run_in_parts(kernel, addresses, starts, rows, coefficients, total=int(starts[-1]), least=_LEAST_PART)

    def _compiled(self) -> tuple[Callable[..., None], Callable[[Mapping[str, Any], int], tuple[float, ...]]]:
        """The rule's kernel, and what makes its coefficients."""
        if self.rule.kernel is None or self.rule.coefficients is None:
            raise AssertionError("rules with a kernel have coefficients")
        return self.rule.kernel, self.rule.coefficients

    def _run_plain(self, batch: Batch) -> None:
        """One sequence of tensor operations for all tensors of a batch."""
        group = batch.groups[0]
        grads = list(torch._foreach_neg(batch.grads)) if group["maximize"] else batch.grads
        buffers = [list(column) for column in zip(*batch.buffers, strict=True)]
        self.rule.reference(batch.params, grads, buffers, batch.steps, group)


def decay(params: list[Tensor], group: Mapping[str, Any]) -> None:
    """Decoupled weight decay, ``params *= 1 - lr * weight_decay``, in place."""
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])


def bias_corrections(beta: float, steps: Steps) -> list[Any]:
    """``1 - beta**step`` of each tensor: numbers, or tensors that broadcast, as the steps are."""
    return [1 - beta**step for step in steps]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and arithmetic for parameters of a dtype."""
    return torch.float32 if dtype in _HALVES else dtype


def _zeros(param: Tensor) -> Tensor:
    return torch.zeros(param.shape, dtype=_wide(param.dtype), device=param.device)


def check_memory(tensors: Sequence[Tensor], sizes: Sequence[int], dtype: torch.dtype) -> None:
    """A kernel writes by address: what it is given has to be there."""
    for tensor, size in zip(tensors, sizes, strict=True):
        if not (tensor.numel() == size and tensor.dtype is dtype and tensor.is_contiguous() and tensor.is_cpu):
            wanted = f"contiguous {dtype} states of {size} entries on the CPU"
            raise InputError("state", wanted, f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}")
