"""The differentiable function behind the dual surface: its two forms, and their gradients."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from diffmatch.meshing import kernels
from diffmatch.meshing.connectivity import connect
from diffmatch.meshing.dual_surface import crossing, dual_surface, surface_backward, surface_forward
from diffmatch.meshing.grid import Grid
from diffmatch.meshing.weights import corner_weight, split_weight, weights_of_cells

F64 = torch.float64
SCALE = 0.99
ACTIVATIONS = (corner_weight, corner_weight, split_weight)


def problem(shape, seed, *, dtype=F64, extra=0, batch=1, margin=0.05):
    """White noise, deformed positions with some attribute columns, and random weights on a small grid."""
    grid, generator = Grid(shape), torch.Generator().manual_seed(seed)

    def noise(*size):
        return torch.randn(*size, generator=generator, dtype=dtype)

    field = noise(batch, *grid.node_shape)
    field = field + margin * torch.where(field < 0, -1, 1)  # finite differences must not change a sign
    positions = grid.nodes(dtype=dtype).repeat(batch, 1) + 0.2 * noise(batch * grid.n_nodes, 3).tanh()
    payload = torch.cat((positions, noise(batch * grid.n_nodes, extra)), 1)
    cells = batch * grid.n_cells
    return connect(field), (field.flatten(), payload, noise(cells, 8), noise(cells, 12), noise(cells))


def some(data, present):
    """The inputs with some weights left out."""
    field, payload, *weights = data
    return field, payload, *(w if there else None for w, there in zip(weights, present, strict=True))


def activated(connectivity, data):
    """The inputs with the weights of the surface cells, made of the raw ones of all cells."""
    field, payload, *raw = data
    rows = weights_of_cells(raw, connectivity.cell, None)
    weights = [None if w is None else act(w, SCALE) for w, act in zip(rows, ACTIVATIONS, strict=True)]
    return *at_nodes(connectivity, field, payload), *weights


def at_nodes(connectivity, *values):
    """Node values where the surface needs them."""
    return [x[connectivity.nodes] for x in values]


def evaluate(connectivity, data, *, centres=True, compiled=True):
    field, payload, *raw = data
    weights = weights_of_cells(raw, connectivity.cell, None)
    rows = at_nodes(connectivity, field, payload)
    return dual_surface(connectivity, *rows, *weights, scale=SCALE, centres=centres, compiled=compiled)


def gradients(outputs, inputs, seed=0):
    """Gradients of a random combination of the outputs."""
    generator = torch.Generator().manual_seed(seed)
    total = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs)
    return torch.autograd.grad(total, inputs)


def by_loop(connectivity, data):
    """Points and deviations, vertex by vertex, as the equations say."""
    field, payload, alpha, beta, gamma = data
    rows = connectivity.incidences
    points, spreads = [], []
    for v in range(connectivity.n_vertices):
        us, ws, zs = [], [], []
        for m in (rows.vertex == v).nonzero().flatten().tolist():
            cell, (n0, n1), (c0, c1) = int(connectivity.cell[rows.slot[m]]), rows.node[m], rows.corner[m]
            a = field[n0] * (1 + SCALE * torch.tanh(alpha[cell, c0]))
            b = field[n1] * (1 + SCALE * torch.tanh(alpha[cell, c1]))
            us.append((payload[n0] * b - payload[n1] * a) / (b - a))
            zs.append((payload[n0] * field[n1] - payload[n1] * field[n0])[:3] / (field[n1] - field[n0]))
            ws.append(1 + SCALE * torch.tanh(beta[cell, rows.edge[m]]))
        points.append(sum(w * u for w, u in zip(ws, us, strict=True)) / sum(ws))
        distance = torch.stack([torch.linalg.vector_norm(z - points[-1][:3]) for z in zs])
        spreads.append((distance - distance.mean()).abs().sum())
    split = SCALE * torch.sigmoid(gamma) + (1 - SCALE) / 2
    g = split[connectivity.cell.long()[connectivity.vertex_slot]]
    for a, b, c, d in connectivity.quads.tolist():
        on_02, on_13 = g[a] * g[c], g[b] * g[d]
        middle = on_02 * (points[a] + points[c]) / 2 + on_13 * (points[b] + points[d]) / 2
        points.append(middle / (on_02 + on_13))
    return torch.stack(points), torch.stack(spreads)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 3, 4)])
def test_values_equal_the_equations(shape, compiled):
    connectivity, data = problem(shape, 1, extra=2)
    found = evaluate(connectivity, data, compiled=compiled)
    wanted = by_loop(connectivity, data)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)  # the published 1e-8 in the centres' weights


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    seed=st.integers(0, 2**20),
    extra=st.sampled_from([0, 1, 3]),
    present=st.tuples(*[st.booleans()] * 3),
    centres=st.booleans(),
    batch=st.integers(1, 2),
)
def test_compiled_form_gives_the_same_values_and_gradients(shape, seed, extra, present, centres, batch):
    connectivity, data = problem(shape, seed, extra=extra, batch=batch)
    data = some(data, present)
    inputs = [x.requires_grad_() for x in data if x is not None]
    if not centres and present[2]:
        inputs.pop()  # gamma moves nothing but the centres
    results = [evaluate(connectivity, data, centres=centres, compiled=compiled) for compiled in (False, True)]
    for tensors, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, tensors, rtol=1e-10, atol=1e-12)
    found = [gradients(result, inputs) for result in results]
    scale = max(float(g.abs().max()) for g in found[0])
    for tensors, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, tensors, rtol=1e-8, atol=1e-10 * max(scale, 1))


@pytest.mark.parametrize("compiled", [False, True])
def test_analytic_backward_equals_autograd(compiled):
    connectivity, data = problem((4, 3, 5), 2, extra=2, batch=2)
    inputs = [x.requires_grad_() for x in data]
    wanted = gradients(surface_forward(connectivity, *activated(connectivity, data), True)[:2], inputs)
    found = gradients(evaluate(connectivity, data, compiled=compiled), inputs)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("present", [(True, True, True), (False, False, False)])
def test_gradcheck(compiled, present):
    connectivity, data = problem((2, 2, 2), 3, extra=1, margin=0.2)
    data = some(data, present)
    assert len(connectivity.quads) > 0

    def function(*inputs):
        values = iter(inputs)
        return evaluate(connectivity, [None if x is None else next(values) for x in data], compiled=compiled)

    assert gradcheck(function, [x.requires_grad_() for x in data if x is not None])


@pytest.mark.parametrize("compiled", [False, True])
def test_gradcheck_of_second_derivatives(compiled):
    connectivity, data = problem((2, 1, 2), 1, margin=0.3)
    assert len(connectivity.quads) > 0
    inputs = [x.requires_grad_() for x in data]
    assert gradgradcheck(lambda *x: evaluate(connectivity, x, compiled=compiled), inputs, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("wanting", range(5))
def test_gradient_of_one_input_alone(compiled, wanting):
    connectivity, data = problem((3, 2, 2), 5)
    everything = [x.clone().requires_grad_() for x in data]
    wanted = gradients(evaluate(connectivity, everything, compiled=compiled), everything)[wanting]
    inputs = [x.detach().requires_grad_(i == wanting) for i, x in enumerate(data)]
    (found,) = gradients(evaluate(connectivity, inputs, compiled=compiled), [inputs[wanting]])
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("compiled", [False, True])
def test_single_precision_agrees_with_double(compiled):
    connectivity, data = problem((5, 4, 3), 6)
    double = [x.requires_grad_() for x in data]
    single = [x.detach().float().requires_grad_() for x in data]
    points, deviation = evaluate(connectivity, single, compiled=compiled)
    assert points.dtype == deviation.dtype == torch.float32
    exact = evaluate(connectivity, double)
    torch.testing.assert_close(points, exact[0].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(deviation, exact[1].float(), rtol=1e-4, atol=1e-5)
    grads = [
        torch.autograd.grad(p.sum() + d.sum(), x) for (p, d), x in (((points, deviation), single), (exact, double))
    ]
    for ours, wanted in zip(*grads, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, wanted.float(), rtol=2e-3, atol=2e-4)


ENDS = [0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3e38, -3e38, torch.inf, -torch.inf, torch.nan]


def test_crossing_is_defined_for_all_floats():
    for low, high in itertools.product(ENDS, ENDS):
        if (low < 0) == (high < 0):
            continue
        ends = torch.tensor([low, high], requires_grad=True)
        t = crossing(ends[0], ends[1])
        assert 0 <= t <= 1
        if not (ends[0] - ends[1]).isfinite():
            assert t == 0.5
        (grad,) = torch.autograd.grad(t, ends)
        if not (ends[0] - ends[1]).isfinite():
            assert grad.tolist() == [0, 0]
    assert crossing(torch.tensor(-1.0), torch.tensor(3.0)) == 0.25
    assert crossing(torch.tensor(0.0), torch.tensor(-3.0)) == 0


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("ends", list(itertools.combinations(ENDS, 2)), ids=str)
def test_any_float_at_an_edge_gives_finite_vertices_and_gradients(ends, compiled):
    grid = Grid((2, 2, 2))
    for low, high in (ends, ends[::-1]):
        field = torch.ones(grid.node_shape)
        field[1, 1, 1], field[1, 1, 2] = low, high
        data = [field.flatten(), grid.nodes().clone(), torch.zeros(8, 8), torch.zeros(8, 12), torch.zeros(8)]
        inputs = [x.requires_grad_() for x in data]
        points, deviation = evaluate(connect(field[None]), inputs, compiled=compiled)
        assert bool(((points >= -1) & (points <= 1)).all())  # and so neither NaN nor infinite
        grads = torch.autograd.grad(points.sum() + deviation.sum(), inputs)
        assert all(bool(grad.isfinite().all()) for grad in grads)
        assert not grads[0].reshape(field.shape)[~field.isfinite()].any()


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_stay_bounded_where_the_field_touches_zero(compiled):
    """The slope of a crossing point is 1 / |s0 - s1|: held below 1e6 over the mean magnitude."""
    connectivity, data = problem((3, 3, 3), 7)
    field = data[0].clone()
    field[::2] *= 1e-30
    inputs = [field.requires_grad_(), *(x.requires_grad_() for x in data[1:])]
    for grad in gradients(evaluate(connectivity, inputs, compiled=compiled), inputs):
        assert bool((grad.abs() < 1e8).all())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_gradients_scale_with_the_field(factor, compiled):
    """Vertices do not change when the field is multiplied; the gradient by the field is divided."""
    connectivity, data = problem((3, 2, 3), 8, dtype=torch.float32)
    plain = data[0].clone().requires_grad_()
    scaled = (data[0] * factor).requires_grad_()
    grads = []
    for field in (plain, scaled):
        points, _ = evaluate(connectivity, (field, *data[1:]), compiled=compiled)
        grads.append(torch.autograd.grad(points.square().sum(), field)[0])
    torch.testing.assert_close(grads[1] * factor, grads[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_nothing_to_extract_is_attached_to_the_graph(compiled):
    connectivity, data = problem((2, 2, 2), 9)
    data = [torch.ones_like(data[0]), *data[1:]]
    connectivity = connect(data[0].reshape(1, 3, 3, 3))
    inputs = [x.requires_grad_() for x in data]
    points, deviation = evaluate(connectivity, inputs, compiled=compiled)
    assert points.shape == (0, 3)
    assert deviation.shape == (0,)
    grads = torch.autograd.grad(points.sum() + deviation.sum(), inputs, create_graph=True)
    assert all(grad.shape == x.shape and not grad.any() for grad, x in zip(grads, inputs, strict=True))


def test_weights_that_are_none_have_no_gradient():
    connectivity, data = problem((2, 2, 2), 10)
    data = activated(connectivity, some(data, (False, True, False)))
    points, deviation, floor = surface_forward(connectivity, *data, True)
    upstream = points, floor, points, deviation, True
    for grads in (
        surface_backward(connectivity, *data, *upstream),
        kernels.dual_surface_backward(connectivity, *data, *upstream, SCALE),
    ):
        assert [grad is not None for grad in grads] == [True, True, False, True, False]
