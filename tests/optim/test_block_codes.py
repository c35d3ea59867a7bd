import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.optim.block_codes import BLOCKS, codebook, dequantize, ordered_bits, quantize

both = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def test_values_of_the_published_map():
    signed, unsigned = (codebook(signed=s).values.astype(np.float64) for s in (True, False))
    assert signed.sum() == pytest.approx(1.0, abs=1e-8)
    assert (signed**2).sum() == pytest.approx(48.59583767, abs=1e-7)
    assert signed[[0, 255]].tolist() == pytest.approx([-0.99296874, 1.0])
    assert signed[127:132] == pytest.approx([0.0, 5.5e-7, 3.25e-6, 7.75e-6, 2.125e-5], rel=1e-6)
    assert unsigned.sum() == pytest.approx(75.10526324, abs=1e-7)
    assert (unsigned**2).sum() == pytest.approx(48.59745211, abs=1e-7)
    assert unsigned[[0, 1, 2, 3, 254, 255]] == pytest.approx([0, 3.25e-7, 7.75e-7, 2.125e-6, 0.9964844, 1], rel=1e-6)


@both
def test_map_of_bitsandbytes(signed):
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.create_dynamic_map(signed=signed)
    assert torch.equal(torch.from_numpy(codebook(signed=signed).values), theirs)


@both
def test_steps_give_the_codes_of_all_numbers(signed):
    """Where codes can change: around the boundaries and at both ends of numbers with the same upper 16 bits."""
    book = codebook(signed=signed)
    finite = book.boundaries[:-1]
    around = [np.nextafter(finite, np.float32(way)) for way in (-np.inf, np.inf)]
    upper = np.arange(2**16, dtype=np.uint32) << 16
    ends = np.concatenate((upper, upper | 0xFFFF)).view(np.float32)
    drawn = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    numbers = np.concatenate((finite, *around, ends, drawn))
    numbers = numbers[np.abs(numbers) <= 1]
    bits = ordered_bits(numbers)
    codes = (book.steps[bits >> 16] + (bits & 0xFFFF)) >> 16
    assert np.array_equal(codes, np.searchsorted(finite, numbers, side="right"))


def test_ordered_bits_ascend():
    numbers = np.array([-np.inf, -1.0, -1e-40, -0.0, 0.0, 1e-40, 0.5, np.inf], dtype=np.float32)
    assert (np.diff(ordered_bits(numbers).view(np.int32).astype(np.int64)) > 0).all()


def nearest(x: np.ndarray, *, signed: bool, block: int) -> np.ndarray:
    """Codes by looking at all 256 values, in double precision."""
    values, codes = codebook(signed=signed).values.astype(np.float64), []
    for start in range(0, len(x), block):
        part = x[start : start + block]
        scale = np.abs(part).max()
        ratio = (part / (scale if scale else np.float32(1))).astype(np.float32).astype(np.float64)
        distance = np.abs(ratio[:, None] - values)
        chosen = 255 - distance[:, ::-1].argmin(1)  # the larger of two that are equally near
        if not signed:
            chosen = np.where((ratio > 0) & (chosen == 0), 1, chosen)
        codes.append(chosen)
    return np.concatenate(codes)


numbers = st.one_of(
    st.floats(-1, 1, width=32),
    st.floats(-(2.0**-20), 2.0**-20, width=32),
    st.floats(-(2.0**99), 2.0**99, width=32),
    st.sampled_from([0.0, 1e-45, 1e-39, 1.0, 3e38]),
)


@both
@given(values=st.lists(numbers, min_size=1, max_size=200), scale=st.sampled_from([1.0, 1e-20, 1e5]))
def test_codes_are_the_nearest(signed, values, scale):
    x = np.array(values, np.float64)
    x = np.clip(x * scale, -3e38, 3e38).astype(np.float32)
    x = x if signed else np.abs(x)
    codes, scales = quantize(torch.from_numpy(x), signed=signed, block=64)
    assert codes.shape == x.shape
    assert scales.tolist() == [float(np.abs(x[i : i + 64]).max()) for i in range(0, len(x), 64)]
    assert np.array_equal(codes.numpy(), nearest(x, signed=signed, block=64))


@both
@given(
    exponent=st.floats(-20, 20),
    seed=st.integers(0, 2**20),
    size=st.integers(1, 700),
    outlier=st.sampled_from([1.0, 30.0, 1e4]),
)
def test_errors_are_bounded_decade_by_decade(signed, exponent, seed, size, outlier):
    random = np.random.default_rng(seed)
    x = random.standard_normal(size) * 10.0**exponent
    x[random.integers(size)] *= outlier
    x = (x if signed else np.abs(x)).astype(np.float32)
    tensor = torch.from_numpy(x)
    back = dequantize(*quantize(tensor, signed=signed, block=256), signed=signed, block=256)
    scale = np.repeat([np.abs(x[i : i + 256]).max() for i in range(0, size, 256)], 256)[:size]
    ratio, error = np.abs(x) / scale, np.abs(back.numpy() - x)
    for decade in range(1, 5):
        low, n = 10.0**-decade, (128 if signed else 256) >> decade
        # halfway between the first two values of a decade of n, or between its first and the last of the one below
        worst = max(4.5 / (n + 9), 2.7 / (n + 1.8))
        inside = (ratio >= low * 1.001) & (ratio < low * 9.99)
        assert (error[inside] <= 1.001 * worst * np.abs(x[inside])).all()
    assert (error <= (0.00704 if signed else 0.00353) * scale).all()


@both
def test_mean_errors_by_decade(signed, generator):
    for low, mean in ((0.1, 0.0127), (1e-2, 0.026), (1e-3, 0.050), (1e-4, 0.10)):
        x = low * 10 ** torch.rand(2**14, generator=generator)
        x[::256] = 1.0
        back = dequantize(*quantize(x, signed=signed), signed=signed)
        relative = ((back - x).abs() / x)[x < 10 * low].mean()
        assert relative < mean * (1.1 if signed else 0.65)


@both
def test_zeros_stay_zeros(signed):
    x = torch.zeros(1000)
    x[0] = 1.0
    codes, scales = quantize(x, signed=signed)
    assert scales.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert torch.equal(dequantize(codes, scales, signed=signed), x)


@both
def test_every_value_is_its_own_code(signed):
    values = torch.from_numpy(codebook(signed=signed).values)
    codes, scales = quantize(values, signed=signed)
    assert codes.tolist() == list(range(256))
    assert torch.equal(dequantize(codes, scales, signed=signed), values)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_all_sizes_and_a_partial_one(block, generator):
    x = torch.randn(2 * block + 3, generator=generator)
    codes, scales = quantize(x, signed=True, block=block)
    assert scales.shape == (3,)
    assert (dequantize(codes, scales, signed=True, block=block) - x).abs().max() < 0.0071 * x.abs().max()
    assert quantize(torch.zeros(0), signed=True, block=block)[0].shape == (0,)


def test_other_blocks_are_named():
    with pytest.raises(InputError, match=r"block: want one of 64, 128, .*, 4096, got 100"):
        quantize(torch.zeros(3), signed=True, block=100)
