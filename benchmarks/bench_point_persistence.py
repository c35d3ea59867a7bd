"""Persistence of point clouds with gradients against the peers' without, and distances of diagrams.

The peers give no gradients. Rips: degrees 0 and 1 of uniform points and of a noisy circle. Alpha: all degrees of
uniform points in the plane and in space. The total persistence of what was found stands beside each time; ripser
calculates in single precision.
"""

import math
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffmatch.topology import (
    Persistence,
    alpha_persistence,
    bottleneck_distance,
    rips_persistence,
    sliced_wasserstein_distance,
    total_persistence,
    wasserstein_distance,
)

OURS = "diffmatch"
GRADIENT = "diffmatch, with gradient"


def run(bench: Any) -> None:
    """Clouds, then diagrams."""
    gudhi, ripser = bench.peer("gudhi"), bench.peer("ripser")
    compare_rips(bench, bench.peer("gudhi.sklearn.rips_persistence") if gudhi else None, ripser)
    compare_alpha(bench, gudhi)
    compare_distances(bench, gudhi, bench.peer("gudhi.hera") if gudhi else None)


def uniform(bench: Any, *shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=bench.generator(), device=bench.device)


def circle(bench: Any, n: int) -> Tensor:
    angle = 2 * math.pi * uniform(bench, n)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=bench.generator(1), device=bench.device)
    return torch.stack((angle.cos(), angle.sin()), 1) + 0.05 * noise


def step(persistence: Any, points: Tensor) -> Persistence:
    """One forward and backward pass."""
    leaf = points.clone().requires_grad_()
    found: Persistence = persistence(leaf)
    total_persistence(found).backward()
    return found


def finite_length(intervals: Any) -> float:
    """Total persistence of the peers' arrays."""
    rows = np.concatenate([np.asarray(i).reshape(-1, 2) for i in intervals])
    return float((rows[:, 1] - rows[:, 0])[np.isfinite(rows[:, 1])].sum())


def quality(found: Any) -> dict[str, float]:
    ours = isinstance(found, Persistence)
    return {"total persistence": float(total_persistence(found).detach()) if ours else finite_length(found)}


def compare_rips(bench: Any, gudhi: Any, ripser: Any) -> None:
    for n in bench.sizes([200, 500, 1000], tiny=[12]):
        for name, points in (
            ("uniform, plane", uniform(bench, n, 2)),
            ("uniform, 10 dimensions", uniform(bench, n, 10)),
            ("noisy circle", circle(bench, n)),
        ):
            if name == "noisy circle" and n > 500:
                continue  # the peers take seconds
            data = points.cpu().numpy()
            bench.compare(
                f"Rips, {name}",
                {
                    OURS: lambda: rips_persistence(points),
                    GRADIENT: lambda: step(rips_persistence, points),
                    "gudhi": (lambda: gudhi.RipsPersistence(homology_dimensions=[0, 1]).fit_transform([data])[0])
                    if gudhi
                    else None,
                    "ripser": (lambda: ripser.ripser(data)["dgms"]) if ripser else None,
                },
                size=n,
                quality=quality,
            )


def compare_alpha(bench: Any, gudhi: Any) -> None:
    def by_gudhi(data: np.ndarray) -> list[np.ndarray]:
        tree = gudhi.AlphaComplex(points=data).create_simplex_tree()
        tree.compute_persistence()
        return [tree.persistence_intervals_in_dimension(k) for k in range(data.shape[1])]

    for d in (2, 3):
        for n in bench.sizes([1000, 10_000], tiny=[12]):
            points = uniform(bench, n, d)
            data = points.cpu().numpy()
            bench.compare(
                f"alpha, {d} dimensions",
                {
                    OURS: lambda: alpha_persistence(points),
                    GRADIENT: lambda: step(alpha_persistence, points),
                    "gudhi": (lambda: by_gudhi(data)) if gudhi else None,
                },
                size=n,
                quality=quality,
            )


def compare_distances(bench: Any, gudhi: Any, hera: Any) -> None:
    for n in bench.sizes([50, 300], tiny=[5]):
        a, b = uniform(bench, n, 2).cumsum(1), uniform(bench, n + 1, 2)[1:].cumsum(1)
        x, y = a.cpu().numpy(), b.cpu().numpy()

        def number(value: Any) -> dict[str, float]:
            return {"distance": float(value)}

        bench.compare(
            "Wasserstein, order 2",
            {
                OURS: lambda: wasserstein_distance(a, b),
                "hera": (lambda: hera.wasserstein_distance(x, y, order=2, internal_p=2)) if hera else None,
            },
            size=n,
            quality=number,
        )
        bench.compare(
            "bottleneck",
            {
                OURS: lambda: bottleneck_distance(a, b),
                "gudhi": (lambda: gudhi.bottleneck_distance(x, y, 0)) if gudhi else None,
            },
            size=n,
            quality=number,
        )
        bench.compare("sliced Wasserstein", {OURS: lambda: sliced_wasserstein_distance(a, b)}, size=n, quality=number)


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
