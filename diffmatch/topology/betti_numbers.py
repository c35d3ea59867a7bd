"""Betti numbers of a set in a grid, by counting, and whether a mesh has the topology of its field."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from diffmatch.errors import InputError, check_choice, check_floating, check_shape
from diffmatch.topology.cubical.persistence import Construction

__all__ = ["TopologyCertificate", "betti_numbers", "certify_topology"]


def betti_numbers(
    field: Float[Tensor, "*shape"], *, level: float = 0.0, construction: Construction = "V", superlevel: bool = False
) -> tuple[int, ...]:
    """Betti numbers of the set where a field lies below a level: pieces, tunnels, and, in a volume, cavities.

    Pieces are counted by labelling the set, cavities (in an image, holes) by labelling its complement, and tunnels
    follow from the Euler characteristic, which is a count of cells. This costs a fraction of the persistent homology,
    of which they are the bars with birth < level <= death. It has no gradient, and waits for the device.

    Args:
        field: values at pixels, shape (nx, ny) or (nx, ny, nz), floating point; what lies outside is not in the set. A
            value that equals the level is not in the set.
        level: a number, infinities included.
        construction: ``"V"``: pixels of the set are connected through faces, those of the complement through corners;
            ``"T"``: the other way around.
        superlevel: the set where the field lies above the level instead.

    Returns:
        (b0, b1) of an image, (b0, b1, b2) of a volume.

    Raises:
        InputError: the shape, dtype or construction is wrong, or the level or a value is NaN.
    """
    if not isinstance(field, Tensor) or field.ndim not in (2, 3):
        got = str(tuple(field.shape)) if isinstance(field, Tensor) else type(field).__name__
        raise InputError("field", "a tensor of shape (nx, ny) or (nx, ny, nz)", got)
    check_floating("field", field)
    check_choice("construction", construction, ("V", "T"))
    if math.isnan(level):
        raise InputError("level", "a number", "nan")
    n_nan = int(field.isnan().sum())
    if n_nan:
        raise InputError("field", "no NaN", f"{n_nan} of {field.numel()} entries NaN")
    return _count(field > level if superlevel else field < level, construction)


def _count(inside: Bool[Tensor, "*shape"], construction: str) -> tuple[int, ...]:
    through_faces = ndimage.generate_binary_structure(inside.ndim, 1)
    through_corners = ndimage.generate_binary_structure(inside.ndim, inside.ndim)
    near, far = (through_faces, through_corners) if construction == "V" else (through_corners, through_faces)
    array = inside.cpu().numpy()
    pieces = int(ndimage.label(array, near)[1])
    cavities = int(ndimage.label(np.pad(~array, 1, constant_values=True), far)[1]) - 1
    euler = euler_characteristic(inside, construction)
    return (pieces, cavities) if inside.ndim == 2 else (pieces, pieces + cavities - euler, cavities)


def euler_characteristic(inside: Bool[Tensor, "*shape"], construction: str) -> int:
    """Alternating sum of the numbers of cells with all corners in the set (V), or in the closure of one pixel (T)."""
    top_cells = construction == "T"
    cells = torch.nn.functional.pad(inside, (1, 1) * inside.ndim) if top_cells else inside
    total = 0
    for axes in itertools.product((False, True), repeat=inside.ndim):
        some = cells
        for axis in itertools.compress(range(inside.ndim), axes):
            size = some.shape[axis] - 1
            if size < 0:
                return 0
            first, second = some.narrow(axis, 0, size), some.narrow(axis, 1, size)
            some = first | second if top_cells else first & second
        dimension = inside.ndim - sum(axes) if top_cells else sum(axes)
        total += (-1) ** dimension * int(some.sum())
    return total


@dataclass(frozen=True)
class TopologyCertificate:
    """What the topology of a field below a level is, and whether a mesh of its surface has it.

    Attributes:
        betti: pieces, tunnels and cavities with the V-construction, whose vertices are the nodes of the grid.
        betti_top_cells: the same with the T-construction.
        ambiguous_faces: faces of grid cells with two opposite corners inside and the other two outside. The two
            constructions, and two mesh extractors, may differ there.
        ambiguous_cells: cells of which just two corners lie inside, or just two outside, and these are opposite.
        touches_border: whether the set reaches the border of the grid, where its surface may be open.
        mesh_euler: vertices - edges + faces of the mesh, if one was given.
        mesh_components: its connected components.
    """

    betti: tuple[int, int, int]
    betti_top_cells: tuple[int, int, int]
    ambiguous_faces: int
    ambiguous_cells: int
    touches_border: bool
    mesh_euler: int | None = None
    mesh_components: int | None = None

    @property
    def expected_euler(self) -> int:
        """Euler characteristic of a closed surface around the set: 2 (b0 - b1 + b2)."""
        pieces, tunnels, cavities = self.betti
        return 2 * (pieces - tunnels + cavities)

    @property
    def expected_components(self) -> int:
        """Components of a closed surface around the set: b0 + b2."""
        return self.betti[0] + self.betti[2]

    @property
    def holds(self) -> bool:
        """Whether a mesh was given, the set stays off the border, and both counts of the mesh are as expected."""
        found = self.mesh_euler, self.mesh_components
        return not self.touches_border and found == (self.expected_euler, self.expected_components)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the certificate, or makes it depend on conventions, a sentence each."""
        sentences = []
        if self.touches_border:
            sentences.append("the set reaches the border of the grid, where its surface may be open")
        if self.betti != self.betti_top_cells:
            sentences.append(f"Betti numbers depend on the construction: V {self.betti}, T {self.betti_top_cells}")
        if self.ambiguous_faces or self.ambiguous_cells:
            counts = f"{self.ambiguous_faces} faces and {self.ambiguous_cells} cells"
            sentences.append(f"{counts} of the grid have ambiguous signs")
        for name, found, expected in (
            ("Euler characteristic", self.mesh_euler, self.expected_euler),
            ("number of components", self.mesh_components, self.expected_components),
        ):
            if found is not None and found != expected:
                sentences.append(f"the mesh has {name} {found}, the field asks for {expected}")
        return tuple(sentences)


def certify_topology(
    field: Float[Tensor, "nx ny nz"], faces: Int[Tensor, "f 3"] | None = None, *, level: float = 0.0
) -> TopologyCertificate:
    """Compare the topology of a field with that of a mesh extracted from it.

    A closed surface around a set with Betti numbers (b0, b1, b2) has b0 + b2 components, Euler characteristic
    2 (b0 - b1 + b2) and genera that add up to b1. Where no face and no cell of the grid is ambiguous, a surface that
    crosses the grid edges with a change of sign, and no others, has to have these; elsewhere the answer depends on the
    extractor, and only the counts of the mesh tell.

    Args:
        field: values at the nodes of a grid, shape (nx, ny, nz); the solid is where they lie below the level.
        faces: triangles of the mesh, shape (f, 3), vertices shared between them. None: the field alone.
        level: of the surface.

    Raises:
        InputError: as in :func:`betti_numbers`; `faces` has another shape.
    """
    check_shape("field", field, ("nx", "ny", "nz"))
    betti = betti_numbers(field, level=level)
    inside = field < level
    border = [inside.select(axis, end) for axis in range(3) for end in (0, -1) if inside.shape[axis]]
    mesh_euler, mesh_components = (None, None) if faces is None else _mesh_counts(faces)
    b0, b1, b2 = betti
    t0, t1, t2 = _count(inside, "T")
    return TopologyCertificate(
        betti=(b0, b1, b2),
        betti_top_cells=(t0, t1, t2),
        ambiguous_faces=_ambiguous_faces(inside),
        ambiguous_cells=_ambiguous_cells(inside),
        touches_border=any(bool(side.any()) for side in border),
        mesh_euler=mesh_euler,
        mesh_components=mesh_components,
    )


def _ambiguous_faces(inside: Bool[Tensor, "nx ny nz"]) -> int:
    total = 0
    for axis in range(3):
        a, b, c, d = _corners(inside.movedim(axis, 0), 2)
        total += int(((a == d) & (b == c) & (a != b)).sum())
    return total


def _ambiguous_cells(inside: Bool[Tensor, "nx ny nz"]) -> int:
    corners = torch.stack(_corners(inside, 3))
    count = corners.sum(dim=0)
    opposite = torch.stack([corners[i] == corners[7 - i] for i in range(4)]).all(dim=0)
    return int((opposite & ((count == 2) | (count == 6))).sum())


def _corners(inside: Bool[Tensor, "nx ny nz"], n_axes: int) -> list[Tensor]:
    """Views of the corners of all cells that span the last axes; opposite ones stand opposite in the list."""
    corners = [inside]
    for axis in range(3 - n_axes, 3):
        size = max(inside.shape[axis] - 1, 0)
        corners = [x.narrow(axis, min(at, x.shape[axis] - size), size) for x in corners for at in (0, 1)]
    return corners


def _mesh_counts(faces: Int[Tensor, "f 3"]) -> tuple[int, int]:
    """Euler characteristic and number of components of the vertices that occur in faces."""
    check_shape("faces", faces, ("f", 3))
    array = faces.detach().cpu().numpy().astype(np.int64)
    used, array = np.unique(array, return_inverse=True)
    array = array.reshape(-1, 3)
    sides = np.sort(np.concatenate((array[:, :2], array[:, 1:], array[:, ::2])), axis=1)
    n_edges = len(np.unique(sides[:, 0] * len(used) + sides[:, 1]))
    graph = coo_array((np.ones(len(sides), np.int8), (sides[:, 0], sides[:, 1])), shape=(len(used), len(used)))
    components = int(connected_components(graph, directed=False)[0]) if len(used) else 0
    return len(used) - n_edges + len(array), components
