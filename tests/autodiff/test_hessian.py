import gc

import pytest
import torch
from torch.autograd.functional import hessian

from diffmatch.autodiff import (
    DiagonalHessian,
    EmpiricalFisher,
    ExactHessian,
    GaussNewton,
    Probes,
    gradients,
    hessian_diagonal,
    hessian_product,
)
from diffmatch.errors import InputError

X = torch.tensor([1.0, -1.5, 0.5, 2.0], dtype=torch.float64)
SCALES = torch.tensor([1.0, 10.0, 0.1, -0.5], dtype=torch.float64)


def leaf(values: torch.Tensor = X) -> torch.Tensor:
    return values.clone().requires_grad_()


def quartic(x: torch.Tensor) -> torch.Tensor:
    return (0.5 * SCALES * x**2 + 0.25 * x**4).sum() + 0.5 * x[0] * x[1]


def test_product_equals_the_dense_hessian():
    x, v = leaf(), torch.tensor([1.25, -17.875, 0.175, 7.0], dtype=torch.float64)
    (product,) = hessian_product(gradients(quartic(x), [x], graph=True), [x], [v])
    torch.testing.assert_close(product, hessian(quartic, X) @ v)
    torch.testing.assert_close(product, torch.tensor([-3.9375, -298.78125, 0.14875, 80.5], dtype=torch.float64))


def test_parameters_that_do_not_matter_or_matter_linearly_give_zeros():
    x, line, idle = leaf(), leaf(), leaf()
    params = [x, line, idle]
    grads = gradients(quartic(x) + line.sum(), params, graph=True)
    assert torch.equal(grads[1], torch.ones_like(X))
    products = hessian_product(grads, params, [X, X, X])
    assert float(products[0].abs().sum()) > 0
    assert all(not products[i].any() for i in (1, 2))
    assert not hessian_product(gradients(line.sum(), [line], graph=True), [line], [X])[0].any()


@pytest.mark.parametrize("dims", range(6))
def test_any_number_of_axes(dims):
    x = torch.full((2,) * dims, 2.0, dtype=torch.float64, requires_grad=True)
    (diagonal,) = hessian_diagonal(gradients(x.pow(4).sum(), [x], graph=True), [x], Probes())
    torch.testing.assert_close(diagonal, torch.full_like(x, 48.0, requires_grad=False))


def test_estimate_of_the_diagonal_approaches_it():
    x = leaf()
    grads = gradients(quartic(x), [x], graph=True)
    (estimate,) = hessian_diagonal(grads, [x], Probes(3), samples=400)
    assert (estimate - hessian(quartic, X).diagonal()).abs().max() < 0.1


def test_probes_are_signs_that_seed_and_counter_repeat():
    like = [torch.zeros(1000), torch.zeros(3, 4, dtype=torch.bfloat16)]
    probes = Probes(seed=5)
    first, second = probes.draw(like), probes.draw(like)
    assert (first[0].abs() == 1).all()
    assert first[1].dtype == torch.bfloat16
    assert abs(float(first[0].mean())) < 0.15
    assert abs(float((first[0] * second[0]).mean())) < 0.15
    again = Probes(seed=5, counter=1).draw(like)
    assert all(torch.equal(a, b) for a, b in zip(second, again, strict=True))


def model(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[0] * x[1], x[1].sin(), x[2] ** 2, x.sum(), x[3] * x[0]])


@pytest.mark.parametrize("outer", [None, lambda r: r.pow(4).sum() / 3 + r[0] * r[1]])
def test_gauss_newton_equals_the_dense_matrix(outer):
    x, v = leaf(), torch.linspace(-1, 2, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(model, X)
    inner = torch.eye(5, dtype=torch.float64) if outer is None else hessian(outer, model(X))
    product = GaussNewton(lambda: model(x), outer).at([x], [])
    for _ in range(2):
        torch.testing.assert_close(product([v])[0], jacobian.T @ inner @ jacobian @ v)


def test_empirical_fisher_is_the_mean_of_outer_products():
    x, v = leaf(), torch.linspace(-1, 2, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x) ** 2, X)
    (product,) = EmpiricalFisher(lambda: model(x) ** 2).at([x], [])([v])
    torch.testing.assert_close(product, jacobian.T @ jacobian @ v / 5)


def test_curvatures_of_the_loss():
    x = leaf()
    grads = gradients(quartic(x), [x], graph=True)
    v = torch.ones_like(X)
    torch.testing.assert_close(ExactHessian().at([x], grads)([v])[0], hessian(quartic, X) @ v)
    (diagonal,) = DiagonalHessian(samples=200).at([x], grads)([v])
    torch.testing.assert_close(diagonal, hessian(quartic, X).diagonal(), atol=0.15, rtol=0)


def test_graphs_that_are_gone_are_named():
    x = leaf()
    loss = quartic(x)
    loss.backward()
    with pytest.raises(InputError, match=r"closure: .*intact.*already freed"):
        gradients(loss, [x])
    grads = gradients(quartic(x), [x], graph=True)
    hessian_product(grads, [x], [X])
    with pytest.raises(InputError, match=r"grads: .*already freed"):
        hessian_product(grads, [x], [X])


@pytest.mark.untyped
@pytest.mark.parametrize("loss", [torch.tensor(1.0), 1.0])
def test_losses_without_a_graph_are_named(loss):
    with pytest.raises(InputError, match="closure: want a function that returns the loss"):
        gradients(loss, [leaf()])


def test_products_leave_no_tensors_behind():
    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    x, probes = leaf(), Probes()
    before = alive()
    for _ in range(20):
        hessian_diagonal(gradients(quartic(x), [x], graph=True), [x], probes)
        GaussNewton(lambda: model(x)).at([x], [])([X])
    assert alive() <= before + 1  # x.grad is not among them: nothing writes it
    assert x.grad is None
