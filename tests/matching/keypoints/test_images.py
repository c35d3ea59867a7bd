"""Images of every kind that users have: depth, channels, alpha, EXIF, size; and files that are none."""

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.keypoints import read_image


@pytest.fixture
def picture(texture):
    return texture(60, 80)


def test_every_form_of_the_same_picture_reads_the_same(picture):
    wanted = read_image(picture)
    assert wanted.size == wanted.original_size == (80, 60)
    planes = np.moveaxis(picture, -1, 0).copy()
    for form in (
        picture.astype(np.uint16) * 257,
        picture.astype(np.float64) / 255,
        torch.from_numpy(planes),
        torch.from_numpy(planes).float() / 255,
        np.concatenate([picture, np.full((60, 80, 1), 255, np.uint8)], axis=2),
    ):
        assert np.array_equal(read_image(form).color, wanted.color)


def test_grey_and_truth_values(picture):
    gray = picture[..., 1]
    for form in (gray, gray[..., None], torch.from_numpy(gray.copy())):
        made = read_image(form)
        assert np.array_equal(made.gray, gray)
        assert np.array_equal(made.color[..., 2], gray)
    assert set(np.unique(read_image(gray > 99).gray)) == {0, 255}


def test_transparent_pixels_are_white(picture):
    clear = np.concatenate([picture, np.zeros((60, 80, 1), np.uint8)], axis=2)
    assert (read_image(clear).gray == 255).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_files(cv2, tmp_path, picture, suffix):
    path = tmp_path / f"p{suffix}"
    cv2.imwrite(str(path), picture[..., ::-1])
    made = read_image(path)
    assert made.name == path.name
    assert np.abs(made.color.astype(int) - picture).mean() < (8 if suffix == ".jpg" else 1e-9)


def test_sixteen_bits_and_alpha_in_a_file(cv2, tmp_path, picture):
    cv2.imwrite(str(tmp_path / "deep.png"), picture[..., ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "deep.png").color, picture)
    cv2.imwrite(str(tmp_path / "clear.png"), np.zeros((5, 7, 4), np.uint8))
    assert (read_image(tmp_path / "clear.png").gray == 255).all()


def test_the_note_of_the_camera_turns_the_picture(tmp_path, picture):
    pillow = pytest.importorskip("PIL.Image")
    plain = pillow.fromarray(picture)
    note = plain.getexif()
    note[0x0112] = 6  # to be turned by 90 degrees clockwise
    plain.save(tmp_path / "turned.jpg", exif=note, quality=98)
    made = read_image(tmp_path / "turned.jpg")
    assert made.size == (60, 80)
    assert np.abs(made.color.astype(int) - np.rot90(picture, -1)).mean() < 8


def test_a_large_image_is_shrunk_and_mapped_back():
    made = read_image(np.zeros((400, 600), np.uint8), max_pixels=60_000)
    assert made.size == (300, 200)
    assert made.original_size == (600, 400)
    corners = torch.tensor([[-0.5, -0.5], [299.5, 199.5], [10.0, 20.0]])
    assert torch.allclose(made.to_original(corners), torch.tensor([[-0.5, -0.5], [599.5, 399.5], [20.5, 40.5]]))
    assert torch.allclose(made.from_original(made.to_original(corners)), corners, atol=1e-4)


def test_files_that_are_no_images_are_refused(cv2, tmp_path, picture):
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for suffix in (".jpg", ".png"):
        whole = cv2.imencode(suffix, picture)[1].tobytes()
        (tmp_path / f"cut{suffix}").write_bytes(whole[: len(whole) // 2])
    for name, message in {
        "text.png": "OpenCV can read",
        "empty.jpg": "empty",
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "none.png": "No such file",
        ".": "directory",
    }.items():
        with pytest.raises(InputError, match=message):
            read_image(tmp_path / name)


@pytest.mark.untyped
def test_arrays_that_are_no_images_are_refused():
    for array, message in (
        (np.zeros((3, 4, 5), np.uint8), "1, 3 or 4 channels"),
        (torch.zeros(5, 4, 3), "1, 3 or 4 channels"),
        (np.zeros((0, 4), np.uint8), "with pixels"),
        (np.zeros((3, 4), np.int64), "int64"),
        (np.full((3, 4), 2.0), "between 0 and 1"),
        (np.full((3, 4), np.nan), "finite"),
    ):
        with pytest.raises(InputError, match=message):
            read_image(array)
