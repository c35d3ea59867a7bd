"""FlexiCubes: a differentiable mesh from a scalar field (Shen et al., ACM TOG 42(4), 2023)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from diffmatch.errors import InputError, check_choice, check_floating, check_same_device, check_shape
from diffmatch.meshing import kernels
from diffmatch.meshing.connectivity import Connectivity, connect
from diffmatch.meshing.dual_surface import at_nodes, dual_surface, quad_weights
from diffmatch.meshing.grid import Grid
from diffmatch.meshing.mesh import Mesh
from diffmatch.meshing.weights import WEIGHT_SCALE, split_weight, weights_of_cells

__all__ = ["FlexiMesh", "flexicubes"]


@dataclass(frozen=True, eq=False, kw_only=True)
class FlexiMesh(Mesh):
    """A mesh extracted by :func:`flexicubes`, with what it was made of.

    The meshes of a batch are packed into one: dual vertices and quads of an item follow those of the item before,
    quad centres (``training=True``) stand behind all dual vertices, and faces index the packed vertices.

    Attributes:
        grid: the grid of the cells below: the caller's, or that grid with one more layer around it where
            ``boundary="close"`` had something to close.
        quads: dual vertices of each quad, counter-clockwise seen from outside, shape (q, 4), int64.
        quad_edge: grid edge ``3 * node + axis`` that each quad stands for, shape (q,), int64.
        vertex_cell: cell that holds each dual vertex, shape (dual,), int64; ``b * grid.n_cells`` higher for item b.
        deviation: sum over the crossing points of a dual vertex of how far their distance to it deviates from the
            mean distance, shape (dual,).
        connectivity: which cells and edges the surface crosses; serves again while no sign changes. The meshes made
            with it share its tensors: quads and, with ``training=True``, faces.
        n_crossings: crossing points of all dual vertices together, shape ().
        vertex_offsets: first dual vertex of each item, and the number of all, shape (b + 1,), int64.
        quad_offsets: likewise for the quads.
    """

    grid: Grid
    quads: Int64[Tensor, "q 4"]
    quad_edge: Int64[Tensor, " q"]
    vertex_cell: Int64[Tensor, " dual"]
    deviation: Float[Tensor, " dual"]
    connectivity: Connectivity
    n_crossings: Int64[Tensor, ""]
    vertex_offsets: Int64[Tensor, " b1"]
    quad_offsets: Int64[Tensor, " b1"]

    @property
    def l_dev(self) -> Float[Tensor, ""]:
        """Deviation regulariser: the mean over all crossing points, 0 for an empty mesh (Shen et al. 2023, eq. 8)."""
        return self.deviation.sum() / self.n_crossings.clamp_min(1)

    def unpack(self) -> list[Mesh]:
        """The meshes of a batch, one by one; waits for the device."""
        n_dual, per_quad = len(self.deviation), len(self.faces) // max(len(self.quads), 1)
        has_centres = len(self.vertices) > n_dual
        vertex, quad = self.vertex_offsets.tolist(), self.quad_offsets.tolist()
        meshes = []
        for b in range(len(vertex) - 1):
            v0, v1, q0, q1 = vertex[b], vertex[b + 1], quad[b], quad[b + 1]
            faces = self.faces[per_quad * q0 : per_quad * q1]
            # Dual vertices of this item begin at 0; its centres, if any, follow them.
            faces = torch.where(faces < n_dual, faces - v0, faces - n_dual - q0 + v1 - v0)

            def part(rows: Tensor, v0: int = v0, v1: int = v1, q0: int = q0, q1: int = q1) -> Tensor:
                dual = rows[v0:v1]
                return torch.cat((dual, rows[n_dual + q0 : n_dual + q1])) if has_centres else dual

            attributes = None if self.vertex_attributes is None else part(self.vertex_attributes)
            meshes.append(Mesh(part(self.vertices), faces, vertex_attributes=attributes))
        return meshes


def flexicubes(
    grid: Grid,
    sdf: Float[Tensor, "*field"],
    *,
    positions: Float[Tensor, "*points 3"] | None = None,
    alpha: Float[Tensor, "*c_alpha 8"] | None = None,
    beta: Float[Tensor, "*c_beta 12"] | None = None,
    gamma: Float[Tensor, "*c_gamma"] | None = None,
    weight_cells: Int[Tensor, " w"] | None = None,
    attributes: Float[Tensor, "*n d"] | None = None,
    training: bool = False,
    boundary: str = "open",
    weight_scale: float = WEIGHT_SCALE,
    connectivity: Connectivity | None = None,
) -> FlexiMesh:
    """Extract the surface where a field changes sign; differentiable in field, positions, weights and attributes.

    A node is inside where ``sdf < 0``: exact zeros of either sign and NaN are outside. The mesh is edge-manifold and
    consistently oriented for every field, and closed inside the grid. Where an end of a crossing edge is infinite or
    NaN, the surface passes through the middle of the edge and no gradient flows to it. Which cells carry the surface
    is piecewise constant: a gradient says how the present surface moves, topology changes by steps.

    Args:
        grid: the cells.
        sdf: node values, shape (\\*b, nx + 1, ny + 1, nz + 1) or (\\*b, nodes); float32 or float64; half precision is
            computed, and returned, in float32.
        positions: node positions, shape (nodes, 3) or (\\*b, nodes, 3); default: the grid at rest. See
            :func:`~diffmatch.meshing.deform_nodes`.
        alpha: raw weights of the corners of each cell, shape (cells, 8) or (\\*b, cells, 8); they move the crossing
            points. Default: zeros, which are neutral, here and below.
        beta: raw weights of the edges of each cell, shape (cells, 12) or (\\*b, cells, 12); they move the vertex among
            the crossing points.
        gamma: raw weight of each cell, shape (cells,) or (\\*b, cells); decides how quads are split.
        weight_cells: cells that the rows of alpha, beta and gamma belong to, ascending, shape (w,); the weights then
            have the shapes (w, 8), (w, 12) and (w,), and other cells are neutral. A surface meets few of the cells:
            weights of those alone make gradients and optimizers as much cheaper. In a batch, the cells of item b are
            ``b * grid.n_cells`` higher.
        attributes: values at the nodes, shape (nodes, d) or (\\*b, nodes, d), interpolated like the positions.
        training: split each quad into four triangles around a centre whose position is differentiable in gamma;
            otherwise into two along the diagonal that gamma prefers.
        boundary: where the surface leaves the grid: "open" leaves a hole, "close" surrounds the field with one layer
            of outside nodes (cell size as their value), "error" raises.
        weight_scale: reach of the weights, in (0, 1).
        connectivity: of an earlier mesh of a field with the same signs at all nodes, which is not checked; saves
            looking for the surface. Field, positions and attributes may then be given at its ``nodes`` alone, shapes
            (m,), (m, 3) and (m, d), all three alike; gradients and optimizers are as much cheaper.

    Returns:
        The mesh; an empty one, attached to the graph, where nothing changes sign. Waits for the device for the
        numbers of cells, their nodes, vertices and quads, and for one flag where ``boundary`` is not "open".

    Raises:
        InputError: a shape, dtype or device does not fit; or the surface reaches the boundary under "error".
    """
    at_surface = connectivity is not None and isinstance(sdf, Tensor) and sdf.shape == connectivity.nodes.shape
    batch = _check(grid, sdf, boundary, weight_scale, at_surface)
    dtype = torch.float64 if sdf.dtype == torch.float64 else torch.float32
    n, c = grid.n_nodes, grid.n_cells
    node_batch = batch
    if connectivity is not None and at_surface:
        n, batch = len(connectivity.nodes), () if connectivity.n_items == 1 else (connectivity.n_items,)
    b = math.prod(batch)

    def listed(name: str, value: Tensor | None, *shape: int) -> Tensor | None:
        """Without batch axes."""
        if value is None:
            return None
        check_shape(name, value, shape)
        check_floating(name, value)
        check_same_device(name, value, sdf.device)
        return value.to(dtype)

    def folded(name: str, value: Tensor | None, *shape: int, batch: tuple[int, ...] = batch) -> Tensor | None:
        """Batch axes folded into the first axis, shared values repeated."""
        if value is None:
            return None
        if not isinstance(value, Tensor):
            raise InputError(name, "a tensor", type(value).__name__)
        check_floating(name, value)
        check_same_device(name, value, sdf.device)
        if tuple(value.shape) not in (shape, (*batch, *shape)):
            wanted = f"shape {shape}" + (f" or {(*batch, *shape)}" if batch else "")
            raise InputError(name, wanted, str(tuple(value.shape)))
        return value.to(dtype).expand(*batch, *shape).reshape(math.prod(batch) * shape[0], *shape[1:])

    field = sdf.to(dtype)
    if positions is None:
        positions = grid.nodes(dtype=dtype, device=sdf.device)
        if connectivity is not None and at_surface:
            positions = positions.index_select(0, connectivity.nodes % grid.n_nodes)
    payload = folded("positions", positions, n, 3, batch=node_batch)
    assert payload is not None
    if attributes is not None:
        check_shape("attributes", attributes, (n, "d"), batch=True)
        extra = folded("attributes", attributes, n, attributes.shape[-1], batch=node_batch)
        payload = torch.cat((payload, extra), 1) if extra is not None else payload
    if weight_cells is None:
        weights = [folded("alpha", alpha, c, 8), folded("beta", beta, c, 12), folded("gamma", gamma, c)]
    else:
        check_shape("weight_cells", weight_cells, ("w",))
        check_same_device("weight_cells", weight_cells, sdf.device)
        weights = [
            listed("alpha", alpha, len(weight_cells), 8),
            listed("beta", beta, len(weight_cells), 12),
            listed("gamma", gamma, len(weight_cells)),
        ]

    if not at_surface:
        field = field.reshape(b, *grid.node_shape)
        if boundary != "open" and _reaches_boundary(field):
            if boundary == "error":
                raise InputError("sdf", "a surface that stays inside the grid", "inside nodes on the boundary")
            if weight_cells is None:
                weights = [None if w is None else _pad_cells(grid, w, b) for w in weights]
            else:
                weight_cells = _renumber(grid, weight_cells)
            grid, field, payload = _closed(grid, field, payload)
    if connectivity is None:
        connectivity = kernels.connect(field) if field.device.type == "cpu" else connect(field)
    elif (connectivity.shape, connectivity.n_items) != (grid.shape, b):
        wanted = f"that of {b} grids of {grid.shape} cells" if batch else f"that of a grid of {grid.shape} cells"
        raise InputError("connectivity", wanted, f"{connectivity.n_items} of {connectivity.shape}")
    if not at_surface:
        field, payload = at_nodes(connectivity, field.flatten(), payload, compiled=field.device.type == "cpu")
    rows = weights_of_cells(weights, connectivity.cell, weight_cells)
    return _extract(grid, field, payload, connectivity, rows, attributes is not None, training, weight_scale)


def _check(grid: Grid, sdf: Tensor, boundary: str, weight_scale: float, at_surface: bool) -> tuple[int, ...]:
    """Check the arguments that stand alone; returns the batch axes of the field, none if it is given at the surface."""
    check_choice("boundary", boundary, ("open", "close", "error"))
    if not 0 < weight_scale < 1:
        raise InputError("weight_scale", "a number in (0, 1)", repr(weight_scale))
    if not isinstance(sdf, Tensor):
        raise InputError("sdf", "a tensor", type(sdf).__name__)
    check_floating("sdf", sdf)
    if at_surface:
        if boundary != "open":
            raise InputError("boundary", "open, where the field is given at the nodes of the surface alone", boundary)
        return ()
    shape = tuple(sdf.shape)
    for tail in (grid.node_shape, (grid.n_nodes,)):
        if shape[len(shape) - len(tail) :] == tail and len(shape) >= len(tail):
            batch = shape[: len(shape) - len(tail)]
            if 3 * grid.n_nodes * math.prod(batch) >= 2**31:
                raise InputError("sdf", f"at most {2**31 // 3:,} nodes in a batch", f"{sdf.numel():,}")
            return batch
    raise InputError("sdf", f"shape (*b, {', '.join(map(str, grid.node_shape))}) or (*b, {grid.n_nodes})", str(shape))


def _reaches_boundary(field: Tensor) -> bool:
    sides = [(field.select(axis, end) < 0).any() for axis in (1, 2, 3) for end in (0, -1)]
    return bool(torch.stack(sides).any())


def _closed(grid: Grid, field: Tensor, payload: Tensor) -> tuple[Grid, Tensor, Tensor]:
    """The nodes with one more layer on each side: outside values, the lattice going on."""
    b = len(field)
    outer = grid.padded()
    rest = outer.nodes(dtype=field.dtype, device=field.device).repeat(b, 1)
    # Payload columns beyond the positions are continued by their boundary values; moved nodes move the layer along.
    lattice = grid.nodes(dtype=field.dtype, device=field.device).repeat(b, 1)
    moved = torch.cat((payload[:, :3] - lattice, payload[:, 3:]), 1)
    moved = _pad(moved.reshape(b, *grid.node_shape, -1), "replicate")
    payload = torch.cat((moved[:, :3] + rest, moved[:, 3:]), 1)
    return outer, torch.nn.functional.pad(field, (1,) * 6, value=max(grid.spacing)), payload


def _pad_cells(grid: Grid, weight: Tensor, b: int) -> Tensor:
    """Weights of all cells with a layer of neutral ones around."""
    padded = _pad(weight.reshape(b, *grid.shape, -1), "constant")
    return padded.squeeze(1) if weight.ndim == 1 else padded


def _pad(boxed: Tensor, mode: str) -> Tensor:
    """Rows (b, x, y, z, d) with one more layer on each side of the box, flattened to (rows, d)."""
    return torch.nn.functional.pad(boxed.movedim(-1, 1), (1,) * 6, mode=mode).movedim(1, -1).flatten(0, 3)


def _renumber(grid: Grid, cell: Tensor) -> Tensor:
    """Numbers that cells of a batch have in the grid with one more layer on each side."""
    i, j, k = (grid.cell_index(cell % grid.n_cells) + 1).unbind(-1)
    _, ny, nz = outer = grid.padded().shape
    return cell // grid.n_cells * math.prod(outer) + (i * ny + j) * nz + k


def _extract(
    grid: Grid,
    field: Tensor,
    payload: Tensor,
    connectivity: Connectivity,
    weights: list[Tensor | None],
    has_attributes: bool,
    training: bool,
    weight_scale: float,
) -> FlexiMesh:
    """The mesh of values and raw weights at the surface."""
    gamma = weights[2]
    points, deviation = dual_surface(
        connectivity,
        field,
        payload,
        *weights,
        scale=weight_scale,
        centres=training,
        compiled=field.device.type == "cpu",
    )
    if training:
        faces = connectivity.fan
    else:
        faces = _split(connectivity, None if gamma is None else split_weight(gamma.detach(), weight_scale))
    return FlexiMesh(
        points[:, :3] if has_attributes else points,
        faces,
        vertex_attributes=points[:, 3:] if has_attributes else None,
        grid=grid,
        quads=connectivity.quads,
        quad_edge=connectivity.quad_edge,
        vertex_cell=connectivity.vertex_cell,
        deviation=deviation,
        connectivity=connectivity,
        n_crossings=connectivity.n_crossings,
        vertex_offsets=connectivity.vertex_offsets,
        quad_offsets=connectivity.quad_offsets,
    )


def _split(connectivity: Connectivity, split_weights: Tensor | None) -> Tensor:
    """Two triangles a quad, along the diagonal whose ends have the larger product of split weights; ties along 1-3."""
    quads = connectivity.quads
    if split_weights is not None:
        g = quad_weights(connectivity, split_weights, split_weights)
        along_02 = g[:, 0] * g[:, 2] > g[:, 1] * g[:, 3]
        # Turning the quad by one corner makes one split into the other.
        quads = torch.where(along_02[:, None], quads.roll(1, 1), quads)
    return quads[:, [0, 1, 3, 1, 2, 3]].reshape(-1, 3)
