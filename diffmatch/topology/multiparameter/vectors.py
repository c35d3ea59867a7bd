"""Vectors of signed measures, for losses and for learning."""

from jaxtyping import Float
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_positive, check_shape
from diffmatch.topology.multiparameter.distances import half_circle
from diffmatch.topology.multiparameter.measure import SignedMeasure, check_levels

__all__ = ["signed_convolution", "sliced_vector"]


def signed_convolution(
    measure: SignedMeasure, at: Float[Tensor, "g 2"], *, bandwidth: float | int | Float[Tensor, " 2"]
) -> Float[Tensor, " g"]:
    """The convolution of a signed measure with a Gaussian, ``sum_i w_i exp(-|(g - x_i) / bandwidth|^2 / 2)``.

    Smooth in the points of the measure, in `at` and in the bandwidth, which may all be learned. Memory for each pair of
    a point and a place.

    Args:
        measure: with finite points.
        at: where to evaluate, shape (g, 2).
        bandwidth: standard deviation, > 0; one number, or one an axis, shape (2,).

    Raises:
        InputError: wrong shapes, a bandwidth that is not positive, points that are not finite.

    References:
        Loiseaux et al. 2023, "Stable vectorization of multiparameter persistent homology using signed barcodes as
        measures", section 4.
    """
    check_shape("at", at, ("g", 2))
    check_finite("points", measure.points.detach())
    if isinstance(bandwidth, Tensor):
        check_shape("bandwidth", bandwidth, (2,))
        if not bool((bandwidth.detach() > 0).all()):
            raise InputError("bandwidth", "numbers > 0", str(bandwidth.tolist()))
    else:
        check_positive("bandwidth", bandwidth)
    scaled = (at[:, None] - measure.points) / bandwidth  # (g, p, 2)
    return (scaled.square().sum(-1) / -2).exp() @ measure.weights.to(scaled.dtype)


def sliced_vector(
    measure: SignedMeasure, edges: Float[Tensor, " e"], *, directions: int = 8
) -> Float[Tensor, "directions bins"]:
    """The distribution functions of a signed measure seen along lines, averaged over bins.

    Entry (j, k) is the mean over bin k of the weight that lies below a threshold along direction j. The l1 distance of
    two such vectors, each bin times its width, divided by the number of directions, is at most
    :func:`~.distances.signed_sliced_distance` if all projections lie within the bins, and tends to it with finer bins.
    Differentiable in the points where none projects on an edge.

    Args:
        measure: with finite points.
        edges: increasing edges of the bins, shape (bins + 1,), at least two.
        directions: number of lines, at equal angles in the half circle.

    Raises:
        InputError: edges that do not increase, no directions, points that are not finite.

    References:
        Loiseaux et al. 2023, as above; the distribution functions in place of their sorted projections.
    """
    check_levels("edges", edges)
    if len(edges) < 2:
        raise InputError("edges", "at least two edges", str(len(edges)))
    check_positive("directions", directions)
    check_finite("points", measure.points.detach())
    seen = measure.points @ half_circle(directions, measure.points)  # (p, directions)
    bounds = edges.to(seen)
    above = (bounds[1:] - seen[..., None]) / bounds.diff()  # (p, directions, bins)
    share = above.clamp(0, 1)
    return (share * measure.weights[:, None, None]).sum(0)
