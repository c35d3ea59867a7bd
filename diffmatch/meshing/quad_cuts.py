"""The diagonals of the quads: along which of the two a surface is nearer to its target."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffmatch.meshing.flexicubes import FlexiMesh
from diffmatch.meshing.mesh import Mesh
from diffmatch.meshing.surface_error import surface_errors
from diffmatch.meshing.targets import Target

__all__ = ["QuadCuts", "cut_quads", "nearer_diagonals"]

_EVERY = 20
"""Steps of a fit between two choices."""
_PROBES = ((1 / 3, 1 / 3, 1 / 3), (2 / 3, 1 / 6, 1 / 6), (1 / 6, 2 / 3, 1 / 6), (1 / 6, 1 / 6, 2 / 3))
"""Barycentrics at which a triangle is compared with the target."""


class QuadCuts:
    """The diagonals of a fit whose connectivity stays: chosen anew every few steps, and so a part of its state.

    Args:
        target: what the surface is to be near to.
        counted: tells of points, shape (n, 3), whether the target has a say there; elsewhere quads are cut from corner
            1 to corner 3.
        cell: size of a cell, in units of length.
    """

    def __init__(self, target: Target, counted: Callable[[Tensor], Tensor], *, cell: float) -> None:
        self._target, self._counted, self._cell = target, counted, cell
        self._step = -1
        self._along_02 = torch.zeros(0, dtype=torch.bool)

    def choose(self, mesh: FlexiMesh) -> Mesh:
        """The dual vertices of a mesh, its quads cut along the diagonals that bring them nearest to the target."""
        vertices = mesh.vertices.detach()
        nearer = nearer_diagonals(self._target, vertices, mesh.quads, cell=self._cell)
        self._along_02 = nearer & self._counted(vertices[mesh.quads].mean(1))
        return Mesh(mesh.vertices, cut_quads(mesh.quads, self._along_02))

    def at(self, step: int, mesh: FlexiMesh) -> Mesh:
        """The same in a step of the fit, with the diagonals of the last choice; the steps start at 0."""
        if step % _EVERY == 0 and step != self._step:  # once, however often the optimizer evaluates this step
            self._step = step
            return self.choose(mesh)
        return Mesh(mesh.vertices, cut_quads(mesh.quads, self._along_02))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"step": self._step, "along_02": self._along_02}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._step, self._along_02 = state["step"], state["along_02"]


@torch.no_grad()
def nearer_diagonals(
    target: Target, vertices: Float[Tensor, "v 3"], quads: Int64[Tensor, "q 4"], *, cell: float
) -> Bool[Tensor, " q"]:
    """Which quads are nearer to a target, over their area, when they are cut from corner 0 to 2, and not from 1 to 3.

    Args:
        target: what places and normals are compared with, see :func:`~diffmatch.meshing.surface_error.surface_errors`.
        vertices: corners of the quads.
        quads: vertex indices.
        cell: size of a cell, in units of length.
    """
    both = torch.cat(
        [cut_quads(quads, torch.full((len(quads),), along, device=quads.device)) for along in (True, False)]
    )
    surface = Mesh(vertices, both)
    probes = torch.tensor(_PROBES, dtype=vertices.dtype, device=vertices.device)
    points = (probes @ surface.corners).reshape(-1, 3)
    normals = surface.face_normals.repeat_interleave(len(_PROBES), 0)
    distance, turn = surface_errors(target, points, normals, cell=cell)
    mean = (distance + turn).reshape(-1, len(_PROBES)).mean(1)
    along_02, along_13 = (mean * surface.face_areas).reshape(2, len(quads), 2).sum(2)
    nearer: Tensor = along_02 < along_13
    return nearer


def cut_quads(quads: Int64[Tensor, "q 4"], along_02: Bool[Tensor, " q"]) -> Int64[Tensor, "f 3"]:
    """Two triangles a quad, from corner 0 to corner 2 where that is said, else from corner 1 to corner 3."""
    # Turning the quad by one corner makes one cut into the other.
    turned = torch.where(along_02[:, None], quads.roll(1, 1), quads)
    return turned[:, [0, 1, 3, 1, 2, 3]].reshape(-1, 3)
