"""Gradients that come as rows: which rows move, how often each was stepped, and what other gradients meet."""

import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.optim import Adam8bit, AdamW8bit, EXAdam, Lion, Lion8bit, SGD8bit

PLAIN = [Lion, EXAdam]
all_that_can = pytest.mark.parametrize(
    "kind", [*PLAIN, AdamW8bit, Adam8bit, Lion8bit, SGD8bit], ids=lambda kind: kind.__name__
)


def matrix(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def rows_of(table: torch.Tensor, index: list[int], values: torch.Tensor) -> torch.Tensor:
    """A sparse gradient of these rows."""
    return torch.sparse_coo_tensor(torch.tensor([index]), values, table.shape, check_invariants=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(50, 12), (50,), (50, 3, 2), (50, 0)])
@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.__name__)
def test_kernel_agrees_with_the_tensor_operations(kind, shape, dtype, generator):
    x = matrix(generator, *shape, dtype=dtype)
    y = x.detach().clone().requires_grad_()
    options = {"lr": 0.01, "weight_decay": 0.1, "sparse": "rows"}
    optimizers = kind([x], **options), kind([y], **options, fused=False)
    for _ in range(5):
        index = torch.randint(40, (25,), generator=generator).tolist()
        x.grad = rows_of(x, index, torch.randn(25, *shape[1:], generator=generator, dtype=dtype))
        y.grad = x.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    tight = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(x, y, atol=tight, rtol=tight)
    for name in kind.rule.buffers:
        torch.testing.assert_close(optimizers[0].state[x][name], optimizers[1].state[y][name], atol=tight, rtol=tight)


@pytest.mark.parametrize("index", [[2, 9], [-1, 2]])
def test_rows_that_are_not_there_are_refused_before_memory_is_touched(index, generator):
    table = matrix(generator, 9, 2)
    grad = torch.sparse_coo_tensor(
        torch.tensor([index]), torch.ones(2, 2), (10, 2), is_coalesced=True, check_invariants=False
    )
    optimizer = Lion([table], sparse="rows")
    table.grad = rows_of(table, [2], torch.ones(1, 2))
    optimizer.step()
    with pytest.raises(InputError, match="params: want sparse gradients of rows 0 to 8, got row"):
        optimizer._run_fused_rows(
            table.detach(),
            *(grad.indices()[0], grad.values(), [optimizer.state[table]["exp_avg"]], torch.ones(2)),
            optimizer.param_groups[0],
        )


def test_no_rows_at_all(generator):
    table = matrix(generator, 9, 2)
    start = table.detach().clone()
    table.grad = rows_of(table, [], torch.ones(0, 2))
    Lion([table], sparse="rows").step()
    assert torch.equal(table, start)


@all_that_can
def test_rows_alone_are_updated_and_count_their_own_steps(kind, generator):
    table = matrix(generator, 900, 6)
    start = table.detach().clone()
    optimizer = kind([table], lr=0.01, weight_decay=0.1, sparse="rows")
    rows = [torch.tensor([3, 500, 3]), torch.tensor([500, 7])]
    for index in rows:
        table.grad = None
        torch.nn.functional.embedding(index, table, sparse=True).square().sum().backward()
        optimizer.step()
    touched = torch.zeros(900, dtype=torch.bool)
    touched[[3, 7, 500]] = True
    assert torch.equal(table.detach()[~touched], start[~touched])
    assert (table.detach()[touched] != start[touched]).all()
    # each row went as a small parameter of its own would have gone
    for row, gradients in ((3, [2]), (7, [1]), (500, [1, 1])):
        alone = start[row].clone().requires_grad_()
        single = kind([alone], lr=0.01, weight_decay=0.1, fused=False)
        for count in gradients:
            alone.grad = 2 * count * alone.detach()
            single.step()
        torch.testing.assert_close(table.detach()[row], alone.detach())
    assert optimizer.state[table]["row_steps"][[3, 7, 500, 0]].tolist() == [1, 1, 2, 0]


def test_rows_after_dense_gradients_and_dense_gradients_after_rows(generator):
    table = matrix(generator, 9, 2)
    optimizer = EXAdam([table], sparse="rows")
    table.grad = torch.ones(9, 2)
    optimizer.step()
    table.grad = rows_of(table, [4], torch.ones(1, 2))
    optimizer.step()
    table.grad = -torch.ones(9, 2)
    optimizer.step()
    assert optimizer.state[table]["row_steps"].tolist() == [2, 2, 2, 2, 3, 2, 2, 2, 2]


def test_rows_in_half_precision():
    table = torch.ones(3000, 4, dtype=torch.bfloat16, requires_grad=True)
    optimizer = Lion([table], lr=1e-3, sparse="rows")
    index = torch.arange(2000)
    for _ in range(5):
        table.grad = None
        torch.nn.functional.embedding(index, table, sparse=True).sum().backward()
        optimizer.step()
    moved = 1 - table.detach().double()
    assert moved[:2000].mean() == pytest.approx(5e-3, rel=0.05)
    assert (moved[2000:] == 0).all()


def test_sparse_gradients_made_dense(generator):
    table = matrix(generator, 9, 2)
    other = table.detach().clone().requires_grad_()
    grad = rows_of(table, [4, 2], torch.ones(2, 2))
    table.grad, other.grad = grad, grad.to_dense()
    Lion([table], sparse="densify", weight_decay=1.0).step()
    Lion([other], weight_decay=1.0).step()
    assert torch.equal(table, other)


def test_sparse_gradients_are_refused_by_default(generator):
    table = matrix(generator, 9, 2)
    torch.nn.functional.embedding(torch.tensor([1]), table, sparse=True).sum().backward()
    with pytest.raises(InputError, match='sparse: want "densify" or "rows" for sparse gradients'):
        Lion([table]).step()


def test_entries_are_no_rows(generator):
    table = matrix(generator, 9, 2)
    index = torch.tensor([[4], [1]])
    table.grad = torch.sparse_coo_tensor(index, torch.ones(1), (9, 2), check_invariants=False)
    with pytest.raises(InputError, match=r"one sparse axis\), got one of 2"):
        Lion([table], sparse="rows").step()
