"""Descriptors of diagrams: closed forms, a peer, padding, gradients."""

import math

import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.topology.descriptors import (
    pad_diagrams,
    persistence_entropy,
    persistence_image,
    persistence_landscape,
    persistence_silhouette,
)
from diffmatch.topology.rips import rips_persistence

GRID = torch.linspace(-0.3, 2.3, 14, dtype=torch.float64)
EDGES = torch.linspace(-1, 3, 9, dtype=torch.float64)
DESCRIPTORS = {
    "landscape": lambda x, mask=None: persistence_landscape(x, GRID, levels=4, mask=mask),
    "silhouette": lambda x, mask=None: persistence_silhouette(x, GRID, power=2, mask=mask),
    "entropy": lambda x, mask=None: persistence_entropy(x, mask=mask),
    "image": lambda x, mask=None: persistence_image(x, EDGES, EDGES[2:], bandwidth=0.3, mask=mask),
}
descriptors = pytest.mark.parametrize("descriptor", DESCRIPTORS.values(), ids=DESCRIPTORS)


def diagram(*shape, seed=0):
    points = torch.rand(*shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.stack((points[..., 0], points.sum(-1)), dim=-1)


def test_landscapes_by_hand():
    points = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    found = persistence_landscape(points, torch.tensor([0.5, 1.0, 1.5, 3.0]), levels=3)
    assert found.tolist() == [[0.5, 1.0, 0.5, 0.0], [0.5, 0.0, 0.0, 0.0], [0.0] * 4]


def test_silhouettes_and_entropies_by_hand():
    points = torch.tensor([[0.0, 2.0], [0.0, 1.0], [0.5, 0.5]])
    assert persistence_silhouette(points, torch.tensor([0.5, 1.0])).tolist() == pytest.approx([0.5, 2 / 3])
    assert float(persistence_entropy(points)) == pytest.approx(math.log(3) - math.log(2) * 2 / 3)
    assert float(persistence_entropy(points[:1])) == 0


def test_images_hold_the_weights_whatever_their_resolution():
    points = torch.tensor([[0.0, 1.0], [0.5, 2.5]], dtype=torch.float64)
    wide = torch.linspace(-5, 8, 27, dtype=torch.float64)
    fine = persistence_image(points, wide, wide, bandwidth=0.2, power=2)
    assert float(fine.sum()) == pytest.approx(1 + 4)
    coarse = persistence_image(points, wide[::2], wide[::2], bandwidth=0.2, power=2)
    assert torch.allclose(fine.reshape(13, 2, 13, 2).sum((1, 3)), coarse)
    row, column = divmod(int(fine.argmax()), 26)
    assert wide[row] <= 2 <= wide[row + 1]
    assert wide[column] <= 0.5 <= wide[column + 1]


def test_landscapes_silhouettes_and_entropies_agree_with_gudhi():
    peer = pytest.importorskip("gudhi.representations")
    points = diagram(30)
    span = {"resolution": len(GRID), "sample_range": [float(GRID[0]), float(GRID[-1])], "keep_endpoints": True}
    theirs = peer.Landscape(num_landscapes=4, **span)(points.numpy()) / math.sqrt(2)
    np.testing.assert_allclose(DESCRIPTORS["landscape"](points).flatten(), theirs.flatten(), atol=1e-12)
    theirs = peer.Silhouette(weight=lambda p: (p[1] - p[0]) ** 2, **span)(points.numpy()) / math.sqrt(2)
    np.testing.assert_allclose(DESCRIPTORS["silhouette"](points), theirs.flatten(), atol=1e-12)
    theirs = peer.Entropy(mode="scalar")(points.numpy())
    np.testing.assert_allclose(persistence_entropy(points), theirs.item(), rtol=1e-9)


@descriptors
def test_gradients(descriptor):
    assert torch.autograd.gradcheck(descriptor, diagram(2, 5).requires_grad_())


@descriptors
def test_padding_changes_nothing_whatever_it_holds(descriptor):
    sizes = [diagram(n, seed=n) for n in (6, 0, 1, 4)]
    padded, mask = pad_diagrams(sizes)
    padded = torch.where(mask.unsqueeze(-1), padded, math.nan).requires_grad_()
    together = descriptor(padded, mask)
    for one, row in zip(sizes, together, strict=True):
        assert torch.allclose(descriptor(one), row)
    together.sum().backward()
    assert padded.grad is not None
    assert not padded.grad[~mask].any()
    assert padded.grad.isfinite().all()


@descriptors
def test_no_points_and_points_on_the_diagonal_give_zero_with_a_finite_gradient(descriptor):
    for points in (torch.zeros(3, 0, 2), torch.ones(2, 4, 2)):
        points.requires_grad_()
        value = descriptor(points)
        assert not value.any()
        value.sum().backward()
        assert points.grad is not None
        assert points.grad.isfinite().all()


@descriptors
def test_the_order_of_the_points_and_points_on_the_diagonal_do_not_matter(descriptor):
    points = diagram(7)
    more = torch.cat((points.flip(0), torch.ones(2, 2)))
    assert torch.allclose(descriptor(points), descriptor(more))


@descriptors
def test_batches_have_any_number_of_axes_and_keep_their_dtype(descriptor):
    points = diagram(2, 3, 5)
    found = descriptor(points)
    assert torch.allclose(found[1, 2], descriptor(points[1, 2]))
    assert descriptor(points.float()).dtype == torch.float32


def test_diagrams_are_padded_as_they_come(generator):
    diagrams = [rips_persistence(torch.rand(n, 2, generator=generator))[0] for n in (5, 9)]
    points, mask = pad_diagrams(diagrams)
    assert points.shape == (2, 8, 2)
    assert mask.sum(1).tolist() == [4, 8]
    assert torch.equal(points[0, :4], diagrams[0].points())


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("points", lambda x: persistence_entropy(x[:, :1])),
        ("points", lambda x: persistence_entropy(x.long())),
        ("points", lambda x: persistence_entropy(x * math.inf)),
        ("mask", lambda x: persistence_entropy(x, mask=torch.ones(4, dtype=torch.bool))),
        ("levels", lambda x: persistence_landscape(x, GRID, levels=0)),
        ("grid", lambda x: persistence_landscape(x, GRID[None])),
        ("power", lambda x: persistence_silhouette(x, GRID, power=-1.0)),
        ("bandwidth", lambda x: persistence_image(x, GRID, GRID, bandwidth=0.0)),
        ("length_edges", lambda x: persistence_image(x, GRID, GRID[None], bandwidth=1.0)),
        ("diagrams", lambda x: pad_diagrams([])),
        ("diagrams", lambda x: pad_diagrams([x[0]])),
    ],
)
def test_wrong_arguments_are_named(argument, call):
    with pytest.raises(InputError) as error:
        call(torch.rand(5, 2) + 0.1)
    assert error.value.argument == argument
