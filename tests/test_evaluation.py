import functools
import math

import pytest
import torch
from torch import nn

from diffmatch.errors import InputError
from diffmatch.evaluation import Evaluation, NotFiniteError, OverflowedError, loss_scaler, takes_step


def evaluation(loss, *params: torch.Tensor, **settings) -> Evaluation:
    optimizer = torch.optim.SGD(params)
    names = {id(p): f"p{i}" for i, p in enumerate(params)}
    made = Evaluation(loss, optimizer, names=names, **settings)
    made.begin(0)
    return made


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, requires_grad=True)


def test_value_terms_and_gradients_are_read():
    x = leaf(3)
    made = evaluation(lambda: {"a": x.sum(), "b": (2 * x).sum()}, x)
    loss = made.closure()
    assert (float(loss), loss.requires_grad) == (9.0, False)
    assert (made.loss, made.terms, made.count) == (9.0, {"a": 3.0, "b": 6.0}, 1)
    assert torch.equal(x.grad, torch.full((3,), 3.0))


def test_gradients_do_not_pile_up():
    x = leaf(3)
    made = evaluation(lambda: x.sum(), x)
    made.closure()
    made.closure()
    assert torch.equal(x.grad, torch.ones(3))


def test_gradients_come_also_where_the_caller_switched_them_off():
    x = leaf(3)
    with torch.no_grad():
        evaluation(lambda: x.sum(), x).closure()
    assert torch.equal(x.grad, torch.ones(3))


def test_step_is_handed_on():
    x, seen = leaf(3), []
    made = evaluation(lambda step: x.sum() * (seen.append(step) or 1.0), x)
    made.closure()
    made.begin(7)
    made.closure()
    assert seen == [0, 7]


def test_curves_show_the_first_evaluation_of_a_step():
    x, values = leaf(3), iter([3.0, 2.0, 5.0])
    made = evaluation(lambda: x.sum() * next(values), x)
    made.closure()
    made.closure()
    assert (made.loss, made.count) == (9.0, 2)
    made.begin(1)
    made.closure()
    assert made.loss == 15.0


def test_last_good_parameters_are_the_best_of_the_step():
    x = leaf(1)
    made = evaluation(lambda: x.sum(), x)
    for value in (4.0, 2.0, 3.0):
        with torch.no_grad():
            x.fill_(value)
        made.closure()
    assert float(made.good.values[0]) == 2.0
    made.begin(1)
    made.closure()
    assert float(made.good.values[0]) == 3.0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x: x.sum() * math.nan, "^the loss is nan$"),
        (lambda x: x.sum() * math.inf, "^the loss is inf$"),
        (lambda x: {"a": x.sum(), "b": (x - 1).log().sum()}, "^the loss is -inf, its term 'b' is -inf$"),
        (lambda x: (x - 1).abs().sqrt().sum(), "^the norm of the gradient of p0 is (nan|inf)$"),
        (lambda x: (x - 1 + 1e-30).sqrt().sum() + 1e30 * x.sum(), "^the norm of the gradient of p0 is inf$"),
    ],
)
def test_values_that_are_not_finite_raise_and_leave_no_trace(loss, message):
    x = leaf(3)
    made = evaluation(lambda: loss(x), x)
    with pytest.raises(NotFiniteError, match=message):
        made.closure()
    assert (made.count, made.good.taken) == (0, False)


def test_guilty_parameter_is_named():
    x, y, unused = leaf(3), leaf(2), leaf(1)
    with pytest.raises(NotFiniteError, match="gradient of p2 is"):
        evaluation(lambda: x.sum() + (y - 1).abs().sqrt().sum(), unused, x, y).closure()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_halves_are_taken_in_float32(dtype):
    x = leaf(70_000, dtype=dtype)
    made = evaluation(lambda: (400 * x.float()).mean() * x.numel(), x)  # the norm, 105830, is no float16
    made.closure()
    assert made.loss == pytest.approx(2.8e7)


def test_mixed_dtypes():
    x, y = leaf(3, dtype=torch.float64), leaf(2, dtype=torch.bfloat16)
    made = evaluation(lambda: {"x": x.sum(), "y": y.sum()}, x, y)
    made.closure()
    assert (made.loss, made.terms) == (5.0, {"x": 3.0, "y": 2.0})


@pytest.mark.parametrize(("clip_norm", "wanted"), [(0.5, 0.5), (100.0, 5.0)])
def test_clipping_is_of_all_gradients_together(clip_norm, wanted):
    x, y = leaf(1), leaf(1)
    evaluation(lambda: 3 * x.sum() + 4 * y.sum(), x, y, clip_norm=clip_norm).closure()
    assert math.hypot(float(x.grad), float(y.grad)) == pytest.approx(wanted)
    assert float(x.grad / y.grad) == pytest.approx(0.75)


def test_loss_keeps_its_graph_where_the_optimizer_differentiates():
    x = leaf(3)
    made = evaluation(lambda: x.square().sum(), x, backward=False)
    loss = made.closure()
    assert x.grad is None
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.full((3,), 2.0))
    assert not made.good.taken  # nobody has looked at the gradients yet
    made.accept()
    assert made.good.taken
    assert torch.equal(made.good.values[0], x)


def test_autocast_is_for_the_loss_only():
    x = leaf(4, 4)
    seen = []
    made = evaluation(lambda: (seen.append((y := x @ x).dtype), y.float().sum())[1], x, autocast=torch.bfloat16)
    made.closure()
    assert seen == [torch.bfloat16]
    assert x.grad.dtype == torch.float32


def test_overflow_under_loss_scaling_is_no_divergence():
    x = leaf(4, 4)
    optimizer = torch.optim.SGD([x])
    scaler = loss_scaler(optimizer, torch.float16)
    made = Evaluation(lambda: (x @ x).sum() * 100, optimizer, names={}, autocast=torch.float16, scaler=scaler)
    made.begin(0)
    with pytest.raises(OverflowedError):
        made.closure()
    assert made.loss == pytest.approx(6400)
    assert not made.good.taken


def test_scaler_is_for_float16():
    optimizer = torch.optim.SGD([leaf(3)])
    assert loss_scaler(optimizer, None) is None
    assert loss_scaler(optimizer, torch.bfloat16) is None
    with pytest.raises(InputError, match=r"autocast: want None or torch\.bfloat16 with this optimizer, got .* LBFGS"):
        loss_scaler(torch.optim.LBFGS([leaf(3)]), torch.float16)
    with pytest.raises(InputError, match="params: want float32 or wider"):
        loss_scaler(torch.optim.SGD([leaf(3, dtype=torch.float16)]), torch.float16)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x: x, r"a scalar tensor, got shape \(3,\)"),
        (lambda x: {"a": x.sum(), "b": x}, r"a scalar tensor as term 'b', got shape \(3,\)"),
        (lambda x: {"a": 1.0}, "a scalar tensor as term 'a', got float"),
        (lambda x: 1.0, "a scalar tensor, got float"),
        (lambda x: None, "a scalar tensor, got NoneType"),
        (lambda x: {}, "at least one term, got an empty mapping"),
        (lambda x: torch.tensor(1.0), "a value that depends on the parameters, got one without a gradient"),
        (lambda x: torch.ones(1, requires_grad=True).sum(), "depends on the parameters, got one that depends on other"),
    ],
)
def test_what_is_no_loss_is_named(loss, message):
    x = leaf(3)
    with pytest.raises(InputError, match=f"loss: want .*{message}"):
        evaluation(lambda: loss(x), x).closure()


class TestSparseGradients:
    """Gradients that come as rows, of optimizers that take them."""

    def closure(self, weights: torch.Tensor, **settings) -> torch.Tensor:
        """Rows 1 and 3 of a table, 1 twice: gradients (2 w0, 0, 0) and (w1, 0, 0)."""
        self.table = leaf(5, 3)
        rows = torch.tensor([1, 1, 3])

        def loss() -> torch.Tensor:
            picked = torch.nn.functional.embedding(rows, self.table, sparse=True)[:, 0]
            return ((picked - self.table.detach()[rows, 0]) * weights).sum()

        evaluation(loss, self.table, **settings).closure()
        return self.table.grad

    def test_rows_that_came_twice_are_added(self):
        grad = self.closure(torch.tensor([1.0, 2.0, 4.0]))
        assert grad.layout is torch.sparse_coo
        assert grad.is_coalesced()
        assert grad.to_dense()[:, 0].tolist() == [0.0, 3.0, 0.0, 4.0, 0.0]

    @pytest.mark.parametrize(("clip_norm", "wanted"), [(0.5, 0.1), (100.0, 1.0)])
    def test_norm_is_that_of_the_dense_gradient(self, clip_norm, wanted):
        grad = self.closure(torch.tensor([1.0, 2.0, 4.0]), clip_norm=clip_norm)
        torch.testing.assert_close(grad.to_dense()[[1, 3], 0], wanted * torch.tensor([3.0, 4.0]))

    def test_what_is_not_finite_is_seen(self):
        with pytest.raises(NotFiniteError, match="the norm of the gradient of p0 is inf"):
            self.closure(torch.tensor([1.0, 3e38, 3e38]))

    def test_other_optimizers_refuse_by_name(self):
        table = nn.Embedding(5, 3, sparse=True)
        optimizer = torch.optim.Adam([table.weight])
        made = Evaluation(lambda: table(torch.tensor([1])).sum(), optimizer, names={id(table.weight): "weight"})
        with pytest.raises(InputError, match=r'loss: want dense gradients.*"rows"}.*, got a sparse one of weight'):
            made.closure()


class Model(nn.Module):
    def forward(self):
        return 0


class ModelOfStep(nn.Module):
    def forward(self, index):
        return index


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (lambda: 0, False),
        (lambda step: 0, True),
        (lambda k: 0, True),
        (lambda step=0: 0, True),
        (lambda x=0: 0, False),
        (lambda *rest, **more: 0, False),
        (functools.partial(lambda x, step: 0, 1), True),
        (functools.partial(lambda x: 0, 1), False),
        (Model(), False),
        (ModelOfStep(), True),
        (dict, False),
    ],
)
def test_losses_that_take_the_step(loss, wanted):
    assert takes_step(loss) is wanted


@pytest.mark.untyped
@pytest.mark.parametrize("loss", [lambda a, b: 0, torch.ones(()), None])
def test_other_functions_are_named(loss):
    with pytest.raises(InputError, match="loss: want a function of no argument or of the step"):
        takes_step(loss)
