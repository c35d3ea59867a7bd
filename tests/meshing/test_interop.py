import sys
import types

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError, MissingExtraError
from diffmatch.meshing.interop import (
    as_mesh,
    from_kaolin,
    from_pytorch3d,
    from_trimesh,
    to_kaolin,
    to_pytorch3d,
    to_trimesh,
)
from diffmatch.meshing.mesh import Mesh

trimesh = pytest.importorskip("trimesh")


class SurfaceMesh:
    """The constructor of kaolin's class, up to the arguments used here."""

    def __init__(self, vertices, faces, normals=None, uvs=None, strict_checks=True):
        self.vertices, self.faces = vertices, faces


class Meshes:
    """The constructor and the two readers of pytorch3d's class."""

    def __init__(self, verts, faces, textures=None, *, verts_normals=None):
        self._verts, self._faces, self.textures = list(verts), list(faces), textures

    def verts_list(self):
        return self._verts

    def faces_list(self):
        return self._faces


class TexturesVertex:
    def __init__(self, verts_features):
        self.features = verts_features


@pytest.fixture
def neighbours(monkeypatch):
    """kaolin and pytorch3d as far as the package knows them."""
    for name, members in {
        "kaolin": {},
        "kaolin.rep": {"SurfaceMesh": SurfaceMesh},
        "pytorch3d": {},
        "pytorch3d.structures": {"Meshes": Meshes},
        "pytorch3d.renderer": {"TexturesVertex": TexturesVertex},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def mesh():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    return Mesh(vertices.requires_grad_(), torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))


def same(one: Mesh, two: Mesh) -> bool:
    return torch.equal(one.vertices.double(), two.vertices.double()) and torch.equal(one.faces, two.faces)


def test_trimesh_round_trip(mesh):
    other = to_trimesh(mesh)
    assert isinstance(other, trimesh.Trimesh)
    assert other.volume == pytest.approx(1 / 6)
    assert same(from_trimesh(other), mesh)
    assert from_trimesh(other).vertices.dtype == torch.float64


def test_trimesh_nothing_is_merged_or_dropped():
    doubled = Mesh(torch.zeros(4, 3), torch.tensor([[0, 1, 2], [0, 0, 0]]))
    assert same(from_trimesh(to_trimesh(doubled)), doubled)


def test_trimesh_colours_and_other_attributes(mesh):
    colours = torch.tensor([[0, 0, 1.0], [1, 0, 0], [0, 0.2, 0], [1, 1, 1]])
    coloured = from_trimesh(to_trimesh(Mesh(mesh.vertices, mesh.faces, vertex_attributes=colours)))
    torch.testing.assert_close(coloured.vertex_attributes[:, :3], colours.double(), rtol=0, atol=0.5 / 255)
    heights = torch.tensor([[3.0, -1], [0, 1], [2, 2], [5, 5]], dtype=torch.float64)
    other = to_trimesh(Mesh(mesh.vertices, mesh.faces, vertex_attributes=heights))
    assert torch.equal(from_trimesh(other).vertex_attributes, heights)


def test_trimesh_scenes_are_put_together_with_their_transforms(mesh):
    scene = trimesh.Scene()
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[0, 3] = 5
    scene.add_geometry(to_trimesh(mesh), geom_name="part")
    scene.graph.update("copy", geometry="part", matrix=mirror)
    both = as_mesh(scene)
    assert both.vertices.shape == (8, 3)
    assert both.faces.shape == (8, 3)
    assert both.vertices[:, 0].max() == 5
    assert float(both.volume) == pytest.approx(2 / 6)  # a mirrored part does not turn inside out


def test_trimesh_without_triangles():
    scene = trimesh.Scene([trimesh.PointCloud(np.zeros((3, 3)))])
    with pytest.raises(InputError, match="a scene with at least one triangle mesh, got none in 1 geometries"):
        from_trimesh(scene)
    with pytest.raises(InputError, match="a trimesh mesh, got PointCloud"):
        from_trimesh(trimesh.PointCloud(np.zeros((3, 3))))


@pytest.mark.usefixtures("neighbours")
def test_kaolin_shares_tensors_and_graph(mesh):
    other = to_kaolin(mesh)
    assert other.vertices is mesh.vertices
    assert from_kaolin(other).vertices is mesh.vertices
    batch = SurfaceMesh(mesh.vertices[None], mesh.faces.int())
    assert same(as_mesh(batch), mesh)
    assert as_mesh(batch).vertices.requires_grad
    assert same(as_mesh(SurfaceMesh([mesh.vertices], [mesh.faces])), mesh)
    with pytest.raises(InputError, match="mesh: want a single mesh, got a batch of 2"):
        from_kaolin(SurfaceMesh(torch.zeros(2, 4, 3), mesh.faces))


@pytest.mark.usefixtures("neighbours")
def test_pytorch3d_shares_tensors_and_graph(mesh):
    other = to_pytorch3d(mesh)
    assert other.textures is None
    assert as_mesh(other).vertices is mesh.vertices
    colours = torch.rand(4, 4)
    painted = to_pytorch3d(Mesh(mesh.vertices, mesh.faces, vertex_attributes=colours))
    assert torch.equal(painted.textures.features[0], colours[:, :3])
    with pytest.raises(InputError, match="a batch of 2"):
        from_pytorch3d(Meshes([mesh.vertices] * 2, [mesh.faces] * 2))


def test_absent_neighbours_are_named(mesh, monkeypatch):
    for name in ("kaolin", "pytorch3d"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="kaolin is needed here"):
        to_kaolin(mesh)
    with pytest.raises(MissingExtraError, match="pytorch3d is needed here"):
        to_pytorch3d(mesh)


def test_pairs_of_arrays_and_lists():
    vertices, faces = [[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]
    for pair in [
        (vertices, faces),
        (np.array(vertices, dtype=np.float32), np.array(faces, dtype=np.uint32)),
        (torch.tensor(vertices).float(), torch.tensor(faces).int()),
    ]:
        mesh = as_mesh(pair)
        assert mesh.vertices.tolist() == vertices
        assert mesh.faces.tolist() == faces
    assert as_mesh(mesh) is mesh
    assert as_mesh((vertices, [])).faces.shape == (0, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a.obj", "got str"),
        ((1, 2, 3), r"a pair \(vertices, faces\), got 3 items"),
        ((np.zeros((3, 3)), np.zeros((1, 3))), "faces: want integer indices, got torch.float64"),
        ((np.array([["a", "b", "c"]]), [[0, 0, 0]]), "vertices: want a numeric array"),
        (([[0.0, 0, 0], [1.0]], [[0, 0, 0]]), "vertices: want a rectangular array"),
    ],
)
def test_as_mesh_refuses(source, message):
    with pytest.raises(InputError, match=message):
        as_mesh(source)
