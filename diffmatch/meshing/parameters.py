"""The parameters of a FlexiCubes fit, and the mesh they stand for."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.meshing.flexicubes import FlexiMesh, flexicubes
from diffmatch.meshing.grid import Grid, deform_nodes

__all__ = ["FAR", "FlexiParameters"]

_MAX_MOVE = 0.4
"""Bound of the moves of nodes, in cells: close to the published half, where cells begin to turn inside out."""
_LEAST = 0.01
"""Magnitude that the field keeps at a node whose sign is held, in cells."""
FAR = 4.0
"""Far from the surface the field only needs its sign; larger values, in cells, would make it stiff."""


class FlexiParameters:
    """Field, node moves and cell weights of a FlexiCubes fit, all in units of a cell.

    While the signs of the field are held, the surface stays in the same cells. They and their nodes alone have
    parameters then, a small share of the grid, and the surface is looked for once.

    Args:
        grid: the cells; the surface must not reach its boundary.
        sdf: node values to start from, shape (nodes,), in units of length.
        hold: hold the sign of each node.

    Attributes:
        cell: the mean cell size, in units of length.
        tensors: field, moves, alpha, beta and gamma: what an optimizer works on.
    """

    def __init__(self, grid: Grid, sdf: Float[Tensor, " nodes"], *, hold: bool) -> None:
        self.grid, self.hold = grid, hold
        self.cell = sum(grid.spacing) / 3
        field = (sdf / self.cell).clamp(-FAR, FAR)
        self._connectivity = flexicubes(grid, sdf).connectivity if hold else None
        self._field = field
        n_weights = grid.n_cells
        if self._connectivity is not None:
            n_weights = len(self._connectivity.cell)
            field = field[self._connectivity.nodes]
        self._inside = field < 0

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=sdf.dtype, device=sdf.device, requires_grad=True)

        self._values, self._moves = field.clone().requires_grad_(), zeros(len(field), 3)
        self._weights = zeros(n_weights, 8), zeros(n_weights, 12), zeros(n_weights)
        self.tensors = [self._values, self._moves, *self._weights]

    def extract(self, *, training: bool) -> tuple[FlexiMesh, Float[Tensor, "x y z"]]:
        """The mesh, and the field that it was made of, in units of length, at the nodes of the grid.

        Both are differentiable, once, until the next extraction. With ``training`` the quads are fanned around centres,
        see :func:`flexicubes`.
        """
        if self.hold:
            # In place, as a projection: a value that a step has pushed across zero stays free to move back.
            with torch.no_grad():
                held = torch.where(self._inside, self._values.clamp(max=-_LEAST), self._values.clamp(min=_LEAST))
                self._values.copy_(held)
        field, surface = self._values, self._connectivity
        if surface is not None:
            field = _with_rows(self._field, surface.nodes, self._values)
        alpha, beta, gamma = self._weights
        mesh = flexicubes(
            self.grid,
            self._values,
            positions=deform_nodes(
                self.grid, self._moves, max_move=_MAX_MOVE, nodes=None if surface is None else surface.nodes
            ),
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            weight_cells=None if surface is None else surface.cell,
            training=training,
            boundary="open" if self.hold else "close",
            connectivity=surface,
        )
        return mesh, (field * self.cell).reshape(self.grid.node_shape)

    @torch.no_grad()
    def relax(self, mesh: FlexiMesh, vertices: Bool[Tensor, " v"], *, keep: float) -> None:
        """Take the cells of some vertices towards neutral: their weights and the moves of their nodes.

        Without both, a vertex is the mean of the crossing points of the plain grid, and cannot leave its cell.

        Args:
            mesh: the last extraction, closed within the grid.
            vertices: which of its vertices.
            keep: factor of moves and weights, from 0 (neutral) to 1.
        """
        surface = mesh.connectivity
        rows = surface.vertex_slot[vertices].unique()
        low = surface.columns[rows].long()
        nodes = torch.cat((low, low + 1)).unique()
        if not self.hold:
            nodes, rows = surface.nodes[nodes], surface.cell.long()[rows]
        for tensor, index in ((self._moves, nodes), *((weight, rows) for weight in self._weights)):
            tensor[index] *= keep


def _with_rows(buffer: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """The buffer with some rows overwritten, in place, and differentiable in these rows.

    A copy of the whole buffer in each step would cost more than the extraction. The price: the graph of an evaluation
    can be run backward only until the next one, which torch checks.
    """
    result: Tensor = _WithRows.apply(rows, index, buffer)
    return result


class _WithRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, buffer: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        buffer.index_copy_(0, index, rows)
        view: Tensor = buffer.view_as(buffer)
        return view

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grad.index_select(0, index), None, None
