import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.meshing.targets import Normalization

numbers = st.floats(-1e6, 1e6)
lengths = st.floats(1e-3, 1e6)


@given(low=st.tuples(numbers, numbers, numbers), sides=st.tuples(lengths, lengths, lengths))
def test_the_box_is_centred_and_comes_back(low, sides):
    corner = torch.tensor(low, dtype=torch.float64)
    bounds = torch.stack([corner, corner + torch.tensor(sides, dtype=torch.float64)])
    normalization = Normalization.of_bounds(bounds)
    boxed = normalization.apply(bounds)
    size = bounds.abs().max() + (bounds[1] - bounds[0]).max()
    rounding = float(1e-13 * size * normalization.scale)
    assert float((boxed[1] - boxed[0]).max()) == pytest.approx(1.8, abs=rounding)
    torch.testing.assert_close(boxed.sum(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=rounding)
    torch.testing.assert_close(normalization.inverse(boxed), bounds, rtol=0, atol=float(1e-13 * size))


def test_the_default_changes_nothing(device, dtype):
    points = torch.rand(4, 5, 3, device=device).to(dtype)
    assert torch.equal(Normalization().apply(points), points)
    assert torch.equal(Normalization().inverse(points), points)


def test_a_flat_box_is_a_box():
    bounds = torch.tensor([[0.0, 0, 5], [2, 1, 5]])
    assert Normalization.of_bounds(bounds) == Normalization((1.0, 0.5, 5.0), 0.9)


@pytest.mark.parametrize(
    "bounds",
    [
        [[1.0, 2, 3], [1, 2, 3]],
        [[0.0, 0, 0], [1, -1, 1]],
        [[0.0, 0, 0], [1, float("inf"), 1]],
        [[0.0, float("nan"), 0], [1, 1, 1]],
    ],
)
def test_no_box(bounds):
    with pytest.raises(InputError, match="bounds: want a low and a high corner apart from each other"):
        Normalization.of_bounds(torch.tensor(bounds))
