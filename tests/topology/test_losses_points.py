"""Losses of the components of point clouds."""

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.topology.losses_points import connectivity_loss, topological_autoencoder_loss
from diffmatch.topology.rips import rips_persistence


def cloud(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_connectivity_compares_the_deaths_of_components():
    points = cloud(20, 3)
    deaths = rips_persistence(points)[0].deaths
    assert torch.allclose(connectivity_loss(points, length=0.7), (deaths - 0.7).abs().sum())
    line = torch.arange(5, dtype=torch.float64).unsqueeze(1)
    assert float(connectivity_loss(2 * line, length=2)) == 0


def test_the_autoencoder_loss_is_zero_for_an_isometry_and_by_hand_for_a_stretch():
    points = torch.tensor([[0.0], [1.0], [3.0]])
    turned = torch.cat((torch.zeros(3, 1), 5 - points), dim=1)
    assert float(topological_autoencoder_loss(points, turned)) == 0
    assert float(topological_autoencoder_loss(points, 2 * points)) == pytest.approx(1**2 + 2**2)  # half of it twice


def test_the_autoencoder_loss_reads_each_tree_in_both_spaces():
    points, latent = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [5.0], [1.0]])
    # trees 01 12 and 02 12; distances 1 2 3 against 5 4 1
    assert float(topological_autoencoder_loss(points, latent)) == pytest.approx(((4**2 + 2**2) + (2**2 + 2**2)) / 2)


def test_gradients():
    points, latent = cloud(9, 4).requires_grad_(), cloud(9, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(topological_autoencoder_loss, (points, latent))
    assert torch.autograd.gradcheck(lambda x: connectivity_loss(x, length=0.8), latent)


def test_descent_unfolds_a_latent_space():
    points = torch.linspace(0, 1, 12, dtype=torch.float64).unsqueeze(1)
    latent = cloud(12, 2).requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=0.03)
    first = topological_autoencoder_loss(points, latent).detach()
    for _ in range(200):
        optimizer.zero_grad()
        topological_autoencoder_loss(points, latent).backward()
        optimizer.step()
    assert topological_autoencoder_loss(points, latent).detach() < 0.02 * first


@pytest.mark.parametrize("n", [0, 1, 3])
def test_no_point_one_point_and_points_that_coincide_have_finite_gradients(n):
    latent = torch.zeros(n, 2, requires_grad=True)
    loss = topological_autoencoder_loss(torch.ones(n, 3), latent) + connectivity_loss(latent, length=0.5)
    assert float(loss.detach()) == 0.5 * max(n - 1, 0)
    loss.backward()
    assert latent.grad is not None
    assert latent.grad.isfinite().all()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("points", lambda x: topological_autoencoder_loss(x[0], x)),
        ("latent", lambda x: topological_autoencoder_loss(x, x[:3])),
        ("latent", lambda x: topological_autoencoder_loss(x, x / 0)),
        ("points", lambda x: connectivity_loss(x.long(), length=1.0)),
        ("length", lambda x: connectivity_loss(x, length=0.0)),
    ],
)
def test_wrong_arguments_are_named(argument, call):
    with pytest.raises(InputError) as error:
        call(torch.rand(5, 2))
    assert error.value.argument == argument
