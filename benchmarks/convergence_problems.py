"""The problems on which the optimizers are compared: fields, a regression, a valley, a soft matching."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Tensor

from diffmatch.autodiff import Probes, gradients, hessian_product
from diffmatch.matching.transport import sinkhorn
from diffmatch.meshing.shapes import demo_part, sphere

__all__ = ["Problem", "field_problem", "matching", "regression", "rosenbrock", "sharpness"]

SMOOTH = 1e-4  # of the sum of squared Laplacians, beside the mean of the residuals
EPS = 0.2


@dataclass(frozen=True)
class Problem:
    """What is fitted, to what, and what is told of the solution besides its loss."""

    params: list[Tensor]
    loss: Callable[[], Tensor]
    properties: Callable[[], dict[str, float]]


def field_problem(kind: str, n: int, seed: int, *, samples: int = 4000) -> Problem:
    """A field on n^3 nodes of [-1, 1]^3 from signed distances of the demo's part at random points; it starts as a ball.

    Args:
        kind: ``"squares"`` or ``"absolute values"`` of the residuals.
        n: nodes along each side.
        seed: of the points.
        samples: points.
    """
    points = (2 * torch.rand(samples, 3, generator=torch.Generator().manual_seed(seed)) - 1) * 0.98
    target = demo_part(points)
    index, weight = _corners(points, n)
    line = torch.linspace(-1, 1, n)
    nodes = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    field = sphere(nodes, radius=0.5).requires_grad_()
    second = torch.diag(torch.full((n,), 2.0)) - torch.diag(torch.ones(n - 1), 1) - torch.diag(torch.ones(n - 1), -1)
    second[0, 0] = second[-1, -1] = 1.0
    inside = demo_part(nodes) < 0

    def loss() -> Tensor:
        residual = (field.reshape(-1)[index] * weight).sum(1) - target
        laplacian = torch.tensordot(second, field, 1) + second @ field + field @ second
        data = residual.square().mean() if kind == "squares" else residual.abs().mean()
        return data + SMOOTH * laplacian.square().sum()

    def properties() -> dict[str, float]:
        found = field.detach() < 0
        wrong = 100 * (found != inside).float().mean()
        return {"bodies": float(ndimage.label(found.numpy())[1]), "wrong signs, %": float(wrong)}

    return Problem([field], loss, properties)


def regression(seed: int, *, samples: int = 569, features: int = 30) -> Problem:
    """Logistic regression with an l2 term of 1e-4, in double precision, on features that are strongly correlated."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=g, dtype=torch.float64)
    mixing = mixing * torch.logspace(0, -1.5, features, dtype=torch.float64)[:, None]
    x = torch.randn(samples, features, generator=g, dtype=torch.float64) @ mixing
    x = torch.cat(((x - x.mean(0)) / x.std(0), torch.ones(samples, 1, dtype=torch.float64)), 1)
    truth = torch.randn(features + 1, generator=g, dtype=torch.float64)
    label = torch.where(torch.rand(samples, generator=g, dtype=torch.float64) < torch.sigmoid(x @ truth), 1.0, -1.0)
    w = torch.zeros(features + 1, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        return torch.nn.functional.softplus(-label * (x @ w)).mean() + 0.5e-4 * w.square().sum()

    return Problem([w], loss, lambda: {"sharpness": sharpness(loss, [w]), "norm": float(w.detach().norm())})


def rosenbrock(seed: int) -> Problem:
    """Rosenbrock's valley, from (-1.2, 1), or for other seeds than 0 from a point nearby."""
    g = torch.Generator().manual_seed(seed)
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    moved = start + 0.2 * torch.randn(2, generator=g, dtype=torch.float64) * min(seed, 1)
    p = moved.clone().requires_grad_()

    def loss() -> Tensor:
        return 100 * (p[1] - p[0] ** 2) ** 2 + (1 - p[0]) ** 2

    return Problem([p], loss, lambda: {"sharpness": sharpness(loss, [p])})


def matching(seed: int, *, n: int = 24, d: int = 6) -> Problem:
    """A linear map of the features of n points such that entropic transport matches them to their noisy partners.

    The loss is the mean negative logarithm of the plan at the planted pairs; ``right`` counts on points that were not
    fitted.
    """
    g = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]

    def pair() -> tuple[Tensor, Tensor]:
        x = torch.randn(n, d, generator=g, dtype=torch.float64)
        return x, x @ rotation + 0.4 * torch.randn(n, d, generator=g, dtype=torch.float64)

    (x, y), (new_x, new_y) = pair(), pair()
    w = torch.eye(d, dtype=torch.float64).requires_grad_()

    def plan(x: Tensor, y: Tensor) -> Tensor:
        cost = -(x @ w) @ y.T / d
        found = sinkhorn(cost, eps=EPS, tol=1e-30, max_steps=15, method="sweeps", adjoint="unroll", check=False)
        return n * found.plan

    def loss() -> Tensor:
        return -plan(x, y).diagonal().log().mean()

    def properties() -> dict[str, float]:
        with torch.no_grad():
            share = (plan(x, y) < 1e-3).double().mean()
            right = (plan(new_x, new_y).argmax(1) == torch.arange(n)).double().mean()
        return {
            "sharpness": sharpness(loss, [w]),
            "plan below 1e-3, %": 100 * float(share),
            "right, %": 100 * float(right),
        }

    return Problem([w], loss, properties)


def sharpness(loss: Callable[[], Tensor], params: list[Tensor], *, products: int = 30) -> float:
    """The Hessian's eigenvalue of largest size at the parameters, by power iteration."""
    grads = gradients(loss(), params, graph=True)
    vectors, size = Probes().draw(params), 0.0
    for _ in range(products):
        length = float(torch.stack([v.norm() for v in vectors]).norm())
        vectors = [v / length for v in vectors]
        images = hessian_product(grads, params, vectors, retain_graph=True)
        size = float(torch.stack([(v * h).sum() for v, h in zip(vectors, images, strict=True)]).sum())
        vectors = list(images)
    return size


def _corners(points: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Flat numbers of the eight nodes around each point, and the weights of trilinear interpolation."""
    place = (points + 1) / 2 * (n - 1)
    low = place.floor().long().clamp(max=n - 2)
    rest = place - low
    corner = torch.cartesian_prod(*[torch.arange(2)] * 3)
    node = low[:, None] + corner
    weight = torch.where(corner.bool(), rest[:, None], 1 - rest[:, None]).prod(-1)
    return (node[..., 0] * n + node[..., 1]) * n + node[..., 2], weight
