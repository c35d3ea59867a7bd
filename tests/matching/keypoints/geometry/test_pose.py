"""Relative poses: planted rotations and translations come back."""

import torch

from diffmatch.matching.keypoints.geometry import (
    decompose_essential,
    essential_8point,
    normalize_by_intrinsics,
    pose_errors,
    pose_from_essential,
)


def scene(generator, batch, n):
    axis = torch.randn(batch, 3, generator=generator, dtype=torch.float64) * 0.3
    zero = torch.zeros(batch, dtype=torch.float64)
    x, y, z = axis.unbind(1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(batch, 3, 3)
    rotation = torch.linalg.matrix_exp(skew)
    shift = torch.nn.functional.normalize(torch.randn(batch, 3, generator=generator, dtype=torch.float64), dim=1)
    space = torch.rand(batch, n, 3, generator=generator, dtype=torch.float64) * 4 - 2
    space[..., 2] += 8
    moved = space @ rotation.mT + shift[:, None]
    return space[..., :2] / space[..., 2:], moved[..., :2] / moved[..., 2:], rotation, shift


def test_the_planted_pose_comes_back(generator):
    a, b, rotation, shift = scene(generator, 6, 30)
    essential = essential_8point(a, b)
    assert torch.allclose(
        torch.linalg.svdvals(essential), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), atol=1e-9
    )
    pose = pose_from_essential(essential, a, b)
    turn, direction = pose_errors(pose.rotation, pose.translation, rotation, shift)
    assert turn.max() < 1e-5
    assert direction.max() < 1e-5
    assert pose.count.tolist() == [30] * 6
    assert pose.in_front.all()


def test_padding_is_left_out(generator):
    a, b, rotation, shift = scene(generator, 2, 20)
    mask = torch.arange(20).expand(2, 20) < torch.tensor([[20], [11]])
    essential = essential_8point(a, b)
    a, b = (torch.where(mask[..., None], p, torch.nan) for p in (a, b))
    pose = pose_from_essential(essential, a, b, mask=mask)
    assert pose.count.tolist() == [20, 11]
    assert pose_errors(pose.rotation, pose.translation, rotation, shift)[1].max() < 1e-5


def test_four_poses_are_rotations_with_the_same_matrix(generator):
    a, b, _, _ = scene(generator, 3, 12)
    essential = essential_8point(a, b)
    rotations, translations = decompose_essential(essential)
    assert rotations.shape == (3, 4, 3, 3)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(3, 4, dtype=torch.float64))
    cross = torch.linalg.cross(translations[..., None, :].expand_as(rotations), rotations.mT).mT  # [t]x R, by columns
    alike = (cross.flatten(2) * essential[:, None].flatten(2)).sum(dim=2).abs() / 2
    assert torch.allclose(alike, torch.ones(3, 4, dtype=torch.float64))


def test_errors_are_angles():
    c, s = torch.tensor(0.3).cos(), torch.tensor(0.3).sin()
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    angle, direction = pose_errors(turn, torch.tensor([1.0, 0, 0]), torch.eye(3), torch.tensor([0.0, -2.0, 0.0]))
    assert torch.allclose(angle, torch.rad2deg(torch.tensor(0.3)))
    assert torch.allclose(direction, torch.tensor(90.0))


def test_intrinsics_are_undone(generator):
    camera = torch.tensor([[500.0, 2.0, 300.0], [0.0, 400.0, 200.0], [0.0, 0.0, 1.0]])
    rays = torch.rand(5, 2, generator=generator)
    pixels = torch.cat([rays, torch.ones(5, 1)], dim=1) @ camera.T
    assert torch.allclose(normalize_by_intrinsics(pixels[:, :2], camera), rays, atol=1e-5)
