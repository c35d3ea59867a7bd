"""Relative poses from essential matrices."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffmatch.errors import check_shape
from diffmatch.matching.keypoints.geometry.normalization import homogeneous

__all__ = ["Pose", "decompose_essential", "normalize_by_intrinsics", "pose_errors", "pose_from_essential"]


@dataclass(frozen=True, eq=False)
class Pose:
    """Where camera B stands: x_b = R x_a + t for a point in the coordinates of both cameras.

    Attributes:
        rotation: shape (\\*b, 3, 3).
        translation: of length one, since the images do not tell the scale; shape (\\*b, 3).
        in_front: which matches lie in front of both cameras, shape (\\*b, n).
        count: how many, shape (\\*b,).
    """

    rotation: Float[Tensor, "*b 3 3"]
    translation: Float[Tensor, "*b 3"]
    in_front: Bool[Tensor, "*b n"]
    count: Int64[Tensor, " *b"]


def normalize_by_intrinsics(
    points: Float[Tensor, "*b n 2"], intrinsics: Float[Tensor, "*b 3 3"]
) -> Float[Tensor, "*b n 2"]:
    """Pixels as directions: the first two coordinates of K^-1 x.

    Args:
        points: pixels, shape (\\*b, n, 2).
        intrinsics: K, whose last row is (0, 0, 1); shape (\\*b, 3, 3).
    """
    check_shape("intrinsics", intrinsics, (3, 3), batch=True)
    rays: Tensor = torch.linalg.solve(intrinsics, homogeneous(points).mT)
    return rays.mT[..., :2]


def decompose_essential(
    essential: Float[Tensor, "*b 3 3"],
) -> tuple[Float[Tensor, "*b 4 3 3"], Float[Tensor, "*b 4 3"]]:
    """The four poses that an essential matrix allows (Hartley and Zisserman 2004, section 9.6.2).

    Args:
        essential: shape (\\*b, 3, 3).

    Returns:
        Rotations (\\*b, 4, 3, 3) and unit translations (\\*b, 4, 3).
    """
    u, _, vt = torch.linalg.svd(essential)
    u = u * torch.linalg.det(u)[..., None, None]
    vt = vt * torch.linalg.det(vt)[..., None, None]
    quarter = essential.new_tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    one, other = u @ quarter @ vt, u @ quarter.mT @ vt
    t = u[..., 2]
    return torch.stack([one, one, other, other], dim=-3), torch.stack([t, -t, t, -t], dim=-2)


def pose_from_essential(
    essential: Float[Tensor, "*b 3 3"],
    points_a: Float[Tensor, "*b n 2"],
    points_b: Float[Tensor, "*b n 2"],
    *,
    mask: Bool[Tensor, "*b n"] | None = None,
) -> Pose:
    """Of the four poses, the one with most matches in front of both cameras.

    Args:
        essential: shape (\\*b, 3, 3).
        points_a: normalised by the intrinsics, shape (\\*b, n, 2).
        points_b: likewise.
        mask: which matches count, shape (\\*b, n); the others may hold NaN.
    """
    if mask is None:
        mask = torch.ones_like(points_a[..., 0], dtype=torch.bool)
    a = homogeneous(torch.where(mask[..., None], points_a, 0))[..., None, :, :]
    b = homogeneous(torch.where(mask[..., None], points_b, 0))[..., None, :, :]
    rotations, translations = decompose_essential(essential)
    # depth_b x_b = depth_a R x_a + t; the cross product with either ray takes the other unknown out.
    turned, t = a @ rotations.mT, translations[..., None, :].expand(*a.shape[:-3], 4, a.shape[-2], 3)
    normal = torch.linalg.cross(b.expand_as(turned), turned)
    depth_a = -(torch.linalg.cross(b.expand_as(turned), t) * normal).sum(dim=-1)  # times |normal|^2, which is positive
    depth_b = (torch.linalg.cross(t, turned) * normal).sum(dim=-1)
    in_front = (depth_a > 0) & (depth_b > 0) & mask[..., None, :]
    best = in_front.sum(dim=-1).argmax(dim=-1)
    at = best[..., None]
    return Pose(
        rotations.gather(-3, at[..., None, None].expand(*best.shape, 1, 3, 3)).squeeze(-3),
        translations.gather(-2, at[..., None].expand(*best.shape, 1, 3)).squeeze(-2),
        in_front.gather(-2, at[..., None].expand(*best.shape, 1, in_front.shape[-1])).squeeze(-2),
        in_front.sum(dim=-1).gather(-1, at).squeeze(-1),
    )


def pose_errors(
    rotation: Float[Tensor, "*b 3 3"],
    translation: Float[Tensor, "*b 3"],
    true_rotation: Float[Tensor, "*b 3 3"],
    true_translation: Float[Tensor, "*b 3"],
) -> tuple[Float[Tensor, " *b"], Float[Tensor, " *b"]]:
    """Angles in degrees between two rotations, and between two translations (at most 180, the sign counts)."""
    turn = rotation.mT @ true_rotation
    sine = torch.stack(
        [turn[..., 2, 1] - turn[..., 1, 2], turn[..., 0, 2] - turn[..., 2, 0], turn[..., 1, 0] - turn[..., 0, 1]]
    )
    cosine = turn.diagonal(dim1=-2, dim2=-1).sum(dim=-1) - 1
    angle = torch.atan2(sine.norm(dim=0), cosine)
    cross = torch.linalg.cross(translation, true_translation).norm(dim=-1)
    between = torch.atan2(cross, (translation * true_translation).sum(dim=-1))
    return torch.rad2deg(angle), torch.rad2deg(between)
