"""Point clouds from every kind of file."""

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing import PointCloud, read_points
from diffmatch.meshing.point_files import holds_points

RNG = np.random.default_rng(0)
POINTS, NORMALS, SHADES = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 3)), RNG.integers(0, 256, (5, 3))


def write(path, *, normals):
    table = np.c_[POINTS, NORMALS] if normals else POINTS
    if path.suffix == ".npy":
        np.save(path, table)
    elif path.suffix == ".npz":
        np.savez(path, points=POINTS, **({"normals": NORMALS} if normals else {}))
    elif path.suffix == ".xyz":
        np.savetxt(path, table, fmt="%.17g", delimiter="," if normals else " ", header="a comment")
    else:
        names = ["x", "y", "z", *(["nx", "ny", "nz"] if normals else []), "red", "green", "blue"]
        kinds = ["double"] * table.shape[1] + ["uchar"] * 3
        lines = ["ply", "format ascii 1.0", "element vertex 5"]
        lines += [f"property {kind} {name}" for kind, name in zip(kinds, names, strict=True)] + ["end_header"]
        lines += [" ".join(map(repr, [*map(float, a), *map(int, b)])) for a, b in zip(table, SHADES, strict=True)]
        path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("normals", [True, False])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".xyz", ".ply"])
def test_every_format(tmp_path, suffix, normals):
    path = tmp_path / f"cloud{suffix}"
    write(path, normals=normals)
    assert holds_points(path)
    cloud = read_points(path)
    assert cloud.points.dtype == torch.float64
    np.testing.assert_array_equal(cloud.points.numpy(), POINTS)
    assert (cloud.normals is not None) == normals
    if normals:
        np.testing.assert_array_equal(cloud.normals.numpy(), NORMALS)
    if suffix == ".ply":
        np.testing.assert_allclose(cloud.attributes.numpy(), SHADES / 255, rtol=1e-12)


def test_volumes_and_damaged_files_hold_no_points(tmp_path):
    np.save(tmp_path / "volume.npy", np.zeros((3, 3, 3)))
    np.savez(tmp_path / "volume.npz", sdf=np.zeros((3, 3, 3)))
    (tmp_path / "damaged.npz").write_bytes(b"nothing")
    assert not any(holds_points(path) for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xyz", b"0 0 0\n1 1\n", "3 or 6 numbers a line"),
        ("a.xyz", b"0 0 0 1\n1 1 0 1\n", r"\(n, 6\), got shape \(2, 4\)"),
        ("a.xyz", b"0 0 nan\n1 1 0\n", "finite points, got 1 of 6"),
        ("a.npy", b"nothing", "a readable .npy file"),
        ("a.npz", b"nothing", "a readable .npz file"),
        ("a.stl", b"", "a file of points"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n", "properties x, y and z"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_points(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="path: want an existing file"):
        read_points(tmp_path / "none.xyz")


@pytest.mark.untyped
def test_shapes_of_a_cloud_are_checked():
    with pytest.raises(InputError, match="normals: want"):
        PointCloud(torch.zeros(4, 3), torch.zeros(3, 3))
    with pytest.raises(InputError, match="attributes: want"):
        PointCloud(torch.zeros(4, 3), attributes=torch.zeros(5, 2))
