"""Detectors: positions, scales and orientations mean what the record says; affine views map back."""

import math

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.keypoints import detect_hessian, detect_sift, match_nearest
from diffmatch.matching.keypoints.features import rootsift
from diffmatch.matching.keypoints.views import View, affine_view, join_keypoints, view_keypoints, views_of_tilt

TURN = math.radians(40)


@pytest.fixture(scope="module")
def picture(texture):
    return texture()


def turned(cv2, picture, factor=1.0):
    """The picture turned by 40 degrees about its middle, and the map."""
    h, w = picture.shape[:2]
    c, s = factor * math.cos(TURN), factor * math.sin(TURN)
    map_ = np.array([[c, -s, 0.0], [s, c, 0.0]])
    map_[:, 2] = [w / 2, h / 2] - map_[:, :2] @ [w / 2, h / 2]
    return cv2.warpAffine(picture, map_, (w, h)), torch.from_numpy(map_).float()


def blob(cv2, x, y, sigma):
    rows, columns = np.mgrid[:120, :160]
    spot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return (40 + 200 * spot).astype(np.uint8)


def test_a_blob_is_found_where_it_is_and_as_large_as_it_is(cv2):
    found = detect_sift(blob(cv2, 71.3, 50.6, 6.0))
    assert found.count >= 1
    assert torch.allclose(found.positions[0], torch.tensor([71.3, 50.6]), atol=0.1)
    assert found.scale[0] == pytest.approx(6.0, rel=0.25)
    assert found.image_size.tolist() == [160, 120]


def test_descriptors_are_square_roots_of_length_one(picture):
    found = detect_sift(picture, max_keypoints=100)
    assert found.count == 100
    assert torch.allclose(found.descriptors.norm(dim=1), torch.ones(100), atol=1e-5)
    assert (found.score.diff() <= 0).all()
    assert found.kind == "rootsift"
    assert rootsift(np.zeros((1, 128), np.float32)).tolist() == [[0.0] * 128]


def test_frames_turn_and_grow_with_the_picture(cv2, picture):
    a = detect_sift(picture)
    other, map_ = turned(cv2, picture, 1.25)
    b = detect_sift(other)
    pairs, _ = match_nearest(a, b, ratio=0.7)
    i, j = pairs.T
    expected = a.positions[i] @ map_[:, :2].T + map_[:, 2]
    good = (expected - b.positions[j]).norm(dim=1) < 1.5
    assert good.float().mean() > 0.9
    assert (b.scale[j] / a.scale[i])[good].median() == pytest.approx(1.25, rel=0.05)
    turn = (b.orientation[j] - a.orientation[i])[good]
    assert torch.atan2(turn.sin().median(), turn.cos().median()) == pytest.approx(TURN, abs=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 50), (30, 40)])
def test_nothing_to_find_is_an_empty_record(cv2, shape):
    found = detect_sift(np.full(shape, 99, np.uint8))
    assert found.count == 0
    assert found.descriptors.shape == (0, 128)
    assert found.image_size.tolist() == [shape[1], shape[0]]


def test_views_map_back_to_the_picture(cv2, picture):
    """Keypoints of a view match those of the picture at the same places."""
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    a = detect_sift(gray)
    b = view_keypoints(gray, View(1.4, 0.7), max_keypoints=1000)
    pairs, _ = match_nearest(a, b, ratio=0.8)
    off = (a.positions[pairs[:, 0]] - b.positions[pairs[:, 1]]).norm(dim=1)
    assert len(pairs) > 50
    assert (off < 1.5).float().mean() > 0.9
    assert ((b.positions >= 0) & (b.positions <= torch.tensor([399.0, 299.0]))).all()


def test_the_first_view_is_the_picture(cv2, picture):
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    seen, map_ = affine_view(gray, views_of_tilt(1.0)[0])
    assert np.array_equal(seen, gray)
    assert np.array_equal(map_, np.eye(3)[:2])


def test_more_tilt_needs_more_directions():
    assert [len(views_of_tilt(t)) for t in (1.0, 2.0, 4.0)] == [1, 5, 10]
    angles = [view.angle for view in views_of_tilt(2.0)]
    assert np.allclose(np.diff(angles), math.pi / 5)


def test_joined_records_are_in_order(picture):
    a = detect_sift(picture, max_keypoints=10)
    both = join_keypoints([a, a])
    assert both.count == 20
    assert torch.equal(both.positions[10:], a.positions)


def test_kornia_keypoints(cv2, picture):
    pytest.importorskip("kornia")
    a = detect_hessian(picture, max_keypoints=300)
    other, map_ = turned(cv2, picture)
    b = detect_hessian(other, max_keypoints=300)
    assert a.kind == "rootsift-kornia"
    assert torch.allclose(a.descriptors.norm(dim=1), torch.ones(a.count), atol=1e-4)
    pairs, _ = match_nearest(a, b)
    i, j = pairs.T
    good = (a.positions[i] @ map_[:, :2].T + map_[:, 2] - b.positions[j]).norm(dim=1) < 3
    assert good.sum() > 30
    turn = (b.orientation[j] - a.orientation[i])[good]
    assert torch.atan2(turn.sin().median(), turn.cos().median()) == pytest.approx(TURN, abs=0.1)
    assert detect_hessian(np.zeros((5, 5), np.uint8)).count == 0


@pytest.mark.untyped
def test_bad_arguments_are_refused(picture):
    with pytest.raises(InputError, match="max_keypoints"):
        detect_sift(picture, max_keypoints=0)
    with pytest.raises(InputError, match="contrast_threshold"):
        detect_sift(picture, contrast_threshold=-1.0)
