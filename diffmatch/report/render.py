"""Still pictures of meshes: a small software renderer in numpy.

For places without a graphics card: reports in a browser without WebGL, printed pages, pictures in documents. Triangles
are turned into rows and rows into pixels by array operations, and a depth buffer keeps the nearest; no loop runs over
triangles or pixels.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from diffmatch.errors import InputError
from diffmatch.report.view import Frame, MeshLike, View, mesh_arrays

__all__ = ["parse_color", "render_mesh", "render_mesh_rgba"]

_BATCH = 1 << 21  # rows or pixels at once: bounds the memory at about 200 MB
_INSIDE = np.array([0.83, 0.42, 0.36])  # faces seen from behind, so that holes and flipped faces show
_EDGE_COS = math.cos(math.radians(28.0))  # a sharper crease between neighbouring pixels is drawn as an edge
_EDGE_SHADE, _CREVICE_SHADE = 0.62, 0.55


def parse_color(color: str) -> tuple[int, int, int]:
    """Red, green and blue of ``"#rrggbb"``, each 0..255.

    Raises:
        InputError: the text has another form.
    """
    try:
        if len(color) != 7 or color[0] != "#":
            raise ValueError
        value = int(color[1:], 16)
    except ValueError:
        raise InputError("color", "a colour '#rrggbb'", repr(color)) from None
    return value >> 16, value >> 8 & 255, value & 255


def render_mesh(
    mesh: MeshLike,
    *,
    width: int = 800,
    height: int = 600,
    view: View | None = None,
    frame: Frame | None = None,
    color: str | UInt8[np.ndarray, "f 3"] = "#6f9fd8",
    background: str = "#ffffff",
    supersample: int = 2,
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Render a mesh with flat shading, soft light and darkened edges, on an even background.

    Args:
        mesh: ``vertices`` (v, 3) and ``faces`` (f, 3), tensors or arrays.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        view: the camera; by default from the front, right and above, with z up, as near as the mesh allows.
        frame: what the view's distance is measured in; the mesh's own ball by default.
        color: ``"#rrggbb"``, or one RGB colour a face, shape (f, 3), uint8.
        background: ``"#rrggbb"``.
        supersample: samples a pixel along each axis, for smooth edges.

    Returns:
        RGB, uint8. The same mesh gives the same bits.

    Raises:
        InputError: a mesh without faces or with bad values, sizes below 1, a bad colour.
    """
    layers = render_mesh_rgba(
        mesh, width=width, height=height, view=view, frame=frame, color=color, supersample=supersample
    ).astype(np.float64)
    alpha = layers[:, :, 3:] / 255
    return np.rint(layers[:, :, :3] * alpha + np.array(parse_color(background)) * (1 - alpha)).astype(np.uint8)


def render_mesh_rgba(
    mesh: MeshLike,
    *,
    width: int = 800,
    height: int = 600,
    view: View | None = None,
    frame: Frame | None = None,
    color: str | UInt8[np.ndarray, "f 3"] = "#6f9fd8",
    supersample: int = 2,
) -> UInt8[np.ndarray, "{height} {width} 4"]:
    """As `render_mesh`, on a transparent background (straight alpha), which suits light and dark pages."""
    for name, value in {"width": width, "height": height, "supersample": supersample}.items():
        if value < 1:
            raise InputError(name, "at least 1", str(value))
    vertices, faces = mesh_arrays(mesh)
    frame = frame or Frame.around(vertices)
    view = view or View().fitted(vertices, frame, aspect=width / height)
    base = _face_colors(color, len(faces))

    points = _to_camera(vertices, view, frame)
    corners = points[faces]  # (f, 3, 3)
    screen = _project(corners, view, width * supersample, height * supersample)
    face, depth = _rasterize(screen, width * supersample, height * supersample)

    normals, facing = _oriented_normals(corners)
    lit = np.where(facing[:, None], base, _INSIDE) * _light(normals)[:, None]
    image = lit[face] * _edges(face, normals[face], depth)[:, :, None] * _crevices(face, depth)[:, :, None]
    return _downsample(np.clip(image, 0.0, 1.0), face >= 0, supersample)


def _face_colors(color: str | UInt8[np.ndarray, "f 3"], n_faces: int) -> Float64[np.ndarray, "_ 3"]:
    """Base colour a face in 0..1, shape (f, 3) or (1, 3)."""
    if isinstance(color, str):
        return np.array([parse_color(color)]) / 255.0
    if color.shape != (n_faces, 3):
        raise InputError("color", f"shape ({n_faces}, 3)", str(color.shape))
    return color / 255.0


def _to_camera(vertices: Float64[np.ndarray, "v 3"], view: View, frame: Frame) -> Float64[np.ndarray, "v 3"]:
    """Camera coordinates in radii of the frame: x right, y up, z backward, origin at the eye."""
    points: Float64[np.ndarray, "v 3"] = (vertices - np.asarray(frame.center)) / frame.radius @ view.basis().T
    points[:, 2] -= view.distance
    return points


def _project(
    corners: Float64[np.ndarray, "f 3 3"], view: View, width: int, height: int
) -> Float64[np.ndarray, "f 3 3"]:
    """Pixel x, pixel y (downward) and inverse distance, which is linear on the screen.

    Triangles with a corner at or behind the eye are left out by coordinates outside the picture.
    """
    focal = min(width, height) / 2 / math.tan(math.radians(view.field_of_view) / 2)
    near = np.asarray((corners[:, :, 2] > -1e-3).any(axis=1))
    inverse = -1.0 / np.where(near[:, None], -1.0, corners[:, :, 2])
    screen = np.empty_like(corners)
    screen[:, :, 0] = width / 2 + focal * corners[:, :, 0] * inverse
    screen[:, :, 1] = height / 2 - focal * corners[:, :, 1] * inverse
    screen[:, :, 2] = inverse
    screen[near, :, :2] = -1e6
    return screen


def _batches(counts: Int64[np.ndarray, " n"]) -> Iterator[slice]:
    """Ranges of entries whose counts sum to about ``_BATCH`` at most; an entry alone may be larger."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _BATCH, side="right")))
        yield slice(start, stop)
        start = stop


def _expand(counts: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """For each entry i, ``counts[i]`` pairs (i, 0), (i, 1), ..."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _rasterize(
    screen: Float64[np.ndarray, "f 3 3"], width: int, height: int
) -> tuple[Int64[np.ndarray, "{height} {width}"], Float64[np.ndarray, "{height} {width}"]]:
    """The nearest face of each pixel (-1 for none) and its inverse distance (0 for none)."""
    # One integer holds both: depth in the high half, so that the maximum is the nearest, and the face in the low half.
    nearest = np.full(height * width, -1, dtype=np.int64)
    scale = (2**30) / max(float(screen[:, :, 2].max()), 1e-12)
    planes = _depth_planes(screen)
    first, counts = _pixel_range(screen[:, :, 1].min(axis=1), screen[:, :, 1].max(axis=1), height)
    for batch in _batches(counts):
        owner, step = _expand(counts[batch])
        face, row = owner + batch.start, first[batch][owner] + step
        left, right = _row_spans(screen[face, :, :2], row + 0.5)
        start, length = _pixel_range(left, right, width)
        for part in _batches(length):
            owner, step = _expand(length[part])
            owner += part.start
            pixel_face, pixel_row, pixel_column = face[owner], row[owner], start[owner] + step
            depth = _plane_depth(planes[:, pixel_face], pixel_column + 0.5, pixel_row + 0.5)
            key = ((depth * scale).astype(np.int64) << 32) | pixel_face
            np.maximum.at(nearest, pixel_row * width + pixel_column, key)
    face = np.where(nearest >= 0, nearest & 0xFFFFFFFF, -1).reshape(height, width)
    depth = np.where(nearest >= 0, (nearest >> 32) / scale, 0.0).reshape(height, width)
    return face, depth


def _pixel_range(
    low: Float64[np.ndarray, " n"], high: Float64[np.ndarray, " n"], size: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """First pixel and number of pixels whose centres lie in [low, high): neighbours share no pixel and leave no gap."""
    first = np.ceil(np.clip(low, 0, size) - 0.5).astype(np.int64)
    last = np.ceil(np.clip(high, 0, size) - 0.5).astype(np.int64)
    return np.maximum(first, 0), np.maximum(last - np.maximum(first, 0), 0)


def _row_spans(
    corners: Float64[np.ndarray, "n 3 2"], y: Float64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Where the line at height y enters and leaves each triangle."""
    left, right = np.full(len(y), np.inf), np.full(len(y), -np.inf)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        ya, yb = corners[:, a, 1], corners[:, b, 1]
        crossed = (ya <= y) != (yb <= y)
        rise = np.where(crossed, yb - ya, 1.0)
        x = corners[:, a, 0] + (y - ya) / rise * (corners[:, b, 0] - corners[:, a, 0])
        left = np.where(crossed & (x < left), x, left)
        right = np.where(crossed & (x > right), x, right)
    return left, right


def _depth_planes(screen: Float64[np.ndarray, "f 3 3"]) -> Float64[np.ndarray, "5 f"]:
    """Each face's inverse distance as a function of the pixel: slope in x, slope in y, value at 0, and its range."""
    origin, first, second = screen[:, 0], screen[:, 1] - screen[:, 0], screen[:, 2] - screen[:, 0]
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    area = np.where(np.abs(area) < 1e-12, np.inf, area)
    along_x = (first[:, 2] * second[:, 1] - first[:, 1] * second[:, 2]) / area
    along_y = (first[:, 0] * second[:, 2] - first[:, 2] * second[:, 0]) / area
    offset = origin[:, 2] - along_x * origin[:, 0] - along_y * origin[:, 1]
    return np.stack([along_x, along_y, offset, screen[:, :, 2].min(axis=1), screen[:, :, 2].max(axis=1)])


def _plane_depth(
    planes: Float64[np.ndarray, "5 n"], x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Inverse distance at pixel positions, kept within the face's own range: planes seen edge-on are steep."""
    along_x, along_y, offset, low, high = planes
    depth: Float64[np.ndarray, " n"] = np.clip(offset + along_x * x + along_y * y, low, high)
    return depth


def _oriented_normals(
    corners: Float64[np.ndarray, "f 3 3"],
) -> tuple[Float64[np.ndarray, "f 3"], np.ndarray]:
    """Unit normals turned toward the eye, and whether the face's front is seen."""
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals / np.where(length > 0, length, 1.0)
    facing = np.asarray((normals * corners.mean(axis=1)).sum(axis=1) <= 0)
    return np.where(facing[:, None], normals, -normals), facing


def _light(normals: Float64[np.ndarray, "f 3"]) -> Float64[np.ndarray, " f"]:
    """Brightness: a key light from the upper left, a weak one from the right, and a sky that is brighter above."""
    key, fill = np.array([-0.45, 0.65, 0.62]), np.array([0.80, 0.05, 0.60])
    diffuse = 0.62 * np.clip(normals @ (key / np.linalg.norm(key)), 0, None)
    diffuse += 0.20 * np.clip(normals @ (fill / np.linalg.norm(fill)), 0, None)
    brightness: Float64[np.ndarray, " f"] = 0.36 + 0.08 * normals[:, 1] + diffuse
    return brightness


def _edges(
    face: Int64[np.ndarray, "h w"], normals: Float64[np.ndarray, "h w 3"], depth: Float64[np.ndarray, "h w"]
) -> Float64[np.ndarray, "h w"]:
    """Factor that darkens creases and outlines: where the normal turns or the distance jumps to the next pixel."""
    marked = np.zeros(face.shape, dtype=bool)
    for axis in (0, 1):
        one = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        two = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        crease = (normals[one] * normals[two]).sum(axis=2) < _EDGE_COS
        jump = np.abs(depth[one] - depth[two]) > 0.03 * np.maximum(depth[one], depth[two])
        changed = (face[one] != face[two]) & (crease | jump)
        marked[one] |= changed & (depth[one] >= depth[two])  # the nearer side carries the line
        marked[two] |= changed & (depth[two] > depth[one])
    return np.where(marked, _EDGE_SHADE, 1.0)


def _crevices(face: Int64[np.ndarray, "h w"], depth: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    """Factor that darkens what lies behind its surroundings, found by blurring the depth buffer."""
    radius = max(1, round(min(face.shape) / 45))
    hit = (face >= 0).astype(np.float64)
    near = _blur(depth, radius) / np.maximum(_blur(hit, radius), 1e-9)
    behind = np.where(face >= 0, near - depth, 0.0) / max(float(depth.max()), 1e-12)
    return 1.0 - _CREVICE_SHADE * np.clip(behind * 6.0, 0.0, 1.0)


def _blur(values: Float64[np.ndarray, "h w"], radius: int) -> Float64[np.ndarray, "h w"]:
    """Mean over squares of side ``2 radius + 1`` (twice, for a rounder window), zeros outside."""
    for _ in range(2):
        for axis in (0, 1):
            size = values.shape[axis]
            total = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis)
            at = np.arange(size)
            high, low = np.minimum(at + radius + 1, size), np.maximum(at - radius, 0)
            values = (total.take(high, axis) - total.take(low, axis)) / (2 * radius + 1)
    return values


def _downsample(image: Float64[np.ndarray, "_ _ 3"], hit: np.ndarray, supersample: int) -> UInt8[np.ndarray, "_ _ 4"]:
    """Mean of each pixel's samples; colour is averaged over the samples that hit the mesh, alpha over all."""
    height, width = hit.shape[0] // supersample, hit.shape[1] // supersample
    cells = (height, supersample, width, supersample)
    count = hit.reshape(cells).sum(axis=(1, 3))
    color = (image * hit[:, :, None]).reshape(*cells, 3).sum(axis=(1, 3)) / np.maximum(count, 1)[:, :, None]
    alpha = (count / supersample**2)[:, :, None]
    pixels: UInt8[np.ndarray, "_ _ 4"] = np.rint(np.concatenate([color, alpha], axis=2) * 255).astype(np.uint8)
    return pixels
