"""The adaptive graph against its definition, by brute force; its parts; its growth."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.matching.keypoints import Keypoints, adaptive_graph, keypoint_graph
from diffmatch.matching.keypoints.graph import components, radius_pairs
from diffmatch.matching.keypoints.row_kernels import row_products


def keypoints(n, seed=0, *, density=0.02, d=8):
    generator = torch.Generator().manual_seed(seed)
    side = (max(n, 1) / density) ** 0.5
    positions = torch.rand(n, 2, generator=generator, dtype=torch.float64) * side
    descriptors = torch.nn.functional.normalize(torch.rand(n, d, generator=generator, dtype=torch.float64), dim=1)
    return Keypoints.of(positions, descriptors, image_size=(int(side) + 1, int(side) + 1))


def by_definition(k, *, radius, percentile, min_size):
    """The graph as sets of edges and of kept keypoints, straight from the description of the method."""
    points, descriptors = k.positions.numpy(), k.descriptors.numpy()
    n = len(points)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    cosine = descriptors @ descriptors.T
    threshold = np.percentile(cosine[np.triu_indices(n, 1)], percentile)
    edges = {
        (i, j)
        for i in range(n)
        for j in range(i + 1, n)
        if distance[i, j] <= radius and cosine[i, j] >= threshold - 1e-14
    }
    used = {i for edge in edges for i in edge}
    np.fill_diagonal(distance, np.inf)
    edges |= {tuple(sorted((i, int(distance[i].argmin())))) for i in range(n) if i not in used}
    groups = {i: {i} for i in range(n)}
    for i, j in edges:
        if groups[i] is not groups[j]:
            groups[i] |= groups[j]
            for member in groups[j]:
                groups[member] = groups[i]
    parts = [sorted(g) for g in {id(g): g for g in groups.values()}.values() if len(g) >= min_size]
    kept = sorted(i for part in parts for i in part)
    edges = {edge for edge in edges if edge[0] in set(kept)}
    centres = [points[part].mean(0) for part in parts]
    for a, part in enumerate(parts if len(parts) > 1 else []):
        b = min((b for b in range(len(parts)) if b != a), key=lambda b: np.linalg.norm(centres[a] - centres[b]))
        block = distance[np.ix_(part, parts[b])]
        i, j = np.unravel_index(block.argmin(), block.shape)
        edges.add(tuple(sorted((part[i], parts[b][j]))))
    return edges, kept, threshold


def as_sets(found):
    rows = found.kept[found.graph.edges]
    return {tuple(edge) for edge in rows.T.tolist() if edge[0] < edge[1]}, found.kept.tolist()


@given(
    n=st.integers(2, 60),
    seed=st.integers(0, 1000),
    radius=st.sampled_from([4.0, 9.0, 25.0]),
    percentile=st.sampled_from([0.0, 7.0, 50.0, 90.0, 100.0]),
    min_size=st.sampled_from([1, 2, 8]),
)
def test_the_graph_is_that_of_the_definition(n, seed, radius, percentile, min_size):
    k = keypoints(n, seed)
    settings = {"radius": radius, "percentile": percentile, "min_size": min_size}
    edges, kept, threshold = by_definition(k, **settings)
    found = adaptive_graph(k, **settings)
    assert found.threshold == pytest.approx(threshold, abs=1e-12)
    assert as_sets(found) == (edges, kept)


@pytest.mark.parametrize(("n", "percentile"), [(600, 60.0), (2000, 30.0)])
def test_a_larger_graph_is_that_of_the_definition(n, percentile):
    k = keypoints(n, 5)
    settings = {"radius": 15.0, "percentile": percentile, "min_size": 6}
    edges, kept, _ = by_definition(k, **settings)
    assert as_sets(adaptive_graph(k, **settings)) == (edges, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_products_are_those_of_tensors(dtype, generator):
    rows = torch.randn(50, 13, generator=generator, dtype=dtype)
    first, second = torch.randint(50, (2, 200), generator=generator)
    products = torch.from_numpy(row_products(rows.numpy(), first.numpy(), second.numpy()))
    assert products.dtype == dtype
    torch.testing.assert_close(products, (rows[first] * rows[second]).sum(1))


def test_the_sampled_threshold_is_within_a_fifth_of_a_percentile(generator):
    k = keypoints(3000, d=16)
    cosines = np.sort((k.descriptors @ k.descriptors.T)[torch.ones(3000, 3000).triu(1) > 0].numpy())
    found = adaptive_graph(k, percentile=7.0, generator=generator).threshold
    assert np.searchsorted(cosines, found) / len(cosines) * 100 == pytest.approx(7.0, abs=0.2)


@given(n=st.integers(0, 80), seed=st.integers(0, 1000), radius=st.floats(0.5, 60.0))
def test_radius_pairs_are_all_close_pairs(n, seed, radius):
    points = keypoints(n, seed).positions
    close = torch.cdist(points, points).triu(1) if n else torch.zeros(0, 0)
    wanted = {tuple(p) for p in ((close > 0) & (close <= radius)).nonzero().tolist()}
    found = radius_pairs(points, radius)
    assert {tuple(sorted(p)) for p in found.T.tolist()} == wanted
    assert found.shape[1] == len(wanted)


@given(n=st.integers(1, 60), edges=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=60))
def test_components_have_one_label_each(n, edges):
    pairs = torch.tensor([e for e in edges if max(e) < n], dtype=torch.int64).reshape(-1, 2).T
    label = list(range(n))
    for _ in range(n):
        for i, j in pairs.T.tolist():
            label[i] = label[j] = min(label[i], label[j])
    assert components(pairs, n).tolist() == label


def test_two_clusters_are_joined_by_their_closest_points():
    left = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    positions = torch.cat([left, left + torch.tensor([100.0, 0.0])])
    k = Keypoints.of(positions, torch.ones(6, 1), image_size=(200, 10))
    joined = as_sets(adaptive_graph(k, radius=1.5, percentile=0.0, min_size=1))[0]
    assert joined == {(0, 1), (1, 2), (3, 4), (4, 5), (2, 3)}
    apart = as_sets(adaptive_graph(k, radius=1.5, percentile=0.0, min_size=1, joined=False))[0]
    assert apart == joined - {(2, 3)}


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_keypoints(n):
    found = adaptive_graph(keypoints(n), min_size=1)
    assert found.graph.node_count == n
    assert found.graph.edge_count == 0
    assert found.threshold is None


def test_padding_is_left_out():
    k = keypoints(40)
    padded = Keypoints.of(
        torch.cat([torch.full((3, 2), torch.nan, dtype=torch.float64), k.positions]),
        torch.cat([torch.full((3, 8), torch.nan, dtype=torch.float64), k.descriptors]),
        image_size=(50, 50),
        mask=torch.arange(43) >= 3,
    )
    alone, with_padding = adaptive_graph(k, min_size=1), adaptive_graph(padded, min_size=1)
    assert torch.equal(alone.graph.edges, with_padding.graph.edges)
    assert torch.equal(alone.kept + 3, with_padding.kept)


def test_plain_graphs_and_geometric_data():
    pytest.importorskip("torch_geometric")
    k = keypoints(30)
    assert keypoint_graph(k, edges="knn", k=3).graph.edge_count >= 90
    data = keypoint_graph(k, edges="delaunay").to_geometric()
    assert data.num_nodes == 30
    assert torch.equal(data.pos, k.positions)
    assert torch.equal(data.x, k.descriptors)
    assert torch.equal(data.keypoint, torch.arange(30))
    assert data.is_undirected()


@pytest.mark.untyped
def test_bad_arguments_are_refused():
    k = keypoints(5)
    with pytest.raises(InputError, match="radius"):
        adaptive_graph(k, radius=-1.0)
    with pytest.raises(InputError, match="percentile"):
        adaptive_graph(k, percentile=101.0)
    with pytest.raises(InputError, match="min_size"):
        adaptive_graph(k, min_size=0)
    with pytest.raises(InputError, match="one image"):
        adaptive_graph(Keypoints.stack([k, k]))
