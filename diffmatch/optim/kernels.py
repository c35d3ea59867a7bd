"""Compiled steps on the CPU: one call for all tensors of a dtype, one pass over the memory.

Each kernel does what the ``reference`` of its rule does in several passes of tensor operations; that is its test.
The kernels release the interpreter lock and are serial; :func:`diffmatch.optim.threads.run_in_parts` spreads them.

All of them take the same description of the work: ``addresses`` (one row a kind of buffer, one column a tensor) of
contiguous memory, ``starts``, where each tensor begins in the concatenation of all of them, ``rows``, the row of
``coefficients`` that each tensor goes by, and the part ``first`` to ``last`` of the concatenation to work on. The dtype
of ``coefficients`` is that of the tensors and of the arithmetic.

Numba's cache does not notice edits in other files, so every jitted function that a kernel calls lives here.
"""

import typing

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

# Division by zero gives what IEEE 754 says. Annotation checks would wrap what numba has to compile, hence the second
# decorator of each kernel.
_kernel = njit(cache=True, nogil=True, error_model="numpy")
_part = njit(nogil=True, error_model="numpy", forceinline=True)


@intrinsic
@typing.no_type_check
def _pointer(typing_context, address, like):
    """An address as a pointer to the elements of an array like this one."""
    target = types.CPointer(like.dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(target))

    return target(types.int64, like), generate


@intrinsic
@typing.no_type_check
def _bits(typing_context, number):
    """The bits of a float32 as an int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@intrinsic
@typing.no_type_check
def _number(typing_context, bits):
    """The float32 of these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@_kernel
@typing.no_type_check
def lion_kernel(addresses, starts, rows, coefficients, first, last):
    """Lion on parameters, gradients and momenta; coefficients: lr, decay, b1, 1 - b1, b2, 1 - b2, sign."""
    tensor = np.searchsorted(starts, first, side="right") - 1
    while tensor < len(rows) and starts[tensor] < last:
        low = max(first - starts[tensor], 0)
        size = min(last, starts[tensor + 1]) - starts[tensor] - low
        offset = low * coefficients.itemsize
        param = carray(_pointer(addresses[0, tensor] + offset, coefficients), size)
        grad = carray(_pointer(addresses[1, tensor] + offset, coefficients), size)
        momentum = carray(_pointer(addresses[2, tensor] + offset, coefficients), size)
        lr, decay, b1, one_minus_b1, b2, one_minus_b2, sign = coefficients[rows[tensor]]
        zero = lr - lr
        for i in range(size):
            g = sign * grad[i]
            m = momentum[i]
            c = b1 * m + one_minus_b1 * g
            p = param[i] * decay
            param[i] = p - lr if c > zero else (p + lr if c < zero else p)
            momentum[i] = b2 * m + one_minus_b2 * g
        tensor += 1


@_kernel
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


@_kernel
@typing.no_type_check
def exadam_kernel(addresses, starts, rows, coefficients, first, last):
    """EXAdam on parameters, gradients, first and second moments; coefficients as :func:`exadam.coefficients` lists."""
    tensor = np.searchsorted(starts, first, side="right") - 1
    while tensor < len(rows) and starts[tensor] < last:
        low = max(first - starts[tensor], 0)
        size = min(last, starts[tensor + 1]) - starts[tensor] - low
        offset = low * coefficients.itemsize
        param = carray(_pointer(addresses[0, tensor] + offset, coefficients), size)
        grad = carray(_pointer(addresses[1, tensor] + offset, coefficients), size)
        moment_1 = carray(_pointer(addresses[2, tensor] + offset, coefficients), size)
        moment_2 = carray(_pointer(addresses[3, tensor] + offset, coefficients), size)
        lr, decay, b1, one_minus_b1, b2, one_minus_b2, eps, b1_t, b2_t, scale_1, scale_2, clip, sign = coefficients[
            rows[tensor]
        ]
        one = eps / eps
        for i in range(size):
            g = sign * grad[i]
            m = b1 * moment_1[i] + one_minus_b1 * g
            v = b2 * moment_2[i] + one_minus_b2 * (g * g)
            moment_1[i] = m
            moment_2[i] = v
            square = m * m
            d1 = one + v / (v + eps) * b2_t
            d2 = one + square / (square + eps) * b1_t
            ratio = (m + g) * (scale_1 * d1) / (np.sqrt(v * scale_2 * d2) + eps)
            if ratio > clip:
                ratio = clip
            elif ratio < -clip:
                ratio = -clip
            param[i] = param[i] * decay - lr * ratio
        tensor += 1


ADAM, LION, MOMENTUM = 0, 1, 2
"""Rules of :func:`eight_bit_kernel`."""


@_kernel
@typing.no_type_check
def eight_bit_kernel(rule, addresses, starts, rows, coefficients, sizes, blocks, signed, unsigned, first, last):
    """A rule on float32 parameters whose states are codes, block by block; ``first`` and ``last`` count blocks.

    Addresses: parameter, gradient, codes and scales of the first state, codes and scales of the second (Adam's alone).
    ``sizes`` counts entries and ``blocks`` gives entries a block, for each tensor; ``starts`` counts blocks.
    ``signed`` and ``unsigned`` are (values, steps), see :class:`diffmatch.optim.block_codes.Codebook`.
    Coefficients: lr, decay, weight decay in the gradient, b1, weight of the gradient, b2, 1 - b2, eps, 1 / (1 - b1^t),
    1 / sqrt(1 - b2^t), sign.

    Every loop either looks up or computes, so that the latter vectorise.
    """
    width = blocks.max()
    m, v = np.empty(width, np.float32), np.empty(width, np.float32)
    keys, codes = np.empty(width, np.uint32), np.empty(width, np.uint8)
    bytes_like, zero = np.empty(0, np.uint8), np.float32(0)
    tensor = np.searchsorted(starts, first, side="right") - 1
    while tensor < len(rows) and starts[tensor] < last:
        size, block = sizes[tensor], blocks[tensor]
        n_blocks = starts[tensor + 1] - starts[tensor]
        param = carray(_pointer(addresses[0, tensor], coefficients), size)
        grad = carray(_pointer(addresses[1, tensor], coefficients), size)
        codes_1 = carray(_pointer(addresses[2, tensor], bytes_like), size)
        scales_1 = carray(_pointer(addresses[3, tensor], coefficients), n_blocks)
        codes_2, scales_2 = codes_1, scales_1
        if rule == ADAM:
            codes_2 = carray(_pointer(addresses[4, tensor], bytes_like), size)
            scales_2 = carray(_pointer(addresses[5, tensor], coefficients), n_blocks)
        lr, decay, l2, b1, weight_1, b2, weight_2, eps, correction_1, correction_2, sign = coefficients[rows[tensor]]
        for number in range(max(first - starts[tensor], 0), min(last - starts[tensor], n_blocks)):
            low = number * block
            count = min(size - low, block)
            p, g, c1 = param[low : low + count], grad[low : low + count], codes_1[low : low + count]
            _decode(c1, scales_1[number], signed[0], m)
            if rule == ADAM:
                c2 = codes_2[low : low + count]
                _decode(c2, scales_2[number], unsigned[0], v)
                step = lr * correction_1
                for i in range(count):
                    x = p[i]
                    slope = sign * g[i] + l2 * x
                    m_new = b1 * m[i] + weight_1 * slope
                    v_new = b2 * v[i] + weight_2 * (slope * slope)
                    p[i] = x * decay - step * m_new / (np.sqrt(v_new) * correction_2 + eps)
                    m[i] = m_new
                    v[i] = v_new
                scales_2[number] = _encode(v, keys, unsigned[1], codes, c2)
            elif rule == LION:
                for i in range(count):
                    slope = sign * g[i]
                    c = b1 * m[i] + weight_1 * slope
                    x = p[i] * decay
                    p[i] = x - lr if c > zero else (x + lr if c < zero else x)
                    m[i] = b2 * m[i] + weight_2 * slope
            else:
                for i in range(count):
                    x = p[i]
                    m_new = b1 * m[i] + weight_1 * (sign * g[i] + l2 * x)
                    p[i] = x - lr * m_new
                    m[i] = m_new
            scales_1[number] = _encode(m, keys, signed[1], codes, c1)
        tensor += 1


@_part
@typing.no_type_check
def _decode(codes, scale, values, out):
    for i in range(len(codes)):
        out[i] = values[codes[i]] * scale


@_part
@typing.no_type_check
def _encode(values, keys, steps, codes, out):
    """Codes of the first values over their largest magnitude, which is returned. ``keys`` and ``codes`` are room.

    The casts keep integers in 32 bits, where numba takes 64: half as many would fit a vector.
    """
    count = len(out)
    top = np.int32(0)
    for i in range(count):  # magnitudes order as their bits do, and NaN above all
        magnitude = np.int32(_bits(values[i]) & np.int32(0x7FFFFFFF))
        top = magnitude if magnitude > top else top
    scale = _number(top)
    divisor = scale if top != 0 else np.float32(1)
    for i in range(count):  # as in `block_codes.ordered_bits`
        bits = _bits(values[i] / divisor)
        keys[i] = np.uint32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    for i in range(count):
        upper, lower = keys[i] >> np.uint32(16), np.uint32(keys[i] & np.uint32(0xFFFF))
        codes[i] = np.uint32(steps[upper] + lower) >> np.uint32(16)
    for i in range(count):
        out[i] = codes[i]
    return scale
