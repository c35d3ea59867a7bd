"""How good a mesh is: validity, triangle quality, and distance from a target.

All of it runs on the CPU in float64 numpy, without gradients; distances and self-intersections need the extra ``mesh``
(libigl). Lengths are measured in the box of the target (longest side 1.8, centred), so that figures of different
shapes can be compared; ``normalize=False`` keeps the caller's unit.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from diffmatch.errors import InputError, require
from diffmatch.meshing.interop import as_mesh
from diffmatch.meshing.mesh import Mesh, check_values

__all__ = [
    "EdgeScores",
    "MeshDistances",
    "MeshMetrics",
    "MeshQuality",
    "MeshValidity",
    "edge_scores",
    "mesh_distances",
    "mesh_metrics",
    "mesh_quality",
    "mesh_validity",
    "self_intersecting_faces",
    "self_intersection_percent",
]

BOX_SIDE = 1.8
DEGENERATE_AREA = 1e-10  # in the box
F1_RADIUS = 0.003
EDGE_SAMPLES, EDGE_RADIUS, EDGE_COSINE, EDGE_F1_RADIUS = 100_000, 0.004, 0.2, 0.005


@dataclass(frozen=True)
class MeshValidity:
    """Whether a mesh bounds a solid, from its connectivity.

    Attributes:
        vertices: vertices that a face uses.
        faces: number of faces.
        open_edges: edges with one face.
        nonmanifold_edges: edges with more than two faces.
        nonmanifold_vertices: vertices whose faces form more than one fan (joined across edges).
        degenerate_faces: faces that name a vertex twice or have an area below 1e-10.
        duplicate_faces: faces whose three vertices an earlier face has too.
        consistently_oriented: at each edge as many faces run one way as the other, give or take an open one.
        watertight: every edge has exactly two faces, and there are some.
        euler_characteristic: vertices - edges + faces.
        bodies: groups of vertices connected by edges.
        genus: handles, of all bodies together; None unless the mesh is a closed, oriented manifold.
    """

    vertices: int
    faces: int
    open_edges: int
    nonmanifold_edges: int
    nonmanifold_vertices: int
    degenerate_faces: int
    duplicate_faces: int
    consistently_oriented: bool
    watertight: bool
    euler_characteristic: int
    bodies: int
    genus: int | None


@dataclass(frozen=True)
class MeshQuality:
    """The shape of the triangles; NaN where there are none.

    Attributes:
        min_angle: smallest angle, degrees.
        max_angle: largest angle, degrees.
        small_angle_percent: triangles whose smallest angle is below 10 degrees.
        large_aspect_percent: triangles whose aspect ratio, longest edge / (2 sqrt(3) inradius), exceeds 4; the ratio is
            1 for an equilateral triangle.
    """

    min_angle: float
    max_angle: float
    small_angle_percent: float
    large_aspect_percent: float


@dataclass(frozen=True)
class MeshDistances:
    """How far a mesh and its target are apart.

    The first six come from points, uniform by area, to the nearest triangle of the other mesh, so the same surface
    scores zero. The Chamfer distance and F1 compare two point samples; two samples of the target itself reach the
    floors, below which a difference is noise.

    Attributes:
        samples: points drawn on each mesh.
        mean: mean distance, of both directions' means.
        rms: root mean square distance, over both directions.
        hausdorff: largest distance of a sample.
        mean_to_target: mean distance from the mesh to the target.
        mean_from_target: mean distance from the target to the mesh.
        normal_error_percent: nearest pairs, both ways, whose normals differ by more than 5 degrees (either sign).
        chamfer: mean squared distance to the nearest sample of the other mesh, summed over both directions.
        chamfer_floor: the same between two samples of the target.
        f1: harmonic mean of the shares of samples within 0.003 of a sample of the other mesh, both ways.
        f1_floor: the same between two samples of the target.
        volume_ratio: volume of the mesh over that of the target; NaN unless the target is watertight.
    """

    samples: int
    mean: float
    rms: float
    hausdorff: float
    mean_to_target: float
    mean_from_target: float
    normal_error_percent: float
    chamfer: float
    chamfer_floor: float
    f1: float
    f1_floor: float
    volume_ratio: float


@dataclass(frozen=True)
class EdgeScores:
    """How well sharp edges agree, after the protocol of Shen et al. 2023 (FlexiCubes).

    Edge points are those of 100 000 samples with a neighbour within 0.004 whose normal has |cosine| < 0.2 with theirs.
    That leaves few of them, a tenth apart along the edges of a block: two samples of the target itself reach the
    floors, and only figures worse than these say something about the edges.

    Attributes:
        edge_chamfer: Chamfer distance (squared, both ways summed) between the edge points of the two meshes, times 100;
            NaN where the target has none, infinite where only the mesh has none.
        edge_chamfer_floor: the same between two samples of the target; NaN where one has no edge points.
        edge_f1: F1 of the edge points at 0.005; NaN and 0 in these cases.
        edge_f1_floor: the same between two samples of the target; NaN where one has no edge points.
    """

    edge_chamfer: float
    edge_chamfer_floor: float
    edge_f1: float
    edge_f1_floor: float


@dataclass(frozen=True)
class MeshMetrics:
    """All that was measured.

    Attributes:
        validity: connectivity.
        quality: shapes of the triangles.
        volume: signed volume in the caller's unit, cubed; it means something only if the mesh is watertight.
        self_intersection_percent: triangles that cut or touch another one they share no edge with; None if not asked.
        distances: against the target; None without one.
        edges: sharp edges against the target; None if not asked.
        scale: what lengths were multiplied by to get into the box; 1 with ``normalize=False``.
    """

    validity: MeshValidity
    quality: MeshQuality
    volume: float
    self_intersection_percent: float | None
    distances: MeshDistances | None
    edges: EdgeScores | None
    scale: float

    def as_dict(self) -> dict[str, Any]:
        """All figures by name in one flat dictionary, without those that were not measured."""
        flat: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            is_group = isinstance(value, (MeshValidity, MeshQuality, MeshDistances, EdgeScores))
            flat.update(dataclasses.asdict(value) if is_group else {field.name: value})
        return {name: value for name, value in flat.items() if value is not None}


def mesh_metrics(
    mesh: Mesh | Any,
    target: Mesh | Any | None = None,
    *,
    samples: int = 50_000,
    seed: int = 0,
    edges: bool = False,
    self_intersections: bool = True,
    normalize: bool = True,
) -> MeshMetrics:
    """Measure a mesh, and its distance from a target where there is one.

    Args:
        mesh: what to measure; a `Mesh` or anything `as_mesh` takes.
        target: mesh to compare with, in the same coordinates.
        samples: points on each surface for the distances.
        seed: of the samples; the same seed gives the same figures.
        edges: compare sharp edges as well (two samples of 100 000 points, a second or two).
        self_intersections: count triangles that intersect, by exact predicates.
        normalize: measure in the box of the target (without one, of the mesh): longest side 1.8, centred.

    Raises:
        InputError: the target has no faces, or the mesh has none and distances to it are wanted.
        MissingExtraError: libigl is not installed and distances or self-intersections are asked for.
    """
    mesh = as_mesh(mesh)
    target = None if target is None else as_mesh(target)
    center, scale = _box(mesh if target is None else target) if normalize else (np.zeros(3), 1.0)
    surface = _Surface.of(mesh, center, scale)
    reference = None if target is None else _Surface.of(target, center, scale)
    return MeshMetrics(
        validity=_validity(surface),
        quality=_quality(surface),
        volume=surface.volume / scale**3,
        self_intersection_percent=_self_intersections(surface) if self_intersections else None,
        distances=None if reference is None else _distances(surface, reference, samples, seed),
        edges=_edge_scores(surface, reference, seed) if reference is not None and edges else None,
        scale=scale,
    )


def mesh_validity(mesh: Mesh) -> MeshValidity:
    """The validity of a mesh; the area of degenerate faces is taken in the mesh's own unit."""
    return _validity(_Surface.of(mesh))


def mesh_quality(mesh: Mesh) -> MeshQuality:
    """The shape of a mesh's triangles."""
    return _quality(_Surface.of(mesh))


def mesh_distances(mesh: Mesh, target: Mesh, *, samples: int = 50_000, seed: int = 0) -> MeshDistances:
    """How far a mesh and its target are apart, in their own unit.

    Raises:
        InputError: one of them has no faces, or ``samples`` is not positive.
    """
    return _distances(_Surface.of(mesh), _Surface.of(target), samples, seed)


def edge_scores(mesh: Mesh, target: Mesh, *, seed: int = 0) -> EdgeScores:
    """How well the sharp edges of two meshes agree; radii are in the meshes' own unit, made for a box of side 1.8.

    Raises:
        InputError: one of them has no faces.
    """
    return _edge_scores(_Surface.of(mesh), _Surface.of(target), seed)


def self_intersection_percent(mesh: Mesh) -> float:
    """Share of triangles, in percent, that intersect another, by the exact predicates of libigl."""
    return _self_intersections(_Surface.of(mesh))


def self_intersecting_faces(mesh: Mesh) -> np.ndarray:
    """Numbers of the triangles that intersect another, ascending, by the exact predicates of libigl."""
    return _self_intersecting(_Surface.of(mesh))


@dataclass(frozen=True, eq=False)
class _Surface:
    """A mesh as float64 arrays, with what several measures need."""

    vertices: np.ndarray  # (v, 3)
    faces: np.ndarray  # (f, 3)
    area_vectors: np.ndarray  # (f, 3)

    @staticmethod
    def of(mesh: Mesh, center: np.ndarray | float = 0.0, scale: float = 1.0) -> "_Surface":
        check_values("mesh", mesh)
        vertices = np.ascontiguousarray((mesh.vertices.detach().double().cpu().numpy() - center) * scale)
        faces = np.ascontiguousarray(mesh.faces.cpu().numpy())
        a, b, c = (vertices[faces[:, i]] for i in range(3))
        return _Surface(vertices, faces, np.cross(b - a, c - a) / 2)

    @property
    def areas(self) -> np.ndarray:
        return np.asarray(np.linalg.norm(self.area_vectors, axis=1))

    @property
    def normals(self) -> np.ndarray:
        areas = self.areas
        return self.area_vectors / np.where(areas > 0, areas, 1)[:, None]

    @property
    def volume(self) -> float:
        return float((self.vertices[self.faces].mean(1) * self.area_vectors).sum() / 3)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points uniform by area and the normals there, (n, 3) each."""
        if len(self.faces) == 0:
            raise InputError("mesh", "at least one face to measure distances from", "none")
        areas = np.cumsum(self.areas)
        face = np.minimum(np.searchsorted(areas, rng.random(n) * areas[-1]), len(areas) - 1)
        root, split = np.sqrt(rng.random((n, 1))), rng.random((n, 1))
        a, b, c = (self.vertices[self.faces[face, i]] for i in range(3))
        return (1 - root) * a + root * (1 - split) * b + root * split * c, self.normals[face]


def _box(mesh: Mesh) -> tuple[np.ndarray, float]:
    check_values("mesh", mesh)
    vertices = mesh.vertices.detach().double().cpu().numpy()[np.unique(mesh.faces.cpu().numpy())]
    if len(vertices) == 0:
        return np.zeros(3), 1.0
    low, high = vertices.min(0), vertices.max(0)
    side = float((high - low).max())
    return (low + high) / 2, BOX_SIDE / side if side > 0 else 1.0


def _validity(surface: _Surface) -> MeshValidity:
    faces, n = surface.faces, len(surface.vertices)
    # The three edges of face f as rows f, f + F, f + 2F; the corner of face f at side s is node s F + f.
    tails, heads = faces.T.ravel(), np.roll(faces, -1, axis=1).T.ravel()
    key = np.minimum(tails, heads) * max(n, 1) + np.maximum(tails, heads)
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(key[order]) != 0]) if len(key) else np.empty(0, dtype=np.int64)
    count = np.diff(np.r_[starts, len(key)])
    direction = np.sign(heads - tails)[order]
    balance = np.abs(np.add.reduceat(direction, starts)) if len(starts) else np.empty(0, dtype=np.int64)
    low, high = key[order][starts] // max(n, 1), key[order][starts] % max(n, 1)

    used = np.zeros(n, dtype=bool)
    used[faces] = True
    _, vertex_label = connected_components(coo_array((np.ones(len(low)), (low, high)), shape=(n, n)), directed=False)
    bodies = len(np.unique(vertex_label[used])) if n else 0

    open_edges, crowded = int((count == 1).sum()), int((count > 2).sum())
    watertight = bool(len(faces)) and open_edges == 0 and crowded == 0
    oriented = bool((balance <= count % 2).all())
    pinched = _pinched_vertices(faces, order, starts, count)
    euler = int(used.sum()) - len(starts) + len(faces)
    repeated = (faces == np.roll(faces, 1, axis=1)).any(1)
    return MeshValidity(
        vertices=int(used.sum()),
        faces=len(faces),
        open_edges=open_edges,
        nonmanifold_edges=crowded,
        nonmanifold_vertices=pinched,
        degenerate_faces=int((repeated | (surface.areas < DEGENERATE_AREA)).sum()),
        duplicate_faces=_duplicate_rows(np.sort(faces, axis=1)),
        consistently_oriented=oriented,
        watertight=watertight,
        euler_characteristic=euler,
        bodies=bodies,
        genus=bodies - euler // 2 if watertight and oriented and pinched == 0 else None,
    )


def _pinched_vertices(faces: np.ndarray, order: np.ndarray, starts: np.ndarray, count: np.ndarray) -> int:
    """Vertices whose corners fall into several groups when the faces at each edge are joined."""
    f = len(faces)
    if f == 0:
        return 0
    # Halfedges of one edge are neighbours in `order`; joining each with the next joins them all.
    within = np.ones(len(order), dtype=bool)
    within[starts] = False
    second = np.flatnonzero(within)
    one, two = order[second - 1], order[second]
    flat = faces.T.ravel()

    def after(halfedge: np.ndarray) -> np.ndarray:
        return (halfedge + f) % (3 * f)

    # Corner of each halfedge's tail is the halfedge itself; of its head, the next one. Match the ends by vertex.
    same = flat[one] == flat[two]
    tail_two, head_two = np.where(same, two, after(two)), np.where(same, after(two), two)
    ends = np.r_[one, after(one)], np.r_[tail_two, head_two]
    graph = coo_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(3 * f, 3 * f))
    n_fans, fan = connected_components(graph, directed=False)
    vertex_of_fan = np.empty(n_fans, dtype=np.int64)
    vertex_of_fan[fan] = flat
    return int((np.bincount(vertex_of_fan) > 1).sum())


def _duplicate_rows(rows: np.ndarray) -> int:
    ordered = rows[np.lexsort(rows.T)]
    return int((np.diff(ordered, axis=0) == 0).all(1).sum())


def _quality(surface: _Surface) -> MeshQuality:
    if len(surface.faces) == 0:
        return MeshQuality(np.nan, np.nan, np.nan, np.nan)
    corners = surface.vertices[surface.faces]
    sides = np.roll(corners, -1, axis=1) - corners  # side i leaves corner i
    twice_area = 2 * surface.areas[:, None]
    angles = np.degrees(np.arctan2(twice_area, -(sides * np.roll(sides, 1, axis=1)).sum(2)))
    lengths = np.linalg.norm(sides, axis=2)
    inradius = surface.areas * 2 / np.maximum(lengths.sum(1), np.finfo(float).tiny)
    slender = lengths.max(1) > 4 * 2 * np.sqrt(3) * inradius
    return MeshQuality(
        min_angle=float(angles.min()),
        max_angle=float(angles.max()),
        small_angle_percent=100 * float((angles.min(1) < 10).mean()),
        large_aspect_percent=100 * float((slender | (surface.areas == 0)).mean()),
    )


def _self_intersections(surface: _Surface) -> float:
    return 100 * len(_self_intersecting(surface)) / max(len(surface.faces), 1)


def _self_intersecting(surface: _Surface) -> np.ndarray:
    if len(surface.faces) == 0:
        return np.empty(0, dtype=np.int64)
    predicates = require("igl.predicates", extra="mesh")
    _, pairs, _ = predicates.find_self_intersections(surface.vertices, surface.faces)
    return np.unique(pairs)


def _distances(mesh: _Surface, target: _Surface, samples: int, seed: int) -> MeshDistances:
    if samples < 1:
        raise InputError("samples", "a number of points >= 1", str(samples))
    streams = np.random.default_rng(seed).spawn(3)
    points, normals = mesh.sample(samples, streams[0])
    goals, goal_normals = target.sample(samples, streams[1])
    second, _ = target.sample(samples, streams[2])
    there, face_there = _to_triangles(points, target)
    back, face_back = _to_triangles(goals, mesh)
    cosines = np.r_[(normals * target.normals[face_there]).sum(1), (goal_normals * mesh.normals[face_back]).sum(1)]
    chamfer, f1 = _point_scores(points, goals, F1_RADIUS)
    chamfer_floor, f1_floor = _point_scores(second, goals, F1_RADIUS)
    return MeshDistances(
        samples=samples,
        mean=float((there.mean() + back.mean()) / 2),
        rms=float(np.sqrt((np.square(there).mean() + np.square(back).mean()) / 2)),
        hausdorff=float(max(there.max(), back.max())),
        mean_to_target=float(there.mean()),
        mean_from_target=float(back.mean()),
        normal_error_percent=100 * float((np.abs(cosines) < np.cos(np.radians(5))).mean()),
        chamfer=chamfer,
        chamfer_floor=chamfer_floor,
        f1=f1,
        f1_floor=f1_floor,
        volume_ratio=mesh.volume / target.volume if _validity(target).watertight and target.volume else np.nan,
    )


def _edge_scores(mesh: _Surface, target: _Surface, seed: int) -> EdgeScores:
    # One seed for both, so that a mesh against itself scores 0 and 1.
    found, wanted = _edge_points(mesh, np.random.default_rng(seed)), _edge_points(target, np.random.default_rng(seed))
    second = _edge_points(target, np.random.default_rng(seed).spawn(1)[0])
    chamfer, f1 = _edge_point_scores(found, wanted)
    chamfer_floor, f1_floor = _edge_point_scores(second, wanted) if len(second) else (np.nan, np.nan)
    return EdgeScores(chamfer, chamfer_floor, f1, f1_floor)


def _edge_point_scores(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    if len(wanted) == 0:
        return np.nan, np.nan
    if len(found) == 0:
        return np.inf, 0.0
    chamfer, f1 = _point_scores(found, wanted, EDGE_F1_RADIUS)
    return 100 * chamfer, f1


def _edge_points(surface: _Surface, rng: np.random.Generator) -> np.ndarray:
    points, normals = surface.sample(EDGE_SAMPLES, rng)
    i, j = cKDTree(points).query_pairs(EDGE_RADIUS, output_type="ndarray").T
    sharp = np.abs((normals[i] * normals[j]).sum(1)) < EDGE_COSINE
    return np.asarray(points[np.unique(np.r_[i[sharp], j[sharp]])])


def _point_scores(points: np.ndarray, goals: np.ndarray, radius: float) -> tuple[float, float]:
    """Chamfer distance and F1 of two point sets."""
    there, back = cKDTree(goals).query(points)[0], cKDTree(points).query(goals)[0]
    precision, recall = float((there < radius).mean()), float((back < radius).mean())
    f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return float(np.square(there).mean() + np.square(back).mean()), f1


def _to_triangles(points: np.ndarray, surface: _Surface) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest triangle, and which it is."""
    igl = require("igl", extra="mesh")
    tree = igl.AABB()
    tree.init(surface.vertices, surface.faces)
    squared, face, _ = tree.squared_distance(surface.vertices, surface.faces, np.ascontiguousarray(points))
    return np.sqrt(squared), face
