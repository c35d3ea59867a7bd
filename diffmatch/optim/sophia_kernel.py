"""The compiled step of Sophia; see :mod:`diffmatch.optim.kernels` for what its arguments are."""

import typing

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

__all__ = ["sophia_kernel"]


@intrinsic
@typing.no_type_check
def _pointer(typing_context, address, like):
    """An address as a pointer to the elements of an array like this one."""
    target = types.CPointer(like.dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(target))

    return target(types.int64, like), generate


@njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def sophia_kernel(addresses, starts, rows, coefficients, first, last):
    """Sophia on parameters, gradients, momenta, curvatures; coefficients: lr, decay, b1, 1 - b1, gamma, eps, sign."""
    tensor = np.searchsorted(starts, first, side="right") - 1
    while tensor < len(rows) and starts[tensor] < last:
        low = max(first - starts[tensor], 0)
        size = min(last, starts[tensor + 1]) - starts[tensor] - low
        offset = low * coefficients.itemsize
        param = carray(_pointer(addresses[0, tensor] + offset, coefficients), size)
        grad = carray(_pointer(addresses[1, tensor] + offset, coefficients), size)
        momentum = carray(_pointer(addresses[2, tensor] + offset, coefficients), size)
        curvature = carray(_pointer(addresses[3, tensor] + offset, coefficients), size)
        lr, decay, b1, one_minus_b1, gamma, eps, sign = coefficients[rows[tensor]]
        one = gamma / gamma
        for i in range(size):
            m = b1 * momentum[i] + one_minus_b1 * (sign * grad[i])
            momentum[i] = m
            bound = gamma * curvature[i]
            ratio = m / (bound if bound > eps else eps)
            ratio = one if ratio > one else (-one if ratio < -one else ratio)
            param[i] = param[i] * decay - lr * ratio
        tensor += 1
