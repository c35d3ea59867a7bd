"""From the triangles of a file to a surface that bounds a solid: orientation, holes, hidden sheets.

Everything here is float64 numpy on the CPU, with libigl for winding numbers. The solid is where the generalised
winding number (Jacobson et al. 2013) exceeds one half.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from diffmatch.errors import InputError, require

__all__ = [
    "close_holes",
    "net_boundary",
    "oriented_solid",
    "separates",
    "signed_volume",
    "visible_triangles",
    "winding_number",
]

logger = logging.getLogger(__name__)

Winding = Callable[[np.ndarray], np.ndarray]  # points (n, 3) -> winding numbers (n,)

PROBE = 1e-5  # how far beside the surface its two sides are asked for, in a box of side 1.8
# Beside an isolated sheet the winding number is 1/2 inside, beside a closed surface 1. Tried: square 0.50, a band a
# tenth as high as wide 0.57, an open cylinder half as high as wide 0.71, half a sphere 0.82, a scan with holes 0.99.
SHEET = 0.65
# Share of the solid on which the capped surface may disagree with the winding number of the open one.
CAP_DISAGREEMENT = 0.1
SPLITS = 4  # times that a partly hidden triangle is quartered
PROBES = (
    np.array([[1, 1, 1], [2.8, 0.1, 0.1], [0.1, 2.8, 0.1], [0.1, 0.1, 2.8]]) / 3
)  # barycentrics, where a triangle is probed


def winding_number(vertices: np.ndarray, faces: np.ndarray) -> Winding:
    """The generalised winding number of a triangle mesh as a function, its tree built once (Barill et al. 2018)."""
    tree = require("igl", extra="mesh").FastWindingNumberBVH()
    tree.init(vertices, faces)

    def evaluate(points: np.ndarray) -> np.ndarray:
        values: np.ndarray = tree.winding_number(np.ascontiguousarray(points))
        return values

    return evaluate


def oriented_solid(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, Winding, bool]:
    """Turn triangles so that they bound a solid, and cap their holes where that changes little.

    Args:
        vertices: shape (v, 3), in the box of side 1.8.
        faces: shape (f, 3).

    Returns:
        vertices and faces, with caps; the winding number that tells inside from outside; whether the mesh was closed
        as it came.

    Raises:
        InputError: the triangles bound no solid: open sheets, or a volume of zero.
    """
    tails, _ = net_boundary(faces)
    if len(tails):
        faces = _consistent(vertices, faces)
        tails, _ = net_boundary(faces)
    if len(tails) == 0:
        if signed_volume(vertices, faces) < 0:
            logger.warning("target: the mesh is inside out (negative volume); its faces are turned around")
            faces = faces[:, ::-1].copy()
        return vertices, faces, winding_number(vertices, faces), True
    return (*_capped(vertices, faces), False)


def net_boundary(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directed edges that are not cancelled by opposite ones, repeated by their multiplicity.

    They are the boundary of the surface as a chain; it vanishes for every union of closed oriented surfaces, manifold
    or not, and the winding number is then an integer everywhere.

    Returns:
        tails and heads, each of shape (k,).
    """
    tails, heads = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    low, high = np.minimum(tails, heads), np.maximum(tails, heads)
    n = int(faces.max(initial=0)) + 1
    edges, index = np.unique(low * n + high, return_inverse=True)
    net = np.bincount(index, np.sign(heads - tails), minlength=len(edges)).astype(np.int64)
    low, high = np.repeat(edges // n, np.abs(net)), np.repeat(edges % n, np.abs(net))
    forward = np.repeat(net > 0, np.abs(net))
    return np.where(forward, low, high), np.where(forward, high, low)


def close_holes(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Close every connected piece of the boundary by a cone to its centre; exact in the sense of chains.

    Returns:
        vertices with one more for each piece, faces with the caps after the given ones, and the number of pieces.
    """
    tails, heads = net_boundary(faces)
    if len(tails) == 0:
        return vertices, faces, 0
    n = len(vertices)
    _, label = connected_components(coo_array((np.ones(len(tails)), (tails, heads)), shape=(n, n)), directed=False)
    pieces, piece = np.unique(label[tails], return_inverse=True)
    lengths = np.linalg.norm(vertices[heads] - vertices[tails], axis=1) + np.finfo(float).tiny
    middles = (vertices[heads] + vertices[tails]) / 2 * lengths[:, None]
    sums = np.stack([np.bincount(piece, middles[:, axis]) for axis in range(3)], axis=1)
    centres = sums / np.bincount(piece, lengths)[:, None]
    caps = np.stack([heads, tails, n + piece], axis=1)
    return np.concatenate([vertices, centres]), np.concatenate([faces, caps]), len(pieces)


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume within a closed surface, negative if its faces are clockwise from outside."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def visible_triangles(vertices: np.ndarray, faces: np.ndarray, winding: Winding) -> tuple[np.ndarray, np.ndarray, bool]:
    """The triangles that separate inside from outside, without those buried where parts overlap.

    Triangles that are partly buried are quartered a few times, so the result need not be conforming; of what is still
    mixed then, the half that separates at most of its probes is kept.

    Returns:
        vertices, faces, and whether anything was buried.

    Raises:
        InputError: nothing separates an inside from an outside.
    """
    corners = vertices[faces]
    whole = separates(corners.mean(1), _normals(corners), winding)
    if bool(whole.all()):
        return vertices, faces, False
    # Winding numbers beside the surface are dear. Past the centres, ask more only around what failed, and spread.
    shares, asked, todo = np.ones(len(faces)), np.zeros(len(faces), dtype=bool), ~whole
    while todo.any():
        shares[todo] = _separating_share(corners[todo], winding)
        asked |= todo
        touched = np.zeros(len(vertices), dtype=bool)
        touched[faces[shares < 1]] = True
        todo = touched[faces].any(1) & ~asked
    kept = [corners[shares == 1]]
    mixed = corners[(shares > 0) & (shares < 1)]
    for _ in range(SPLITS):
        mixed = _quartered(mixed)
        shares = _separating_share(mixed, winding)
        kept.append(mixed[shares == 1])
        mixed, shares = mixed[(shares > 0) & (shares < 1)], shares[(shares > 0) & (shares < 1)]
    triangles = np.concatenate([*kept, mixed[shares > 0.5]])
    if _areas(triangles).sum() <= 1e-6 * _areas(corners).sum():
        raise InputError("target", "a mesh that bounds a solid", "one whose faces have the same on both sides")
    return triangles.reshape(-1, 3), np.arange(3 * len(triangles)).reshape(-1, 3), True


def separates(points: np.ndarray, normals: np.ndarray, winding: Winding) -> np.ndarray:
    """Whether the two sides of surface points are one inside and one outside the solid, shape (n,)."""
    behind, before = winding(points - PROBE * normals), winding(points + PROBE * normals)
    return np.asarray((behind > 0.5) != (before > 0.5))


def _separating_share(corners: np.ndarray, winding: Winding) -> np.ndarray:
    """For each triangle the share of its probes, at the centre and near the corners, that separate."""
    probes = np.einsum("pc,fcx->fpx", PROBES, corners).reshape(-1, 3)
    flat = separates(probes, np.repeat(_normals(corners), len(PROBES), axis=0), winding)
    return np.asarray(flat.reshape(-1, len(PROBES)).mean(1))


def _capped(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, Winding]:
    rng = np.random.default_rng(0)
    open_winding = winding_number(vertices, faces)
    points, normals = _area_samples(vertices, faces, 4096, rng)
    behind, before = open_winding(points - PROBE * normals), open_winding(points + PROBE * normals)
    sheet = float((np.maximum(np.abs(behind), np.abs(before)) < SHEET).mean())
    if sheet > 0.5:
        raise InputError(
            "target",
            "a mesh that bounds a solid, up to holes",
            f"open sheets ({100 * sheet:.0f} % of the surface has no inside): close or thicken them, "
            "or give a signed-distance volume",
        )
    if float((behind + before).mean()) < 0:
        logger.warning("target: the mesh is inside out; its faces are turned around")
        faces = faces[:, ::-1].copy()
        open_winding = winding_number(vertices, faces)

    closed_vertices, closed_faces, holes = close_holes(vertices, faces)
    winding = winding_number(closed_vertices, closed_faces)
    anywhere = rng.uniform(vertices.min(0), vertices.max(0), size=(4096, 3))
    one, other = open_winding(anywhere) > 0.5, winding(anywhere) > 0.5
    if (one != other).sum() > CAP_DISAGREEMENT * max((one | other).sum(), 1):
        logger.warning(
            "target: the mesh is open and its holes are not simple; inside is where its winding number > 0.5"
        )
        return vertices, faces, open_winding
    logger.warning("target: the mesh is open; %d hole%s closed by flat caps", holes, " was" if holes == 1 else "s were")
    return closed_vertices, closed_faces, winding


def _consistent(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Faces turned so that neighbours agree; only where some disagree, and then closed patches have positive volume."""
    tails, heads = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    n = len(vertices)
    _, repeats = np.unique(tails * n + heads, return_counts=True)
    _, uses = np.unique(np.minimum(tails, heads) * n + np.maximum(tails, heads), return_counts=True)
    if repeats.max() == 1 or uses.max() > 2:
        return faces  # consistent already, or no surface to speak of
    igl: Any = require("igl", extra="mesh")
    turned, patch = igl.bfs_orient(np.ascontiguousarray(faces))
    logger.warning("target: neighbouring faces disagree about the outside; they are turned to agree")
    turned = np.asarray(turned, dtype=np.int64)
    for label in np.unique(patch):
        mine = patch == label
        centred = vertices - vertices[turned[mine]].mean((0, 1))
        if signed_volume(centred, turned[mine]) < 0:
            turned[mine] = turned[mine][:, ::-1]
    return turned


def _area_samples(
    vertices: np.ndarray, faces: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    corners = vertices[faces]
    areas = np.cumsum(_areas(corners))
    index = np.minimum(np.searchsorted(areas, rng.random(n) * areas[-1]), len(areas) - 1)
    chosen = corners[index]
    weights = rng.dirichlet(np.ones(3), size=n)
    return (weights[:, :, None] * chosen).sum(1), _normals(chosen)


def _quartered(corners: np.ndarray) -> np.ndarray:
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
    quarters = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.concatenate([np.stack(quarter, axis=1) for quarter in quarters])


def _areas(corners: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(_area_vectors(corners), axis=1))


def _normals(corners: np.ndarray) -> np.ndarray:
    """Unit normals of triangles (f, 3, 3); zero where there is no area."""
    vectors = _area_vectors(corners)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def _area_vectors(corners: np.ndarray) -> np.ndarray:
    return np.asarray(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2)
