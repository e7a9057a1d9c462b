# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The scalar rules of `kernels.reference`, for Triton: the same sums, roundings and polynomials.

Kernels that call these are launched with `enable_fp_fusion=False`, so that no product and sum are
rounded together, and divide and take roots in round-to-nearest.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["codes_of", "exp", "gate", "halves_sum", "inverse_of", "low_digit", "round_even"]


@triton.jit
def round_even(x):
    """Rounds to whole numbers, halves to even, for |x| < 2**22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def halves_sum(x, ROWS: tl.constexpr, SIZE: tl.constexpr, LEVELS: tl.constexpr):
    """Sums rows of x [ROWS, SIZE] as `reference.halves_sum` does; SIZE = 2**LEVELS; [ROWS]."""
    for level in tl.static_range(LEVELS):
        x = tl.sum(tl.reshape(x, [ROWS, 2, SIZE >> (level + 1)]), axis=1)
    return tl.reshape(x, [ROWS])


@triton.jit
def exp(x):
    """e to the x: the polynomial of `reference.exp`."""
    cut = tl.minimum(tl.maximum(x, -86.0), 88.0)
    n = round_even(cut * 1.44269504)
    r = (cut - n * 0.693359375) - n * -2.12194440e-4
    y = r * (1 / 720) + (1 / 120)
    y = y * r + (1 / 24)
    y = y * r + (1 / 6)
    y = y * r + 0.5
    y = y * r + 1.0
    y = y * r + 1.0
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x < -86.0, 0.0, y * power)


@triton.jit
def gate(x, up, GELU: tl.constexpr):
    """act(x) * up, as `reference.gate`."""
    z = x
    if GELU:
        z = (x + x * x * x * 0.044715) * 1.5957691216
    return tl.div_rn(x, exp(-z) + 1.0) * up


@triton.jit
def inverse_of(largest, max_code):
    """What turns a row with this largest magnitude into codes; 0 for a row of zeros."""
    some = largest > 1e-30
    return tl.where(some, tl.div_rn(max_code, tl.where(some, largest, 1.0)), 0.0)


@triton.jit
def codes_of(x, inverse):
    """The whole numbers nearest to x * inverse, int32."""
    return round_even(x * inverse).to(tl.int32)


@triton.jit
def low_digit(codes, BITS: tl.constexpr):
    """What is left of codes after their high digit, `codes >> BITS`: 0 to 2**BITS - 1."""
    return codes & ((1 << BITS) - 1)
