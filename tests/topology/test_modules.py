"""Descriptors as modules."""

import torch

from diffmatch.topology import (
    PersistenceImage,
    PersistenceLandscape,
    PersistenceSilhouette,
    pad_diagrams,
    persistence_image,
    persistence_landscape,
    persistence_silhouette,
)

GRID = torch.linspace(0, 2, 8)


def test_modules_are_their_functions_on_fixed_grids(generator):
    points, mask = pad_diagrams([torch.rand(n, 2, generator=generator).cumsum(1) for n in (3, 6)])
    pairs = [
        (PersistenceLandscape(GRID, levels=2), persistence_landscape(points, GRID, levels=2, mask=mask)),
        (PersistenceSilhouette(GRID, power=2), persistence_silhouette(points, GRID, power=2, mask=mask)),
        (
            PersistenceImage(GRID, GRID[1:], bandwidth=0.2, power=0.5),
            persistence_image(points, GRID, GRID[1:], bandwidth=0.2, power=0.5, mask=mask),
        ),
    ]
    for module, expected in pairs:
        assert torch.equal(module(points, mask), expected)


def test_grids_follow_the_model_and_are_part_of_its_state():
    module = PersistenceImage(GRID, GRID, bandwidth=0.2)
    assert module.double().birth_edges.dtype == torch.float64
    assert sorted(module.state_dict()) == ["birth_edges", "length_edges"]
    other = PersistenceImage(torch.zeros(8), torch.zeros(8), bandwidth=0.2)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.length_edges, GRID)
