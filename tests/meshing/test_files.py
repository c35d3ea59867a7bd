import warnings

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing.files import WRITE_SUFFIXES, merge_vertices, read_mesh, write_mesh
from diffmatch.meshing.mesh import Mesh
from diffmatch.meshing.metrics import mesh_validity
from diffmatch.meshing.volumes import read_volume

trimesh = pytest.importorskip("trimesh")

PLY_TRIANGLE = """ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
element face 1
property list uchar int vertex_indices
end_header
0 0 0
1 0 0
0 1 0
3 0 1 7
"""
OBJ_SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


@pytest.fixture
def ball():
    sphere = trimesh.creation.icosphere(2)
    vertices = torch.from_numpy(np.array(sphere.vertices)) * 0.1 + torch.tensor([1.0, 2.0, 1 / 3])
    return Mesh(vertices, torch.from_numpy(np.array(sphere.faces)).long())


@pytest.mark.parametrize("suffix", WRITE_SUFFIXES)
def test_what_was_written_is_read(tmp_path, ball, suffix):
    path = tmp_path / f"ball{suffix}"
    write_mesh(path, ball.to(dtype=torch.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mesh = read_mesh(path)
    assert mesh.vertices.dtype == torch.float64
    assert mesh.vertices.shape == ball.vertices.shape
    validity = mesh_validity(mesh)
    assert (validity.watertight, validity.euler_characteristic) == (True, 2)
    assert float(mesh.volume) == pytest.approx(float(ball.volume), rel=1e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]  # nothing temporary is left


@pytest.mark.parametrize("suffix", [".obj", ".off"])
def test_text_files_keep_every_bit(tmp_path, ball, suffix):
    tiny = Mesh(ball.vertices * 1e-12, ball.faces)
    write_mesh(tmp_path / f"tiny{suffix}", tiny)
    mesh = read_mesh(tmp_path / f"tiny{suffix}")
    assert torch.equal(mesh.vertices, tiny.vertices)
    assert torch.equal(mesh.faces, tiny.faces)


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".glb"])
def test_colours_are_kept(tmp_path, ball, suffix):
    colours = torch.rand(len(ball.vertices), 3, generator=torch.Generator().manual_seed(0))
    write_mesh(tmp_path / f"ball{suffix}", Mesh(ball.vertices.float(), ball.faces, vertex_attributes=colours))
    read = read_mesh(tmp_path / f"ball{suffix}").vertex_attributes
    torch.testing.assert_close(read[:, :3], colours.double(), rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("suffix", WRITE_SUFFIXES)
def test_other_attributes_are_left_out(tmp_path, ball, suffix):
    attributes = 10 * torch.ones(len(ball.vertices), 2)
    write_mesh(tmp_path / f"ball{suffix}", Mesh(ball.vertices, ball.faces, vertex_attributes=attributes.double()))
    assert len(read_mesh(tmp_path / f"ball{suffix}").faces) == len(ball.faces)


def test_seams_are_merged(tmp_path):
    # A tetrahedron whose second face has its own copies of the corners, as texture seams make them.
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nv 0 0 0\nv 1 0 0\nv 0 0 1\nv 9 9 9\n"
    (tmp_path / "seam.obj").write_text(corners + "f 1 3 2\nf 5 6 7\nf 1 4 3\nf 2 3 4\n")
    mesh = read_mesh(tmp_path / "seam.obj")
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]  # first come, first kept; none unused
    assert mesh_validity(mesh).watertight


def test_scenes_are_put_together(tmp_path, ball):
    part = trimesh.creation.box()
    scene = trimesh.Scene()
    scene.add_geometry(part)
    scene.add_geometry(part, transform=trimesh.transformations.translation_matrix([3, 0, 0]))
    scene.export(tmp_path / "two.glb")
    mesh = read_mesh(tmp_path / "two.glb")
    assert (mesh_validity(mesh).bodies, float(mesh.volume)) == (2, pytest.approx(2.0))


def test_merge_vertices_keeps_order_attributes_and_scale():
    vertices = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, -0.0]]) * 1e-20
    mesh = Mesh(vertices, torch.tensor([[1, 0, 3], [1, 4, 2], [0, 2, 1]]), vertex_attributes=torch.arange(5.0)[:, None])
    merged = merge_vertices(mesh)
    assert merged.vertex_attributes.flatten().tolist() == [0, 1, 3]
    assert merged.faces.tolist() == [[1, 0, 2], [1, 2, 0]]  # the third has collapsed


def test_research_meshes(data_dir):
    spot = mesh_validity(read_mesh(data_dir / "meshes" / "spot.obj"))
    assert (spot.watertight, spot.bodies, spot.euler_characteristic) == (True, 1, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.obj", OBJ_SQUARE, "path: want a"),
        ("a.obj", OBJ_SQUARE.replace("v 1 0 0", "v nan 0 0") + "f 1 2 3\n", "finite vertices, got 1 of"),
        ("a.obj", OBJ_SQUARE + "f 1 2 9\n", "path: want"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "path: want a readable .off file"),
        ("a.ply", PLY_TRIANGLE, "face indices from 0 to 2, got 7"),
        ("a.obj", OBJ_SQUARE + "f 1 1 1\n", "path: want a"),
        ("a.obj", "", "path: want a"),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 3\n", "path: want a"),
        ("a.stl", "\0" * 100, "path: want a"),
        ("a.glb", "glTF nothing", "path: want a readable .glb file"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n", "path: want a readable .off file"),
        ("a.xyzzy", "", r"a mesh file \(.*\.obj.*\), got 'a.xyzzy'"),
        ("noending", "", "a mesh file"),
    ],
)
@pytest.mark.untyped
def test_bad_mesh_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        read_mesh(tmp_path / name)
    assert name in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("read", [read_mesh, read_volume])
def test_missing_files_and_folders(tmp_path, read):
    with pytest.raises(InputError, match=r"path: want an existing file, got '.*missing\.obj'"):
        read(tmp_path / "missing.obj")
    with pytest.raises(InputError, match="want an existing file, got the folder"):
        read(tmp_path)


def test_bad_outputs(tmp_path, ball):
    with pytest.raises(InputError, match=r"path: want a suffix of \.obj, \.ply, \.stl, \.glb, \.off, got 'a\.docx'"):
        write_mesh(tmp_path / "a.docx", ball)
    with pytest.raises(InputError, match="path: want a writable folder"):
        write_mesh(tmp_path / "no" / "a.obj", ball)
    (tmp_path / "folder.obj").mkdir()
    with pytest.raises(InputError, match="path: want the name of a file"):
        write_mesh(tmp_path / "folder.obj", ball)
    with pytest.raises(InputError, match="mesh: want a mesh with faces, got none"):
        write_mesh(tmp_path / "a.obj", Mesh(ball.vertices, ball.faces[:0]))
    with pytest.raises(InputError, match="mesh: want finite vertices"):
        write_mesh(tmp_path / "a.obj", Mesh(ball.vertices * float("nan"), ball.faces))
    assert not (tmp_path / "a.obj").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, ball, monkeypatch):
    path = tmp_path / "a.obj"
    path.write_text("old")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffmatch.meshing.files.write_bytes_atomic", full)
    with pytest.raises(InputError, match=r"path: want a place that can be written, got .*No space left"):
        write_mesh(path, ball)
    assert path.read_text() == "old"
