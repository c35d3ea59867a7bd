"""From a target to a mesh: FlexiCubes fitted by gradients."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_positive, check_shape
from diffmatch.fitting import fit
from diffmatch.history import FitState, History
from diffmatch.meshing.dual_contouring import dual_contouring
from diffmatch.meshing.grid import Grid
from diffmatch.meshing.mesh import Mesh
from diffmatch.meshing.metrics import MeshMetrics, mesh_metrics, mesh_validity, self_intersecting_faces
from diffmatch.meshing.parameters import FAR, FlexiParameters
from diffmatch.meshing.quad_cuts import QuadCuts
from diffmatch.meshing.regularizers import edge_length_deviation, normal_consistency
from diffmatch.meshing.sampling import near_distances
from diffmatch.meshing.sign_repair import with_topology, without_small_pieces
from diffmatch.meshing.signs import walled, without_specks
from diffmatch.meshing.surface_error import one_point_a_face, surface_errors
from diffmatch.meshing.targets import Attributed, MeshTarget, Target, load_target
from diffmatch.optim.registry import optimizer_spec

__all__ = ["MeshFit", "fit_mesh"]

_STEPS = 400
_FIRST = 0.1
"""Share of the steps that aim at the vertices of dual contouring."""
_PLANAR = 0.15
"""Regularisation of dual contouring: more makes better triangles, less sharper edges."""
_DEVIATION = 1e-4
"""Weight of L_dev, in cells, beside mean squared distances, in cells: more holds the vertices back."""
_NORMALS, _TOLERANCE = 1 / 3, 0.003
"""Weight of the normals, and the squared difference, (3 degrees)^2, from which on one counts as wrong, not as inexact.

A triangle that spans an edge or a tight curve is not asked to compromise: it may be right on most of its area and wrong
on the rest, rather than wrong everywhere.
"""
_RATES = {
    **dict.fromkeys(("adam", "adamw", "nadam", "radam", "adamax", "adam8bit", "adamw8bit", "adam-uniform"), 0.2),
    **dict.fromkeys(("dct-adamw", "exadam"), 0.2),
    **dict.fromkeys(("lion", "lion8bit", "sophia-g", "sophia-h"), 0.06),
}
"""Learning rates, in cells, of methods whose steps do not depend on the scale of gradients: smaller where nearly every
entry moves by the whole rate in each step, which folds triangles."""
_UNFOLDINGS, _KEPT = 12, 0.8
"""Rounds in which cells of triangles that intersect others are relaxed, and the part of their parameters that stays."""
_HELD_BYTES, _FREE_BYTES = 150, 500
"""Memory of a fit, a cell: nodes and field; with free signs also gradients, moments and a copy of all parameters."""


@dataclass(frozen=True, eq=False)
class MeshFit:
    """What :func:`fit_mesh` made.

    Attributes:
        mesh: the fitted mesh, in the target's own coordinates.
        metrics: its measures against ``target_mesh``.
        history: how the fit went.
        target_mesh: the target, or unless it is a mesh, one of it by dual contouring on a finer grid.
        settings: what the fit was run with.
    """

    mesh: Mesh
    metrics: MeshMetrics
    history: History
    target_mesh: Mesh
    settings: dict[str, Any]


def fit_mesh(
    target: Any,
    *,
    resolution: int | tuple[int, int, int] = 64,
    steps: int | None = None,
    optimizer: str | None = None,
    lr: float | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    edge_length: float = 0.0,
    normal_consistency: float = 0.0,
    field_losses: Sequence[Callable[[Float[Tensor, "x y z"]], Tensor]] = (),
    edit_field: Callable[[Float[Tensor, "x y z"]], Float[Tensor, "x y z"]] | None = None,
    keep_signs: bool | None = None,
    smallest_part: int = 8,
    attributes: bool = True,
    level: float | None = None,
    dtype: torch.dtype = torch.float32,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = True,
    callbacks: Sequence[Callable[[FitState], object]] = (),
) -> MeshFit:
    """Fit a clean, watertight mesh to a target.

    The target is brought into a box of longest side 1.8 inside [-1, 1]^3 and its signed distance sampled at the nodes
    of a grid. From there field, node positions and cell weights of FlexiCubes are fitted: first so that the vertices
    of the extracted mesh take the places that dual contouring finds for them, with sharp edges; then so that points
    drawn on the faces come to lie on the target, with the normals that it has there (:mod:`.surface_error`, plus a
    small multiple of L_dev). Each quad is cut along the diagonal that brings it nearer. At the end, moves and weights
    of cells whose triangles intersect others are made smaller, until none do or after twelve rounds. The mesh is that
    of the last extraction, without any projection or remeshing.

    Args:
        target: path of a file with a mesh, points or a volume, ``"module:name"`` of a field, a mesh, a point cloud, a
            volume, or a callable that maps points (n, 3) to values (n,), negative inside. See
            :func:`~diffmatch.meshing.targets.load_target`.
        resolution: cells of the grid along each side of [-1, 1]^3.
        steps: steps of the fit; default 400.
        optimizer: a name of :func:`diffmatch.optim.optimizer_names`; default "adam".
        lr: learning rate; all parameters are in units of a cell. Default: .2 for methods of Adam's kind, .06 for
            Lion and Sophia, otherwise the optimizer's own.
        device: where field and weights live. Distances to meshes are computed on the CPU.
        seed: of the points drawn on the faces.
        edge_length: weight of :func:`~diffmatch.meshing.edge_length_deviation`, in cells, beside the mean squared
            distances in cells: triangles of one size, at the cost of distance. From .01 to .1 is a sensible range.
        normal_consistency: weight of :func:`~diffmatch.meshing.normal_consistency`: a surface without ripples, at the
            cost of sharp edges. From .01 to .1 is a sensible range.
        field_losses: further terms, functions of the field at the nodes, shape (nx + 1, ny + 1, nz + 1), in units of
            length.
        edit_field: what to make of the samples of the target before the fit, such as to change their topology; a
            function from and to values at the nodes, in units of length, which leaves the border of the grid outside.
            Cells next to a node whose sign it changes have no part in the distances to the target.
        keep_signs: hold the sign of the field at every node, and with it the topology that the samples of the target
            have on this grid. Default: True, unless there are ``field_losses``.
        smallest_part: bodies and cavities of fewer nodes are left out, with a warning in the log: at that size they
            are mostly traces of overlapping triangles or noise. The largest body always stays.
        attributes: give the mesh the vertex attributes, such as colours, that the target has at the nearest points.
        level: of the file of a scan: its surface is where the values are this, and larger inside; see
            :func:`~diffmatch.meshing.read_volume`.
        dtype: of field and weights, float32 or float64.
        checkpoint: file to keep the state in; see :func:`diffmatch.fit`.
        resume: go on from the checkpoint if there is one.
        progress: show a bar on a terminal.
        callbacks: called with a :class:`~diffmatch.history.FitState` after each step.

    Raises:
        InputError: the target cannot be read or bounds no solid, its field does not change sign on the grid, the grid
            is too large for the memory, the edited field has another shape or no sign change, or a setting is unknown.
    """
    device = torch.device(device)
    hold = not field_losses if keep_signs is None else keep_signs
    grid = _grid(resolution, device, _HELD_BYTES if hold else _FREE_BYTES)
    steps, optimizer = _STEPS if steps is None else steps, optimizer or "adam"
    if steps < 1:
        raise InputError("steps", "a whole number of at least 1", repr(steps))
    optimizer_spec(optimizer)
    check_positive("edge_length", edge_length, allow_zero=True)
    check_positive("normal_consistency", normal_consistency, allow_zero=True)
    if dtype not in (torch.float32, torch.float64):
        raise InputError("dtype", "torch.float32 or torch.float64", repr(dtype))
    aim = load_target(target, level=level)
    if isinstance(aim, MeshTarget) and aim.closed and edit_field is None:
        start = near_distances(grid, aim.sdf, reach=FAR * max(grid.spacing), device=device).to(dtype)
    else:
        start = aim.sdf(grid.nodes(dtype=torch.float64, device=device)).to(dtype)
    inside = start < 0
    if not bool(inside.any()) or bool(inside.all()):
        raise InputError(
            "target",
            "a field that changes sign on the grid (a finer resolution finds thinner parts)",
            f"only {'negative' if bool(inside.any()) else 'positive'} values at {grid.n_nodes:,} nodes",
        )
    start = without_specks(grid, walled(grid, start), smallest=smallest_part)
    start = without_small_pieces(grid, start, smallest=smallest_part)
    if hold and edit_field is None and isinstance(aim, MeshTarget) and aim.whole:
        wanted_topology = mesh_validity(aim.mesh)
        start = with_topology(
            grid,
            start,
            euler_characteristic=wanted_topology.euler_characteristic,
            bodies=wanted_topology.bodies,
        )
    start, edited = _edited(grid, start, edit_field)
    shape = FlexiParameters(grid, start, hold=hold)
    if lr is None:
        lr = _RATES.get(optimizer, optimizer_spec(optimizer).lr)
    settings: dict[str, Any] = {
        "resolution": list(grid.shape),
        "steps": steps,
        "optimizer": optimizer,
        "lr": lr,
        "seed": seed,
        "keep_signs": shape.hold,
        "edge_length": edge_length,
        "normal_consistency": normal_consistency,
        "smallest_part": smallest_part,
        "dtype": str(dtype).removeprefix("torch."),
    }
    generator = torch.Generator().manual_seed(seed)
    features = dual_contouring(grid, start, aim.value_and_gradient, regularization=_PLANAR) if shape.hold else None
    counted = partial(_counted, grid, edited)
    cuts = QuadCuts(aim, counted, cell=shape.cell)
    history = fit(
        shape.tensors,
        _loss(
            shape,
            aim,
            cuts,
            None if features is None else features.vertices,
            int(_FIRST * steps),
            _shape_terms(edge_length, normal_consistency, shape.cell),
            field_losses,
            counted,
            generator,
        ),
        optimizer=optimizer,
        lr=lr,
        optimizer_options={"betas": (0.9, 0.99), "fused": True} if optimizer in ("adam", "adamw") else None,
        steps=steps,
        schedule="cosine",
        warmup=min(10, steps // 2),
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
        callbacks=callbacks,
        generators=[generator],
        state={"cuts": cuts},
        fingerprint={**settings, "target": hashlib.sha256(start.cpu().numpy().tobytes()).hexdigest()},
    )
    made = _unfolded(shape, cuts)
    carried = aim.attributes_at(made.vertices) if attributes and isinstance(aim, Attributed) else None
    placed = aim.normalization.inverse(made.vertices.double())
    mesh = Mesh(placed, made.faces, vertex_attributes=carried).to("cpu")
    wanted = _target_mesh(aim, grid)
    return MeshFit(mesh, mesh_metrics(mesh, wanted, seed=seed), history, wanted, settings)


def _grid(resolution: int | tuple[int, int, int], device: torch.device, bytes_per_cell: int) -> Grid:
    """The grid, if a fit on it fits into memory."""
    cells = tuple(resolution) if isinstance(resolution, (tuple, list)) else (resolution,) * 3
    if len(cells) != 3 or not all(isinstance(n, int) and n >= 1 for n in cells):
        raise InputError("resolution", "one or three whole numbers of at least 1", repr(resolution))
    needed = bytes_per_cell * cells[0] * cells[1] * cells[2]
    memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _physical_memory()
    if needed > 0.8 * memory:
        raise InputError(
            "resolution",
            f"a fit that takes at most {0.8 * memory / 2**30:.1f} GiB",
            f"{needed / 2**30:.1f} GiB: {cells}",
        )
    return Grid.box(cells, low=(-1.0,) * 3, high=(1.0,) * 3)


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system: assume a common size
        return 16 * 2**30


def _loss(
    shape: FlexiParameters,
    target: Target,
    cuts: QuadCuts,
    features: Float[Tensor, "v 3"] | None,
    n_first: int,
    shape_terms: dict[str, Callable[[Mesh], Tensor]],
    field_losses: Sequence[Callable[[Tensor], Tensor]],
    counted: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> Callable[[int], dict[str, Tensor]]:
    """The loss of a step: the first ``n_first`` aim at ``features``, which is cheap; the others at the target.

    While signs are held, the mesh is that of the result, two triangles a quad; otherwise quads come and go, and are
    fanned around centres. Points that are not ``counted`` have no part in it.
    """
    first = None if features is None else counted(features)

    def loss(step: int) -> dict[str, Tensor]:
        made, field = shape.extract(training=not shape.hold)
        mesh = cuts.at(step, made) if shape.hold else made
        terms = {"deviation": _DEVIATION / shape.cell * made.l_dev}
        if features is not None and first is not None and step < n_first:
            moves = ((mesh.vertices - features) / shape.cell).square().sum(1)
            terms["start"] = _mean(moves, first)
            terms["distance"] = terms["normals"] = mesh.vertices.new_zeros(())
        else:
            points = one_point_a_face(mesh, generator)
            distance, turn = surface_errors(target, points, mesh.face_normals, cell=shape.cell)
            weights = mesh.face_areas.detach() * counted(points)
            terms["start"] = mesh.vertices.new_zeros(())
            wrong = _TOLERANCE * torch.log1p(turn / _TOLERANCE)  # a Cauchy loss
            terms["distance"], terms["normals"] = _mean(distance, weights), _NORMALS * _mean(wrong, weights)
        terms |= {name: term(mesh) for name, term in shape_terms.items()}
        for i, term in enumerate(field_losses):
            terms[f"field {i}" if len(field_losses) > 1 else "field"] = term(field)
        return terms

    return loss


@torch.no_grad()
def _unfolded(shape: FlexiParameters, cuts: QuadCuts) -> Mesh:
    """The mesh of the result: that of the last extraction, after cells whose triangles cut others were relaxed.

    On parts thinner than a cell, vertices of both sides can change places. Nothing but the parameters is changed.
    """
    for left in reversed(range(_UNFOLDINGS + 1)):
        mesh = shape.extract(training=False)[0]
        made = cuts.choose(mesh)
        folded = self_intersecting_faces(made)
        # Where free signs took the surface out of the grid, its cells are those of a larger one.
        if len(folded) == 0 or left == 0 or mesh.connectivity.shape != shape.grid.shape:
            break
        vertices = torch.zeros(len(made.vertices), dtype=torch.bool, device=made.vertices.device)
        vertices[made.faces[torch.from_numpy(folded).to(made.faces.device)]] = True
        shape.relax(mesh, vertices, keep=_KEPT)
    return made


def _mean(values: Float[Tensor, " n"], weights: Tensor) -> Float[Tensor, ""]:
    """Weighted mean; 0 where nothing counts."""
    return (values * weights).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)


def _shape_terms(edge_length: float, consistency: float, cell: float) -> dict[str, Callable[[Mesh], Tensor]]:
    """Terms of the loss that see the mesh alone, those with a weight."""
    terms: dict[str, Callable[[Mesh], Tensor]] = {}
    if edge_length > 0:
        terms["edge length"] = lambda mesh: edge_length / cell * edge_length_deviation(mesh)
    if consistency > 0:
        terms["consistency"] = lambda mesh: consistency * normal_consistency(mesh)
    return terms


def _edited(
    grid: Grid, start: Float[Tensor, " nodes"], edit: Callable[[Tensor], Tensor] | None
) -> tuple[Float[Tensor, " nodes"], Bool[Tensor, " cells"] | None]:
    """The field after an edit, and the cells near which a node has changed sides: surface and nodes move by a cell."""
    if edit is None:
        return start, None
    field = edit(start.reshape(grid.node_shape)).detach().to(start)
    check_shape("edit_field", field, grid.node_shape)
    check_finite("edit_field", field)
    field = walled(grid, field.flatten())
    if not bool((field < 0).any()):
        raise InputError("edit_field", "a field that is negative somewhere inside the grid", "none")
    changed = ((field < 0) != (start < 0)).reshape(grid.node_shape).to(start)
    return field, torch.nn.functional.max_pool3d(changed[None], 4, stride=1, padding=1).flatten() > 0


def _counted(grid: Grid, edited: Bool[Tensor, " cells"] | None, points: Float[Tensor, "p 3"]) -> Bool[Tensor, " p"]:
    """The points outside of edited cells."""
    if edited is None:
        return torch.ones(len(points), dtype=torch.bool, device=points.device)
    scale, shape = points.new_tensor(grid.spacing), torch.tensor(grid.shape, device=points.device)
    at = ((points.detach() - points.new_tensor(grid.origin)) / scale).long()
    i, j, k = at.clamp(min=torch.zeros_like(shape), max=shape - 1).unbind(1)
    return ~edited[(i * grid.shape[1] + j) * grid.shape[2] + k]


def _target_mesh(target: Target, grid: Grid) -> Mesh:
    """The target as a mesh in its own coordinates."""
    if isinstance(target, MeshTarget):
        mesh = target.surface
    else:
        nx, ny, nz = (min(4 * n, max(2 * n, 128)) for n in grid.shape)
        fine = Grid.box((nx, ny, nz), low=(-1.0,) * 3, high=(1.0,) * 3)
        mesh = dual_contouring(fine, target.sdf(fine.nodes(dtype=torch.float64)), target.value_and_gradient)
    return Mesh(target.normalization.inverse(mesh.vertices.double()), mesh.faces)
