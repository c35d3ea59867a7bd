"""Matches in files and back; what COLMAP reads; which pairs and cameras are meant."""

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.matching.keypoints import match_images, read_matches, write_colmap, write_matches
from diffmatch.matching.keypoints.pairs import image_pairs, parse_intrinsics


@pytest.fixture(scope="module")
def matches(texture):
    picture = texture(200, 250)
    k = torch.tensor([[300.0, 0, 125], [0, 300, 100], [0, 0, 1]])
    return match_images(picture, picture[10:, 20:], network="never", views="never", intrinsics=(k, k))


def test_a_file_and_back(tmp_path, matches):
    write_matches(tmp_path / "m.npz", matches)
    read = read_matches(tmp_path / "m.npz")
    for name in ("points_a", "points_b", "scores", "verified", "guided", "inliers", "homography", "raw_points_a"):
        assert np.array_equal(read[name], getattr(matches, name).numpy())
    assert read["size_a"].tolist() == [250, 200]
    assert read["rotation"].shape == (3, 3)


def test_an_empty_result_is_a_file_too(tmp_path, texture):
    write_matches(tmp_path / "m.npz", match_images(texture(50, 60), np.zeros((50, 60), np.uint8)))
    read = read_matches(tmp_path / "m.npz")
    assert read["points_a"].shape == (0, 2)
    assert "homography" not in read


def test_colmap_files_name_each_keypoint_once(tmp_path, matches):
    write_colmap(tmp_path / "c", ["a.jpg", "b.jpg", "c.jpg"], {(0, 1): matches, (0, 2): matches})
    head, *rows = (tmp_path / "c/a.jpg.txt").read_text().splitlines()
    assert head == f"{matches.count} 128"
    assert len(rows) == matches.count
    first = rows[0].split()
    assert len(first) == 4 + 128
    assert [float(first[0]), float(first[1])] == pytest.approx((matches.points_a[0] + 0.5).tolist(), abs=1e-3)
    blocks = (tmp_path / "c/matches.txt").read_text().strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["a.jpg b.jpg", "a.jpg c.jpg"]
    assert blocks[0].splitlines()[1] == "0 0"


def test_files_that_hold_no_matches_are_refused(tmp_path, matches):
    with pytest.raises(InputError, match=r"\.npz"):
        write_matches(tmp_path / "m.txt", matches)
    (tmp_path / "text.npz").write_text("nothing")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "flat.npz", points_a=np.zeros(3), points_b=np.zeros(3))
    for name, message in (("text", "file of matches"), ("other", "points_a"), ("flat", "shape"), ("none", "file")):
        with pytest.raises(InputError, match=message):
            read_matches(tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match="different numbers below 2"):
        write_colmap(tmp_path, ["a", "b"], {(0, 2): matches})


@pytest.fixture
def folders(tmp_path):
    for name in ("one/a.jpg", "one/b.png", "one/notes.md", "two/b.JPG", "two/c.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path / "one", tmp_path / "two"


def test_pairs_of_images_and_folders(folders):
    one, two = folders

    def names(*arguments):
        return [(pair.a.name, pair.b.name) for pair in image_pairs(*arguments)]

    assert names(one / "a.jpg", two / "c.jpg") == [("a.jpg", "c.jpg")]
    assert names(one) == [("a.jpg", "b.png")]
    assert names(one, two) == [("b.png", "b.JPG")]
    assert names(one, two / "c.jpg") == [("a.jpg", "c.jpg"), ("b.png", "c.jpg")]
    assert names(one / "a.jpg", two) == [("a.jpg", "b.JPG"), ("a.jpg", "c.jpg")]
    assert image_pairs(one)[0].name == "a_b"


def test_a_list_of_pairs(folders):
    one, _ = folders
    listed = one / "pairs.txt"
    listed.write_text("# a comment\na.jpg b.png\n\n../two/c.jpg\ta.jpg\n")
    pairs = image_pairs(listed)
    assert [pair.name for pair in pairs] == ["a_b", "c_a"]
    assert pairs[1].a.resolve() == (one.parent / "two/c.jpg").resolve()
    for text, message in (("a.jpg", "1 in line 1"), ("a.jpg b.png\na.jpg b.png", "a_b twice"), ("", "none in")):
        listed.write_text(text)
        with pytest.raises(InputError, match=message):
            image_pairs(listed)


def test_pairs_that_cannot_be_are_refused(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((folders[0] / "a.jpg",), "an image, or A a folder"),
        ((tmp_path / "empty",), "a folder with images"),
        ((tmp_path / "none.txt",), "No such file"),
        ((folders[0], tmp_path / "empty"), "B: want a folder"),
    ):
        with pytest.raises(InputError, match=message):
            image_pairs(*arguments)


def test_intrinsics(tmp_path):
    a, b = parse_intrinsics("500,510,320,240")
    assert torch.equal(a, b)
    assert a.tolist() == [[500, 0, 320], [0, 510, 240], [0, 0, 1]]
    assert parse_intrinsics("1,1,0,0,2,2,0,0")[1][0, 0] == 2
    file = tmp_path / "k.txt"
    file.write_text("9 0 1\n0 9 2\n0 0 1\n8 0 1\n0 8 2\n0 0 1\n")
    assert [m[0, 0].item() for m in parse_intrinsics(str(file))] == [9, 8]
    file.write_text("1 2\n3 4\n")
    for text in ("1,2,3", "0,1,2,3", "1,2,3,e", str(file), "none.txt"):
        with pytest.raises(InputError, match="intrinsics"):
            parse_intrinsics(text)
