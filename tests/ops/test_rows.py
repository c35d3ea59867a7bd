"""Rows by number, against plain indexing."""

import torch

from diffmatch.ops import distinct_rows, gather_rows, lazy_zeros


def test_gathered_rows_and_their_gradient_equal_indexing(generator, device):
    rows = torch.randn(9, 3, dtype=torch.float64, generator=generator, device=device, requires_grad=True)
    index = torch.randint(9, (40, 2), generator=generator, device=device)
    upstream = torch.randn(40, 2, 3, dtype=torch.float64, generator=generator, device=device)
    assert torch.equal(gather_rows(rows, index), rows[index])
    (found,) = torch.autograd.grad(gather_rows(rows, index), rows, upstream)
    (wanted,) = torch.autograd.grad(rows[index], rows, upstream)
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradgradcheck(lambda r: gather_rows(r, index).square(), (rows,))


def test_gradient_of_gathered_rows_has_the_same_bits_each_time(generator, device):
    rows = torch.randn(2_000, 3, generator=generator, device=device, requires_grad=True)
    index = torch.randint(2_000, (60_000,), generator=generator, device=device)
    upstream = torch.randn(60_000, 3, generator=generator, device=device)
    first, *others = (torch.autograd.grad(gather_rows(rows, index), rows, upstream)[0] for _ in range(5))
    assert all(torch.equal(first, other) for other in others)


def test_distinct_rows_and_their_derivatives_equal_indexing(generator, device):
    rows = torch.randn(9, 2, 2, dtype=torch.float64, generator=generator, device=device, requires_grad=True)
    index = torch.tensor([7, 0, 3], device=device)
    assert torch.equal(distinct_rows(rows, index), rows[index])
    assert torch.autograd.gradcheck(lambda r: distinct_rows(r, index), (rows,))
    assert torch.autograd.gradgradcheck(lambda r: distinct_rows(r, index).square(), (rows,))


def test_lazy_zeros_are_zeros_like_another_tensor(device):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64):
        like = torch.ones(2, dtype=dtype, device=device)
        found = lazy_zeros(torch.Size((3, 4)), like=like)
        assert found.dtype == dtype
        assert found.device == like.device
        assert found.shape == (3, 4)
        assert not found.any()


def test_large_zeros_are_written_like_others():
    found = lazy_zeros(torch.Size((3, 2**22)), like=torch.ones(1))
    assert not found.any()
    found[1, 5] = 2
    found.add_(1)
    assert (found.sum(), found[1, 5]) == (3 * 2**22 + 2, 3)
