import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from diffmatch.errors import InputError
from diffmatch.matching.keypoints import synthetic as module
from diffmatch.matching.keypoints.photometric import Draws, change_photometry
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.scenes import Scenes, SceneSettings
from diffmatch.matching.keypoints.synthetic import Observed, label_pairs, made_image, observe, render_views

pytest.importorskip("cv2")


def smooth_image(size, generator):
    """Waves that interpolation hardly changes."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    a, b, c = (Draws(generator).uniform(20.0, 40.0) for _ in range(3))
    return np.rint(128 + 60 * np.sin(x / a) * np.cos(y / b) + 50 * np.sin((x + y) / c)).astype(np.uint8)


def at(positions, homographies=None, plane=None):
    """Keypoints at given places of a view, all on plane 0 by default."""
    points = torch.tensor(positions, dtype=torch.float32)
    keypoints = Keypoints.of(points, torch.ones(len(points), 1), image_size=(200, 200))
    planes = torch.zeros(len(points), dtype=torch.int64) if plane is None else torch.tensor(plane)
    maps = torch.eye(3, dtype=torch.float64).expand(2, 3, 3) if homographies is None else homographies
    return Observed(keypoints, planes, maps)


def all_pairs(a, b):
    return torch.cartesian_prod(torch.arange(a.keypoints.count), torch.arange(b.keypoints.count)).T


def test_views_show_the_picture_where_their_homographies_say(generator):
    picture = smooth_image((320, 240), generator)
    others = [made_image((320, 240), generator=generator) for _ in range(3)]
    views = render_views(picture, others, generator=generator, long_side=(300, 340), max_tilt=45.0, strength=0.0)
    seen = 0
    for view in views:
        row, column = np.nonzero(view.plane >= 0)
        maps = np.linalg.inv(view.homographies)[view.plane[row, column]]
        source = (maps @ np.stack((column, row, np.ones_like(row)), -1)[..., None].astype(float))[..., 0]
        x, y = (source[:, :2] / source[:, 2:]).T
        inside = (x > 3) & (x < 316) & (y > 3) & (y < 236)
        value = map_coordinates(picture.astype(float), (y[inside], x[inside]), order=1)
        off = np.abs(value - view.gray[row, column][inside])
        assert np.quantile(off, 0.99) <= 8
        seen += int(inside.sum())
    assert seen > 50_000


def test_the_nearer_plane_is_in_front():
    # The camera has moved to the right by 0.5 and sees the left half of the picture at depth 1, the right one at 0.5.
    camera = np.array([[100.0, 0, 49.5], [0, 100.0, 49.5], [0, 0, 1]])
    region = np.zeros((100, 100), np.int8)
    region[:, 50:] = 1
    planes = np.array([[0, 0, 1.0], [0, 0, 2.0]])
    shift = np.array([-0.5, 0, 0])
    homographies = np.stack([camera @ (np.eye(3) + np.outer(shift, n)) @ np.linalg.inv(camera) for n in planes])
    picture = np.where(region, 200, 100).astype(np.uint8)
    empty = np.zeros((100, 100), np.uint8)
    gray, plane = module._render(picture, region, planes @ np.linalg.inv(camera), homographies, (100, 100), empty)
    # The far half moves left by 50 pixels, out of sight; the near one by 100, so that it hides what it covers.
    assert (plane[:, :1] == 0).sum() + (plane == 1).sum() <= 100
    shift[0] = -0.2
    homographies = np.stack([camera @ (np.eye(3) + np.outer(shift, n)) @ np.linalg.inv(camera) for n in planes])
    gray, plane = module._render(picture, region, planes @ np.linalg.inv(camera), homographies, (100, 100), empty)
    assert (plane[:, 12:58] == 1).all()  # 50..99 moved by 40: 10..59, over what the far half (moved by 20) shows there
    assert (plane[:, :8] == 0).all()
    assert (plane[:, 62:] == -1).all()
    assert (gray[:, 12:58] == 200).all()


@pytest.mark.parametrize(("distance", "label"), [(0.0, 1), (2.9, 1), (3.1, -1), (4.9, -1), (5.1, 0), (60.0, 0)])
def test_labels_go_by_distance(distance, label):
    a, b = at([[50.0, 60.0]]), at([[50.0 + distance, 60.0]])
    assert label_pairs(a, b, all_pairs(a, b)).tolist() == [label]


def test_labels_use_the_larger_of_both_directions():
    half = torch.diag(torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)).expand(2, 3, 3)
    a, b = at([[100.0, 100.0]]), at([[52.0, 50.0]], half)  # 2 pixels off in b are 4 in a
    assert label_pairs(a, b, all_pairs(a, b)).tolist() == [-1]


def test_pairs_between_planes_are_never_right():
    a, b = at([[50.0, 50.0]] * 3, plane=[0, 1, -1]), at([[50.0, 50.0], [90.0, 50.0]], plane=[0, 0])
    assert label_pairs(a, b, all_pairs(a, b)).view(3, 2).tolist() == [[1, 0], [-1, 0], [0, 0]]


def test_labels_agree_with_the_homographies(generator):
    pictures = [made_image((200, 160), generator=generator) for _ in range(3)]
    views = render_views(pictures[0], pictures[1:], generator=generator, long_side=(200, 220), max_tilt=30.0)
    a, b = (
        observe(view, Keypoints.of(200 * torch.rand(25, 2, generator=generator), torch.ones(25, 1), image_size=(9, 9)))
        for view in views
    )
    labels = label_pairs(a, b, all_pairs(a, b)).view(25, 25)
    for i in range(25):
        for j in range(25):
            if a.plane[i] != b.plane[j] or a.plane[i] < 0:
                assert labels[i, j] != 1
                continue
            move = b.homographies[b.plane[j]] @ torch.linalg.inv(a.homographies[a.plane[i]])
            there = move @ torch.cat((a.keypoints.positions[i].double(), torch.ones(1).double()))
            back = torch.linalg.inv(move) @ torch.cat((b.keypoints.positions[j].double(), torch.ones(1).double()))
            off = max(
                float((there[:2] / there[2] - b.keypoints.positions[j]).norm()),
                float((back[:2] / back[2] - a.keypoints.positions[i]).norm()),
            )
            if there[2] > 0 and back[2] > 0:
                assert labels[i, j] == (1 if off < 3 else 0 if off > 5 else -1)


def test_a_point_behind_the_camera_is_wrong():
    behind = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, -1]], dtype=torch.float64).expand(2, 3, 3)
    a, b = at([[50.0, 50.0]]), at([[-50.0, -50.0]], behind)
    assert label_pairs(a, b, all_pairs(a, b)).tolist() == [0]


def test_the_seed_fixes_the_views(generator):
    pictures = [made_image((160, 120), generator=generator) for _ in range(3)]

    def views(seed):
        return render_views(
            pictures[0], pictures[1:], generator=torch.Generator().manual_seed(seed), long_side=(150, 170)
        )

    for x, y in zip(views(5), views(5), strict=True):
        assert np.array_equal(x.gray, y.gray)
        assert np.array_equal(x.plane, y.plane)
        assert np.array_equal(x.homographies, y.homographies)
    assert not np.array_equal(views(5)[0].homographies, views(6)[0].homographies)


@pytest.mark.parametrize(("options", "name"), [({"max_tilt": 90.0}, "max_tilt"), ({"max_planes": 0}, "max_planes")])
def test_impossible_scenes_are_refused(options, name, generator):
    picture = made_image((64, 48), generator=generator)
    with pytest.raises(InputError, match=name):
        render_views(picture, [picture], generator=generator, **options)


def test_no_strength_changes_no_light(generator):
    picture = smooth_image((80, 60), generator)
    for _ in range(5):
        changed = change_photometry(picture, generator=generator, strength=0.0)
        assert np.abs(changed.astype(int) - picture).max() <= 3  # compression at its best quality
    with pytest.raises(InputError, match="strength"):
        change_photometry(picture, generator=generator, strength=-1.0)
    changes = [np.abs(change_photometry(picture, generator=generator).astype(int) - picture).mean() for _ in range(5)]
    assert max(changes) > 5


def test_scenes_come_back_from_their_folder(tmp_path, generator):
    settings = SceneSettings(views=2, max_keypoints=80, long_side=(150, 170), max_tilt=30.0)
    pictures = [made_image((160, 120), generator=generator) for _ in range(3)]
    scenes = Scenes(pictures, tmp_path, settings=settings)
    scenes.prepare(range(2), workers=2, progress=False)
    files = sorted(tmp_path.rglob("*.npz"))
    assert len(files) == 2
    fresh, kept = Scenes(pictures, settings=settings).scene(1), scenes.scene(1)
    for x, y in zip(fresh, kept, strict=True):
        assert torch.equal(x.keypoints.positions, y.keypoints.positions)
        assert torch.equal(x.plane, y.plane)
        assert torch.equal(x.homographies, y.homographies)
        torch.testing.assert_close(x.keypoints.descriptors, y.keypoints.descriptors, atol=1e-3, rtol=0.0)
    files[1].write_bytes(b"damaged")
    assert torch.equal(scenes.scene(1)[0].keypoints.positions, fresh[0].keypoints.positions)
    assert Scenes(pictures[::-1], tmp_path, settings=settings).folder != scenes.folder


def test_too_few_pictures_are_refused(generator):
    pictures = [made_image((64, 48), generator=generator)] * 3
    with pytest.raises(InputError, match="pictures: want more than 4, got 3"):
        Scenes(pictures)
    with pytest.raises(InputError, match="folder"):
        Scenes(pictures, settings=SceneSettings(views=2)).prepare(range(1))
