"""Fits whose gradients come as rows: embeddings, or weights of the few cells that a surface meets."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding

from diffmatch.errors import InputError
from diffmatch.fitting import fit
from diffmatch.optim import GridFilter, make_optimizer

LAZY = ("adam8bit", "adamw8bit", "exadam", "lion", "lion8bit", "sgd8bit")
ROWS = {"sparse": "rows"}
lazy = pytest.mark.parametrize("name", LAZY)


def table(rows: int = 40) -> Tensor:
    return torch.linspace(1, 2, 3 * rows).reshape(rows, 3).requires_grad_()


class Draw:
    """A loss of a few rows of a table, others in each step, some of them twice; rows from 30 on never."""

    def __init__(self, x: Tensor, *, bad_step: int = -1) -> None:
        self.x, self.bad_step = x, bad_step

    def __call__(self, step: int) -> Tensor:
        index = torch.randint(30, (12,), generator=torch.Generator().manual_seed(step))
        loss = embedding(index, self.x, sparse=True).square().sum()
        if step == self.bad_step:
            loss = loss + (embedding(torch.tensor([5]), self.x, sparse=True) - self.x.detach()[5]).abs().sqrt().sum()
        return loss


@lazy
def test_same_bits_as_a_loop_by_hand(name):
    x, y = table(), table()
    history = fit([x], Draw(x), optimizer=name, optimizer_options=ROWS, lr=0.01, steps=8)
    optimizer, losses = make_optimizer(name, [y], lr=0.01, **ROWS), []
    for step in range(8):
        y.grad = None
        loss = Draw(y)(step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert history.loss == losses
    assert torch.equal(x, y)
    assert torch.equal(x[30:], table()[30:])
    assert not torch.equal(x[:30], table()[:30])


@lazy
def test_resumes_to_the_same_bits(name, tmp_path):
    straight, resumed, again = table(), table(), table()
    settings = {"optimizer": name, "optimizer_options": ROWS, "lr": 0.01}
    fit([straight], Draw(straight), steps=6, **settings)
    fit([resumed], Draw(resumed), steps=3, checkpoint=tmp_path / "run.pt", **settings)
    fit([again], Draw(again), steps=6, checkpoint=tmp_path / "run.pt", **settings)
    assert torch.equal(again, straight)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.SparseAdam])
def test_optimizers_of_torch_that_take_them(kind):
    x = table()
    history = fit(None, Draw(x), optimizer=kind([x], lr=0.01), steps=8)
    assert history.status == "completed"
    assert torch.equal(x[30:], table()[30:])


def test_rows_that_are_not_finite_stop_the_fit_at_the_last_good_state():
    stopped, short = table(), table()
    settings = {"optimizer": "lion", "optimizer_options": ROWS, "lr": 0.01}
    history = fit([stopped], Draw(stopped, bad_step=4), steps=8, **settings)
    assert history.status == "diverged"
    assert "step 4: the norm of the gradient of parameter 0" in history.message
    fit([short], Draw(short), steps=4, **settings)
    last = table()
    fit([last], Draw(last), steps=3, **settings)
    assert any(torch.equal(stopped, good) for good in (short, last))  # of the last evaluation that was finite


def test_other_optimizers_say_what_to_do():
    x = table()
    with pytest.raises(InputError, match=r'loss: want dense gradients.*"rows"'):
        fit([x], Draw(x), optimizer="adam", steps=2)


def test_a_filter_spreads_them_over_all_rows():
    x, y = table(), table()
    for p, loss in ((x, Draw(x)), (y, lambda: Draw(y)(0) + 0 * y.sum())):
        smooth = {p: GridFilter(1.0, shape=(40,))}
        fit([p], loss, optimizer="sgd", optimizer_options={"momentum": 0.0}, lr=0.01, steps=1, structure=smooth)
    torch.testing.assert_close(x, y)
    assert (x[30:34] != table()[30:34]).all()
