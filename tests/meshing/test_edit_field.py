"""fit_mesh with an edit of the field before the fit."""

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing import Grid, fit_mesh
from diffmatch.meshing.shapes import sphere

GRID = Grid.cube(16)


def target(points):
    """A ball with a cavity."""
    return torch.maximum(sphere(points, radius=0.7), -sphere(points, radius=0.3))


def filled(field):
    nodes = GRID.nodes(dtype=field.dtype, device=field.device)
    return torch.minimum(field, sphere(nodes, radius=0.5).reshape(field.shape))


def fitted(edit, **settings):
    return fit_mesh(target, **{"resolution": 16, "steps": 20, "progress": False, "edit_field": edit, **settings})


def test_the_fit_keeps_what_the_edit_made_and_still_lies_on_the_target(device):
    result = fitted(filled, device=device)
    assert result.metrics.validity.euler_characteristic == 2
    assert result.metrics.validity.bodies == 1
    lengths = result.mesh.vertices.norm(dim=1)
    outer = lengths[lengths > 0.6]
    assert len(outer) == len(lengths)  # the inner surface is gone
    assert (outer - outer.mean()).abs().max() < 0.02
    assert result.history.status == "completed"


def test_an_edit_that_changes_no_sign_changes_nothing():
    plain, edited = (fitted(edit) for edit in (None, lambda field: field.clone()))
    assert torch.equal(plain.mesh.vertices, edited.mesh.vertices)


def test_cells_that_were_edited_do_not_count():
    result = fitted(lambda field: -field.abs() + 0.2)  # other signs nearly everywhere
    assert torch.isfinite(result.mesh.vertices).all()
    assert result.history.status == "completed"


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda field: field[1:], "edit_field: want shape"),
        (lambda field: torch.full_like(field, torch.nan), "edit_field"),
        (lambda field: field.abs() + 1, "negative somewhere"),
    ],
)
def test_a_wrong_edit_is_named(edit, message):
    with pytest.raises(InputError, match=message):
        fitted(edit)
