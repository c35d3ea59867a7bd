import torch

from diffmatch.meshing import Grid, Mesh, flexicubes, load_target, mesh_validity
from diffmatch.meshing.quad_cuts import QuadCuts, cut_quads, nearer_diagonals
from diffmatch.meshing.shapes import box, sphere

# A square seen from outside, folded along one diagonal or the other.
QUAD = torch.tensor([[0, 1, 2, 3]])
CORNERS = torch.tensor([[0.1, -0.4, 0.0], [0.0, 0.0, -0.4], [0.1, 0.4, 0.0], [0.0, 0.0, 0.4]])


def ridge(points):
    """Two planes that meet on the z axis, as the square does when it is cut from 1 to 3."""
    return points[:, 0] - points[:, 1].abs() / 4


def everywhere(points):
    return torch.ones(len(points), dtype=torch.bool)


def ball_mesh():
    grid = Grid.cube(8)
    return flexicubes(grid, sphere(grid.nodes(), radius=0.7))


def test_a_quad_is_cut_along_the_edge_of_the_target():
    target = load_target(ridge)
    assert nearer_diagonals(target, CORNERS, QUAD, cell=0.1).tolist() == [False]
    assert nearer_diagonals(target, CORNERS, QUAD.roll(1, 1), cell=0.1).tolist() == [True]


def test_both_cuts_cover_the_quad_the_same_way_round():
    for along_02, diagonal in ((True, {0, 2}), (False, {1, 3})):
        faces = cut_quads(QUAD, torch.tensor([along_02]))
        assert set(faces[0].tolist()) & set(faces[1].tolist()) == diagonal
        assert bool((Mesh(CORNERS, faces).face_normals[:, 0] > 0).all())


def test_the_cut_mesh_is_closed_and_nearer_than_before(generator):
    def field(points):
        return box(points, half=(0.63, 0.52, 0.41))

    grid = Grid.cube(9)
    mesh = flexicubes(grid, field(grid.nodes()))
    cut = QuadCuts(load_target(field), everywhere, cell=2 / 9).choose(mesh)
    assert mesh_validity(cut).watertight
    one, two = (field(m.sample(20_000, generator).points).abs().mean() for m in (cut, mesh))
    assert one < two


def test_diagonals_are_chosen_once_every_twenty_steps():
    asked = []

    def field(points):
        asked.append(len(points))
        return sphere(points, radius=0.7)

    cuts, mesh = QuadCuts(load_target(field), everywhere, cell=0.25), ball_mesh()
    first = cuts.at(0, mesh)
    for step in (0, 1, 19):
        assert torch.equal(cuts.at(step, mesh).faces, first.faces)
    assert len(asked) == 1
    cuts.at(20, mesh)
    assert len(asked) == 2


def test_the_state_brings_the_diagonals_back():
    cuts, mesh = QuadCuts(load_target(ridge), everywhere, cell=0.25), ball_mesh()
    faces = cuts.at(20, mesh).faces
    other = QuadCuts(load_target(lambda points: points[:, 0]), everywhere, cell=0.25)
    other.load_state_dict(cuts.state_dict())
    assert torch.equal(other.at(21, mesh).faces, faces)
    assert torch.equal(other.at(20, mesh).faces, faces)


def test_where_the_target_has_no_say_quads_are_cut_from_1_to_3():
    mesh = ball_mesh()
    cuts = QuadCuts(load_target(ridge), lambda points: ~everywhere(points), cell=0.25)
    assert torch.equal(cuts.choose(mesh).faces, cut_quads(mesh.quads, torch.zeros(len(mesh.quads), dtype=torch.bool)))
