"""Persistence of alpha complexes of points in the plane and in space, differentiable in the points."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_floating, check_positive, check_shape
from diffmatch.topology.alpha_complex import AlphaComplex, alpha_complex
from diffmatch.topology.alpha_kernels import pair_columns
from diffmatch.topology.bars import simplex_diagram
from diffmatch.topology.diagram import Persistence
from diffmatch.topology.rips_kernels import merge_components

__all__ = ["alpha_persistence"]


def alpha_persistence(
    points: Float[Tensor, "n d"],
    *,
    degrees: Sequence[int] | None = None,
    squared: bool = True,
    min_persistence: float | int = 0.0,
) -> Persistence:
    """Persistent homology of the alpha complex of a point cloud: that of the union of balls around the points.

    A simplex of the Delaunay triangulation enters at the squared radius of its smallest empty circumsphere: of its own
    smallest circumsphere if no vertex of an adjacent simplex lies inside, else that of the first simplex that contains
    it. Births and deaths are recomputed from the points on that sphere (two to four of them), so they have gradients
    wherever the sphere depends smoothly on its points. Values are continuous where the triangulation flips.

    The triangulation (SciPy) and the pairing run on the CPU in double precision, whatever the device of the input. Flat
    simplices of points on one circle, as in regular grids, are given the value of that circle.

    Args:
        points: shape (n, 2) or (n, 3), finite. Of points that coincide one counts. Points on a line or a plane are
            treated in that line or plane, with no class of the degrees that do not exist there.
        degrees: which degrees to compute, below d; None for all of them.
        squared: births and deaths in squared radii; False for radii, in the unit of the points.
        min_persistence: only bars longer than this are returned, >= 0, in the unit of the values.

    Returns:
        The diagrams. ``birth_index`` and ``death_index`` have the points on the sphere that gives the value, shape
        (p, d + 1), filled up by -1. No points give empty diagrams, one point a component that is essential.

    Raises:
        InputError: wrong shapes, dtypes or degrees, NaN or inf.

    References:
        Edelsbrunner, Mücke 1994, "Three-dimensional alpha shapes"; degree d - 1 by duality, degree 1 in space by
        reduction of the triangles that no cavity needs (Chen, Kerber 2011, "Persistent homology computation with a
        twist").
    """
    check_shape("points", points, ("n", "d"))
    check_floating("points", points)
    check_finite("points", points)
    check_positive("min_persistence", min_persistence, allow_zero=True)
    d = points.shape[1]
    if d not in (2, 3):
        raise InputError("points", "shape (n, 2) or (n, 3)", str(tuple(points.shape)))
    wanted = tuple(sorted({int(k) for k in degrees})) if degrees is not None else tuple(range(d))
    if not wanted or wanted[0] < 0 or wanted[-1] >= d:
        raise InputError("degrees", f"degrees from 0 to {d - 1}, at least one", repr(degrees))
    found = _pairs(alpha_complex(points.detach().double().cpu().numpy()), wanted, d + 1)

    def values(spheres: Int[Tensor, "p c"]) -> Float[Tensor, " p"]:
        value = squared_circumradius(points.double(), spheres)
        if not squared:
            some = value > 0
            value = torch.where(some, torch.where(some, value, 1).sqrt(), 0)
        return value.to(points.dtype)

    diagrams = []
    for degree, spheres in found.items():
        birth, death, essential = (torch.from_numpy(x).to(points.device) for x in spheres)
        diagrams.append(
            simplex_diagram(
                degree,
                values(birth),
                values(death),
                birth,
                death,
                values(essential),
                essential,
                min_persistence=min_persistence,
            )
        )
    return Persistence(tuple(diagrams))


def squared_circumradius(points: Float[Tensor, "n d"], simplices: Int[Tensor, "p c"]) -> Float[Tensor, " p"]:
    """Squared radius of the smallest sphere through the vertices of simplices, differentiable in the points.

    Args:
        points: shape (n, d), d of 2 or 3.
        simplices: vertices, filled up by -1, shape (p, c); not degenerate.
    """
    size = (simplices >= 0).sum(1)
    value = points.new_zeros(len(simplices)) + points[:0].sum()  # part of the graph, even if all are points
    for k, formula in ((2, _edge), (3, _triangle), (4, _tetrahedron)):
        rows = (size == k).nonzero().squeeze(1)
        if len(rows):
            corners = points[simplices[rows, :k]]
            value = value.index_put((rows,), formula(corners[:, 1:] - corners[:, :1]))
    return value


def _edge(sides: Tensor) -> Tensor:
    return sides.square().sum((1, 2)) / 4


def _triangle(sides: Tensor) -> Tensor:
    """``a² b² c² / (16 area²)``."""
    u, v = sides.unbind(1)
    if u.shape[1] == 2:
        parallelogram = (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).square()
    else:
        parallelogram = torch.linalg.cross(u, v).square().sum(1)
    return u.square().sum(1) * v.square().sum(1) * (u - v).square().sum(1) / (4 * parallelogram)


def _tetrahedron(sides: Tensor) -> Tensor:
    """From the centre ``(|u|² v×w + |v|² w×u + |w|² u×v) / (2 u·(v×w))``, relative to the first corner."""
    u, v, w = sides.unbind(1)
    vw, wu, uv = torch.linalg.cross(v, w), torch.linalg.cross(w, u), torch.linalg.cross(u, v)
    uu, vv, ww = ((x * x).sum(1, keepdim=True) for x in (u, v, w))
    centre: Tensor = (uu * vw + vv * wu + ww * uv) / (2 * (u * vw).sum(1, keepdim=True))
    return centre.square().sum(1)


Spheres = tuple[np.ndarray, np.ndarray, np.ndarray]


def _pairs(complex_: AlphaComplex, degrees: tuple[int, ...], columns: int) -> dict[int, Spheres]:
    """The spheres that give birth, death and essential birth of all bars, by degree."""
    top = complex_.dimension
    none = np.full((0, columns), -1)
    found: dict[int, Spheres] = dict.fromkeys(degrees, (none, none, none))
    if not len(complex_.vertices):
        return found
    ages = np.arange(complex_.n_points)
    if top == 0:
        vertex = _points(complex_.vertices, columns)
        return found | ({0: (none, none, vertex)} if 0 in degrees else {})
    edges = complex_.faces(1)
    born, dies, essential = merge_components(edges.vertices[edges.order], ages)
    if 0 in degrees:
        essential = essential[np.isin(essential, complex_.vertices)]
        found[0] = (_points(born, columns), edges.spheres[edges.order[dies]], _points(essential, columns))
    if top == 1 or max(degrees) == 0:
        return found
    facets, cells = complex_.faces(top - 1), complex_.faces(top)
    # Dual graph: the cells and the outside, which is the oldest, joined through the facets in decreasing order.
    age = np.empty(len(cells.vertices) + 1, np.int64)
    age[cells.order] = len(cells.vertices) - np.arange(len(cells.vertices))
    age[-1] = 0
    killed, through, _ = merge_components(complex_.sides[facets.order[::-1]], age)
    born_at = len(facets.order) - 1 - through
    if top - 1 in degrees:
        found[top - 1] = (facets.spheres[facets.order[born_at]], cells.spheres[killed], none)
    if top == 3 and 1 in degrees:
        found[1] = (*_loops_in_space(complex_, dies, born_at), none)
    return found


def _loops_in_space(
    complex_: AlphaComplex, kills_component: np.ndarray, starts_cavity: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Degree 1 of a complex of tetrahedra: the triangles that start no cavity against the edges that join nothing."""
    edges, triangles = complex_.faces(1), complex_.faces(2)
    row = np.empty(len(edges.order), np.int64)
    row[edges.order] = np.arange(len(edges.order))
    row[edges.order[kills_component]] = -1
    left = np.ones(len(triangles.order), bool)
    left[starts_cavity] = False
    columns = triangles.order[left]
    pivots = pair_columns(row[complex_.triangle_edges[columns]], len(edges.order))
    return edges.spheres[edges.order[pivots]], triangles.spheres[columns]


def _points(vertices: np.ndarray, columns: int) -> np.ndarray:
    filled = np.full((len(vertices), columns), -1)
    filled[:, 0] = vertices
    return filled
