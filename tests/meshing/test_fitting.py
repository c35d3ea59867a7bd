"""fit_mesh: small fits whose answer is known."""

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing import (
    Grid,
    edge_length_deviation,
    fit_mesh,
    load_target,
    marching_cubes,
    mesh_metrics,
    normal_consistency,
    read_mesh,
)
from diffmatch.meshing.fitting import _unfolded
from diffmatch.meshing.metrics import self_intersecting_faces
from diffmatch.meshing.parameters import FlexiParameters
from diffmatch.meshing.quad_cuts import QuadCuts
from diffmatch.meshing.shapes import DEMO_PART_EULER_CHARACTERISTIC, box, demo_part, sphere


def cube_field(points):
    return box(points, half=(0.63, 0.52, 0.41))


def sphere_field(points):
    return sphere(points, radius=0.7)


def fitted(target, **settings):
    return fit_mesh(target, **{"resolution": 12, "steps": 40, "progress": False, **settings})


def test_a_box_is_fitted_better_than_by_marching_cubes(device):
    result = fitted(cube_field, device=device, steps=80)
    grid = Grid.cube(12)
    target = load_target(cube_field)
    plain = marching_cubes(grid, target.sdf(grid.nodes(dtype=torch.float64)))
    error, plain_error = (
        cube_field(mesh.sample(20_000, torch.Generator().manual_seed(0)).points).abs().mean()
        for mesh in (result.mesh, plain)
    )
    assert error < plain_error / 2
    assert result.metrics.validity.watertight
    assert result.metrics.validity.euler_characteristic == 2


def test_history_has_every_term_and_falls():
    result = fitted(cube_field)
    terms = result.history.terms
    assert set(terms) == {"start", "distance", "normals", "deviation"}
    assert terms["start"][3] < terms["start"][0]  # 4 of the 40 steps aim at the vertices of dual contouring
    assert terms["distance"][-1] < terms["distance"][4]
    assert terms["normals"][-1] < terms["normals"][4]
    assert result.history.status == "completed"


def test_edges_of_one_length_and_a_smooth_surface_can_be_asked_for():
    plain, even, smooth = (
        fitted(demo_part, resolution=16, steps=60, **options)
        for options in ({}, {"edge_length": 0.1}, {"normal_consistency": 0.1})
    )
    assert set(even.history.terms) == {*plain.history.terms, "edge length"}
    assert set(smooth.history.terms) == {*plain.history.terms, "consistency"}
    assert edge_length_deviation(even.mesh) < 0.97 * edge_length_deviation(plain.mesh)
    assert normal_consistency(smooth.mesh) < 0.97 * normal_consistency(plain.mesh)
    assert even.settings["edge_length"] == 0.1
    with pytest.raises(InputError, match=r"edge_length: want a number >= 0, got -1\.0"):
        fitted(cube_field, edge_length=-1.0)


def test_topology_of_the_demo_part_is_kept():
    result = fitted(demo_part, resolution=32, steps=20)
    assert result.metrics.validity.euler_characteristic == DEMO_PART_EULER_CHARACTERISTIC
    assert result.metrics.validity.bodies == 1
    assert result.metrics.validity.watertight


def test_mesh_targets_come_back_in_their_own_coordinates(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    source = trimesh.creation.box(extents=(20, 10, 30))
    source.apply_translation((100, 0, -50))
    source.export(tmp_path / "box.stl")
    result = fitted(tmp_path / "box.stl", steps=150)
    assert np.allclose(result.mesh.vertices.amin(0), [90, -5, -65], atol=0.5)
    assert np.allclose(result.mesh.vertices.amax(0), [110, 5, -35], atol=0.5)
    assert float(result.mesh.volume) == pytest.approx(6000, rel=0.01)


def test_specks_are_left_out_and_logged(caplog):
    def ball_with_specks(points):
        ball = sphere(points, radius=0.6)
        outer, cavity = (sphere(points, radius=0.1, center=center) for center in ((5 / 6, 5 / 6, 5 / 6), (0, 0, 0)))
        return torch.minimum(torch.maximum(ball, -cavity), outer)

    result = fitted(ball_with_specks, steps=3)
    assert result.metrics.validity.bodies == 1
    assert result.metrics.validity.euler_characteristic == 2
    assert "fewer than 8 nodes: 2 nodes" in caplog.text
    assert fitted(ball_with_specks, steps=3, smallest_part=0).metrics.validity.bodies == 3


def test_field_losses_move_the_signs():
    # Pull the whole field up: with free signs the sphere shrinks and its outer nodes become outside.
    result = fitted(sphere_field, field_losses=[lambda field: -100 * field.mean()], steps=40, optimizer="adam", lr=0.3)
    assert "field" in result.history.terms
    assert not result.settings["keep_signs"]


def test_field_losses_with_held_signs():
    result = fitted(sphere_field, field_losses=[lambda field: field.square().mean()], keep_signs=True, steps=10)
    assert result.settings["keep_signs"]
    assert result.history.terms["field"][-1] < result.history.terms["field"][0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lbfgs"])
def test_any_optimizer_serves(optimizer):
    result = fitted(sphere_field, optimizer=optimizer, steps=20)
    assert result.history.loss[-1] < result.history.loss[2]  # the first 2 of the 20 steps aim at dual contouring
    assert result.metrics.validity.watertight


def test_same_seed_same_bits():
    # Large enough for torch to spread its operations over threads.
    one, two = (fitted(sphere_field, resolution=28, steps=12) for _ in range(2))
    assert torch.equal(one.mesh.vertices, two.mesh.vertices)


def test_resumed_fit_has_the_bits_of_an_uninterrupted_one(tmp_path):
    whole = fitted(cube_field, steps=12)

    class Stop(Exception):
        pass

    def stop(state):
        if state.step == 6:
            raise Stop

    with pytest.raises(Stop):
        fitted(cube_field, steps=12, checkpoint=tmp_path / "c.pt", callbacks=[stop])
    resumed = fitted(cube_field, steps=12, checkpoint=tmp_path / "c.pt")
    assert torch.equal(whole.mesh.vertices, resumed.mesh.vertices)
    assert whole.history.loss == resumed.history.loss


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"resolution": 0}, "resolution"),
        ({"resolution": (4, 4)}, "resolution"),
        ({"resolution": 4.5}, "resolution"),
        ({"resolution": 5000}, "resolution"),
        ({"steps": 0}, "steps"),
        ({"optimizer": "adm"}, "optimizer"),
        ({"dtype": torch.float16}, "dtype"),
    ],
)
def test_bad_settings_are_named(settings, argument):
    with pytest.raises(InputError, match=f"^{argument}: want"):
        fitted(sphere_field, **settings)


@pytest.mark.parametrize(("offset", "sign"), [(3, "positive"), (-3, "negative")])
def test_a_field_without_a_surface_is_refused(offset, sign):
    with pytest.raises(InputError, match=f"changes sign.*only {sign}"):
        fitted(lambda points: sphere(points, radius=0.5) + offset)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["block", "fandisk", "rocker-arm", "spot"])
def test_research_meshes_beat_marching_cubes(data_dir, name):
    path = data_dir / "meshes" / f"{name}.obj"
    target = load_target(path)
    result = fit_mesh(target, resolution=64, progress=False)
    grid = Grid.cube(64)
    plain = marching_cubes(grid, target.sdf(grid.nodes(dtype=torch.float64)))
    baseline = mesh_metrics(plain, target.mesh)
    wanted = mesh_metrics(read_mesh(path))
    assert result.metrics.distances is not None
    assert baseline.distances is not None
    assert result.metrics.distances.mean < baseline.distances.mean / 2
    assert result.metrics.validity.watertight
    assert result.metrics.validity.euler_characteristic == wanted.validity.euler_characteristic
    assert result.metrics.validity.bodies == wanted.validity.bodies


def test_single_and_double_precision_and_seeds_agree():
    target = load_target(sphere_field)  # on a box the errors vanish, and with them what they have in common
    means = []
    for settings in ({}, {"dtype": torch.float64}, {"seed": 1}, {"seed": 2}):
        result = fitted(target, steps=60, **settings)
        means.append(
            float(sphere_field(result.mesh.sample(20_000, torch.Generator().manual_seed(0)).points).abs().mean())
        )
    assert means[1] == pytest.approx(means[0], rel=0.05)
    assert max(means) - min(means) < 0.1 * means[0]


def test_triangles_that_cut_others_are_unfolded(generator):
    grid, aim = Grid.cube(10), load_target(sphere_field)
    shape = FlexiParameters(grid, sphere_field(grid.nodes()), hold=True)
    with torch.no_grad():
        for tensor in shape.tensors[1:]:
            tensor.copy_(4 * torch.randn(tensor.shape, generator=generator))
    cuts = QuadCuts(aim, lambda points: torch.ones(len(points), dtype=torch.bool), cell=shape.cell)
    assert len(self_intersecting_faces(cuts.choose(shape.extract(training=False)[0]))) > 0
    made = _unfolded(shape, cuts)
    assert len(self_intersecting_faces(made)) == 0
    assert torch.equal(made.vertices, shape.extract(training=False)[0].vertices)
