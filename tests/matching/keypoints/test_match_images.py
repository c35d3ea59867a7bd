"""Two pictures to matches and geometry, on warps that are known."""

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.keypoints import Keypoints, detect_sift, match_features, match_images
from diffmatch.matching.keypoints.geometry import apply_homography, corner_error, pose_errors

MILD = np.array([[0.9, 0.15, 10.0], [-0.12, 0.95, 30.0], [1e-4, 2e-4, 1.0]])
SLANTED = np.array([[0.22, 0.02, 130.0], [-0.05, 0.8, 30.0], [-1e-4, -1e-5, 1.0]])  # one axis shrunk to a quarter


@pytest.fixture(scope="module")
def picture(texture):
    return texture()


def error(matches, truth, size=(400, 300)):
    return float(corner_error(matches.homography, torch.from_numpy(truth), size=size))


def test_a_known_homography_is_found(picture, warped):
    found = match_images(picture, warped(picture, MILD), network="never")
    assert error(found, MILD) < 0.5
    assert found.planar
    assert found.stages == ("upright",)
    assert found.verified.all()
    assert found.inliers.all()
    assert found.count == len(found.points_a) > 200
    assert found.homography[2, 2] == 1
    off = apply_homography(torch.from_numpy(MILD), found.points_a.double()) - found.points_b
    assert (off.norm(dim=1) < 3).float().mean() > 0.98
    assert found.guided.any()
    assert not found.guided.all()
    assert (found.scores.diff() <= 0).all()


def test_points_are_keypoints_and_one_to_one(picture, warped):
    found = match_images(picture, warped(picture, MILD), network="never")
    for points, keypoints in ((found.points_a, found.keypoints_a), (found.points_b, found.keypoints_b)):
        places = {tuple(p) for p in keypoints.positions.tolist()}
        assert all(tuple(p) in places for p in points.tolist())
        apart = torch.cdist(points.double(), points.double()).fill_diagonal_(9)
        assert apart.min() > 1


def test_views_find_what_upright_keypoints_do_not(picture, warped):
    other = warped(picture, SLANTED)
    upright = match_images(picture, other, views="never", network="never")
    found = match_images(picture, other, network="never")
    assert found.count > max(2 * upright.count, 60)
    assert error(found, SLANTED) < 2
    assert found.stages[:2] == ("upright", "tilt 2.88")


@pytest.mark.parametrize("turn", [90, 180])
def test_turned_pictures(cv2, picture, turn):
    other = np.ascontiguousarray(np.rot90(picture, -turn // 90))
    found = match_images(picture, other, network="never", views="never")
    truth = {90: [[0.0, -1, 299], [1, 0, 0], [0, 0, 1]], 180: [[-1.0, 0, 399], [0, -1, 299], [0, 0, 1]]}[turn]
    assert error(found, np.array(truth)) < 0.2


def test_identical_pictures(picture):
    found = match_images(picture, picture, network="never")
    assert torch.equal(found.points_a, found.points_b)
    assert error(found, np.eye(3)) < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (60, 80)])
def test_a_blank_picture_gives_an_empty_result(picture, shape):
    for pair in ((picture, np.zeros(shape, np.uint8)), (np.zeros(shape, np.uint8), picture)):
        found = match_images(*pair)
        assert found.count == 0
        assert found.points_a.shape == found.points_b.shape == found.raw_points_a.shape == (0, 2)
        assert found.scores.shape == found.verified.shape == found.inliers.shape == (0,)
        assert found.homography is found.fundamental is found.pose is None


def test_pictures_without_overlap_are_not_matched(texture):
    found = match_images(texture(seed=1), texture(seed=2), views="never", network="never")
    assert found.count == 0
    assert found.homography is None
    loose = match_images(texture(seed=1), texture(seed=2), views="never", network="never", keep="all", ratio=0.95)
    assert len(loose.points_a) == len(loose.raw_points_a) > 0
    assert not loose.verified.any()


def test_a_large_picture_is_shrunk_and_positions_are_those_of_the_original(cv2, picture, warped):
    large = cv2.resize(picture, (1200, 900), interpolation=cv2.INTER_CUBIC)
    scale = np.array([[3.0, 0, 1], [0, 3, 1], [0, 0, 1]])
    found = match_images(large, warped(picture, MILD), max_pixels=160_000, network="never")
    assert error(found, MILD @ np.linalg.inv(scale), size=(1200, 900)) < 1
    assert found.keypoints_a.image_size.tolist() == [1200, 900]
    assert found.points_a.max() > 600


def test_all_matches_hold_the_verified_ones(picture, warped):
    other = warped(picture, MILD)
    tight = match_images(picture, other, network="never")
    loose = match_images(picture, other, network="never", keep="all", ratio=1.0)
    assert loose.count >= 0.9 * tight.count
    assert loose.count < len(loose.points_a)
    assert not loose.inliers[~loose.verified].any()


def test_a_scene_in_space_and_its_pose(generator):
    """Keypoints of the caller: points in space seen by two cameras, and some that only one of them sees."""
    n, k = 300, torch.tensor([[600.0, 0.0, 320.0], [0.0, 600.0, 240.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    skew = torch.tensor([[0.0, 0.0, 0.2], [0.0, 0.0, 0.0], [-0.2, 0.0, 0.0]], dtype=torch.float64)
    rotation, shift = torch.linalg.matrix_exp(skew), torch.tensor([-1.0, 0.1, 0.1], dtype=torch.float64)
    space = torch.rand(n, 3, generator=generator, dtype=torch.float64) * 4 - 2
    space[:, 2] += 6
    seen = [p @ k.T for p in (space, space @ rotation.T + shift)]
    pixels = [(p[:, :2] / p[:, 2:]).float() for p in seen]
    descriptors = torch.nn.functional.normalize(torch.randn(n, 32, generator=generator), dim=1)
    noise = 0.02 * torch.randn(n, 32, generator=generator)
    other = torch.nn.functional.normalize(descriptors + noise, dim=1)
    other[:40] = torch.nn.functional.normalize(torch.randn(40, 32, generator=generator), dim=1)
    a, b = (Keypoints.of(p, d, image_size=(640, 480)) for p, d in zip(pixels, (descriptors, other), strict=True))
    found = match_features(a, b, intrinsics=(k, k))
    assert not found.planar
    assert found.count >= 240
    assert found.fundamental is not None
    turn, direction = pose_errors(found.pose.rotation, found.pose.translation, rotation, shift)
    assert turn < 0.1
    assert direction < 0.5
    assert found.pose.in_front.sum() == found.count


def test_tensor_estimator_and_own_features(picture, warped):
    other = warped(picture, MILD)
    by_tensors = match_images(picture, other, estimator="ransac", network="never")
    assert error(by_tensors, MILD) < 1
    own = match_images(
        picture, other, features=lambda image: detect_sift(image.color, max_keypoints=500), network="never"
    )
    assert own.keypoints_a.count == 500
    assert error(own, MILD) < 1
    both = [detect_sift(p, max_keypoints=500) for p in (picture, other)]
    assert torch.equal(match_features(*both, network="never").points_a, own.points_a)


def test_the_network_in_place_of_the_ratio_test(picture, warped):
    other = warped(picture, MILD)
    plain = match_images(picture, other, views="never", network="never", max_keypoints=400)
    found = match_images(picture, other, views="never", network="always", max_keypoints=400)
    assert found.stages == ("upright", "network")
    assert error(found, MILD) < 1
    off = apply_homography(torch.from_numpy(MILD), found.raw_points_a.double()) - found.raw_points_b
    assert (off.norm(dim=1) < 3).float().mean() > 0.9
    assert not torch.equal(found.raw_scores, plain.raw_scores)
    for points in (found.raw_points_a, found.raw_points_b):
        assert torch.cdist(points.double(), points.double()).fill_diagonal_(9).min() > 1
    own = Keypoints.of(torch.rand(5, 2), torch.eye(5), image_size=(9, 9))
    with pytest.raises(InputError, match="'auto' or 'never' with descriptors of kind 'own'"):
        match_features(own, own, network="always")


@pytest.mark.untyped
def test_bad_arguments_are_refused(picture):
    for changes, message in (
        ({"network": "yes"}, "network"),
        ({"views": "some"}, "views"),
        ({"keep": "none"}, "keep"),
        ({"estimator": "magsack"}, "did you mean 'magsac'"),
        ({"features": "shift"}, "did you mean 'sift'"),
        ({"threshold": 0.0}, "threshold"),
        ({"max_keypoints": 0}, "max_keypoints"),
        ({"intrinsics": (torch.eye(2), torch.eye(3))}, "intrinsics"),
        ({"intrinsics": (torch.ones(3, 3), torch.eye(3))}, "last row"),
        ({"features": lambda image: Keypoints.of(torch.zeros(1, 2), torch.zeros(1, 4), image_size=(3, 3))}, "size"),
    ):
        with pytest.raises(InputError, match=message):
            match_images(picture, picture, **changes)
    with pytest.raises(InputError, match="image_b"):
        match_images(picture, "no/such/file.jpg")


@pytest.mark.data
def test_real_pairs(data_dir):
    """A change of light, of which plain SIFT finds most, and one of viewpoint, which needs views."""
    folder = data_dir / "images/test/oxford"
    light = match_images(folder / "leuven1.jpg", folder / "leuven4.jpg")
    assert light.planar
    assert light.count > 500
    hard = match_images(folder / "graf1.jpg", folder / "graf6.jpg")
    assert hard.count > 300
    assert hard.stages[0] == "upright"
    assert len(hard.stages) > 1
