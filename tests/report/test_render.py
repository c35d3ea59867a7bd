import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from diffmatch.errors import InputError
from diffmatch.report import Frame, View, render_mesh
from diffmatch.report.render import parse_color, render_mesh_rgba

FRONT = View(eye=(0.0, -1.0, 0.0), distance=1 / np.tan(np.radians(22.5)))  # a plane through 0 of half size 1 fills it
UNIT = Frame(center=(0.0, 0.0, 0.0), radius=1.0)


def mesh(vertices, faces):
    return SimpleNamespace(vertices=np.asarray(vertices, dtype=np.float64), faces=np.asarray(faces, dtype=np.int64))


def square(half, *, y=0.0, flipped=False):
    """Facing the viewer in front (negative y)."""
    corners = [(-half, y, -half), (half, y, -half), (half, y, half), (-half, y, half)]
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    return mesh(corners, faces[:, ::-1] if flipped else faces)


def ball(n=60):
    """A sphere of 2 n (n - 1) triangles."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, n + 1), np.linspace(0, 2 * np.pi, n + 1), indexing="ij")
    points = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1)
    cell = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).ravel()
    first, second = np.stack([cell, cell + n + 1, cell + n + 2], 1), np.stack([cell, cell + n + 2, cell + 1], 1)
    return mesh(points.reshape(-1, 3), np.concatenate([first, second]))


def test_a_square_covers_exactly_its_pixels():
    image = render_mesh_rgba(square(0.5), width=80, height=80, view=FRONT, frame=UNIT)
    covered = image[:, :, 3] == 255
    assert covered[20:60, 20:60].all()
    assert covered.sum() == 40 * 40  # no pixel twice or missing along the diagonal, none outside


def test_partly_covered_pixels_are_partly_transparent():
    image = render_mesh_rgba(square(0.5), width=6, height=6, view=FRONT, frame=UNIT, supersample=4)
    assert sorted(set(image[:, :, 3].ravel().tolist())) == [0, 64, 128, 255]  # a quarter, half, all


def test_the_nearer_surface_hides_the_farther_in_any_order():
    near, far = square(0.3, y=-0.5), square(0.8, y=0.5)
    colors = np.array([[255, 0, 0]] * 2 + [[0, 0, 255]] * 2, dtype=np.uint8)
    faces = np.concatenate([near.faces, far.faces + 4])
    both = np.concatenate([near.vertices, far.vertices])
    one = render_mesh(mesh(both, faces), width=60, height=60, view=FRONT, frame=UNIT, color=colors)
    two = render_mesh(mesh(both, faces[::-1]), width=60, height=60, view=FRONT, frame=UNIT, color=colors[::-1].copy())
    middle, side = one[30, 30].astype(int), one[30, 14].astype(int)
    assert middle[0] > 150
    assert middle[2] < 60
    assert side[2] > 80
    assert side[0] < 60
    assert np.array_equal(one, two)


def test_planes_that_cross_are_resolved_pixel_by_pixel():
    """Two squares cross in the vertical middle: each hides the other on one side."""
    turned = [(-0.7, -0.7, -0.7), (0.7, 0.7, -0.7), (0.7, 0.7, 0.7), (-0.7, -0.7, 0.7)]
    other = [(-0.7, 0.7, -0.7), (0.7, -0.7, -0.7), (0.7, -0.7, 0.7), (-0.7, 0.7, 0.7)]
    faces = [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]
    colors = np.array([[255, 0, 0]] * 2 + [[0, 0, 255]] * 2, dtype=np.uint8)
    image = render_mesh(mesh(turned + other, faces), width=81, height=81, view=FRONT, frame=UNIT, color=colors)
    left, right = image[20:60, 14:36].astype(int), image[20:60, 45:67].astype(int)
    assert (left[:, :, 0] > left[:, :, 2]).all()
    assert (right[:, :, 2] > right[:, :, 0]).all()


def test_faces_seen_from_behind_have_a_colour_of_their_own():
    front = render_mesh(square(0.5), width=20, height=20, view=FRONT, frame=UNIT)[10, 10]
    back = render_mesh(square(0.5, flipped=True), width=20, height=20, view=FRONT, frame=UNIT)[10, 10]
    assert front[2] > front[0]
    assert back[0] > back[2]


def test_a_ball_is_round_lit_from_the_upper_left_and_seamless():
    view = replace(FRONT, distance=4.0)
    image = render_mesh_rgba(ball(), width=120, height=120, view=view, frame=UNIT).astype(float)
    covered = image[:, :, 3] > 127
    silhouette = 60 / np.sqrt(4.0**2 - 1) / np.tan(np.radians(22.5))  # in pixels; perspective enlarges it
    y, x = np.mgrid[:120, :120] - 59.5
    assert covered[np.hypot(x, y) < silhouette - 1].all()
    assert not covered[np.hypot(x, y) > silhouette + 1].any()
    brightness = image[:, :, :3].sum(axis=2)
    assert brightness[38:52, 38:52].mean() > 1.3 * brightness[68:82, 68:82].mean()


def test_the_background_shows_where_no_mesh_is():
    image = render_mesh(square(0.5), width=20, height=20, view=FRONT, frame=UNIT, background="#102030")
    assert image[0, 0].tolist() == [16, 32, 48]
    assert image.shape == (20, 20, 3)


def test_scale_and_place_do_not_change_the_picture():
    """Coordinates far from zero are moved before they are projected."""
    one = ball(12)
    two = mesh(one.vertices * 1024.0 + 65536.0, one.faces)
    difference = render_mesh(one, width=64, height=48).astype(int) - render_mesh(two, width=64, height=48)
    assert (np.abs(difference).max(axis=2) > 2).mean() < 0.01


def test_equal_calls_give_equal_bits():
    assert np.array_equal(render_mesh(ball(20), width=64, height=48), render_mesh(ball(20), width=64, height=48))


def test_degenerate_triangles_and_those_behind_the_eye_are_left_out():
    behind = [(-1.0, -9.0, -1.0), (1.0, -9.0, -1.0), (0.0, -9.0, 1.0)]
    flat = [(0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (1.0, 0.0, 0.0)]
    image = render_mesh_rgba(mesh(behind + flat, [[0, 1, 2], [3, 4, 5]]), width=20, height=20, view=FRONT, frame=UNIT)
    assert image[:, :, 3].max() == 0


def test_large_slivers_cost_what_they_cover():
    """Thin triangles right across the picture: the box around each is large, its rows hold few pixels."""
    turn = np.linspace(0, np.pi, 2000, endpoint=False)
    along, across = (
        np.stack([np.cos(turn), 0 * turn, np.sin(turn)], 1),
        np.stack([-np.sin(turn), 0 * turn, np.cos(turn)], 1),
    )
    vertices = np.concatenate([-0.9 * along, 0.9 * along, 0.9 * along + 1e-3 * across])
    n = len(turn)
    faces = np.stack([np.arange(n), np.arange(n) + n, np.arange(n) + 2 * n], 1)
    begun = time.perf_counter()
    image = render_mesh_rgba(mesh(vertices, faces), width=400, height=400, view=FRONT, frame=UNIT)
    assert time.perf_counter() - begun < 10
    assert (image[150:250, 150:250, 3] > 0).mean() > 0.95


@pytest.mark.untyped
def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match=r"width: want at least 1, got 0"):
        render_mesh(square(1.0), width=0)
    with pytest.raises(InputError, match=r"color: want shape \(2, 3\), got \(5, 3\)"):
        render_mesh(square(1.0), color=np.zeros((5, 3), np.uint8))
    for color in ("red", "#12345", "#12345g", "0x12345"):
        with pytest.raises(InputError, match=r"color: want a colour '#rrggbb'"):
            parse_color(color)
