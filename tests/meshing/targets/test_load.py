import sys

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing.interop import as_mesh
from diffmatch.meshing.shapes import sphere
from diffmatch.meshing.targets import FieldTarget, MeshTarget, VolumeTarget, load_target
from diffmatch.meshing.volumes import Volume

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("igl")

MODULE = """
import torch

def field(points):
    return points.norm(dim=-1) - 0.5

def factory(radius=0.25):
    return lambda points: points.norm(dim=-1) - radius

class Network(torch.nn.Module):
    bounds = ((-1, -1, -1), (1, 1, 1))

    def forward(self, points):
        return points.norm(dim=-1) - 1

instance = Network()
number = 3

def broken():
    raise RuntimeError("no weights")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module in the current folder, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_shapes_xyz.py").write_text(MODULE)
    (tmp_path / "my_broken_xyz.py").write_text("import no_such_module_xyz\n")
    (tmp_path / "my_exit_xyz.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_shapes_xyz"
    sys.modules.pop("my_shapes_xyz", None)


def test_files(tmp_path):
    trimesh.creation.icosphere(1).export(tmp_path / "ball.ply")
    assert isinstance(load_target(tmp_path / "ball.ply"), MeshTarget)
    assert isinstance(load_target(str(tmp_path / "ball.ply")), MeshTarget)
    np.save(tmp_path / "ball.npy", np.ones((3, 3, 3)))
    assert isinstance(load_target(tmp_path / "ball.npy"), VolumeTarget)


def test_objects():
    mesh = trimesh.creation.icosphere(1)
    for source in (mesh, as_mesh(mesh), (mesh.vertices, mesh.faces), trimesh.Scene([mesh])):
        assert isinstance(load_target(source), MeshTarget)
    assert isinstance(load_target(Volume(torch.ones(2, 2, 2))), VolumeTarget)
    target = load_target(lambda p: sphere(p, radius=1), bounds=[[-1, -1, -1], [1, 1, 1]])
    assert isinstance(target, FieldTarget)
    assert target.normalization.scale == pytest.approx(0.9)
    assert load_target(target) is target


@pytest.mark.parametrize(("name", "radius"), [("field", 0.5), ("factory", 0.25), ("Network", 0.9), ("instance", 0.9)])
def test_named_fields(module, name, radius):
    before = list(sys.path)
    target = load_target(f"{module}:{name}")
    assert target.sdf(torch.zeros(1, 3)).item() == pytest.approx(-radius)
    assert sys.path == before


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("my_absent_xyz:field", "a module that can be imported, got 'my_absent_xyz' .*No module named"),
        ("my_broken_xyz:field", "got 'my_broken_xyz' .*No module named 'no_such_module_xyz'"),
        ("my_exit_xyz:field", "got 'my_exit_xyz' .*SystemExit: 3"),
        ("my_shapes_xyz:fields", "target: want a name in module 'my_shapes_xyz', got 'fields'"),
        ("my_shapes_xyz:number", r"a callable of points \(n, 3\), or a factory of one, got int"),
        ("my_shapes_xyz:broken", "a factory that returns a field, got .*RuntimeError: no weights"),
        ("absent.obj", "want an existing file"),
        ("absent", "want an existing file"),
        (3, "target: want a path, module:name, mesh, volume or callable, got int"),
    ],
)
def test_bad_sources_are_named(source, message):
    with pytest.raises(InputError, match=message):
        load_target(source)


@pytest.mark.untyped
@pytest.mark.parametrize("name", ["gone.obj", "gone.npy"])
def test_a_bad_file_is_named_as_the_target(tmp_path, name):
    with pytest.raises(InputError, match=r"^target: want .*gone"):
        load_target(tmp_path / name)


def test_a_level_is_for_files_of_volumes(tmp_path):
    np.save(tmp_path / "scan.npy", np.pad(np.ones((3, 3, 3)), 2))
    target = load_target(tmp_path / "scan.npy", level=0.25)
    centre = target.normalization.apply(torch.full((1, 3), 3.0, dtype=torch.float64))
    assert float(target.sdf(centre)) < 0
    for source in (Volume(torch.ones(2, 2, 2)), lambda points: points.sum(1)):
        with pytest.raises(InputError, match="level: want None but for the file of a volume"):
            load_target(source, level=0.0)
