"""A stable sort of integer keys in linear time, and keys that order floating-point numbers."""

import typing

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

__all__ = ["argsort", "ordered_keys"]

_DIGIT = 11
_BUCKETS = 1 << _DIGIT


def ordered_keys(values: Tensor) -> npt.NDArray[np.signedinteger]:
    """Integers in the order of floating-point numbers on the CPU, flat; equal numbers have equal keys.

    ``~key`` orders the negated numbers. Half precision is widened.

    Args:
        values: any shape, without NaN; zeros of both signs are equal.
    """
    wide = values.detach() if values.dtype == torch.float64 else values.detach().float()
    flat = wide.reshape(-1).numpy()
    bits: npt.NDArray[np.signedinteger] = flat.view(np.int64 if flat.dtype == np.float64 else np.int32)
    keys = np.empty_like(bits)
    _order_bits(bits, keys)
    return keys


@njit(cache=True, nogil=True)
@typing.no_type_check
def _order_bits(bits, keys):
    """The bits of positive numbers are in order; those of negative ones run backwards, from -0.0, which is to be 0."""
    lowest = np.iinfo(bits.dtype).min
    for i in range(len(bits)):
        keys[i] = bits[i] if bits[i] >= 0 else lowest - bits[i]


def argsort(keys: npt.NDArray[np.signedinteger]) -> npt.NDArray[np.int32]:
    """The stable order of int32 or int64 keys, int32; equal keys stay in the order they came in."""
    if not len(keys):
        return np.empty(0, np.int32)
    n_bits = 8 * keys.dtype.itemsize
    differing = int(np.bitwise_or.reduce(keys ^ keys[0])) & ((1 << n_bits) - 1)
    # Two or three digits tell nearly all keys apart; where they do not, the sort starts again with all of them.
    n_digits = 2 if len(keys) < 1 << 15 else 3
    skipped = max(0, differing.bit_length() - n_digits * _DIGIT)
    order, done = _radix(keys, skipped, differing.bit_length(), 4 * len(keys))
    if not done:
        order, _ = _radix(keys, 0, differing.bit_length(), 0)
    result: npt.NDArray[np.int32] = order
    return result


@njit(cache=True, nogil=True)
@typing.no_type_check
def _radix(keys, skipped, end, budget):
    """Sort by the bits from `skipped` to `end`, digit by digit from the least significant one; finish by insertion.

    The bits from `end` on are the same in all keys. The second answer is False if the insertion would have taken more
    than `budget` moves.
    """
    n, n_bits = len(keys), 8 * keys.itemsize
    n_digits = max(0, end - skipped + _DIGIT - 1) // _DIGIT
    # With the sign bit flipped, unsigned integers have the order of the signed ones.
    sign, used = np.int64(1) << (n_bits - 1), np.int64(-1) if n_bits == 64 else np.int64(0xFFFFFFFF)
    count = np.zeros((n_digits, _BUCKETS), np.int64)
    for i in range(n):
        key = (np.int64(keys[i]) & used) ^ sign
        for digit in range(n_digits):
            count[digit, (key >> (skipped + digit * _DIGIT)) & (_BUCKETS - 1)] += 1
    order, other_order = np.arange(n).astype(np.int32), np.empty(n, np.int32)
    moved, other = keys.copy(), np.empty_like(keys)
    for digit in range(n_digits):
        shift, total, shared = skipped + digit * _DIGIT, 0, False
        for bucket in range(_BUCKETS):
            size = count[digit, bucket]
            shared |= size == n
            count[digit, bucket] = total
            total += size
        if shared:
            continue
        for i in range(n):
            bucket = (((np.int64(moved[i]) & used) ^ sign) >> shift) & (_BUCKETS - 1)
            at = count[digit, bucket]
            other[at], other_order[at] = moved[i], order[i]
            count[digit, bucket] = at + 1
        order, other_order = other_order, order
        moved, other = other, moved
    for i in range(1, n):
        key, at, j = moved[i], order[i], i
        while j > 0 and moved[j - 1] > key:
            moved[j], order[j] = moved[j - 1], order[j - 1]
            j -= 1
        moved[j], order[j] = key, at
        budget -= i - j
        if budget < 0:
            return order, False
    return order, True
