import numpy as np
import pytest
import torch

from diffmatch.report import format_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1\u202f234\u202f567"),
        (True, "yes"),
        (np.bool_(False), "no"),
        (None, "-"),
        (0.000123456, "0.0001235"),
        (1.5e-7, "1.5e-7"),
        (-2.0e12, "-2e12"),
        (0.25, "0.25"),
        (123456.7, "123\u202f457"),
        (float("nan"), "undefined"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (np.float32(0.5), "0.5"),
        (np.int64(1000), "1\u202f000"),
        (torch.tensor(2.5), "2.5"),
        ((64, 96, 64), "64, 96, 64"),
        ("adamw", "adamw"),
    ],
)
def test_values_read_well(value, text):
    assert format_value(value) == text


def test_digits_are_significant_ones():
    assert format_value(123.456, digits=2) == "123"
    assert format_value(0.0123456, digits=2) == "0.012"
