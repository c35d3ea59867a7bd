"""Regular grids of cells: where the nodes lie, and how large things get."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffmatch.errors import InputError, check_floating, check_shape

__all__ = ["Grid", "deform_nodes", "inverted_cells"]

_MAX_NODES = 2**31 // 3  # edges are numbered 3 * node + axis in 32 bits


@dataclass(frozen=True)
class Grid:
    """A box cut into ``nx * ny * nz`` equal cells.

    A field on the grid has one value per node: shape ``grid.node_shape``, or flat with the last axis running fastest.

    Args:
        shape: cells along x, y and z.
        origin: position of the node with the lowest coordinates.
        spacing: cell size along x, y and z.

    Raises:
        InputError: an axis has no cell, a cell size is not positive, or there are more nodes than 32-bit edge numbers
            allow (about 894 along each axis).
    """

    shape: tuple[int, int, int]
    origin: tuple[float, float, float] = (-1.0, -1.0, -1.0)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name, kind in (("shape", int), ("origin", float), ("spacing", float)):
            value = getattr(self, name)
            try:
                triple = tuple(kind(x) for x in value)
            except (TypeError, ValueError, OverflowError):
                triple = ()
            if len(triple) != 3 or (kind is int and triple != tuple(value)):
                raise InputError(name, f"three {kind.__name__} numbers, one an axis", repr(value))
            object.__setattr__(self, name, triple)
        if min(self.shape) < 1:
            raise InputError("shape", "at least one cell along each axis", str(self.shape))
        if not all(math.isfinite(x) for x in self.origin):
            raise InputError("origin", "finite coordinates", str(self.origin))
        if not all(h > 0 and math.isfinite(h) for h in self.spacing):
            raise InputError("spacing", "cell sizes > 0", str(self.spacing))
        if self.n_nodes > _MAX_NODES:
            raise InputError("shape", f"at most {_MAX_NODES:,} nodes (about 894 cells a side)", f"{self.n_nodes:,}")

    @classmethod
    def cube(cls, resolution: int, *, half_width: float = 1.0) -> "Grid":
        """A cube of ``resolution`` cells a side, centred at the origin.

        Args:
            resolution: cells a side.
            half_width: half the side; the default gives the box [-1, 1]^3.
        """
        return cls.box((resolution,) * 3, low=(-half_width,) * 3, high=(half_width,) * 3)

    @classmethod
    def box(
        cls, shape: tuple[int, int, int], *, low: tuple[float, float, float], high: tuple[float, float, float]
    ) -> "Grid":
        """The box from ``low`` to ``high`` cut into ``shape`` cells.

        Raises:
            InputError: an argument has not three entries, or ``high`` is not above ``low``.
        """
        for name, triple in (("shape", shape), ("low", low), ("high", high)):
            if len(triple) != 3:
                raise InputError(name, "three numbers, one an axis", repr(triple))
        if min(shape) < 1:
            raise InputError("shape", "at least one cell along each axis", str(shape))
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise InputError("high", f"more than low = {low} along each axis", str(high))
        width = [(b - a) / n for a, b, n in zip(low, high, shape, strict=True)]
        return cls(shape, low, (width[0], width[1], width[2]))

    @property
    def node_shape(self) -> tuple[int, int, int]:
        """Nodes along each axis: one more than cells."""
        nx, ny, nz = self.shape
        return nx + 1, ny + 1, nz + 1

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return math.prod(self.node_shape)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return math.prod(self.shape)

    @property
    def high(self) -> tuple[float, float, float]:
        """Position of the node with the highest coordinates."""
        x, y, z = (o + n * h for o, n, h in zip(self.origin, self.shape, self.spacing, strict=True))
        return x, y, z

    def nodes(
        self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "nodes 3"]:
        """Positions of the nodes, in the order of a flattened field.

        The tensor is shared between calls: do not write to it.
        """
        return _nodes(self, dtype, torch.device(device))

    def padded(self, layers: int = 1) -> "Grid":
        """This grid with ``layers`` more cells on every side."""
        nx, ny, nz = (n + 2 * layers for n in self.shape)
        x, y, z = (o - layers * h for o, h in zip(self.origin, self.spacing, strict=True))
        return Grid((nx, ny, nz), (x, y, z), self.spacing)

    def cell_index(self, cell: Tensor) -> Tensor:
        """Index (i, j, k) of flat cell numbers: shape ``(*c,)`` to ``(*c, 3)``."""
        _, ny, nz = self.shape
        return torch.stack((cell // (ny * nz), cell // nz % ny, cell % nz), -1)


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # a tensor made in inference mode would stay in the cache and be refused by autograd
def _nodes(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    axes = [
        torch.arange(n, dtype=dtype, device=device) * h + o
        for n, h, o in zip(grid.node_shape, grid.spacing, grid.origin, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def deform_nodes(
    grid: Grid,
    deformation: Float[Tensor, "*b nodes 3"],
    *,
    max_move: float = 0.5,
    nodes: Int64[Tensor, " nodes"] | None = None,
) -> Float[Tensor, "*b nodes 3"]:
    """Move the nodes of a grid by at most a fraction of a cell along each axis.

    ``x = x_rest + max_move * h * (1 - 1e-6) * tanh(deformation)`` (FlexiCubes, Shen et al. 2023, section 4.4).
    At the published bound of half a cell no two nodes can swap places, but a cell can still turn inside out; up to a
    sixth of a cell it cannot. :func:`inverted_cells` counts.

    Args:
        grid: the grid at rest.
        deformation: unbounded displacement parameters, shape (\\*b, nodes, 3); zeros leave the grid at rest.
        max_move: bound of the move, in cells.
        nodes: numbers of the nodes that are moved, shape (nodes,); default: all nodes of the grid.

    Raises:
        InputError: the shape is not (\\*b, nodes, 3), the dtype is not floating, or ``max_move`` is not in (0, 0.5].
    """
    check_shape("deformation", deformation, (grid.n_nodes if nodes is None else len(nodes), 3), batch=True)
    check_floating("deformation", deformation)
    if not 0 < max_move <= 0.5:
        raise InputError("max_move", "a fraction of a cell in (0, 0.5]", repr(max_move))
    rest = grid.nodes(dtype=deformation.dtype, device=deformation.device)
    rest = rest if nodes is None else rest[nodes]
    reach = rest.new_tensor(grid.spacing) * (max_move * (1 - 1e-6))
    return torch.addcmul(rest, deformation.tanh(), reach)


def inverted_cells(grid: Grid, positions: Float[Tensor, "nodes 3"]) -> Tensor:
    """Flat numbers of the cells that have a corner whose Jacobian is not positive.

    Args:
        grid: the grid at rest.
        positions: node positions, shape (nodes, 3).

    Returns:
        Cell numbers, int64, ascending.
    """
    check_shape("positions", positions, (grid.n_nodes, 3))
    x = positions.reshape(*grid.node_shape, 3)
    # Edge vectors along each axis; the Jacobian at a corner is the triple product of the three edges that meet there.
    along = [x.diff(dim=axis) for axis in range(3)]
    bad = torch.zeros(grid.shape, dtype=torch.bool, device=x.device)

    def at(edges: Tensor, axis: int, corner: tuple[int, ...]) -> Tensor:
        where = [slice(None) if a == axis else slice(corner[a], grid.shape[a] + corner[a]) for a in range(3)]
        return edges[tuple(where)]

    for corner in ((i, j, k) for i in range(2) for j in range(2) for k in range(2)):
        ex, ey, ez = (at(along[axis], axis, corner) for axis in range(3))
        bad |= (torch.linalg.cross(ex, ey) * ez).sum(-1) <= 0
    return bad.flatten().nonzero().squeeze(1)
