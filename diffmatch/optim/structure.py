"""Gradients filtered by the structure that their parameters live on: a grid, a mesh, a graph.

The filter is ``(I + a L)^-p`` with a Laplacian L >= 0, the gradient with respect to a Sobolev inner product (Nicolet et
al., "Large Steps in Inverse Rendering", 2021, for vertices). It spreads a correction over its neighbourhood and undoes
the ill-conditioning of smoothness terms. It acts on gradients, before any first-order optimizer reads them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Int
from scipy.sparse.linalg import splu
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from diffmatch.errors import InputError, check_positive

__all__ = ["GraphFilter", "GridFilter", "Structure", "precondition"]

Structure = Callable[[Tensor], Tensor]
"""A linear map from a gradient to a filtered one of the same shape, symmetric and positive definite."""


@dataclass(frozen=True)
class GridFilter:
    """The filter of a regular grid with free boundary, exact by cosine transforms along the axes.

    The transforms are products with small matrices: ``2 N sum(n)`` multiplications for a grid of N entries.

    A filtered fit takes few steps, so that the optimizer's memory should be short: ``betas=(0.8, 0.95)`` for
    :class:`~diffmatch.optim.adam_uniform.AdamUniform`, with a rate of 0.3 to 1 for signed distances, did best in our
    trials where all data are seen in each step (see the page on optimizers).

    Args:
        strength: a, in squared cells; its root is the reach of a correction. 0.3 to 1 for a start that is close, 3 to
            10 for one that is far, 30 and falling to 1 from a ball (``structure`` of :func:`diffmatch.fit` may be a
            function of the step). 0 leaves gradients as they are.
        power: p, 1 or 2.
        shape: entries along the axes of the grid, where the parameter does not have them as its own shape: a flattened
            field, or one with channels behind the grid, such as node moves (nodes, 3). All axes where None.

    Raises:
        InputError: a setting is out of range.
    """

    strength: float = 1.0
    power: int = 2
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(self.strength, self.power)
        if self.shape is not None and (not self.shape or min(self.shape) < 1):
            raise InputError("shape", "entries along each axis, at least 1", repr(self.shape))

    def __call__(self, gradient: Tensor) -> Tensor:
        """The filtered gradient, same shape and dtype.

        Raises:
            InputError: the gradient has another number of entries than the grid, or than a multiple of it.
        """
        shape = tuple(gradient.shape) if self.shape is None else self.shape
        nodes = math.prod(shape)
        if gradient.numel() == 0 or not shape or self.strength == 0:
            return gradient
        if gradient.numel() % nodes:
            wanted = f"a multiple of the {nodes} entries of the grid {shape}"
            raise InputError("structure", wanted, f"a parameter of shape {tuple(gradient.shape)}")
        dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        field = gradient.to(dtype).reshape(*shape, -1)
        bases, eigenvalues = _grid_tables(shape, dtype, gradient.device)
        for axis, basis in enumerate(bases):
            field = torch.tensordot(basis, field, dims=([1], [axis])).movedim(0, axis)
        field = field / (1 + self.strength * eigenvalues) ** self.power
        for axis, basis in enumerate(bases):
            field = torch.tensordot(basis, field, dims=([0], [axis])).movedim(0, axis)
        return field.reshape(gradient.shape).to(gradient.dtype)


class GraphFilter:
    """The filter of a graph, such as the vertices of a mesh and their edges.

    On the CPU by a sparse factor, made once; elsewhere by conjugate gradients whose number of iterations follows from
    the largest degree, so that nothing waits for the device. Connectivity is fixed: make a new filter when it changes.

    Args:
        edges: pairs of nodes, shape (e, 2); each edge once or more, in any direction.
        n_nodes: number of nodes; parameters have it as their first axis.
        strength: a, in squared edge lengths, if edges have length one.
        power: p, 1 or 2.

    Raises:
        InputError: a setting is out of range, or an edge names a node that is not there.
    """

    _TOLERANCE = 1e-6

    def __init__(self, edges: Int[Tensor, "e 2"], n_nodes: int, *, strength: float = 1.0, power: int = 2) -> None:
        _check(strength, power)
        pairs = edges.detach().cpu().numpy()
        if len(pairs) and not (pairs.min() >= 0 and pairs.max() < n_nodes):
            raise InputError("edges", f"numbers of nodes from 0 to {n_nodes - 1}", f"{pairs.min()} to {pairs.max()}")
        self.strength, self.power, self.n_nodes = strength, power, n_nodes
        adjacency = sp.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_nodes, n_nodes))
        adjacency = ((adjacency + adjacency.T) > 0).astype(np.float64)
        adjacency.setdiag(0)
        degree = np.asarray(adjacency.sum(1)).ravel()
        self._matrix = (sp.identity(n_nodes) + strength * (sp.diags(degree) - adjacency)).tocsc()
        self._condition = 1 + 2 * strength * float(degree.max(initial=0.0))
        self._factor: Any = None
        self._tensors: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def of_mesh(
        cls, faces: Int[Tensor, "f 3"], n_vertices: int, *, strength: float = 1.0, power: int = 2
    ) -> "GraphFilter":
        """The filter of a mesh's vertices.

        Args:
            faces: vertex indices, shape (f, 3).
            n_vertices: number of vertices.
            strength: see the class.
            power: see the class.
        """
        edges = torch.cat((faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]))
        return cls(edges, n_vertices, strength=strength, power=power)

    def __repr__(self) -> str:
        return f"GraphFilter(n_nodes={self.n_nodes}, strength={self.strength}, power={self.power})"

    def __call__(self, gradient: Tensor) -> Tensor:
        """The filtered gradient, same shape and dtype.

        Raises:
            InputError: the first axis of the gradient is not the nodes.
        """
        if gradient.ndim == 0 or len(gradient) != self.n_nodes:
            wanted = f"a parameter with {self.n_nodes} rows"
            raise InputError("structure", wanted, f"one of shape {tuple(gradient.shape)}")
        columns = gradient.reshape(self.n_nodes, -1)
        if columns.numel() == 0:
            return gradient
        solve = self._solve_by_factor if gradient.device.type == "cpu" else self.solve_by_conjugate_gradients
        for _ in range(self.power):
            columns = solve(columns)
        return columns.reshape(gradient.shape).to(gradient.dtype)

    def _solve_by_factor(self, columns: Tensor) -> Tensor:
        if self._factor is None:
            self._factor = splu(
                self._matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
            )
        return torch.from_numpy(self._factor.solve(columns.double().numpy()))

    def solve_by_conjugate_gradients(self, columns: Tensor) -> Tensor:
        """One solve with ``I + a L`` by tensor operations, shape (nodes, c), as on every device but the CPU."""
        dtype = torch.float64 if columns.dtype == torch.float64 else torch.float32
        columns = columns.to(dtype)
        matrix = self._on(columns.device, dtype)
        solution, residual = torch.zeros_like(columns), columns.clone()
        direction, square = residual.clone(), residual.square().sum(0)
        tiny = torch.finfo(dtype).tiny
        for _ in range(math.ceil(0.5 * math.sqrt(self._condition) * math.log(2 / self._TOLERANCE))):
            image = matrix @ direction
            step = square / (direction * image).sum(0).clamp_min(tiny)
            solution += step * direction
            residual -= step * image
            new = residual.square().sum(0)
            direction = residual + new / square.clamp_min(tiny) * direction
            square = new
        return solution

    def _on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if (device, dtype) not in self._tensors:
            coo = self._matrix.tocoo()
            index = torch.from_numpy(np.stack((coo.row, coo.col)).astype(np.int64))
            values = torch.from_numpy(coo.data).to(dtype)
            matrix = torch.sparse_coo_tensor(index, values, coo.shape, check_invariants=False)
            self._tensors[device, dtype] = matrix.coalesce().to(device)
        return self._tensors[device, dtype]


def precondition(
    optimizer: Optimizer, structure: Mapping[Tensor, Structure] | Callable[[], Mapping[Tensor, Structure]]
) -> RemovableHandle:
    """Let an optimizer see filtered gradients of some of its parameters, from the next step on.

    Works with every optimizer that reads ``grad`` once a step, whether it is given a closure or not. The filtered
    gradients stay in ``grad``. :class:`~diffmatch.optim.adam_uniform.AdamUniform` keeps the shape of the filter's step.

    Args:
        optimizer: any first-order one.
        structure: a :class:`GridFilter`, :class:`GraphFilter` or other linear map for each parameter that has one; or a
            function that returns these, asked once a step, for filters that change.

    Returns:
        A handle whose ``remove()`` ends it.

    Raises:
        InputError: a parameter is not the optimizer's, or the optimizer searches along lines or differentiates the
            loss itself.
    """
    if isinstance(optimizer, LBFGS) or getattr(optimizer, "needs_graph", False):
        raise InputError("structure", "an optimizer that reads the gradients once a step", type(optimizer).__name__)
    now = structure if callable(structure) else lambda: structure

    def filters() -> Mapping[Tensor, Structure]:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        found = now()
        if any(id(p) not in own for p in found):
            raise InputError("structure", "parameters of the optimizer", "another tensor")
        return found

    def filter_gradients() -> None:
        for p, smooth in filters().items():
            if p.grad is not None:
                grad = p.grad.detach()
                p.grad = smooth(grad if grad.layout is torch.strided else grad.to_dense())

    filters()  # an error now is better than one in the first step

    def before_step(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            filter_gradients()
            return None

        def filtered() -> Any:
            loss = closure()
            filter_gradients()
            return loss

        return (args[0],), {**kwargs, "closure": filtered}

    return optimizer.register_step_pre_hook(before_step)


@lru_cache(maxsize=16)
def _grid_tables(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """Cosine bases of the axes, rows are frequencies, and the Laplacian's eigenvalue of each frequency."""
    bases, eigenvalues = [], torch.zeros((), dtype=torch.float64)
    for axis, n in enumerate(shape):
        frequency = torch.arange(n, dtype=torch.float64)
        basis = torch.cos(math.pi / n * frequency[:, None] * (frequency + 0.5)) * math.sqrt(2 / n)
        basis[0] /= math.sqrt(2)
        bases.append(basis.to(device, dtype))
        along = (2 - 2 * torch.cos(math.pi / n * frequency)).view([-1 if i == axis else 1 for i in range(len(shape))])
        eigenvalues = eigenvalues + along
    return tuple(bases), eigenvalues.unsqueeze(-1).to(device, dtype)


def _check(strength: float, power: int) -> None:
    check_positive("strength", strength, allow_zero=True)
    if power not in (1, 2):
        raise InputError("power", "1 or 2", repr(power))
