import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.matching.graphs.edges import EDGE_SETS, both_directions, point_edges


def pairs(edges):
    """Edges as a set, after the checks that every edge set has to pass."""
    found = [tuple(pair) for pair in edges.T.tolist()]
    assert found == sorted(set(found))
    assert all(i != j and (j, i) in set(found) for i, j in found)
    return set(found)


def test_delaunay_edges_are_those_of_triangles_whose_circle_is_empty():
    points = torch.rand(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = set()
    for corners in itertools.combinations(range(12), 3):
        a, b, c = points[list(corners)].numpy()
        centre = np.linalg.solve(2 * np.stack([b - a, c - a]), np.array([b @ b - a @ a, c @ c - a @ a]))
        inside = np.linalg.norm(points.numpy() - centre, axis=1) < np.linalg.norm(a - centre) - 1e-12
        if not inside.any():
            wanted |= set(itertools.permutations(corners, 2))
    assert pairs(point_edges(points)) == wanted


@pytest.mark.parametrize("k", [1, 3, 50])
def test_nearest_edges_are_the_brute_force_ones_either_way(k):
    points = torch.rand(15, 3, generator=torch.Generator().manual_seed(2))
    distance = torch.cdist(points, points) + torch.eye(15) * 1e6
    near = distance.topk(min(k, 14), largest=False).indices
    wanted = {(i, j) for i in range(15) for j in near[i].tolist()}
    assert pairs(point_edges(points, edges="knn", k=k)) == wanted | {(j, i) for i, j in wanted}


def test_radius_edges_are_the_brute_force_ones():
    points = torch.rand(15, 2, generator=torch.Generator().manual_seed(3))
    close = (torch.cdist(points, points) <= 0.3) & ~torch.eye(15, dtype=torch.bool)
    assert pairs(point_edges(points, edges="radius", radius=0.3)) == {tuple(p) for p in close.nonzero().tolist()}


@pytest.mark.parametrize(
    "points",
    [
        torch.zeros(3, 2),
        torch.rand(3, 2, generator=torch.Generator().manual_seed(0)),
        torch.linspace(0, 1, 6)[:, None].repeat(1, 2),  # on a line
        torch.rand(4, 3, generator=torch.Generator().manual_seed(0)),
    ],
)
def test_where_there_are_no_triangles_all_pairs_are_joined(points):
    assert pairs(point_edges(points)) == set(itertools.permutations(range(len(points)), 2))


def test_points_in_one_place_keep_edges_of_their_own():
    points = torch.rand(6, 2, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    assert set(point_edges(points).flatten().tolist()) == set(range(12))
    assert set(point_edges(points, edges="knn", k=2).flatten().tolist()) == set(range(12))


def test_points_on_an_axis_are_joined_to_their_neighbours():
    points = torch.tensor([[3.0], [1.0], [2.0]])
    assert pairs(point_edges(points)) == {(1, 2), (2, 1), (0, 2), (2, 0)}


@pytest.mark.parametrize("edges", EDGE_SETS)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_points(edges, n, device):
    points = torch.arange(2.0 * n, device=device).reshape(n, 2)
    found = point_edges(points, edges=edges, radius=10.0)
    assert found.shape == (2, n * (n - 1))
    assert found.device.type == device.type


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True, max_size=20))
def test_both_directions_take_the_values_of_the_edge_that_came_first(given_edges):
    edges = torch.tensor(given_edges, dtype=torch.int64).reshape(-1, 2).T
    found, source = both_directions(edges, 6)
    wanted = {}
    for place, (i, j) in enumerate(given_edges):
        wanted.setdefault(frozenset((i, j)), place)
    assert {tuple(p): s for p, s in zip(found.T.tolist(), source.tolist(), strict=True)} == {
        pair: place for (i, j) in given_edges for pair in ((i, j), (j, i)) for place in [wanted[frozenset((i, j))]]
    }


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": "delauney"}, r"edges: want one of .* \(did you mean 'delaunay'"),
        ({"edges": "radius"}, r"radius: want a length"),
        ({"edges": "radius", "radius": -1.0}, r"radius: want a number > 0"),
        ({"edges": "knn", "k": 0}, r"k: want a number of neighbours of at least 1"),
        ({"points": torch.zeros(3)}, r"points: want shape \(n, d\)"),
        ({"points": torch.zeros(3, 2, dtype=torch.int64)}, r"points: want a real floating-point dtype"),
        ({"points": torch.full((3, 2), torch.nan)}, r"points: want finite values"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        point_edges(**{"points": torch.zeros(3, 2), **options})
