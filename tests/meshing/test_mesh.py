from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import gradcheck

from diffmatch.errors import InputError
from diffmatch.meshing.mesh import Mesh, check_values

# A right-angled tetrahedron: volume 1/6, three faces of area 1/2 and one of sqrt(3)/2.
VERTICES = [[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
FACES = [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Tagged(Mesh):
    weight: Float[Tensor, ""]
    name: str = "tag"


@pytest.fixture
def tetrahedron(device, dtype):
    return Mesh(torch.tensor(VERTICES, device=device, dtype=dtype), torch.tensor(FACES, device=device))


def test_areas_normals_and_volume(tetrahedron, dtype, tolerance):
    third = 3**-0.5
    expected = torch.tensor([[0, 0, -1], [0, -1, 0], [-1, 0, 0], [third] * 3], dtype=torch.float64).to(
        tetrahedron.vertices
    )
    torch.testing.assert_close(tetrahedron.face_normals, expected, **tolerance(dtype))
    torch.testing.assert_close(
        tetrahedron.face_areas, tetrahedron.vertices.new_tensor([0.5, 0.5, 0.5, 3**0.5 / 2]), **tolerance(dtype)
    )
    torch.testing.assert_close(tetrahedron.volume, tetrahedron.vertices.new_tensor(1 / 6), **tolerance(dtype))


def test_edges_are_each_edge_once(tetrahedron):
    assert tetrahedron.edges.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]


def test_gradients_in_double():
    vertices = torch.tensor(VERTICES, dtype=torch.float64, requires_grad=True)
    faces = torch.tensor(FACES)
    for name in ("face_normals", "face_areas", "volume"):
        assert gradcheck(lambda v, name=name: getattr(Mesh(v, faces), name), vertices)
    assert gradcheck(lambda v: Mesh(v, faces).sample(7, torch.Generator().manual_seed(1)).points, vertices)


def test_faces_without_area_have_zero_normals_and_finite_gradients():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]], requires_grad=True)
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [0, 0, 1]]))
    assert mesh.face_normals.abs().max() == 0
    (mesh.face_normals.sum() + mesh.face_areas.sum()).backward()
    assert torch.isfinite(vertices.grad).all()


def test_samples_lie_on_their_faces_and_follow_area(tetrahedron, generator, dtype, tolerance):
    n = 20_000
    points, faces, weights = tetrahedron.sample(n, generator)
    assert points.dtype == dtype
    assert (weights >= 0).all()
    corners = tetrahedron.vertices[tetrahedron.faces[faces]]
    torch.testing.assert_close((weights[:, :, None] * corners).sum(1), points, **tolerance(dtype))
    # Faces by area, and uniform within each: mean barycentrics of a third, their second moments of 1/6.
    share = torch.bincount(faces, minlength=4).double().cpu() / n
    areas = tetrahedron.face_areas.double().cpu()
    torch.testing.assert_close(share, areas / areas.sum(), rtol=0, atol=0.02)
    torch.testing.assert_close(weights.double().mean(0).cpu(), torch.full((3,), 1 / 3).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(
        weights.double().square().mean(0).cpu(), torch.full((3,), 1 / 6).double(), rtol=0, atol=0.01
    )


def test_the_same_seed_gives_the_same_samples(tetrahedron, device):
    one, two = (tetrahedron.sample(50, torch.Generator(device).manual_seed(3)) for _ in range(2))
    assert torch.equal(one.points, two.points)
    assert tetrahedron.sample(0).points.shape == (0, 3)


def test_zero_area_faces_are_never_sampled(generator, device):
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 1, 0]], device=device)
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [0, 1, 3], [0, 1, 2]], device=device))
    assert set(mesh.sample(200, generator).faces.tolist()) == {1}


def test_conversion_keeps_subclass_and_extra_fields():
    mesh = Tagged(
        torch.tensor(VERTICES, requires_grad=True),
        torch.tensor(FACES),
        weight=torch.tensor(2.0),
        vertex_attributes=torch.rand(4, 2),
    )
    moved = mesh.to(dtype=torch.float64)
    assert isinstance(moved, Tagged)
    assert (moved.vertices.dtype, moved.weight.dtype, moved.vertex_attributes.dtype) == (torch.float64,) * 3
    assert moved.faces.dtype == torch.int64
    assert moved.name == "tag"
    assert moved.vertices.requires_grad
    assert not mesh.detach().vertices.requires_grad


def test_an_empty_mesh_is_a_mesh():
    mesh = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    assert mesh.edges.shape == (0, 2)
    assert mesh.face_areas.shape == (0,)
    assert mesh.volume == 0
    assert mesh.sample(0).points.shape == (0, 3)
    with pytest.raises(InputError, match="at least one face to sample from"):
        mesh.sample(1)
    with pytest.raises(InputError, match="n: want a number of points >= 0, got -1"):
        mesh.sample(-1)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("vertices", "faces", "attributes", "message"),
    [
        (torch.zeros(4, 2), torch.tensor(FACES), None, r"vertices: want shape \(v, 3\), got \(4, 2\)"),
        (torch.zeros(4, 3).int(), torch.tensor(FACES), None, "vertices: want a real floating-point dtype"),
        (torch.zeros(4, 3), torch.zeros(2, 4).long(), None, r"faces: want shape \(f, 3\), got \(2, 4\)"),
        (torch.zeros(4, 3), torch.tensor(FACES).int(), None, "faces: want int64 indices, got torch.int32"),
        (torch.zeros(4, 3), torch.tensor(FACES), torch.zeros(3, 1), r"vertex_attributes: want shape \(4, d\)"),
        (torch.zeros(4, 3), torch.tensor(FACES, device="meta"), None, "faces: want device cpu, got meta"),
    ],
)
def test_construction_refuses(vertices, faces, attributes, message):
    with pytest.raises(InputError, match=message):
        Mesh(vertices, faces, vertex_attributes=attributes)


def test_check_values():
    faces = torch.tensor(FACES)
    check_values("mesh", Mesh(torch.tensor(VERTICES), faces))
    broken = torch.tensor(VERTICES)
    broken[2, 1] = float("nan")
    with pytest.raises(InputError, match="mesh: want finite vertices, got 1 of 4 with NaN or infinity in here"):
        check_values("mesh", Mesh(broken, faces), where=" in here")
    for bad in (4, -1):
        with pytest.raises(InputError, match=f"face indices from 0 to 3, got {bad}"):
            check_values("mesh", Mesh(torch.tensor(VERTICES), torch.tensor([[0, 1, bad]])))
