"""The parameters of a fit: held to the surface, or free on the whole grid."""

import pytest
import torch

from diffmatch.meshing import Grid, flexicubes
from diffmatch.meshing.parameters import FlexiParameters

GRID = Grid((6, 5, 7), (-1.0, -1.0, -1.0), (0.33, 0.4, 0.28))


def ball():
    return GRID.nodes().norm(dim=1) - 0.6


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("hold", [False, True])
def test_they_start_as_the_plain_surface(hold, training):
    mesh, field = FlexiParameters(GRID, ball(), hold=hold).extract(training=training)
    wanted = flexicubes(GRID, ball(), training=training)
    torch.testing.assert_close(mesh.vertices, wanted.vertices)
    assert torch.equal(mesh.faces, wanted.faces)
    torch.testing.assert_close(field.flatten(), ball())


def test_held_and_free_parameters_have_the_same_gradients_at_the_surface():
    grads = []
    for hold in (True, False):
        shape = FlexiParameters(GRID, ball(), hold=hold)
        mesh, field = shape.extract(training=True)
        loss = mesh.vertices.square().sum() + mesh.l_dev + field[2, 2, 2] ** 2
        found = torch.autograd.grad(loss, shape.tensors)
        grads.append([grad[(grad != 0).reshape(len(grad), -1).any(1)] for grad in found])
    for held, free in zip(*grads, strict=True):
        torch.testing.assert_close(held, free)


def test_held_parameters_are_those_of_the_surface_alone():
    held, free = (FlexiParameters(GRID, ball(), hold=hold) for hold in (True, False))
    surface = flexicubes(GRID, ball()).connectivity
    assert [len(t) for t in free.tensors] == [GRID.n_nodes] * 2 + [GRID.n_cells] * 3
    assert [len(t) for t in held.tensors][2:] == [len(surface.cell)] * 3
    assert len(held.tensors[0]) == len(held.tensors[1]) < GRID.n_nodes


def test_signs_are_held_and_values_stay_free():
    shape = FlexiParameters(GRID, ball(), hold=True)
    before, _ = shape.extract(training=False)
    with torch.no_grad():
        shape.tensors[0].neg_()
    mesh, field = shape.extract(training=False)
    assert torch.equal(mesh.faces, before.faces)
    assert torch.equal(field.flatten() < 0, ball() < 0)
    (grad,) = torch.autograd.grad(mesh.vertices.square().sum(), shape.tensors[0])
    assert bool((grad != 0).any())


def test_an_old_graph_is_refused_and_not_wrong():
    shape = FlexiParameters(GRID, ball(), hold=True)
    old, _ = shape.extract(training=False)
    shape.extract(training=False)
    with pytest.raises(RuntimeError, match="inplace"):
        old.vertices.sum().backward()


@pytest.mark.parametrize("hold", [True, False])
def test_relaxed_cells_are_neutral_and_others_stay(hold, generator):
    shape = FlexiParameters(GRID, ball(), hold=hold)
    plain, _ = shape.extract(training=False)
    with torch.no_grad():
        for tensor in shape.tensors[1:]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    mesh, _ = shape.extract(training=False)
    chosen = mesh.vertices[:, 0] < -0.3
    shape.relax(mesh, chosen, keep=0.0)
    relaxed, _ = shape.extract(training=False)
    torch.testing.assert_close(relaxed.vertices[chosen], plain.vertices[chosen])
    far = mesh.vertices[:, 0] > 0.6
    assert torch.equal(relaxed.vertices[far], mesh.vertices[far])
    assert not torch.allclose(mesh.vertices[chosen], plain.vertices[chosen])
