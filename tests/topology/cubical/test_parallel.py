"""The parallel pairing finds the pairs of the sweeps, index by index."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffmatch.topology import cubical_persistence_batch
from diffmatch.topology.cubical.parallel import elder_pairs


def assert_same_pairs(fields: Tensor, **options: object) -> None:
    options["degrees"] = (0, fields.ndim - 2)
    parallel = cubical_persistence_batch(fields, pairing="parallel", **options)
    for ours, theirs in zip(parallel, cubical_persistence_batch(fields, **options), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.births.device == a.birth_index.device == fields.device
            for name in ("birth_index", "death_index", "essential_index", "births", "deaths", "essential_births"):
                assert torch.equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("shape", [(2, 17, 12), (2, 6, 5, 4), (1, 1, 1), (2, 0, 3), (0, 3, 3)])
def test_same_pairs_as_the_sweep(shape, device, generator):
    generic = torch.randn(shape, generator=generator, device=device)
    tied = torch.randint(0, 4, shape, generator=generator, device=device).float()
    for fields, construction in itertools.product((generic, tied), ("V", "T")):
        assert_same_pairs(fields, construction=construction, superlevel=construction == "T")


@given(
    st.one_of(st.tuples(*[st.integers(1, 6)] * 2), st.tuples(*[st.integers(1, 4)] * 3)),
    st.integers(0, 2**31),
    st.integers(2, 50),
    st.sampled_from(["V", "T"]),
)
def test_same_pairs_on_small_fields(shape, seed, n_values, construction):
    fields = torch.randint(0, n_values, (2, *shape), generator=torch.Generator().manual_seed(seed)).double()
    assert_same_pairs(torch.where(fields == n_values - 1, torch.inf, fields), construction=construction)


def test_gradient_on_the_device(device, generator):
    field = torch.randn(1, 9, 9, generator=generator, device=device, requires_grad=True)
    (found,) = cubical_persistence_batch(field, pairing="parallel")
    sum(diagram.persistence.sum() for diagram in found).backward()
    assert field.grad.abs().sum() > 0


def test_elder_rule_on_a_path(device):
    # Ages along the path: a chain of minima 0, 1, 2 that meet at 4 and 3.
    edges = torch.tensor([[0, 4, 1, 3], [4, 1, 3, 2]], device=device)
    younger, merge = elder_pairs(edges, 5)
    assert sorted(zip(younger.tolist(), merge.tolist(), strict=True)) == [(1, 4), (2, 3)]
    younger, merge = elder_pairs(edges[:, :0], 5)
    assert younger.shape == merge.shape == (0,)
