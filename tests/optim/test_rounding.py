import pytest
import torch

from diffmatch.optim.rounding import round_stochastically

HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("value", [1.001, -3.1416, 2.0**-20 * 1.3, 1e-7, 0.33])
def test_the_mean_is_the_value_and_neighbours_are_all_there_is(value, dtype):
    wide = torch.full((40_000,), value)
    rounded = torch.empty(40_000, dtype=dtype)
    round_stochastically(wide, into=rounded, stream=(0, 1, 2))
    values = rounded.double().unique()
    assert len(values) == 2
    gap = float(values[1] - values[0])
    exact = float(wide[0].double())
    assert values[0] < exact < values[1]
    assert abs(float(rounded.double().mean()) - exact) < 4 * 0.5 * gap / 200


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_the_dtype_holds_stays(dtype, generator):
    exact = torch.cat((torch.randn(1000, generator=generator), torch.tensor([0.0, 1.0, torch.inf, -torch.inf])))
    exact = exact.to(dtype)
    rounded = torch.empty_like(exact)
    round_stochastically(exact.float(), into=rounded, stream=(3,))
    assert torch.equal(rounded, exact)
    nan = torch.empty(3, dtype=dtype)
    round_stochastically(torch.full((3,), torch.nan), into=nan, stream=(3,))
    assert torch.isnan(nan).all()


def test_bits_are_a_function_of_the_stream():
    wide = torch.linspace(0.5, 1.0, 999)
    results = []
    for stream in ((1, 2, 3), (1, 2, 3), (1, 2, 4), (2, 1, 3)):
        results.append(torch.empty(999, dtype=torch.bfloat16))
        round_stochastically(wide, into=results[-1], stream=stream)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[3])
