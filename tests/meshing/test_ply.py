"""PLY: attributes written and read back, and vertices in every layout."""

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing.mesh import Mesh
from diffmatch.meshing.ply import ply_bytes, read_ply_vertices

HEADER = "ply\nformat {} 1.0\ncomment made by hand\n{}element vertex 2\n{}element face 0\nend_header\n"
PROPERTIES = "property double x\nproperty float y\nproperty short z\n"
ROWS = np.array([(0.1, 0.5, -3), (2.0, -0.25, 7)], dtype=[("x", "f8"), ("y", "f4"), ("z", "i2")])


def body(layout):
    if layout == "ascii":
        return b"0.1 0.5 -3\n2.0 -0.25 7\n"
    order = "<" if "little" in layout else ">"
    return ROWS.astype([("x", order + "f8"), ("y", order + "f4"), ("z", order + "i2")]).tobytes()


@pytest.mark.parametrize("layout", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_every_layout_is_read(tmp_path, layout):
    path = tmp_path / "points.ply"
    path.write_bytes(HEADER.format(layout, "", PROPERTIES).encode() + body(layout))
    found = read_ply_vertices(path)
    assert found.n_faces == 0
    assert found.stacked(("x", "y", "z")).tolist() == [[0.1, 0.5, -3.0], [2.0, -0.25, 7.0]]
    assert found.stacked(("nx", "ny", "nz")) is None


def test_an_element_before_the_vertices_is_passed_over(tmp_path):
    path = tmp_path / "points.ply"
    text = HEADER.format("ascii", "element camera 1\nproperty float f\n", PROPERTIES)
    path.write_bytes(text.encode() + b"35\n" + body("ascii"))
    assert read_ply_vertices(path).columns["z"].tolist() == [-3, 7]


@pytest.mark.parametrize("colours", [3, 4])
def test_colours_are_bytes(tmp_path, colours):
    shades = torch.linspace(0, 1, 3 * colours).reshape(3, colours)
    path = tmp_path / "mesh.ply"
    path.write_bytes(ply_bytes(Mesh(torch.rand(3, 3), torch.tensor([[0, 1, 2]]), vertex_attributes=shades)))
    found = read_ply_vertices(path)
    assert found.n_faces == 1
    assert np.abs(found.colours() - shades.numpy()).max() <= 0.5 / 255 + 1e-7
    assert found.attributes() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"solid nothing",
        b"ply\nformat ascii 1.0\n",
        HEADER.format("ebcdic", "", PROPERTIES).encode(),
        HEADER.format("ascii", "", "property strange x\n").encode(),
        HEADER.format("ascii", "", "property list uchar int x\n").encode(),
        HEADER.format("ascii", "", PROPERTIES).encode() + b"1 2 3\n",
        HEADER.format("binary_little_endian", "", PROPERTIES).encode() + b"1234",
        b"ply\nformat ascii 1.0\nelement face 0\nend_header\n",
    ],
)
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "damaged.ply"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"path: want a readable \.ply file"):
        read_ply_vertices(path)
