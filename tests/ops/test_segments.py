"""Sums over groups of rows, against loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.ops import offsets_to_index, segment_sum


@given(
    segment=st.lists(st.integers(0, 6), max_size=12),
    columns=st.sampled_from([(), (1,), (3,), (2, 2)]),
    seed=st.integers(0, 99),
)
def test_segment_sum_equals_a_loop(segment, columns, seed):
    rows = torch.randn(len(segment), *columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wanted = torch.zeros(7, *columns, dtype=torch.float64)
    for row, number in zip(rows, segment, strict=True):
        wanted[number] += row
    found = segment_sum(rows, torch.tensor(segment, dtype=torch.int64), n_segments=7)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_segment_sum_keeps_dtype_and_device(index, device, dtype):
    rows = torch.ones(3, 2, dtype=dtype, device=device)
    found = segment_sum(rows, torch.tensor([1, 1, 0], dtype=index, device=device), n_segments=3)
    assert found.dtype == dtype
    assert found.device == rows.device
    assert found.tolist() == [[1, 1], [2, 2], [0, 0]]


def test_segment_sum_of_integers():
    assert segment_sum(torch.tensor([3, 4, 5]), torch.tensor([0, 1, 0]), n_segments=2).tolist() == [8, 4]


def test_segment_sum_of_nothing_is_zero():
    none = torch.zeros(0, dtype=torch.int64)
    assert segment_sum(torch.zeros(0, 3), none, n_segments=2).tolist() == [[0, 0, 0]] * 2
    assert segment_sum(torch.zeros(0, 3), none, n_segments=0).shape == (0, 3)


def test_segment_sum_gradient(generator, device):
    rows = torch.randn(5, 2, dtype=torch.float64, device=device, generator=generator, requires_grad=True)
    segment = torch.tensor([2, 0, 2, 1, 2], device=device)
    assert torch.autograd.gradcheck(lambda x: segment_sum(x, segment, n_segments=4), rows)


@given(sizes=st.lists(st.integers(0, 5), max_size=8))
def test_offsets_to_index_equals_a_loop(sizes):
    offsets = torch.tensor([sum(sizes[:i]) for i in range(len(sizes) + 1)])
    wanted = [number for number, size in enumerate(sizes) for _ in range(size)]
    assert offsets_to_index(offsets).tolist() == wanted
