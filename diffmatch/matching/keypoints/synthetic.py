"""Views of scenes made of planes, with the truth about every pair of their keypoints: what the matcher trains on.

A scene is one picture, taken as what a camera saw of one or several planes in space. Another camera, anywhere around
it, sees each plane through a homography ``K' (R + t n^T / d) K^-1`` (Hartley and Zisserman 2004, "Multiple View
Geometry", eq. 13.2), nearer planes in front of farther ones, and other pictures around and before the scene.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int, Int8, Int64, UInt8
from torch import Tensor

from diffmatch.errors import InputError, require
from diffmatch.matching.keypoints.photometric import Draws, change_photometry
from diffmatch.matching.keypoints.record import Keypoints

__all__ = ["Observed", "View", "label_pairs", "made_image", "observe", "render_views"]

ELSEWHERE = -1
"""Plane number of what is not part of the scene."""


@dataclass(frozen=True, eq=False)
class View:
    """What one camera sees of a scene.

    Attributes:
        gray: grey values, shape (h, w).
        plane: number of the plane in each pixel, -1 for what is not part of the scene.
        homographies: from the scene's picture to this view, one a plane.
    """

    gray: UInt8[np.ndarray, "h w"]
    plane: Int8[np.ndarray, "h w"]
    homographies: Float64[np.ndarray, "p 3 3"]


@dataclass(frozen=True, eq=False)
class Observed:
    """Keypoints of a view, and where they lie in the scene.

    Attributes:
        keypoints: of one image.
        plane: number of each keypoint's plane, -1 for what is not part of the scene; shape (k,).
        homographies: from the scene's picture to this view, shape (p, 3, 3), float64.
    """

    keypoints: Keypoints
    plane: Int64[Tensor, " k"]
    homographies: Float64[Tensor, "p 3 3"]


def made_image(size: tuple[int, int], *, generator: torch.Generator) -> UInt8[np.ndarray, "h w"]:
    """A picture of random shapes over a random texture: something to train on where there are no photographs.

    Args:
        size: width and height.
        generator: source of the random numbers.
    """
    cv2 = require("cv2", extra="images")
    draws, (width, height) = Draws(generator), size
    pixels = np.full((height, width), 128.0, np.float32)
    for octave in range(2, 7):
        noise = draws.normal(max(2, height * 2**octave // 256), max(2, width * 2**octave // 256))
        pixels += 40.0 * 0.6**octave * cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    for _ in range(round(width * height / 2500)):
        center = np.array([draws.uniform(0, width), draws.uniform(0, height)])
        radius, corners = draws.log_uniform(4.0, min(size) / 6), 3 + draws.integer(4)
        angle = np.sort([draws.uniform(0.0, 2 * math.pi) for _ in range(corners)])
        outline = center + radius * np.stack([np.cos(angle), np.sin(angle)], -1)
        cv2.fillPoly(pixels, [np.rint(outline).astype(np.int32)], draws.uniform(0.0, 255.0), cv2.LINE_AA)
    pixels = cv2.GaussianBlur(pixels, (0, 0), 0.7) + 3.0 * draws.normal(height, width)
    return np.asarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def render_views(
    picture: UInt8[np.ndarray, "h w"],
    others: Sequence[UInt8[np.ndarray, "_h _w"]],
    *,
    generator: torch.Generator,
    long_side: tuple[int, int] = (560, 900),
    max_tilt: float = 60.0,
    max_planes: int = 4,
    strength: float = 1.0,
) -> list[View]:
    """Several cameras' views of one scene, with other light for each.

    Args:
        picture: what the scene's planes show.
        others: one picture a view, for what lies around the scene and in front of it; all different, since what two
            views share counts as unmatched there.
        generator: source of the random numbers.
        long_side: of the views, in pixels, from and to.
        max_tilt: largest angle between the line of sight and the normal of the middle plane, in degrees.
        max_planes: every second scene has one plane, the others up to this many.
        strength: of the changes of light, see :func:`~diffmatch.matching.keypoints.photometric.change_photometry`.

    Raises:
        InputError: tilt or number of planes out of range.
    """
    if not 0 <= max_tilt < 85:
        raise InputError("max_tilt", "degrees from 0 to 85", str(max_tilt))
    if not 1 <= max_planes <= 100:
        raise InputError("max_planes", "1 to 100", str(max_planes))
    draws = Draws(generator)
    height, width = picture.shape
    camera = _intrinsics((width, height), draws.uniform(0.8, 1.6))
    count = 1 if draws.chance(0.5) else 1 + draws.integer(max_planes)
    region, planes = _cut_into_planes(camera, (width, height), count, draws)
    views = []
    for other in others:
        long, aspect = draws.uniform(*long_side), draws.uniform(0.66, 0.8)
        size = (round(long), round(long * aspect))
        homographies = _camera(camera, planes, (width, height), size, max_tilt, draws)
        gray, plane = _render(
            picture, region, planes @ np.linalg.inv(camera), homographies, size, _background(other, size, draws)
        )
        if draws.chance(0.3):
            _occlude(gray, plane, _background(other[::-1], size, draws), draws)
        views.append(View(change_photometry(gray, generator=generator, strength=strength), plane, homographies))
    return views


def observe(view: View, keypoints: Keypoints) -> Observed:
    """Say on which plane the keypoints of a view lie.

    Args:
        view: a view.
        keypoints: found in ``view.gray``; one image, without padding.
    """
    height, width = view.plane.shape
    column, row = keypoints.positions.round().long().unbind(-1)
    plane = torch.from_numpy(view.plane).to(keypoints.device)[row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return Observed(keypoints, plane.long(), torch.from_numpy(view.homographies).to(keypoints.device))


def label_pairs(
    a: Observed, b: Observed, pairs: Int64[Tensor, "2 c"], *, near: float = 3.0, far: float = 5.0
) -> Int[Tensor, " c"]:
    """The truth about pairs of keypoints of two views of one scene: 1 right, 0 wrong, -1 cannot be said.

    The distance of a pair is the larger of that in b, of the keypoint of a moved there, and that in a, of the keypoint
    of b. Pairs between two planes are moved by either; they are never right, and cannot be called wrong when close.

    Args:
        a: keypoints of one view.
        b: keypoints of another.
        pairs: rows of a and rows of b.
        near: a pair on one plane is right below this distance, in pixels.
        far: a pair is wrong above this distance.
    """
    i, j = pairs
    forward = b.homographies @ torch.linalg.inv(a.homographies)
    backward = torch.linalg.inv(forward)
    plane_a, plane_b = a.plane[i], b.plane[j]
    inside = (plane_a != ELSEWHERE) & (plane_b != ELSEWHERE)
    p, q = a.keypoints.positions[i].double(), b.keypoints.positions[j].double()
    distance = torch.full_like(p[:, 0], torch.inf)
    for plane in (plane_a, plane_b):
        number = plane.clamp(min=0)
        there, back = _move(forward[number], p), _move(backward[number], q)
        distance = torch.minimum(distance, torch.maximum((there - q).norm(dim=-1), (back - p).norm(dim=-1)))
    right = inside & (plane_a == plane_b) & (distance < near)
    wrong = ~inside | (distance > far)
    return torch.where(right, 1, torch.where(wrong, 0, -1))


def _move(homographies: Float64[Tensor, "c 3 3"], points: Float64[Tensor, "c 2"]) -> Float64[Tensor, "c 2"]:
    """Points through one homography each; those behind the camera go to infinity."""
    x, y, z = (homographies[:, :, :2] @ points[..., None] + homographies[:, :, 2:])[..., 0].unbind(-1)
    ahead = z > 1e-9
    moved = torch.stack((x, y), -1) / torch.where(ahead, z, 1.0)[:, None]
    return torch.where(ahead[:, None], moved, torch.inf)


def _intrinsics(size: tuple[int, int], focal: float) -> Float64[np.ndarray, "3 3"]:
    """A camera whose focal length is a multiple of its longer side."""
    f = focal * max(size)
    return np.array([[f, 0.0, (size[0] - 1) / 2], [0.0, f, (size[1] - 1) / 2], [0.0, 0.0, 1.0]])


def _cut_into_planes(
    camera: Float64[np.ndarray, "3 3"], size: tuple[int, int], count: int, draws: Draws
) -> tuple[Int8[np.ndarray, "h w"], Float64[np.ndarray, "p 3"]]:
    """The plane of each pixel of the scene's picture, and the planes as n / d in its camera's frame.

    The regions are the cells of random centres. The first plane faces the camera at distance 1; each other one is
    tilted, and lies up to a quarter nearer or farther where its centre is.
    """
    width, height = size
    centers = np.array([[draws.uniform(0, width), draws.uniform(0, height)] for _ in range(count)])
    planes = [np.array([0.0, 0.0, 1.0])]
    for center in centers[1:]:
        ray = np.linalg.solve(camera, np.array([*center, 1.0]))
        normal = np.array([draws.uniform(-0.6, 0.6), draws.uniform(-0.6, 0.6), 1.0])
        planes.append(normal / (normal @ ray * draws.uniform(0.75, 1.25)))
    y, x = np.mgrid[:height, :width]
    squared = np.stack([(x - cx) ** 2 + (y - cy) ** 2 for cx, cy in centers])
    return squared.argmin(0).astype(np.int8), np.stack(planes)


def _camera(
    camera: Float64[np.ndarray, "3 3"],
    planes: Float64[np.ndarray, "p 3"],
    scene_size: tuple[int, int],
    size: tuple[int, int],
    max_tilt: float,
    draws: Draws,
) -> Float64[np.ndarray, "p 3 3"]:
    """Homographies of a camera that looks at some point of the scene, from some side, at some distance."""
    own = _intrinsics(size, draws.uniform(0.8, 1.6))
    zoom = draws.log_uniform(0.75, 2.6)  # against the whole scene in the view
    room = max(0.0, 0.5 - 0.45 / zoom) + 0.08
    look = np.array([(0.5 + draws.uniform(-room, room)) * side for side in scene_size])
    target = np.linalg.solve(camera, np.array([*look, 1.0]))
    tilt = math.radians(max_tilt * draws.uniform(0.0, 1.0) ** 1.5)
    azimuth = draws.uniform(0.0, 2 * math.pi)
    roll = math.radians(draws.uniform(-180.0, 180.0) if draws.chance(0.4) else draws.uniform(-25.0, 25.0))
    axis = np.array([math.cos(azimuth), math.sin(azimuth), 0.0])
    rotation = _rotation(np.array([0.0, 0.0, 1.0]), roll) @ _rotation(axis, tilt)
    magnification = zoom * max(size) / max(scene_size)
    distance = own[0, 0] / (magnification * camera[0, 0])
    translation = np.array([0.0, 0.0, distance]) - rotation @ target
    moved = rotation[None] + translation[None, :, None] * planes[:, None, :]
    homographies = own @ moved @ np.linalg.inv(camera)
    return np.asarray(homographies, dtype=np.float64)


def _rotation(axis: Float64[np.ndarray, " 3"], angle: float) -> Float64[np.ndarray, "3 3"]:
    """Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1.0 - math.cos(angle)) * cross @ cross)


def _render(
    picture: UInt8[np.ndarray, "h w"],
    region: Int8[np.ndarray, "h w"],
    planes: Float64[np.ndarray, "p 3"],
    homographies: Float64[np.ndarray, "p 3 3"],
    size: tuple[int, int],
    background: UInt8[np.ndarray, "_h _w"],
) -> tuple[UInt8[np.ndarray, "_h _w"], Int8[np.ndarray, "_h _w"]]:
    """Paint the planes over the background, in front what is nearest to the camera."""
    cv2 = require("cv2", extra="images")
    width, height = size
    gray, plane = background.copy(), np.full((height, width), ELSEWHERE, np.int8)
    nearest = np.zeros((height, width))  # as inverse depth
    y, x = np.mgrid[:height, :width].astype(np.float64)
    for number, homography in enumerate(homographies):
        inverse = np.linalg.inv(homography)
        # With p = H^-1 (x, y, 1) and the plane as m = K^-T n / d, the point lies at depth 1 / (m p) in this view.
        rows = np.vstack((inverse, planes[number] @ inverse))
        u, v, w, near = (row[0] * x + row[1] * y + row[2] for row in rows)
        ahead = (w > 1e-9) & (near > 1e-9)
        column, row = (np.where(ahead, c / np.where(ahead, w, 1.0), -1e4).astype(np.float32) for c in (u, v))
        seen = cv2.remap(region + 1, column, row, cv2.INTER_NEAREST, borderValue=0) == number + 1
        front = ahead & seen & (near > nearest)
        painted = cv2.remap(_low_pass(picture, inverse, size), column, row, cv2.INTER_LINEAR)
        gray[front], plane[front], nearest[front] = painted[front], number, near[front]
    return gray, plane


def _low_pass(
    picture: UInt8[np.ndarray, "h w"], inverse: Float64[np.ndarray, "3 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """The picture blurred as much as a view that shrinks it needs, judged in the middle of the view."""
    cv2 = require("cv2", extra="images")
    x, y = (size[0] - 1) / 2, (size[1] - 1) / 2
    u, v, w = inverse @ np.array([x, y, 1.0])
    if w <= 1e-9:
        return picture
    jacobian = (inverse[:2, :2] - np.outer([u / w, v / w], inverse[2, :2])) / w
    step = math.sqrt(abs(float(np.linalg.det(jacobian))))
    if step <= 1.0:
        return picture
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.5 * math.sqrt(step**2 - 1.0) + 1e-3))


def _background(other: UInt8[np.ndarray, "h w"], size: tuple[int, int], draws: Draws) -> UInt8[np.ndarray, "_h _w"]:
    """A random part of another picture in the size of a view."""
    cv2 = require("cv2", extra="images")
    height, width = other.shape
    part = draws.uniform(0.5, 1.0)
    h, w = max(2, round(part * height)), max(2, round(part * width))
    y, x = draws.integer(height - h + 1), draws.integer(width - w + 1)
    return np.asarray(cv2.resize(np.ascontiguousarray(other[y : y + h, x : x + w]), size, interpolation=cv2.INTER_AREA))


def _occlude(
    gray: UInt8[np.ndarray, "h w"], plane: Int8[np.ndarray, "h w"], cover: UInt8[np.ndarray, "h w"], draws: Draws
) -> None:
    """Put something in front of the scene, in place."""
    cv2 = require("cv2", extra="images")
    height, width = gray.shape
    center = np.array([draws.uniform(0, width), draws.uniform(0, height)])
    angle = np.sort([draws.uniform(0.0, 2 * math.pi) for _ in range(6)])
    radius = draws.uniform(0.1, 0.3) * width
    mask = np.zeros((height, width), np.uint8)
    outline = center + radius * np.stack([np.cos(angle), np.sin(angle)], -1)
    cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 1)
    gray[mask > 0], plane[mask > 0] = cover[mask > 0], ELSEWHERE
