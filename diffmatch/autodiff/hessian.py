"""Products with second derivatives, without the second derivatives: the Hessian and its approximations.

Everything here works on lists of tensors, one an argument of the loss; a list of vectors has the shapes of the
parameters. A loss is differentiated once with its graph kept, and each product is one more backward pass (Pearlmutter,
1994, "Fast exact multiplication by the Hessian").
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffmatch.errors import InputError

__all__ = [
    "Curvature",
    "DiagonalHessian",
    "EmpiricalFisher",
    "ExactHessian",
    "GaussNewton",
    "Probes",
    "gradients",
    "gradients_or_none",
    "hessian_diagonal",
    "hessian_product",
]

Vectors = list[Tensor]
Product = Callable[[Sequence[Tensor]], Vectors]

_FREED = "backward through the graph a second time"


def gradients(loss: Tensor, params: Sequence[Tensor], *, graph: bool = False) -> Vectors:
    """Gradients of a loss, with zeros for parameters that it does not depend on.

    See :func:`gradients_or_none` for arguments and errors.
    """
    found = gradients_or_none(loss, params, graph=graph)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True)]


def gradients_or_none(loss: Tensor, params: Sequence[Tensor], *, graph: bool = False) -> list[Tensor | None]:
    """Gradients of a loss, with None for parameters that it does not depend on.

    Args:
        loss: scalar, with its graph.
        params: what to differentiate by.
        graph: keep a graph of the gradients, for :func:`hessian_product`.

    Raises:
        InputError: the loss has no graph, or one that was freed by a ``backward`` before.
    """
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        got = "one without a graph" if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError("closure", "a function that returns the loss as a tensor with its graph", got)
    wanted = "the loss with its graph intact (the closure calls no backward)"
    return list(_differentiate("closure", wanted, loss, params, create_graph=graph))


def hessian_product(
    grads: Sequence[Tensor], params: Sequence[Tensor], vectors: Sequence[Tensor], *, retain_graph: bool = False
) -> Vectors:
    """The Hessian times a vector, from gradients that kept their graph.

    Args:
        grads: from :func:`gradients` with ``graph=True``.
        params: what they were differentiated by.
        vectors: the vector, in the shapes of the parameters.
        retain_graph: keep the graph for another product; otherwise it is freed here.

    Raises:
        InputError: the graph was freed before, or the loss cannot be differentiated twice.
    """
    pairs = [(g, v) for g, v in zip(grads, vectors, strict=True) if g.requires_grad]
    if not pairs:  # linear in all of them
        return [torch.zeros_like(p) for p in params]
    wanted = "gradients with their graph intact, of a loss that can be differentiated twice"
    outputs, weights = [g for g, _ in pairs], [v for _, v in pairs]
    found = _differentiate("grads", wanted, outputs, params, grad_outputs=weights, retain_graph=retain_graph)
    return [torch.zeros_like(p) if h is None else h for h, p in zip(found, params, strict=True)]


class Probes:
    """Random vectors with entries +1 and -1, drawn from a seed and a counter.

    Two numbers are the whole state, so that a checkpoint repeats the probes without holding a generator.

    Args:
        seed: of all probes.
        counter: number of the next draw.
    """

    def __init__(self, seed: int = 0, counter: int = 0) -> None:
        self.seed, self.counter = seed, counter

    def draw(self, like: Sequence[Tensor]) -> Vectors:
        """One probe in the shapes, dtypes and devices of some tensors."""
        generators: dict[torch.device, torch.Generator] = {}
        # Mixed, so that neighbouring counters start the generator from unrelated states (Steele et al., 2014).
        mixed = (self.seed * 0x9E3779B97F4A7C15 + (self.counter + 1) * 0xBF58476D1CE4E5B9) % 2**63
        self.counter += 1
        for t in like:
            if t.device not in generators:
                generators[t.device] = torch.Generator(t.device).manual_seed(mixed)
        return [_signs(t, generators[t.device]) for t in like]


def hessian_diagonal(
    grads: Sequence[Tensor], params: Sequence[Tensor], probes: Probes, *, samples: int = 1, retain_graph: bool = False
) -> Vectors:
    """Unbiased estimate of the Hessian's diagonal, the mean of ``v * (H v)`` over random signs v.

    Exact where the Hessian is diagonal; its variance comes from the other entries and falls as ``1 / samples``
    (Bekas, Kokiopoulou, Saad, 2007, section 2).

    Args:
        grads: from :func:`gradients` with ``graph=True``.
        params: what they were differentiated by.
        probes: where the signs come from.
        samples: number of probes, each one product.
        retain_graph: keep the graph for other products.
    """
    total = [torch.zeros_like(p) for p in params]
    for i in range(samples):
        v = probes.draw(params)
        product = hessian_product(grads, params, v, retain_graph=retain_graph or i + 1 < samples)
        for t, a, b in zip(total, v, product, strict=True):
            t.addcmul_(a, b, value=1 / samples)
    return total


@runtime_checkable
class Curvature(Protocol):
    """A symmetric stand-in for the Hessian, as second-order optimizers ask for it.

    Attributes:
        needs_graph: whether ``at`` wants gradients that kept their graph.
    """

    needs_graph: bool

    def at(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> Product:
        """The product with a vector, at the parameters as they are, until they change."""


class ExactHessian:
    """The Hessian of the loss; may be indefinite."""

    needs_graph = True

    def at(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> Product:
        """See :class:`Curvature`."""
        return lambda vectors: hessian_product(grads, params, vectors, retain_graph=True)


class GaussNewton:
    """The Gauss-Newton matrix J^T L'' J of a loss L(r) of residuals r; positive semidefinite where L is convex.

    Args:
        residuals: function without arguments that returns the residuals at the parameters as they are, any shape.
        outer: the loss as a function of the residuals; half the sum of their squares where None.
    """

    needs_graph = False

    def __init__(self, residuals: Callable[[], Tensor], outer: Callable[[Tensor], Tensor] | None = None) -> None:
        self._residuals, self._outer = residuals, outer

    def at(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> Product:
        """See :class:`Curvature`."""
        with torch.enable_grad():
            residuals = self._residuals()
            # J^T w is linear in w, so that its derivative in the direction v gives J v: a forward product from two
            # backward ones, for every function that has those.
            weight = torch.zeros_like(residuals, requires_grad=True)
            pulled = _pull("residuals", residuals, params, weight, create_graph=True)
            inside = residuals.detach().requires_grad_()
            slope = None if self._outer is None else gradients(self._outer(inside), [inside], graph=True)

        def product(vectors: Sequence[Tensor]) -> Vectors:
            pairs = [(t, v) for t, v in zip(pulled, vectors, strict=True) if t.requires_grad]
            (pushed,) = _pull("residuals", [t for t, _ in pairs], [weight], [v for _, v in pairs])
            if slope is not None:
                (pushed,) = hessian_product(slope, [inside], [pushed], retain_graph=True)
            return _pull("residuals", residuals, params, pushed)

        return product


class EmpiricalFisher(GaussNewton):
    """The mean over samples of the outer products of their gradients; positive semidefinite.

    Args:
        losses: function without arguments that returns the loss of each sample, shape (m,).
    """

    def __init__(self, losses: Callable[[], Tensor]) -> None:
        super().__init__(losses, lambda values: values.square().sum() / (2 * len(values)))


class DiagonalHessian:
    """The diagonal of the Hessian, estimated by random signs.

    Args:
        samples: number of probes; see :func:`hessian_diagonal`.
        seed: of the probes.
    """

    needs_graph = True

    def __init__(self, *, samples: int = 4, seed: int = 0) -> None:
        self.samples, self.probes = samples, Probes(seed)

    def diagonal(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> Vectors:
        """The entries, in the shapes of the parameters."""
        return hessian_diagonal(grads, params, self.probes, samples=self.samples)

    def at(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> Product:
        """See :class:`Curvature`."""
        entries = self.diagonal(params, grads)
        return lambda vectors: [d * v for d, v in zip(entries, vectors, strict=True)]


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.empty_like(like, requires_grad=False, memory_format=torch.contiguous_format)
    return drawn.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _pull(
    argument: str, outputs: Any, params: Sequence[Tensor], weights: Any, *, create_graph: bool = False
) -> Vectors:
    """The transposed Jacobian times a vector, with zeros where nothing depends."""
    wanted = "a function of the parameters that can be differentiated twice"
    found = _differentiate(
        argument, wanted, outputs, params, grad_outputs=weights, create_graph=create_graph, retain_graph=True
    )
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True)]


def _differentiate(argument: str, wanted: str, outputs: Any, params: Sequence[Tensor], **settings: Any) -> Any:
    """`torch.autograd.grad`, whose errors about graphs name what the caller did."""
    try:
        return torch.autograd.grad(outputs, list(params), allow_unused=True, **settings)
    except RuntimeError as error:
        if _FREED in str(error):
            raise InputError(argument, wanted, "a graph that was already freed") from error
        if "does not require grad" in str(error) or "once_differentiable" in str(error):
            raise InputError(argument, wanted, f"an error: {error}") from error
        raise
