"""Persistence of images and volumes, all degrees, against CubicalRipser and gudhi, on noise and on smooth fields.

All use the V-construction in double precision. A step is the pairing, births and deaths read from the field, the total
persistence of all finite bars and its gradient; CubicalRipser gives the places of the ends, and the rest is the same
torch code. gudhi gives no places with this construction, so that its time is that of the values alone; it takes part up
to 64 voxels a side. The number of bars and the total persistence stand beside each time. The last task is a batch of
images in two threads against a loop over it.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffmatch.topology import Persistence, cubical_persistence, cubical_persistence_batch

OURS = "diffmatch"
Result = tuple[int, float, Tensor | None]


def make(shape: tuple[int, ...], smooth: bool, generator: torch.Generator) -> Tensor:
    field = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    if smooth:
        pool = torch.nn.functional.avg_pool2d if len(shape) == 2 else torch.nn.functional.avg_pool3d
        for _ in range(4):
            field = pool(field[None, None], 3, 1, 1)[0, 0]
    return field.requires_grad_()


def run(bench: Any) -> None:
    """Images, volumes, rings, then a batch."""
    cripser, gudhi = bench.peer("cripser"), bench.peer("gudhi")
    images = bench.sizes([(512, 512), (1024, 1024)], tiny=[(9, 8)])
    volumes = bench.sizes([(64, 64, 64), (128, 128, 128)], tiny=[(6, 5, 4)])
    for shape in (*images, *volumes):
        for smooth in (False, True):
            field = make(shape, smooth, bench.generator())
            compare(
                bench,
                field,
                "smooth" if smooth else "noise",
                cripser,
                gudhi if max(shape) < 100 or len(shape) == 2 else None,
            )
    for shape in bench.sizes([(256, 256), (32, 32, 32)], tiny=[(5, 4), (3, 2, 4)]):
        compare_rings(bench, make(shape, False, bench.generator()), gudhi)
    for shape in bench.sizes([(16, 256, 256)], tiny=[(3, 9, 8)]):
        compare_batch(bench, torch.stack([make(shape[1:], True, bench.generator(i)).detach() for i in range(shape[0])]))


def compare(bench: Any, field: Tensor, kind: str, cripser: Any, gudhi: Any) -> None:
    array = field.detach().numpy()

    def ours() -> Result:
        return step([cubical_persistence(field)], field)

    def by_cripser() -> Result:
        rows = cripser.computePH(array, maxdim=field.ndim - 1)
        rows = rows[rows[:, 2] < 1e300]
        places = rows[:, 3:].astype(np.int64).reshape(-1, 2, 3)[..., : field.ndim]
        ends = torch.from_numpy(np.ravel_multi_index(tuple(np.moveaxis(places, -1, 0)), field.shape))
        births, deaths = field.reshape(-1).gather(0, ends.reshape(-1)).reshape(-1, 2).unbind(1)
        total = (deaths - births).sum()
        return len(rows), float(total.detach()), torch.autograd.grad(total, field)[0]

    def by_gudhi() -> Result:
        complex_ = gudhi.CubicalComplex(vertices=array)
        complex_.compute_persistence()
        bars = np.concatenate([complex_.persistence_intervals_in_dimension(k) for k in range(field.ndim)])
        bars = bars[np.isfinite(bars).all(axis=1)]
        return len(bars), float((bars[:, 1] - bars[:, 0]).sum()), None

    bench.compare(
        f"{kind}, gradient of the total persistence",
        {
            OURS: ours,
            "CubicalRipser": by_cripser if cripser else None,
            "gudhi, values only": by_gudhi if gudhi else None,
        },
        size="x".join(map(str, field.shape)),
        quality=lambda result: {"bars": result[0], "total persistence": result[1]},
    )


def compare_rings(bench: Any, field: Tensor, gudhi: Any) -> None:
    """All axes closed to rings."""
    array, rings = field.detach().numpy(), [True] * field.ndim

    def ours() -> Result:
        return step([cubical_persistence(field, periodic=True)], field)

    def by_gudhi() -> Result:
        complex_ = gudhi.PeriodicCubicalComplex(vertices=array, periodic_dimensions=rings)
        complex_.compute_persistence()
        bars = np.concatenate([complex_.persistence_intervals_in_dimension(k) for k in range(field.ndim)])
        bars = bars[np.isfinite(bars).all(axis=1)]
        return len(bars), float((bars[:, 1] - bars[:, 0]).sum()), None

    bench.compare(
        "periodic, noise",
        {OURS: ours, "gudhi, values only": by_gudhi if gudhi else None},
        size="x".join(map(str, field.shape)),
        quality=lambda result: {"bars": result[0], "total persistence": result[1]},
    )


def compare_batch(bench: Any, fields: Tensor) -> None:
    fields.requires_grad_()

    def together() -> Result:
        return step(cubical_persistence_batch(fields), fields)

    def in_a_loop() -> Result:
        return step([cubical_persistence(field) for field in fields], fields)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bench.compare(
            "batch in two threads",
            {OURS: together, "diffmatch, loop": in_a_loop},
            size="x".join(map(str, fields.shape)),
            quality=lambda result: {"bars": result[0], "total persistence": result[1]},
        )
    finally:
        torch.set_num_threads(threads)


def step(found: list[Persistence], field: Tensor) -> Result:
    """How many bars there are, their total persistence, and its gradient."""
    diagrams = [diagram for persistence in found for diagram in persistence]
    total = sum(diagram.persistence.sum() for diagram in diagrams)
    return sum(map(len, diagrams)), float(total.detach()), torch.autograd.grad(total, field)[0]


if __name__ == "__main__":
    from harness import main

    sys.exit(main(files=[__file__]))
