"""Second-order graph matching of two views: its parts by naive loops and brute force, its gradient by what it does."""

import itertools

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from diffmatch.errors import InputError
from diffmatch.matching import assign
from diffmatch.matching.lvm_med import (
    SecondOrderMatching,
    edge_affinity,
    frank_wolfe,
    local_affinity,
    neighbour_edges,
)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def objectives(permutations, vertex, edge, edges_s, edges_t):
    """What each of some permutations collects."""
    x = torch.eye(len(vertex))[torch.as_tensor(permutations)]
    (tail_s, head_s), (tail_t, head_t) = edges_s, edges_t
    y = x[:, tail_s][:, :, tail_t] * x[:, head_s][:, :, head_t]
    return (x * vertex).sum((1, 2)) + (y * edge).sum((1, 2))


def test_neighbour_edges_go_both_ways_and_never_to_oneself():
    z = randn(12, 5)
    edges = neighbour_edges(z, 3)
    found = set(map(tuple, edges.T.tolist()))
    similarity = cosine_similarity(z[:, None], z[None], dim=-1).fill_diagonal_(-2)
    wanted = {(i, int(j)) for i in range(12) for j in similarity[i].topk(3).indices}
    assert found == wanted | {(j, i) for i, j in wanted}
    assert neighbour_edges(z[:1], 3).shape == (2, 0)
    assert len(neighbour_edges(z[:3], 5).T) == 6


def test_edge_affinity_is_a_cosine_of_differences():
    s, t, edges = randn(4, 6), randn(4, 6, seed=1), torch.tensor([[0, 1, 2], [1, 2, 3]])
    found = edge_affinity(s, t, edges, edges)
    for e, f in itertools.product(range(3), range(3)):
        wanted = cosine_similarity(s[edges[0, e]] - s[edges[1, e]], t[edges[0, f]] - t[edges[1, f]], dim=0)
        assert float(found[e, f]) == pytest.approx(float(wanted), abs=1e-6)


def naive_local(s, t, gamma, pairs_of_cells):
    """One pair of images; `pairs_of_cells` lists (distance, p, q) of both directions."""
    s, t = normalize(s.flatten(1).T, dim=-1), normalize(t.flatten(1).T, dim=-1)
    similarity = s @ t.T

    def best(values):
        return float(torch.stack(list(values)).topk(gamma).values.mean())

    by_feature = (best(similarity.amax(1)) + best(similarity.amax(0))) / 2
    if pairs_of_cells is None:
        by_location = best(similarity.diagonal())
    else:
        means = []
        for direction in pairs_of_cells:
            closest = sorted(direction)[:gamma]
            means.append(sum(float(similarity[p, q]) for _, p, q in closest) / gamma)
        by_location = sum(means) / 2
    return (by_feature + by_location) / 2


@pytest.mark.parametrize("located", [False, True])
def test_local_affinity_is_the_naive_one(located):
    n, gamma = 4, 3
    s, t, whole = randn(n, 3, 2, 3), randn(n, 3, 2, 3, seed=1), randn(n, n, seed=2)
    locations = (torch.rand(n, 6, 2), torch.rand(n, 6, 2)) if located else None
    found = local_affinity(whole, s, t, gamma=gamma, candidates=2, locations=locations)
    for i, a in itertools.product(range(n), range(n)):
        if a not in whole[i].topk(2).indices:
            assert found[i, a] == whole[i, a]
            continue
        cells = None
        if located and i == a:
            d = torch.cdist(locations[0][i], locations[1][i])
            cells = (
                [(float(d[p].min()), p, int(d[p].argmin())) for p in range(6)],
                [(float(d[:, q].min()), int(d[:, q].argmin()), q) for q in range(6)],
            )
        assert float(found[i, a]) == pytest.approx(naive_local(s[i], t[a], gamma, cells), abs=1e-5)


def test_frank_wolfe_is_mostly_optimal_and_never_worse_than_the_vertices_alone():
    optimal = better = 0
    for seed in range(20):
        n = 5
        edges_s, edges_t = neighbour_edges(randn(n, 3, seed=seed), 2), neighbour_edges(randn(n, 3, seed=seed + 50), 2)
        problem = randn(n, n, seed=seed), randn(edges_s.shape[1], edges_t.shape[1], seed=seed), edges_s, edges_t
        everything = objectives(list(itertools.permutations(range(n))), *problem)
        first = torch.stack((frank_wolfe(*problem), assign(problem[0], maximize=True).assignment))
        found, alone = objectives(first, *problem)
        assert alone - 1e-4 <= found <= everything.max() + 1e-4
        optimal += int(found > everything.max() - 1e-4)
        better += int((found > everything + 1e-4).sum())
    assert optimal >= 10
    assert better >= 0.95 * 20 * 120


def test_frank_wolfe_finds_the_isomorphism_of_two_graphs():
    z = randn(20, 8)
    permutation = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    edges, moved = neighbour_edges(z, 4), neighbour_edges(z[permutation], 4)
    vertex = 0.1 * normalize(z, dim=-1) @ normalize(z[permutation], dim=-1).T
    found = frank_wolfe(vertex, edge_affinity(z, z[permutation], edges, moved), edges, moved)
    assert torch.equal(permutation[found], torch.arange(20))
    assert torch.equal(frank_wolfe(randn(1, 1), randn(0, 0), edges[:, :0], edges[:, :0]), torch.zeros(1).long())


def test_equal_views_match_and_have_no_gradient():
    z = randn(10, 6).requires_grad_()
    module = SecondOrderMatching(6, noise=0.0, strength=0.1, alpha=1.0)
    result = module(z, z.detach().clone())
    assert torch.equal(result.assignment, torch.arange(10))
    assert result.loss == 0
    assert result.accuracy == 1
    result.loss.backward()
    assert not z.grad.any()


def test_a_step_against_the_gradient_raises_the_affinity_of_what_belongs_together():
    z, w = randn(12, 6).requires_grad_(), randn(12, 6, seed=1)
    module = SecondOrderMatching(6, noise=0.0, strength=2.0, alpha=1.0, layers=0)
    result = module(z, w)
    assert result.accuracy < 1
    (grad,) = torch.autograd.grad(result.loss, z)
    before, after = (cosine_similarity(x, w, dim=-1).mean() for x in (z, z - 0.5 * grad / grad.norm()))
    assert after > before


def test_without_weight_of_the_edges_the_vertices_decide():
    z, w = randn(12, 6), randn(12, 6, seed=1)
    found = SecondOrderMatching(6, noise=0.0, alpha=1.0, layers=0, edge_weight=0.0)(z, w)
    cosine = normalize(z, dim=-1) @ normalize(w, dim=-1).T
    assert torch.equal(found.assignment, assign(cosine, maximize=True).assignment)
    assert float(found.objective) == pytest.approx(float(cosine[torch.arange(12), found.assignment].sum()), abs=1e-5)


def test_a_weight_on_the_loss_scales_its_gradient():
    z, w = randn(12, 6).requires_grad_(), randn(12, 6, seed=1)
    module = SecondOrderMatching(6, alpha=1.0)
    once, thrice = (
        torch.autograd.grad(scale * module(z, w, generator=torch.Generator().manual_seed(0)).loss, z)[0]
        for scale in (1, 3)
    )
    torch.testing.assert_close(thrice, 3 * once)
    assert once.any()


def test_duplicates_and_unknown_nodes_do_not_count():
    z = randn(8, 6)
    z[3] = z[5]
    module = SecondOrderMatching(6, noise=0.0, alpha=1.0)
    assert module(z, z.clone()).loss == 0
    t = z.clone()
    t[[0, 1]] = z[[1, 0]]
    assert module(z, t).accuracy == pytest.approx(4 / 6)
    known = torch.arange(8) > 1
    assert module(z, t, known=known).loss == 0
    assert module(z, t, known=torch.zeros(8, dtype=torch.bool)).loss == 0


def test_views_are_learned_to_match():
    """Nodes seen through two different linear maps: an embedding is learned under which they find each other."""
    hidden = randn(64, 4)
    views = [hidden @ randn(4, 10, seed=seed) + 0.05 * randn(64, 10, seed=seed + 5) for seed in (1, 2)]
    torch_generator = torch.Generator().manual_seed(0)
    encoders = [(0.3 * randn(10, 4, seed=seed)).requires_grad_() for seed in (3, 4)]
    module = SecondOrderMatching(4, alpha=1.0, layers=0, neighbours=3, noise=0.1)
    optimizer = torch.optim.Adam(encoders, lr=0.03)
    accuracy = []
    for _ in range(60):
        batch = torch.randperm(64, generator=torch_generator)[:16]
        result = module(*(v[batch] @ e for v, e in zip(views, encoders, strict=True)), generator=torch_generator)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        accuracy.append(float(result.accuracy))
    assert sum(accuracy[:5]) / 5 < 0.5
    assert sum(accuracy[-10:]) / 10 > 0.8


def test_the_whole_module_runs_with_feature_maps_and_its_own_solver():
    calls = []

    def solver(vertex, edge, edges_s, edges_t):
        calls.append(edge.shape)
        return assign(vertex, maximize=True).assignment

    module = SecondOrderMatching(6, samples=2, solver=solver, layers=2).double()
    inputs = [randn(9, 6, seed=0), randn(9, 6, seed=1), randn(9, 4, 3, 3, seed=2), randn(9, 4, 3, 3, seed=3)]
    inputs = [x.double().requires_grad_() for x in inputs]
    results = [module(*inputs, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert results[0].loss == results[1].loss
    assert len(calls) == 8  # two samples, each solved twice
    with torch.no_grad():
        assert module(*inputs).loss.isfinite()
    assert len(calls) == 10
    results[0].loss.backward()
    assert len(calls) == 10
    assert all(x.grad.isfinite().all() for x in [*inputs, *module.parameters()])
    assert inputs[0].grad.any()
    assert results[0].objective.isfinite()


@pytest.mark.untyped
def test_arguments_are_checked():
    with pytest.raises(InputError, match="alpha: want a number between 0 and 1"):
        SecondOrderMatching(4, alpha=2.0)
    with pytest.raises(InputError, match="edge_weight: want a number >= 0"):
        SecondOrderMatching(4, edge_weight=-1.0)
    with pytest.raises(InputError, match="neighbours: want a number > 0"):
        SecondOrderMatching(4, neighbours=0)
    with pytest.raises(InputError, match="features_s, features_t: want feature maps"):
        SecondOrderMatching(4)(randn(3, 4), randn(3, 4))
    with pytest.raises(InputError, match="embeddings_t: want shape"):
        SecondOrderMatching(4)(randn(3, 4), randn(2, 4))
