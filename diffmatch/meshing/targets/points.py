"""An oriented point cloud as a target."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_floating, check_positive, check_shape
from diffmatch.meshing.targets.cloud import estimated_normals, inliers, point_areas, smoothed_normals, thinned
from diffmatch.meshing.targets.denoising import denoised, noise_level, residual_noise
from diffmatch.meshing.targets.mesh import ClosestPoint
from diffmatch.meshing.targets.normalization import Normalization
from diffmatch.meshing.targets.point_kernels import surface_values
from diffmatch.meshing.targets.winding import SureCells, dipole_tree

__all__ = ["PointTarget"]

logger = logging.getLogger(__name__)

FEWEST = 4
NEIGHBOURS = 20
MIXED = 4  # points whose attributes are mixed
LEVELS = 6  # each with twice the spacing of the one before
NEAR = 1.5  # spacings from the points up to which all of them are asked; farther, thinner levels
# Where the winding number begins to count, and where it alone counts: its distance from 1/2, spacings from the points.
SURE, AWAY = (0.25, 0.4), (1.0, 2.5)
TRUSTED, DOUBT = 0.7, 0.6  # how sure it must be, and how far away in spacings, to overrule a sheet of the other sign
CLEAN = 1e-3  # noise, in spacings, that is not worth moving points for
LATTICE = 40
CHUNK = 1 << 13


class PointTarget:
    """The solid within an oriented point cloud, such as a scan or samples of a surface.

    Outliers are left out: points apart from the others, or not in line with their neighbours. Noise in the positions
    is estimated and averaged out along the surface, with the normals as guide. Near the points, the field is the
    distance to the smooth sheets through the nearest of them, with sharp edges where sheets meet; away from them, the
    distance to the nearest point, with the sign of the generalised winding number (Barill et al. 2018). Holes are
    bridged by sheets through points farther around.

    All queries run on the CPU in float64, wherever the points live: they are copied there and the results back.

    Args:
        points: positions, shape (n, 3), floating; at least four. A few thousand make a surface.
        normals: outward, of any length but zero, shape (n, 3). If they point inwards on the whole, they are turned,
            with a warning. Without them, they are estimated, and what is outside is a guess: of each connected piece,
            its outer side. Thin parts and sparse places may be guessed wrongly.
        noise: standard deviation of each coordinate of the points, in their unit; 0 keeps the points where they are.
            The default is estimated from the points.
        attributes: values at the points, such as colours, shape (n, d), floating.

    Raises:
        InputError: a shape, dtype or value does not fit, there are too few points, or they bound no solid.

    Attributes:
        points: the points that are left, denoised, in the box, float64 on the CPU.
        normals: their unit outward normals.
        kept: which of the given points are left, shape (n,), bool; repeated positions count once.
        noise: what was given or estimated, in the unit of the given points.
        normalization: from the points' own coordinates to the box.
        bounds: low and high corner of the points in the box, float64 on the CPU.
    """

    def __init__(
        self,
        points: Float[Tensor, "n 3"],
        normals: Float[Tensor, "n 3"] | None = None,
        *,
        noise: float | int | None = None,
        attributes: Float[Tensor, "n d"] | None = None,
    ) -> None:
        own, directions = _checked(points, normals)
        if noise is not None:
            check_positive("noise", noise, allow_zero=True)
        if attributes is not None:
            check_shape("attributes", attributes, (len(own), "d"))
            check_floating("attributes", attributes)
        if directions is None:
            logger.warning("target: the points have no normals; they are estimated, and what is outside is guessed")
        self.kept = _first_of_each(own)
        _check_enough(self.kept)
        self.kept[self.kept.copy()] = inliers(own[self.kept], None if directions is None else directions[self.kept])
        _check_enough(self.kept)
        n_out = int((~self.kept).sum())
        if n_out:
            logger.info("target: %d of %d points are left out as outliers or repeated", n_out, len(own))
        centre = own[self.kept].mean(0)
        moved = own[self.kept] - centre
        directions, moved, self.noise = _cleaned(
            moved, estimated_normals(moved) if directions is None else directions[self.kept], noise, directions is None
        )
        areas = point_areas(moved)
        if ((moved * directions).sum(1) * areas).sum() < 0:
            logger.warning("target: the normals of the points show inwards; they are turned around")
            directions = -directions

        low, high = moved.min(0) + centre, moved.max(0) + centre
        own_bounds = torch.from_numpy(np.stack([low, high]))
        self.normalization = Normalization.of_bounds(own_bounds)
        self.bounds: Float[Tensor, "2 3"] = self.normalization.apply(own_bounds)
        self.points: Float[Tensor, "m 3"] = self.normalization.apply(torch.from_numpy(moved + centre))
        self.normals: Float[Tensor, "m 3"] = torch.from_numpy(np.ascontiguousarray(directions))
        self._attributes = None if attributes is None else attributes.detach().cpu()[torch.from_numpy(self.kept)]
        self._areas = areas * self.normalization.scale**2
        self._spacing = float(np.sqrt(np.median(self._areas)))
        self._levels = self._thinner_levels()
        order = self._levels[0][0].indices
        vectors = self.normals.numpy() * self._areas[:, None]
        dipoles = dipole_tree(self.points.numpy()[order], vectors[order])
        self._winding = SureCells(dipoles, lambda nodes: self._nearest(nodes)[0], half=1.05, cells=LATTICE)

    def sdf(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Signed distance, nearly, negative inside; differentiable, once, in the points.

        Raises:
            InputError: a point is not finite.
        """
        values, gradient = self.value_and_gradient(points)
        if points.requires_grad and torch.is_grad_enabled():
            # Adds exact zeros: the value stays, and the gradient is that of the distance.
            return values + ((points - points.detach()) * gradient).sum(-1)
        return values

    def value_and_gradient(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Signed distance, nearly, and its direction of steepest ascent, of about unit length; without a graph.

        Raises:
            InputError: a point is not finite.
        """
        values, gradient = self._evaluate(_queries(points))
        return torch.from_numpy(values).to(points), torch.from_numpy(gradient).to(points)

    def closest(self, points: Float[Tensor, "n 3"]) -> ClosestPoint:
        """The nearest points of the surface, by a few steps of Newton's method.

        Raises:
            InputError: a point is not finite.
        """
        queries = _queries(points)
        found, normals = self._projected(queries)
        distance = np.linalg.norm(queries - found, axis=1)
        return ClosestPoint(*(torch.from_numpy(x).to(points) for x in (found, normals, distance)))

    def attributes_at(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"] | None:
        """The attributes of the nearest points, mixed by their inverse distances; None where there are none.

        Raises:
            InputError: a point is not finite.
        """
        if self._attributes is None:
            return None
        distance, near = self._levels[0][0].query(_queries(points), MIXED)
        weights = torch.from_numpy(1 / (distance + 0.1 * self._spacing))
        mixed = (weights[:, :, None] * self._attributes.double()[torch.from_numpy(near)]).sum(1)
        return (mixed / weights.sum(1, keepdim=True)).to(points.device, self._attributes.dtype)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Points on the surface, about uniform by area, and the outward normals there.

        Args:
            n: number of points.
            generator: source of randomness.
            device: of the result.
            dtype: of the result.
        """
        origin = torch.device("cpu") if generator is None else generator.device
        draws = torch.rand(n, 4, generator=generator, device=origin, dtype=torch.float64).cpu().numpy()
        heap = np.cumsum(self._areas)
        chosen = np.minimum(np.searchsorted(heap, draws[:, 0] * heap[-1]), len(heap) - 1)
        step = 2 * np.sqrt(self._areas[chosen])[:, None] * (draws[:, 1:] - 0.5)
        found, normals = self._projected(self.points.numpy()[chosen] + step)
        return torch.from_numpy(found).to(device, dtype), torch.from_numpy(normals).to(device, dtype)

    def _thinner_levels(self) -> list[tuple[Any, np.ndarray, np.ndarray]]:
        """Trees, points and normals of the levels, all points first."""
        points, normals = self.points.numpy(), self.normals.numpy()
        levels = [(cKDTree(points, leafsize=16), points, normals)]
        for level in range(1, LEVELS):
            index = thinned(points, normals, self._spacing * 2**level)
            if len(index) < 2 * NEIGHBOURS:
                break
            levels.append((cKDTree(points[index]), points[index], normals[index]))
        return levels

    def _projected(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points on the surface and the normals there."""
        for _ in range(3):
            values, gradient = self._evaluate(queries)
            square = np.maximum(np.square(gradient).sum(1), 0.25)
            queries = queries - (values / square)[:, None] * gradient
        _, gradient = self._evaluate(queries)
        return queries, gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-12)

    def _evaluate(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, gradients = np.empty(len(queries)), np.empty((len(queries), 3))

        def fill(start: int) -> None:
            part = slice(start, start + CHUNK)
            values[part], gradients[part] = self._field(queries[part])

        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:  # trees and kernels release the interpreter lock
            list(pool.map(fill, range(0, len(queries), CHUNK)))
        return values, gradients

    def _field(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distance, nearest = self._nearest(queries)
        spacings = distance / self._spacing
        winding, far = np.full(len(queries), 0.5), spacings > DOUBT
        winding[far] = self._winding(queries[far])
        sure = _ramp(np.abs(winding - 0.5), *SURE)
        away = sure * _ramp(spacings, *AWAY)
        # Far from the points, their distance with the sign of the winding number.
        side = np.where(winding > 0.5, -1.0, 1.0)
        values = side * distance
        gradients = (queries - self.points.numpy()[nearest]) / np.where(distance > 0, values, 1)[:, None]
        # Near the points, and in holes, sheets through them.
        mine = np.flatnonzero(away < 1)
        sheet, normal = self._sheets(queries[mine], distance[mine])
        agree = ((sheet < 0) == (side[mine] < 0)) | (sure[mine] < TRUSTED)
        mine, sheet, normal = mine[agree], sheet[agree], normal[agree]
        share = 1 - away[mine]
        values[mine] += share * (sheet - values[mine])
        gradients[mine] += share[:, None] * (normal - gradients[mine])
        return values, gradients

    def _sheets(self, queries: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances from the sheets through the nearest points, the fewer the farther: between two levels a mixture."""
        height = np.log2(np.maximum(distance / (NEAR * self._spacing), 1)).clip(max=len(self._levels) - 1)
        values, gradients = np.zeros(len(queries)), np.zeros((len(queries), 3))
        for level, (tree, points, normals) in enumerate(self._levels):
            share = np.maximum(1 - np.abs(height - level), 0)
            mine = np.flatnonzero(share)
            if len(mine):
                reach, near = tree.query(queries[mine], min(NEIGHBOURS, len(points)))
                sheet, normal = surface_values(queries[mine], points, normals, near, reach)
                limit = distance[mine] + self._spacing * 2.0**level
                values[mine] += share[mine] * np.clip(sheet, -limit, limit)
                gradients[mine] += share[mine, None] * normal
        return values, gradients

    def _nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances and indices of the nearest points; far ones within a quarter, which is much faster."""
        tree = self._levels[0][0]
        distance, nearest = tree.query(queries, distance_upper_bound=2 * AWAY[1] * self._spacing)
        far = np.flatnonzero(~np.isfinite(distance))
        if len(far):
            distance[far], nearest[far] = tree.query(queries[far], eps=0.25)
        return distance, nearest


def _checked(points: Tensor, normals: Tensor | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions and unit normals as float64 arrays."""
    check_shape("points", points, ("n", 3))
    check_floating("points", points)
    check_finite("points", points)
    if len(points) < FEWEST:
        raise InputError("points", f"at least {FEWEST} points", str(len(points)))
    own = points.detach().to("cpu", torch.float64).numpy()
    if normals is None:
        return own, None
    check_shape("normals", normals, (len(points), 3))
    check_floating("normals", normals)
    check_finite("normals", normals)
    directions = normals.detach().to("cpu", torch.float64).numpy()
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    zeros = int((length == 0).sum())
    if zeros:
        raise InputError("normals", "vectors that are not zero", f"{zeros} of {len(points)} zero")
    return own, directions / length


def _check_enough(kept: np.ndarray) -> None:
    if kept.sum() < FEWEST:
        wanted = f"at least {FEWEST} points near each other, no two in one place"
        raise InputError("points", wanted, f"{int(kept.sum())} of {len(kept)}")


def _first_of_each(points: np.ndarray) -> np.ndarray:
    """Mask of the first point at each position."""
    first = np.zeros(len(points), dtype=bool)
    first[np.unique(points, axis=0, return_index=True)[1]] = True
    return first


def _cleaned(
    points: np.ndarray, normals: np.ndarray, noise: float | int | None, estimated: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Normals, points and the noise in these, after denoising."""
    if estimated:
        normals = smoothed_normals(points, normals)
    level = noise_level(points, normals) if noise is None else float(noise)
    spacing = float(np.sqrt(np.median(point_areas(points))))
    if level > CLEAN * spacing:
        guide = denoised(points, normals, level)
        if noise is None:
            level = residual_noise(points, guide, normals)
        points = denoised(points, normals, level, guide=guide)
        if estimated:
            normals = smoothed_normals(points, normals)
    return normals, points, level


def _ramp(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smoothly from 0 below ``low`` to 1 above ``high``."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _queries(points: Tensor) -> np.ndarray:
    check_finite("points", points)
    return points.detach().to("cpu", torch.float64).contiguous().numpy()
