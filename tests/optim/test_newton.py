import io
import math

import pytest
import torch

from diffmatch import fit
from diffmatch.autodiff import Curvature, EmpiricalFisher, GaussNewton
from diffmatch.errors import InputError
from diffmatch.optim import Newton

F64 = torch.float64


def leaf(*values: float, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def residuals(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def convex(x: torch.Tensor) -> torch.Tensor:
    scales = torch.tensor([1.0, 10.0, 0.1, 0.5], dtype=x.dtype)
    return (0.5 * scales * x**2 + 0.25 * x**4).sum() + 0.5 * x[0] * x[1]


class ConvexDiagonal:
    """The exact diagonal of the Hessian of `convex`."""

    needs_graph = False

    def at(self, params, grads):
        (x,) = params
        diagonal = torch.tensor([1.0, 10.0, 0.1, 0.5], dtype=F64) + 3 * x.detach() ** 2
        return lambda vectors: [diagonal * vectors[0]]


def run(optimizer: Newton, loss, x: torch.Tensor, *, tol: float = 1e-10, most: int = 200) -> list[list[float]]:
    """Points after each step, until the gradient is small."""
    points = []
    while len(points) < most:
        optimizer.step(lambda: loss(x))
        points.append(x.tolist())
        (grad,) = torch.autograd.grad(loss(x), x)
        if float(grad.norm()) < tol:
            break
    return points


def close(points: list[list[float]], wanted: list[list[float]]) -> None:
    torch.testing.assert_close(
        torch.tensor(points[: len(wanted)], dtype=F64), torch.tensor(wanted, dtype=F64), atol=1e-8, rtol=0
    )


# The published code of the method, run on these problems.


def test_rosenbrock_as_published():
    x = leaf(-1.2, 1.0)
    optimizer = Newton([x], tol=0.0)
    points = run(optimizer, rosenbrock, x)
    close(
        points,
        [
            [-1.08548629, 1.07631297],
            [-1.03332615, 1.06635127],
            [-0.95131901, 0.90576397],
            [-0.89160001, 0.79910242],
            [-0.79830217, 0.63653977],
        ],
    )
    assert len(points) == 45
    assert optimizer.statistics["solves"] == 90
    assert optimizer.statistics["products"] == 90  # two a step: rejected tries cost none
    assert x.grad is None


def test_rosenbrock_with_gauss_newton_as_published():
    x = leaf(-1.2, 1.0)
    optimizer = Newton([x], curvature=GaussNewton(lambda: residuals(x), lambda r: r.square().sum()), tol=0.0)
    points = run(optimizer, rosenbrock, x)
    close(
        points,
        [
            [-1.06190294, 1.05016178],
            [-0.99362015, 0.98877881],
            [-0.93376458, 0.87601325],
            [-0.84910208, 0.72146230],
            [-0.78108273, 0.61312078],
        ],
    )
    assert (len(points), optimizer.statistics["solves"]) == (45, 89)


@pytest.mark.parametrize(
    ("curvature", "steps", "wanted"),
    [
        (
            "exact",
            9,
            [
                [0.93791656, -1.01345781, 0.49162786, 1.72352481],
                [0.78119692, -0.45308737, 0.46759459, 1.33950918],
                [0.48952012, -0.08661359, 0.39628491, 0.91364075],
                [0.17355181, -0.01020192, 0.26165622, 0.53132575],
                [0.01406359, -0.00073018, 0.12956170, 0.22907755],
            ],
        ),
        (
            ConvexDiagonal(),
            17,
            [
                [0.94803067, -1.01430127, 0.49162786, 1.72352481],
                [0.81697460, -0.45796980, 0.46761002, 1.33961986],
                [0.55632011, -0.10161261, 0.39670267, 0.91441929],
                [0.23762600, -0.02936526, 0.26412234, 0.53337346],
                [0.04090147, -0.01193919, 0.13277506, 0.23138093],
            ],
        ),
    ],
    ids=["exact", "diagonal"],
)
def test_convex_problem_as_published(curvature, steps, wanted):
    x = leaf(1.0, -1.5, 0.5, 2.0)
    points = run(Newton([x], curvature=curvature, tol=0.0), convex, x)
    close(points, wanted)
    assert len(points) == steps


@pytest.fixture(scope="module")
def losses():
    """Breast cancer data of scikit-learn, standardised, with a bias column, mean loss, l2 1e-4 on all."""
    data = pytest.importorskip("sklearn.datasets").load_breast_cancer()
    x = torch.tensor(data.data, dtype=F64)
    x = torch.cat([(x - x.mean(0)) / x.std(0, unbiased=False), torch.ones(len(x), 1, dtype=F64)], 1)
    y = torch.tensor(2.0 * data.target - 1, dtype=F64)
    return lambda w: torch.nn.functional.softplus(-y * (x @ w)) + 0.5e-4 * w.square().sum()


class TestLogisticRegression:
    def test_iterations_as_published_and_a_fifth_of_lbfgs(self, losses):
        optimum = 0.0426556273
        w = torch.zeros(31, dtype=F64, requires_grad=True)
        optimizer = Newton([w])
        steps = len(run(optimizer, lambda w: losses(w).mean(), w, tol=1e-6))
        assert (steps, optimizer.statistics["solves"]) == (11, 13)
        assert optimizer.statistics["products"] <= 100
        assert abs(float(losses(w).mean().detach()) - optimum) < 1e-9

        z = torch.zeros(31, dtype=F64, requires_grad=True)
        rival = torch.optim.LBFGS(
            [z], max_iter=1000, tolerance_grad=1e-6, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            rival.zero_grad()
            loss = losses(z).mean()
            loss.backward()
            return loss

        rival.step(closure)
        assert 5 * steps <= rival.state[z]["n_iter"]

    def test_first_losses_as_published(self, losses):
        w = torch.zeros(31, dtype=F64, requires_grad=True)
        optimizer = Newton([w], tol=0.0)
        found = [float(optimizer.step(lambda: losses(w).mean())) for _ in range(6)]
        wanted = [0.69314718, 0.37843496, 0.22251665, 0.13888826, 0.09293958, 0.06713775]
        assert found == pytest.approx(wanted, abs=1e-8)

    def test_fisher_approaches_the_optimum(self, losses):
        w = torch.zeros(31, dtype=F64, requires_grad=True)
        run(Newton([w], curvature=EmpiricalFisher(lambda: losses(w))), lambda w: losses(w).mean(), w, most=40)
        assert float(losses(w).mean().detach()) < 0.05


def test_armijo_test_takes_fewer_gradients():
    x, y = leaf(-1.2, 1.0), leaf(-1.2, 1.0)
    by_gradient, by_value = Newton([x]), Newton([y], test="armijo")
    run(by_gradient, rosenbrock, x)
    assert len(run(by_value, rosenbrock, y)) < 60
    torch.testing.assert_close(y, torch.ones_like(y))
    assert by_value.statistics["gradients"] < by_gradient.statistics["gradients"]


def test_estimated_diagonal():
    x = leaf(1.0, -1.5, 0.5, 2.0)
    run(Newton([x], curvature="diagonal"), convex, x, tol=1e-6)
    assert float(x.detach().abs().max()) < 1e-5


def test_indefinite_hessian_goes_down():
    x = leaf(0.1, 0.2)
    optimizer = Newton([x])

    def loss() -> torch.Tensor:
        return (x**4 / 4 - x**2 / 2).sum()

    losses = [float(optimizer.step(loss)) for _ in range(20)]
    assert losses == sorted(losses, reverse=True)
    torch.testing.assert_close(x, torch.ones_like(x))


@pytest.mark.parametrize("dims", range(6))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_any_number_of_axes_and_dtype(dims, dtype):
    x = torch.full((2,) * dims, 3.0, dtype=dtype, requires_grad=True)
    idle = torch.ones(3, dtype=dtype, requires_grad=True)
    optimizer = Newton([x, idle], gamma=10.0)
    for _ in range(8):
        optimizer.step(lambda: (x - 1).square().sum())
    assert float((x.detach() - 1).abs().max()) < 1e-2
    assert torch.equal(idle, torch.ones_like(idle))
    assert x.dtype == dtype


def test_reload_continues_to_the_same_bits():
    def make(start: torch.Tensor) -> tuple[torch.Tensor, Newton]:
        x = start.clone().requires_grad_()
        return x, Newton([x])

    x, optimizer = make(torch.tensor([-1.2, 1.0], dtype=F64))
    run(optimizer, rosenbrock, x, most=4)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    y, resumed = make(x.detach())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert run(optimizer, rosenbrock, x, most=4) == run(resumed, rosenbrock, y, most=4)
    assert optimizer.statistics == resumed.statistics


def test_a_trial_that_is_not_finite_is_refused():
    x = leaf(0.5)
    optimizer = Newton([x], gamma=100.0)

    def loss() -> torch.Tensor:
        return (x - 10 * torch.log(1 - x)).sum() + 30 * (1 - x).sum()  # NaN beyond 1

    for _ in range(30):
        value = optimizer.step(loss)
        assert bool(value.isfinite())
    (grad,) = torch.autograd.grad(loss(), x)
    assert abs(float(grad)) < 1e-5


def test_an_error_in_a_trial_leaves_the_parameters_alone():
    x, calls = leaf(2.0), []

    def loss() -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no")
        return x.square().sum()

    with pytest.raises(RuntimeError, match="no"):
        Newton([x]).step(loss)
    assert float(x.detach()) == 2.0


def test_no_step_is_good_enough():
    x = leaf(2.0)
    optimizer = Newton([x], max_tries=3)
    values = iter([1.0, 5.0, 6.0, 7.0])
    optimizer.step(lambda: x.sum() * 0.5 + (next(values) - 0.5 * x.detach().sum()))
    assert float(x.detach()) == 2.0
    assert optimizer.statistics["gamma"] == 1.0


def test_stationary_points_stay():
    x = leaf(0.0, 0.0)
    assert float(Newton([x]).step(lambda: x.square().sum())) == 0.0
    assert torch.equal(x, torch.zeros_like(x))


class TestErrors:
    def test_gradient_that_is_not_finite_changes_nothing(self):
        x, y = leaf(1.0), leaf(0.0)
        optimizer = Newton([x, y])
        with pytest.raises(FloatingPointError, match=r"parameter 1 of shape \(1,\)"):
            optimizer.step(lambda: x.square().sum() + y.sqrt().sum())
        assert (float(x.detach()), float(y.detach())) == (1.0, 0.0)

    def test_closure(self):
        x = leaf(1.0)
        optimizer = Newton([x])
        with pytest.raises(InputError, match="closure: want a function"):
            optimizer.step()

        def with_backward() -> torch.Tensor:
            loss = x.square().sum()
            loss.backward()
            return loss

        with pytest.raises(InputError, match="already freed"):
            optimizer.step(with_backward)
        with pytest.raises(InputError, match="one without a graph"):
            optimizer.step(lambda: x.detach().sum())

    @pytest.mark.untyped
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"lr": -1.0}, "lr"),
            ({"gamma": 0.0}, "gamma"),
            ({"tol": math.nan}, "tol"),
            ({"max_products": 0}, "max_products"),
            ({"max_tries": 0}, "max_tries"),
            ({"test": "wolfe"}, "test"),
            ({"curvature": "exat"}, "did you mean 'exact'"),
            ({"curvature": 3}, "curvature: want a name or a Curvature"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(InputError, match=message):
            Newton([leaf(1.0)], **settings)

    def test_parameters(self):
        with pytest.raises(InputError, match="one parameter group"):
            Newton([{"params": [leaf(1.0)]}, {"params": [leaf(1.0)]}])
        with pytest.raises(InputError, match="real floating-point"):
            Newton([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])

    def test_protocol(self):
        assert isinstance(ConvexDiagonal(), Curvature)


class TestFit:
    def test_one_loss_function_for_all(self):
        x = leaf(-1.2, 1.0)
        history = fit([x], lambda: rosenbrock(x), optimizer="newton", steps=50)
        assert history.status == "completed"
        torch.testing.assert_close(x, torch.ones_like(x))

    def test_nan_gradients_stop_at_the_last_good_state(self):
        x = leaf(1.0)
        before = []

        def loss(step: int) -> torch.Tensor:
            if step == 3:  # a finite value with a gradient that is not
                return x.sum() + (x - x.detach()).sum().sqrt()
            before.append(x.tolist())
            return x.square().sum()

        history = fit([x], loss, optimizer="newton", optimizer_options={"gamma": 0.1}, steps=10)
        assert history.status == "diverged"
        assert "gradient of parameter 0" in history.message
        assert history.steps == 3
        assert x.tolist() in before

    def test_sampled_losses_are_one_function_within_a_step(self):
        x, generator, seen = leaf(1.0), torch.Generator().manual_seed(0), []

        def loss(step: int) -> torch.Tensor:
            noise = torch.rand(1, generator=generator, dtype=F64)
            seen.append((step, float(noise)))
            return (x - noise).square().sum()

        fit([x], loss, optimizer="newton", steps=5, generators=[generator])
        by_step = {step: {value for s, value in seen if s == step} for step in range(5)}
        assert all(len(values) == 1 for values in by_step.values())
        assert len(set.union(*by_step.values())) == 5
