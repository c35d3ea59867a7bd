import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn

from diffmatch import fit
from diffmatch.errors import InputError
from diffmatch.optim import GraphFilter, GridFilter, make_optimizer, precondition

F64 = torch.float64


def laplacian(shape: tuple[int, ...]) -> torch.Tensor:
    """Dense Laplacian of a grid with free boundary."""
    total = torch.zeros(math.prod(shape), math.prod(shape), dtype=F64)
    for axis, n in enumerate(shape):
        difference = torch.eye(n, dtype=F64)[1:] - torch.eye(n, dtype=F64)[:-1]
        part = torch.ones(1, 1, dtype=F64)
        for i, m in enumerate(shape):
            part = torch.kron(part, difference.T @ difference if i == axis else torch.eye(m, dtype=F64))
        total += part
    return total


def dense(shape: tuple[int, ...], strength: float, power: int) -> torch.Tensor:
    size = math.prod(shape)
    return torch.linalg.matrix_power(torch.eye(size, dtype=F64) + strength * laplacian(shape), power).inverse()


def edges_of(shape: tuple[int, ...]) -> torch.Tensor:
    number = torch.arange(math.prod(shape)).view(shape)
    pairs = []
    for axis, n in enumerate(shape):
        low, high = number.narrow(axis, 0, n - 1), number.narrow(axis, 1, n - 1)
        pairs.append(torch.stack((low.flatten(), high.flatten()), 1))
    return torch.cat(pairs)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).filter(lambda s: math.prod(s) <= 60),
    st.floats(0.0, 20.0),
    st.sampled_from([1, 2]),
)
def test_grid_filter_inverts_the_operator(shape, strength, power):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    filtered = GridFilter(strength=strength, power=power)(gradient)
    torch.testing.assert_close(filtered.flatten(), dense(tuple(shape), strength, power) @ gradient.flatten())


def test_grid_filter_is_a_product_of_cosine_transforms():
    gradient = torch.randn(9, 8, 7, generator=torch.Generator().manual_seed(0), dtype=F64)
    filtered = GridFilter(strength=2.0, power=1)(gradient)
    before, after = (dctn(t.numpy(), norm="ortho") for t in (gradient, filtered))
    i, j, k = np.meshgrid(*(2 - 2 * np.cos(np.pi * np.arange(n) / n) for n in (9, 8, 7)), indexing="ij")
    np.testing.assert_allclose(after, before / (1 + 2 * (i + j + k)), atol=1e-12)


def test_channels_and_flat_fields():
    gradient = torch.randn(4 * 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    wanted = torch.stack([GridFilter()(gradient[:, c].view(4, 3)).flatten() for c in range(3)], 1)
    torch.testing.assert_close(GridFilter(shape=(4, 3))(gradient), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_dtype_and_mean_are_kept(dtype):
    gradient = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    for smooth in (GridFilter(strength=5.0), GraphFilter(edges_of((6, 20)), 120, strength=5.0)):
        shaped = gradient if isinstance(smooth, GridFilter) else gradient.reshape(120, 1)
        filtered = smooth(shaped)
        assert filtered.dtype == dtype
        assert filtered.shape == shaped.shape
        assert float(filtered.float().mean()) == pytest.approx(float(gradient.float().mean()), rel=1e-2)
        assert float(filtered.float().var()) < float(gradient.float().var())


@pytest.mark.parametrize("power", [1, 2])
def test_graph_filter_of_a_grid_is_the_grid_filter(power):
    gradient = torch.randn(5, 4, 3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    rows = gradient.reshape(60, 2)
    smooth = GraphFilter(edges_of((5, 4, 3)), 60, strength=3.0, power=power)
    wanted = GridFilter(strength=3.0, power=power, shape=(5, 4, 3))(rows)
    torch.testing.assert_close(smooth(rows), wanted)
    iterated = rows
    for _ in range(power):
        iterated = smooth.solve_by_conjugate_gradients(iterated)
    torch.testing.assert_close(iterated, wanted, rtol=1e-5, atol=1e-5)


def test_graph_filter_of_a_mesh():
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    smooth = GraphFilter.of_mesh(faces, 5, strength=1.0, power=1)
    adjacency = torch.zeros(5, 5, dtype=F64)
    for i, j in [(0, 1), (1, 2), (0, 2), (2, 3), (0, 3)]:
        adjacency[i, j] = adjacency[j, i] = 1
    operator = torch.eye(5, dtype=F64) + torch.diag(adjacency.sum(1)) - adjacency
    gradient = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(smooth(gradient), torch.linalg.solve(operator, gradient))
    assert torch.equal(smooth(gradient)[4], gradient[4])  # a vertex without neighbours


@pytest.mark.parametrize("name", ["adam", "adamw", "adam-uniform", "sgd", "rprop", "nadam"])
@pytest.mark.parametrize("with_closure", [False, True])
def test_composes_with_first_order_optimizers(name, with_closure):
    start = torch.linspace(-1, 1, 12).view(4, 3)
    x, y, other = (start.clone().requires_grad_() for _ in range(3))
    smooth = GridFilter(strength=2.0)
    filtered, plain = make_optimizer(name, [x, other]), make_optimizer(name, [y])
    handle = precondition(filtered, {x: smooth})

    def closure() -> torch.Tensor:
        filtered.zero_grad()
        loss = x.pow(4).sum() + other.sum()
        loss.backward()
        return loss

    for step in range(6):
        if step == 4:
            handle.remove()
        if with_closure:
            filtered.step(closure)
        else:
            closure()
            filtered.step()
        gradient = 4 * y.detach() ** 3
        y.grad = smooth(gradient) if step < 4 else gradient
        plain.step()
        torch.testing.assert_close(x, y)
    assert torch.equal(other.grad, torch.ones_like(other))


def test_fit_takes_structure(tmp_path):
    shape = (12, 12, 12)
    points = torch.randint(0, 12, (300, 3), generator=torch.Generator().manual_seed(0))
    values = points.float().norm(dim=1) / 12

    def run(structure, **settings) -> list[float]:
        x = torch.zeros(shape, requires_grad=True)

        def loss() -> torch.Tensor:
            rough = sum(x.diff(2, dim=axis).square().sum() for axis in range(3))
            return (x[points.unbind(1)] - values).square().mean() + 1e-4 * rough

        structure = {x: structure} if structure else None
        history = fit([x], loss, optimizer="adam-uniform", lr=0.2, steps=30, structure=structure, **settings)
        return history.loss

    file = tmp_path / "run.pt"
    filtered = run(GridFilter(strength=1.0), checkpoint=file)
    assert filtered[-1] < 0.5 * run(None)[-1]
    with pytest.raises(InputError, match="structure"):
        run(GridFilter(strength=2.0), checkpoint=file)


def test_filters_may_follow_the_step_and_resume_to_the_same_bits(tmp_path):
    def go(steps: int, **settings) -> tuple[torch.Tensor, list[float]]:
        x, seen = torch.linspace(-1, 1, 12).view(4, 3).requires_grad_(), []

        def structure(step: int):
            seen.append(step)
            return {x: GridFilter(8.0 * 0.5**step)}

        fit([x], lambda: x.pow(4).sum(), optimizer="adamw", lr=0.1, steps=steps, structure=structure, **settings)
        return x.detach(), seen

    straight, seen = go(6)
    assert seen == [0, 0, 1, 2, 3, 4, 5]  # once more at the start, to look for errors
    y = torch.linspace(-1, 1, 12).view(4, 3).requires_grad_()
    optimizer = make_optimizer("adamw", [y], lr=0.1)
    for step in range(6):
        y.grad = GridFilter(8.0 * 0.5**step)(4 * y.detach() ** 3)
        optimizer.step()
    torch.testing.assert_close(straight, y.detach())
    go(3, checkpoint=tmp_path / "run.pt")
    again, seen = go(6, checkpoint=tmp_path / "run.pt")
    assert seen[-3:] == [3, 4, 5]
    assert torch.equal(again, straight)


class TestErrors:
    @pytest.mark.parametrize("settings", [{"strength": -1.0}, {"power": 3}, {"shape": ()}, {"shape": (0, 2)}])
    def test_settings(self, settings):
        with pytest.raises(InputError, match=next(iter(settings))):
            GridFilter(**settings)

    def test_shapes(self):
        with pytest.raises(InputError, match="a multiple of the 6 entries"):
            GridFilter(shape=(2, 3))(torch.zeros(7))
        with pytest.raises(InputError, match="6 rows"):
            GraphFilter(edges_of((2, 3)), 6)(torch.zeros(7))
        with pytest.raises(InputError, match="0 to 4"):
            GraphFilter(edges_of((2, 3)), 5)

    @pytest.mark.parametrize("name", ["lbfgs", "newton", "sophia-h"])
    def test_optimizers_that_evaluate_by_themselves(self, name):
        x = torch.zeros(3, requires_grad=True)
        with pytest.raises(InputError, match="reads the gradients once"):
            precondition(make_optimizer(name, [x]), {x: GridFilter()})

    def test_parameters_of_others(self):
        x, y = (torch.zeros(3, requires_grad=True) for _ in range(2))
        with pytest.raises(InputError, match="parameters of the optimizer"):
            precondition(make_optimizer("adam", [x]), {y: GridFilter()})
        with pytest.raises(InputError, match="parameters of the optimizer"):
            fit([x], lambda: x.sum(), structure=lambda step: {y: GridFilter()})
