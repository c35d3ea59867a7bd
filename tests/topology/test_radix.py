"""The sort of keys against numpy's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from diffmatch.topology.radix import argsort, ordered_keys


@given(
    st.one_of(
        *[
            arrays.arrays(t, st.integers(0, 60), elements=st.floats(allow_nan=False, width=w))
            for t, w in ((np.float64, 64), (np.float32, 32))
        ]
    )
)
def test_order_of_any_numbers(values):
    keys = ordered_keys(torch.from_numpy(values))
    np.testing.assert_array_equal(argsort(keys), np.argsort(values, kind="stable"))
    np.testing.assert_array_equal(argsort(~keys), np.argsort(-values, kind="stable"))
    np.testing.assert_array_equal(keys[:-1] == keys[1:], values[:-1] == values[1:])


@given(arrays.arrays(np.int64, st.integers(0, 60)))
def test_order_of_any_integers(keys):
    np.testing.assert_array_equal(argsort(keys), np.argsort(keys, kind="stable"))


@pytest.mark.parametrize("kind", ["noise", "few values", "same leading bits", "reversed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_larger_arrays(kind, dtype, generator):
    values = torch.randn(5000, generator=generator, dtype=dtype)
    if kind == "few values":
        values = (3 * values).round()
    if kind == "same leading bits":
        values = 1 + values * torch.finfo(dtype).eps * 100  # insertion would be too slow here
    if kind == "reversed":
        values = values.sort(descending=True).values
    keys = ordered_keys(values)
    np.testing.assert_array_equal(argsort(keys), np.argsort(values.numpy(), kind="stable"))


def test_half_precision_and_shape():
    values = torch.tensor([[1.0, -2.0], [0.5, -0.0]], dtype=torch.bfloat16)
    assert argsort(ordered_keys(values)).tolist() == [1, 3, 2, 0]
    assert ordered_keys(values).dtype == np.int32
