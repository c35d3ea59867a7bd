"""A cloud of points becomes a circle because a loss asks for one large hole.

The loss is the length of the longest bar of degree 1 of the alpha complex: the radius at which the largest hole is
filled minus the one at which its rim closes. Its gradient is known at a handful of points only; a smooth field carries
it to the others, and a wall around the unit disc keeps the cloud from growing without bound.
Run ``python examples/topology_circle.py [FOLDER]``; some ten seconds.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from diffmatch.report import encode_png
from diffmatch.topology import alpha_persistence, diffeomorphic_gradient, total_persistence


def main(folder: str | Path = "out", *, n_points: int = 150, steps: int = 200, width: int = 300) -> Tensor:
    """Write ``circle.png``, the cloud before and after, and return the points."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    points = (2 * torch.rand(n_points, 2, generator=generator) - 1).requires_grad_()
    start = points.detach().clone()
    optimizer = torch.optim.Adam([points], lr=0.02)

    def loops(cloud: Tensor) -> Tensor:
        """Lengths of the bars of degree 1, the longest first, in the unit of the points."""
        return alpha_persistence(cloud, degrees=(1,), squared=False)[1].persistence

    print("longest bars at first:", *(f"{length:.3f}" for length in loops(start)[:2].tolist()))
    for _ in range(steps):
        optimizer.zero_grad()
        holes = alpha_persistence(points, degrees=(1,), squared=False)[1]
        (-total_persistence(holes.select(slice(0, 1)))).backward()
        # Four or five points have a gradient now. The others move along with them:
        points.grad = diffeomorphic_gradient(points.detach(), points.grad, bandwidth=0.15, ridge=1e-2)
        wall = (points.norm(dim=1) - 1).clamp_min(0).square().sum()
        wall.backward()  # adds to the gradient
        optimizer.step()

    end = points.detach()
    print("longest bars at the end:", *(f"{length:.3f}" for length in loops(end)[:2].tolist()))
    radius = end.norm(dim=1)
    print(f"distances from the centre: {radius.mean():.3f} +- {radius.std():.3f}")
    picture = torch.cat([_picture(cloud, width) for cloud in (start, end)], dim=1)
    (folder / "circle.png").write_bytes(encode_png(picture.numpy()))
    return end


def _picture(cloud: Tensor, width: int) -> Tensor:
    """Black dots on white, shape (width, width, 3), 8 bits a channel."""
    axis = torch.linspace(-1.2, 1.2, width)
    distance = torch.cdist(torch.cartesian_prod(-axis, axis).flip(1), cloud).amin(1)
    dots = (distance < 0.02).reshape(width, width, 1)
    return torch.where(dots, 0, 255).to(torch.uint8).expand(-1, -1, 3).contiguous()


if __name__ == "__main__":
    main(*sys.argv[1:])
