"""Which bars are kept, and in what order: the compiled way and that of tensor operations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.topology import vertex_pairs as module
from diffmatch.topology.vertex_pair_kernels import bars


def by_tensors(values, *columns):
    return module._bars(values, *columns)


def by_kernel(values, births, deaths, essential, min_persistence):
    columns = births.numpy(), deaths.numpy(), essential.numpy()
    return tuple(torch.from_numpy(x) for x in bars(values.numpy(), *columns, min_persistence))


@st.composite
def classes(draw):
    """Values with many ties, some infinite, distinct pairs whose births are not above their deaths, and others."""
    n = draw(st.integers(2, 12))
    values = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5, math.inf]), min_size=n, max_size=n)))
    every = [(i, j) for i in range(n) for j in range(n) if i != j and values[i] <= values[j]]
    some = draw(st.lists(st.sampled_from(every), unique=True)) if every else []
    ends = torch.tensor(some, dtype=torch.int64).reshape(-1, 2)
    essential = draw(st.lists(st.integers(0, n - 1), unique=True))
    return values, ends[:, 0], ends[:, 1], torch.tensor(essential, dtype=torch.int64)


@given(classes(), st.sampled_from([0.0, 0.5, 1.0]))
def test_both_ways_agree(case, min_persistence):
    for found, wanted in zip(by_kernel(*case, min_persistence), by_tensors(*case, min_persistence), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bars_of_one_length_are_in_the_order_of_their_vertices(dtype):
    generator = torch.Generator().manual_seed(0)
    n = 100  # more than the kernel sorts by insertion
    values = torch.cat((torch.zeros(n), torch.ones(n))).to(dtype)
    births, deaths = torch.randperm(n, generator=generator), n + torch.randperm(n, generator=generator)
    for way in (by_kernel, by_tensors):
        first, last, endless = way(values, births, deaths, births[:0], 0.0)
        assert torch.equal(first, torch.arange(n))
        assert torch.equal(last, deaths[births.argsort()])
        assert not len(endless)
