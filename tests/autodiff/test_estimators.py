"""Gradients through solvers, linear and quadratic: sign and scale, and that one can learn with them."""

import itertools
import math

import pytest
import torch

from diffmatch.autodiff import (
    BlackBox,
    Estimator,
    ImplicitMLE,
    Perturbed,
    StraightThrough,
    fenchel_young_loss,
    gumbel,
    normal,
    sum_of_gamma,
)
from diffmatch.errors import InputError


def permutations(n):
    """All permutation matrices (p, n, n), and which of their edge pairs are matched (p, e, e)."""
    nodes = torch.stack([torch.eye(n, dtype=torch.float64)[list(p)] for p in itertools.permutations(range(n))])
    tail, head = torch.tensor([(i, j) for i in range(n) for j in range(n) if i != j]).T
    edges = nodes[:, tail][:, :, tail] * nodes[:, head][:, :, head]
    return nodes, edges


class BruteForce:
    """The best of all permutations: linear for one cost, quadratic for costs of nodes and of pairs of edges."""

    def __init__(self, n, *, maximize=False):
        self.solutions, self.sign, self.calls = permutations(n), -1 if maximize else 1, 0

    def __call__(self, *costs):
        self.calls += 1
        assert not torch.is_grad_enabled()
        solutions = self.solutions[: len(costs)]
        total = sum(torch.einsum("...rc,prc->...p", c, y.to(c.dtype)) for c, y in zip(costs, solutions, strict=True))
        best = (self.sign * total).argmin(-1)
        found = tuple(y[best] for y in solutions)
        return found[0] if len(costs) == 1 else found

    def value(self, *costs):
        found = self(*costs)
        found = found if isinstance(found, tuple) else (found,)
        return sum((c * y).sum((-1, -2)) for c, y in zip(costs, found, strict=True))


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(kind, *, n=3, batch=(), seed=0):
    """Costs of a random problem."""
    costs = [randn(*batch, n, n, seed=seed)]
    if kind == "quadratic":
        costs.append(randn(*batch, n * (n - 1), n * (n - 1), seed=seed + 1))
    return tuple(costs)


def gradients(estimator, solver, costs, weights, **settings):
    """Gradient of ``sum <weight, solution>``."""
    leaves = [c.clone().requires_grad_() for c in costs]
    found = estimator(solver, *leaves, **settings)
    found = found if isinstance(found, tuple) else (found,)
    loss = sum((w * y).sum() for w, y in zip(weights, found, strict=True))
    return torch.autograd.grad(loss, leaves)


def directional(function, costs, direction, h):
    """Central difference of a function of costs along a direction."""
    with torch.no_grad():
        ends = [function(*(c + s * d for c, d in zip(costs, direction, strict=True))) for s in (h, -h)]
    return float(ends[0] - ends[1]) / (2 * h)


def dot(xs, ys):
    return float(sum((x * y).sum() for x, y in zip(xs, ys, strict=True)))


KINDS = ["linear", "quadratic"]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_black_box_is_the_gradient_of_the_interpolated_loss(kind, maximize):
    """For a loss <g, y> that is ``(V(c + lam g) - V(c)) / lam``; with scores ``(V(s) - V(s - lam g)) / lam``."""
    solver, lam = BruteForce(3, maximize=maximize), 1.7
    sign = -1 if maximize else 1

    def interpolated(*costs, weights):
        with torch.no_grad():
            moved = solver.value(*(c + sign * lam * w for c, w in zip(costs, weights, strict=True)))
            return sign * (moved - solver.value(*costs)) / lam

    changed = 0
    for seed in range(8):
        costs, weights = problem(kind, seed=seed), problem(kind, seed=seed + 100)
        found = gradients(BlackBox(lam), solver, costs, weights, maximize=maximize)
        changed += any(bool(g.any()) for g in found)
        direction = problem(kind, seed=seed + 200)
        wanted = directional(lambda *c, w=weights: interpolated(*c, weights=w), costs, direction, 1e-6)
        assert dot(found, direction) == pytest.approx(wanted, abs=1e-6)
    assert changed >= 4


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_implicit_mle_is_the_same_under_noise(kind, maximize):
    solver, lam, samples = BruteForce(3, maximize=maximize), 1.3, 5
    sign = -1 if maximize else 1
    costs, weights, direction = (problem(kind, seed=s) for s in (0, 100, 200))
    noise = {c.shape[-1]: randn(samples, *c.shape, seed=7) for c in costs}
    estimator = ImplicitMLE(lam, samples=samples, scale=0.8, noise=lambda shape, like, _: noise[shape[-1]])

    def interpolated(*costs):
        values = []
        for k in range(samples):
            noisy = [c - sign * 0.8 * noise[c.shape[-1]][k] for c in costs]
            moved = [c + sign * lam * w for c, w in zip(noisy, weights, strict=True)]
            values.append(sign * (solver.value(*moved) - solver.value(*noisy)) / lam)
        return torch.stack(values).mean()

    found = gradients(estimator, solver, costs, weights, maximize=maximize)
    assert dot(found, direction) == pytest.approx(directional(interpolated, costs, direction, 1e-6), abs=1e-6)
    assert found[0].any()


def smoothed_two(costs, weights, noise_scale):
    """``E <weight, y>`` of the two permutations of two things under normal noise, in closed form."""
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    gap = sum((c * signs).sum() for c in costs)  # how much more the identity costs than the swap
    deviation = noise_scale * math.sqrt(4 * len(costs))
    swapped = torch.special.ndtr(gap / deviation)
    identity = torch.eye(2, dtype=torch.float64)
    return sum((w * (identity - signs * swapped)).sum() for w in weights)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["perturbed", "implicit_mle"])
def test_noise_gives_the_gradient_of_the_smoothed_loss(name, kind):
    """Value and gradient against a closed form, and that against finite differences."""
    estimator = {
        "perturbed": Perturbed(scale=0.7, samples=40_000),
        "implicit_mle": ImplicitMLE(0.05, samples=40_000, scale=0.7, noise=normal),
    }[name]
    costs, weights = tuple(c / 3 for c in problem(kind, n=2, seed=3)), problem(kind, n=2, seed=5)
    leaves = [c.clone().requires_grad_() for c in costs]
    wanted = torch.autograd.grad(smoothed_two(leaves, weights, 0.7), leaves)
    direction = problem(kind, n=2, seed=8)
    numeric = directional(lambda *c: smoothed_two(c, weights, 0.7), costs, direction, 1e-5)
    assert dot(wanted, direction) == pytest.approx(numeric, rel=1e-6)
    found = gradients(estimator, BruteForce(2), costs, weights, generator=torch.Generator().manual_seed(0))
    scale = max(float(w.abs().max()) for w in wanted)
    assert scale > 0.05
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=0, atol=0.12 * scale)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_fenchel_young_gradient_by_finite_differences(kind, maximize):
    solver, settings = BruteForce(3, maximize=maximize), Perturbed(scale=0.5, samples=20)
    costs, direction = problem(kind, batch=(2,)), problem(kind, batch=(2,), seed=200)
    with torch.no_grad():
        target = BruteForce(3)(*problem(kind, batch=(2,), seed=50))
    target = target if isinstance(target, tuple) else (target,)

    def loss(*costs):
        seeded = torch.Generator().manual_seed(0)
        return fenchel_young_loss(solver, costs, target, perturbed=settings, maximize=maximize, generator=seeded)

    assert loss(*costs).shape == (2,)
    leaves = [c.clone().requires_grad_() for c in costs]
    found = torch.autograd.grad(loss(*leaves).sum(), leaves)
    wanted = directional(lambda *c: loss(*c).sum(), costs, direction, 1e-6)
    assert dot(found, direction) == pytest.approx(wanted, abs=1e-5)
    # less by a step against the gradient, and least where the target is the clear solution
    better = loss(*(c - 0.05 * g for c, g in zip(costs, found, strict=True))).sum()
    assert better < loss(*costs).sum()
    sign = 1 if maximize else -1
    best = fenchel_young_loss(
        solver, tuple(100 * sign * y for y in target), target, perturbed=settings, maximize=maximize
    )
    assert (best.abs() < 10).all()


@pytest.mark.parametrize("maximize", [False, True])
def test_straight_through_passes_the_gradient_on(maximize):
    costs, weights = problem("quadratic"), problem("quadratic", seed=9)
    found = gradients(StraightThrough(), BruteForce(3, maximize=maximize), costs, weights, maximize=maximize)
    for f, w in zip(found, weights, strict=True):
        assert torch.equal(f, w if maximize else -w)


def test_straight_through_a_relaxation_has_its_gradient():
    (cost,), (weight,) = problem("linear"), problem("linear", seed=9)

    def relaxation(c):
        return torch.softmax(-c / 0.3, -1)

    hard = BruteForce(3)
    estimator = StraightThrough(relaxation)
    with torch.no_grad():
        assert torch.equal(estimator(hard, cost), hard(cost))
    leaf = cost.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((weight * relaxation(leaf)).sum(), leaf)
    torch.testing.assert_close(gradients(estimator, hard, (cost,), (weight,))[0], wanted)


ESTIMATORS = {
    "blackbox": BlackBox(3.0),
    "blackbox relative": BlackBox(1.0, relative=True),
    "perturbed": Perturbed(samples=50),
    "implicit_mle": ImplicitMLE(3.0, samples=2, scale=0.3),
    "implicit_mle sum of gamma": ImplicitMLE(3.0, samples=2, scale=0.3, noise=sum_of_gamma(4)),
    "straight_through": StraightThrough(),
    "fenchel_young": None,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_planted_cost_is_recovered(name, kind):
    """Costs are a linear function of features; its weights are learned from solved examples alone."""
    generator = torch.Generator().manual_seed(0)
    n, n_features, n_train = 4, 4, 40
    solver, estimator = BruteForce(n), ESTIMATORS[name]
    features = problem(kind, n=n, batch=(2 * n_train, n_features), seed=1)
    planted = randn(len(features), n_features, seed=2)

    def costs(weights, part):
        return tuple(torch.einsum("bfrc,f->brc", f[part], w) for f, w in zip(features, weights, strict=True))

    def solved(weights, part):
        with torch.no_grad():
            found = solver(*costs(weights, part))
        return found if isinstance(found, tuple) else (found,)

    train, test = slice(n_train), slice(n_train, None)
    target, held_out = solved(planted, train), solved(planted, test)[0]
    weights = (0.5 * randn(len(features), n_features, seed=3)).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        given = costs(weights, train)
        if estimator is None:
            loss = fenchel_young_loss(solver, given, target, generator=generator).sum()
        else:
            found = estimator(solver, *given, generator=generator)
            found = found if isinstance(found, tuple) else (found,)
            # between hard matchings this is the Hamming distance
            loss = sum((y - t).square().sum() for y, t in zip(found, target, strict=True))
        loss.backward()
        optimizer.step()
    accuracy = float((solved(weights, test)[0] * held_out).sum() / held_out.sum())
    direction = float(torch.cosine_similarity(weights.detach().flatten(), planted.flatten(), dim=0))
    assert accuracy > 0.85
    assert direction > 0.9


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_batch_is_the_loop_over_its_problems(name):
    estimator = ESTIMATORS[name]
    if name not in ("blackbox", "blackbox relative", "straight_through"):
        pytest.skip("has noise")
    costs, weights = problem("quadratic", batch=(2, 2)), problem("quadratic", batch=(2, 2), seed=9)
    found = gradients(estimator, BruteForce(3), costs, weights)
    for index in itertools.product(range(2), range(2)):
        alone = gradients(estimator, BruteForce(3), [c[index] for c in costs], [w[index] for w in weights])
        for f, a in zip(found, alone, strict=True):
            torch.testing.assert_close(f[index], a)


@pytest.mark.parametrize("estimator", [Perturbed(samples=4), ImplicitMLE(samples=4)])
def test_samples_in_one_call_or_one_by_one(estimator):
    import dataclasses

    one_by_one = dataclasses.replace(estimator, vectorized=False)
    costs, weights = problem("quadratic", batch=(2,)), problem("quadratic", batch=(2,), seed=9)
    seeded = [torch.Generator().manual_seed(0) for _ in range(2)]
    solvers = [BruteForce(3), BruteForce(3)]
    first = gradients(estimator, solvers[0], costs, weights, generator=seeded[0])
    second = gradients(one_by_one, solvers[1], costs, weights, generator=seeded[1])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert solvers[0].calls < solvers[1].calls


@pytest.mark.parametrize("relative", [False, True])
def test_no_gradient_needs_no_second_solve_and_scale_is_relative(relative):
    solver = BruteForce(3)
    (cost,), (weight,) = problem("linear"), problem("linear", seed=9)
    (found,) = gradients(BlackBox(2.0, relative=relative), solver, (cost,), (torch.zeros_like(weight),))
    assert solver.calls == 1
    assert not found.any()
    if relative:
        estimator = BlackBox(2.0, relative=True)
        (once,) = gradients(estimator, solver, (cost,), (weight,))
        (scaled,) = gradients(estimator, solver, (10 * cost,), (weight / 7,))
        torch.testing.assert_close(scaled, once / 70)
        step = 2 * cost.abs().mean() / weight.abs().mean()
        torch.testing.assert_close(once, gradients(BlackBox(float(step)), solver, (cost,), (weight,))[0])


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS.values() if e is not None])
def test_forbidden_entries_stay_finite_and_settings_are_an_estimator(estimator):
    assert isinstance(estimator, Estimator)
    cost = randn(2, 3, 3)
    cost[:, 0, 0] = torch.inf

    def solver(c):  # of finite numbers only
        return BruteForce(3)(torch.where(c.isinf(), 1e6, c))

    (found,) = gradients(estimator, solver, (cost,), (randn(2, 3, 3, seed=1),))
    assert found.isfinite().all()


def test_noise_has_its_moments():
    like, seeded = torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(0)
    draws = gumbel((200_000,), like, seeded)
    assert float(draws.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(draws.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)
    draws = sum_of_gamma(5)((200_000, 5), like, seeded).sum(-1)  # ten terms of the series
    harmonic = sum(1 / i for i in range(1, 11))
    assert float(draws.mean()) == pytest.approx(harmonic - math.log(10), abs=0.01)
    assert float(draws.var()) == pytest.approx(sum(1 / i**2 for i in range(1, 11)), abs=0.03)
    assert normal((3,), like.float(), seeded).dtype == torch.float32


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BlackBox(0.0), "strength: want a number > 0"),
        (lambda: Perturbed(scale=-1.0), "scale: want a number > 0"),
        (lambda: ImplicitMLE(samples=0), "samples: want a number > 0"),
        (lambda: sum_of_gamma(0), "k: want a number > 0"),
        (lambda: BlackBox()(BruteForce(3)), "costs: want at least one"),
        (lambda: BlackBox()(BruteForce(3), torch.zeros(3)), r"costs: want floating-point tensors \(\*b, r, c\)"),
        (lambda: BlackBox()(BruteForce(3), torch.zeros(2, 3, 3), torch.zeros(6, 6)), "costs: want the same batch axes"),
        (lambda: BlackBox()(lambda c: c[:2], torch.zeros(3, 3)), r"solver: want solutions of the shapes \[\(3, 3\)\]"),
        (lambda: StraightThrough(lambda c: c[:2])(BruteForce(3), torch.zeros(3, 3)), "relaxation: want shapes"),
        (lambda: fenchel_young_loss(BruteForce(3), torch.zeros(3, 3), torch.zeros(2, 2)), "targets: want shapes"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(InputError, match=message):
        call()
