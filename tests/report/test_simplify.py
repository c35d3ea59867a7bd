import numpy as np

from diffmatch.report.simplify import cluster_vertices


def terrain(n):
    x, y = np.meshgrid(np.linspace(0, 1, n + 1), np.linspace(0, 1, n + 1), indexing="ij")
    vertices = np.stack([x, y, 0.1 * np.sin(6 * x) * np.cos(5 * y)], -1).reshape(-1, 3)
    cell = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).ravel()
    halves = [np.stack([cell, cell + n + 1, cell + n + 2], 1), np.stack([cell, cell + n + 2, cell + 1], 1)]
    return vertices, np.concatenate(halves)


def test_a_small_mesh_comes_back_as_it_was():
    vertices, faces = terrain(8)
    same_vertices, same_faces, owner = cluster_vertices(vertices, faces, max_faces=128)
    assert np.array_equal(same_vertices, vertices)
    assert np.array_equal(same_faces, faces)
    assert np.array_equal(owner, np.arange(len(vertices)))


def test_a_large_mesh_shrinks_below_the_limit_and_stays_near():
    vertices, faces = terrain(100)
    few_vertices, few_faces, owner = cluster_vertices(vertices, faces, max_faces=3000)
    assert 1000 < len(few_faces) <= 3000
    assert few_faces.max() < len(few_vertices)
    assert (np.diff(np.sort(few_faces, axis=1), axis=1) > 0).all()  # none collapsed
    assert np.abs(few_vertices[owner] - vertices).max() < 0.06  # a cell or two
    corners = few_vertices[few_faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals[:, 2] > 0).mean() > 0.99  # orientation is kept
