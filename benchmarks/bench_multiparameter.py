"""Signed measures of two parameters, with gradients, against the peer's forward pass.

Images with two channels on a grid of 50 levels an axis, of noise and of smoothed noise, clouds of uniform points with a
function on all levels, and rank invariants of noise. Values stand on levels from the start, since the peer rounds to
the nearest level and we to the next. The number of points and the sum of absolute weights stand beside each time, and
are the same where both found the same measure.
"""

import sys
import warnings
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from diffmatch.topology.multiparameter import (
    RankInvariant,
    SignedMeasure,
    degree_rips_signed_measure,
    image_rank_invariant,
    image_signed_measure,
    rips_signed_measure,
    signed_sliced_distance,
    signed_transport_distance,
)

OURS = "diffmatch"
GRADIENT = "diffmatch, with gradient"
LEVELS = 50


def run(bench: Any) -> None:
    """Images, clouds, ranks, distances."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peer, about its own optional packages
        multipers = bench.peer("multipers")
        filtrations = bench.peer("multipers.filtrations") if multipers else None
    compare_images(bench, multipers, filtrations)
    compare_clouds(bench, multipers, filtrations)
    compare_loops(bench, multipers, filtrations)
    compare_ranks(bench, multipers, filtrations)
    compare_distances(bench)


def image(bench: Any, n: int, *, smooth: bool) -> Tensor:
    """Two channels of values k / 49, shape (2, n, n)."""
    noise = torch.rand(2, n, n, dtype=torch.float64, generator=bench.generator(), device=bench.device)
    if smooth:
        noise = torch.from_numpy(np.stack([gaussian_filter(c, 2) for c in noise.cpu().numpy()])).to(noise)
    low, high = noise.amin((1, 2), keepdim=True), noise.amax((1, 2), keepdim=True)
    return ((noise - low) / (high - low) * (LEVELS - 1)).round() / (LEVELS - 1)


def own_levels(field: Tensor) -> tuple[Tensor, Tensor]:
    """All values of both channels, read from the pixels, so that gradients reach these."""
    flat = field.reshape(2, -1)
    pixels = [np.unique(channel.detach().cpu().numpy(), return_index=True)[1] for channel in flat]
    return flat[0][pixels[0]], flat[1][pixels[1]]


def integral(measure: SignedMeasure) -> Tensor:
    return measure.integrate(lambda p: p.square().sum(1))


def quality(found: Any) -> dict[str, float]:
    ours = isinstance(found, SignedMeasure | RankInvariant)
    weights = found.weights.cpu().numpy() if ours else np.asarray(found[0][1])
    return {"points": len(weights), "total variation": float(np.abs(weights).sum())}


def compare_images(bench: Any, multipers: Any, filtrations: Any) -> None:
    for n in bench.sizes([64, 128], tiny=[6]):
        for name, smooth in (("noise", False), ("smooth", True)):
            field = image(bench, n, smooth=smooth)
            data = np.ascontiguousarray(field.permute(1, 2, 0).cpu().numpy())
            grid = [np.arange(LEVELS) / (LEVELS - 1)] * 2

            for task, degree in (("Hilbert, degree 0", 0), ("Hilbert, degree 1", 1), ("Euler", None)):

                def theirs() -> Any:
                    invariant = "euler" if degree is None else "hilbert"
                    complex_ = filtrations.Cubical(data)
                    return multipers.signed_measure(complex_, degree=degree, invariant=invariant, grid=grid, n_jobs=1)

                def step() -> SignedMeasure:
                    leaf = field.clone().requires_grad_()
                    measure = image_signed_measure(leaf, degree=degree, levels=own_levels(leaf))
                    integral(measure).backward()
                    return measure

                levels = (torch.from_numpy(grid[0]).to(field),) * 2
                bench.compare(
                    f"{task}, {name}",
                    {
                        OURS: lambda: image_signed_measure(field, degree=degree, levels=levels),
                        GRADIENT: step,
                        "multipers": theirs if multipers else None,
                    },
                    size=n,
                    quality=quality,
                )


def compare_clouds(bench: Any, multipers: Any, filtrations: Any) -> None:
    for n in bench.sizes([100, 400], tiny=[8]):
        points = torch.rand(n, 2, dtype=torch.float64, generator=bench.generator(), device=bench.device)
        function = torch.rand(n, dtype=torch.float64, generator=bench.generator(1), device=bench.device)
        data, values = points.cpu().numpy(), function.cpu().numpy()

        def theirs() -> Any:
            tree = filtrations.RipsLowerstar(points=data, function=values, threshold_radius=2.0)
            return multipers.signed_measure(tree, degree=0, invariant="hilbert", n_jobs=1)

        def step(make: Any, *given: Tensor) -> SignedMeasure:
            leaves = [x.clone().requires_grad_() for x in given]
            measure = make(*leaves)
            integral(measure).backward()
            return measure

        bench.compare(
            "function-Rips, degree 0",
            {
                OURS: lambda: rips_signed_measure(points, function),
                GRADIENT: lambda: step(rips_signed_measure, points, function),
                "multipers": theirs if multipers else None,
            },
            size=n,
            quality=quality,
        )
        bench.compare(
            "degree-Rips, degree 0",
            {GRADIENT: lambda: step(degree_rips_signed_measure, points)},
            size=n,
            quality=quality,
        )


def compare_loops(bench: Any, multipers: Any, filtrations: Any) -> None:
    """The triangles that the peer needs are made within the clock."""
    for n in bench.sizes([50, 100, 400], tiny=[8]):
        points = torch.rand(n, 2, dtype=torch.float64, generator=bench.generator(), device=bench.device)
        function = torch.rand(n, dtype=torch.float64, generator=bench.generator(1), device=bench.device)
        data, values = points.cpu().numpy(), function.cpu().numpy()

        def theirs() -> Any:
            tree = filtrations.RipsLowerstar(points=data, function=values, threshold_radius=2.0)
            tree.expansion(2)
            return multipers.signed_measure(tree, degree=1, invariant="hilbert", n_jobs=1)

        def step() -> SignedMeasure:
            leaves = points.clone().requires_grad_(), function.clone().requires_grad_()
            measure = rips_signed_measure(*leaves, degree=1)
            integral(measure).backward()
            return measure

        bench.compare(
            "function-Rips, degree 1",
            {
                OURS: lambda: rips_signed_measure(points, function, degree=1),
                GRADIENT: step,
                "multipers": theirs if multipers and n <= 100 else None,
            },
            size=n,
            quality=quality,
        )


def compare_ranks(bench: Any, multipers: Any, filtrations: Any) -> None:
    for n, levels in bench.sizes([(16, 10), (64, 10), (128, 50)], tiny=[(6, 4)]):
        field = image(bench, n, smooth=False)
        field = (field * (levels - 1)).round() / (levels - 1)
        data = np.ascontiguousarray(field.permute(1, 2, 0).cpu().numpy())
        grid = [np.arange(levels) / (levels - 1)] * 2

        def theirs() -> Any:
            complex_ = filtrations.Cubical(data)
            return multipers.signed_measure(complex_, degree=0, invariant="rank", grid=grid, n_jobs=1)

        def step() -> RankInvariant:
            leaf = field.clone().requires_grad_()
            rank = image_rank_invariant(leaf, levels=own_levels(leaf))
            rank.integrate(lambda birth, death: (birth * death.clamp_max(2)).sum(1)).backward()
            return rank

        given = (torch.from_numpy(grid[0]).to(field),) * 2
        bench.compare(
            f"rank invariant, {levels} levels",
            {
                OURS: lambda: image_rank_invariant(field, levels=given),
                GRADIENT: step,
                "multipers": theirs if multipers and levels <= 10 else None,
            },
            size=n,
            quality=quality,
        )


def compare_distances(bench: Any) -> None:
    for n in bench.sizes([16, 64], tiny=[4]):
        first, second = (
            image_signed_measure(image(bench, n, smooth=smooth), levels=LEVELS // 5) for smooth in (False, True)
        )

        def number(value: Tensor) -> dict[str, float]:
            return {"distance": float(value)}

        bench.compare("transport", {OURS: lambda: signed_transport_distance(first, second)}, size=n, quality=number)
        bench.compare("sliced transport", {OURS: lambda: signed_sliced_distance(first, second)}, size=n, quality=number)


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
