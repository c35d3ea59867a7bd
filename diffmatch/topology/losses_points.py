"""Losses of point clouds that need only their components: latent spaces that keep or have a wanted connectivity."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmatch.errors import InputError, check_finite, check_floating, check_positive, check_shape
from diffmatch.topology.rips_kernels import spanning_tree

__all__ = ["connectivity_loss", "topological_autoencoder_loss"]


def topological_autoencoder_loss(
    points: Float[Tensor, "n d"],
    latent: Float[Tensor, "n k"],
) -> Float[Tensor, ""]:
    """How much the distances that join the components of a batch differ between two spaces.

    ``1/2 |D_X[T_X] - D_Z[T_X]|^2 + 1/2 |D_Z[T_Z] - D_X[T_Z]|^2``, where T_X and T_Z are the edges of minimum spanning
    trees, the deaths of degree 0 of Rips filtrations, and D the distances of the two clouds. The trees are found
    without gradients, on the CPU; distances have gradients in both clouds, at a distance of zero it is zero. Scale the
    two clouds alike (say, divide each by its largest distance) if only the shape matters.

    Args:
        points: the cloud to keep the topology of, flattened, shape (n, d).
        latent: its image, shape (n, k).

    Returns:
        The loss, zero for fewer than two points.

    Raises:
        InputError: wrong shapes or dtypes, different numbers of points, NaN or inf.

    References:
        Moor et al. 2020, "Topological autoencoders", equations 2 to 4.
    """
    for name, cloud in (("points", points), ("latent", latent)):
        check_shape(name, cloud, ("n", "d"))
        check_floating(name, cloud)
        check_finite(name, cloud)
    if len(latent) != len(points):
        raise InputError("latent", f"{len(points)} points", str(len(latent)))
    trees = _tree(points), _tree(latent)
    terms = [(_lengths(points, tree).to(latent.dtype) - _lengths(latent, tree)).square().sum() / 2 for tree in trees]
    return terms[0] + terms[1]


def connectivity_loss(points: Float[Tensor, "n d"], *, length: float | int) -> Float[Tensor, ""]:
    """How much the distances at which the components of a cloud join differ from one wanted length.

    ``sum over the edges e of a minimum spanning tree of | |e| - length |``: at zero the cloud is connected at the scale
    `length` and no point is closer to the rest. The tree is found without gradients, on the CPU.

    Args:
        points: shape (n, d).
        length: wanted length, > 0, in the unit of the points.

    Returns:
        The loss, zero for fewer than two points.

    Raises:
        InputError: wrong shape or dtype, NaN or inf, a length that is not positive.

    References:
        Hofer et al. 2019, "Connectivity-optimized representation learning via persistent homology", equation 3.
    """
    check_shape("points", points, ("n", "d"))
    check_floating("points", points)
    check_finite("points", points)
    check_positive("length", length)
    return (_lengths(points, _tree(points)) - length).abs().sum()


def _tree(points: Tensor) -> Int[Tensor, "m 2"]:
    """Edges of a minimum spanning tree."""
    data = points.detach().double()
    distances = torch.cdist(data, data, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.from_numpy(spanning_tree(distances.cpu().numpy())).to(points.device)


def _lengths(points: Tensor, edges: Tensor) -> Tensor:
    """Lengths of edges, with gradient zero at zero."""
    length: Tensor = torch.linalg.vector_norm(points[edges[:, 0]] - points[edges[:, 1]], dim=1)
    return length
