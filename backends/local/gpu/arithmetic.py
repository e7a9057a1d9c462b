# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The scalar rules of `kernels.reference`, for Triton: the same sums, roundings and polynomials.

Kernels that call these are launched with `enable_fp_fusion=False`, so that no product and sum are
rounded together, and divide and take roots in round-to-nearest. Where `tl.fma` stands the product
alone would be exact, so that nothing is lost by rounding once.

Whole numbers up to 2**22 stay floats: adding 1.5 * 2**23 rounds to whole, and the bits of the sum
hold the number, while conversions run at a fraction of the rate of additions.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "codes_of",
    "exp",
    "exp_below",
    "gate",
    "halves_of",
    "halves_sum",
    "inverse_of",
    "round_even",
    "store_digits",
    "whole_of",
]


@triton.jit
def round_even(x):
    """Rounds to whole numbers, halves to even, for |x| < 2**22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _bits(x):
    """The whole number nearest to x, and 0x4B400000 more: int32."""
    return (x + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def halves_sum(x, ROWS: tl.constexpr, SIZE: tl.constexpr, LEVELS: tl.constexpr):
    """Sums rows of x [ROWS, SIZE] as `reference.halves_sum` does; SIZE = 2**LEVELS; [ROWS]."""
    for level in tl.static_range(LEVELS):
        x = tl.sum(tl.reshape(x, [ROWS, 2, SIZE >> (level + 1)]), axis=1)
    return tl.reshape(x, [ROWS])


@triton.jit
def whole_of(x):
    """Numbers in [0, 1] in steps of 2**-22, as `reference.whole_sum` counts them: int32."""
    return tl.fma(x, 4194304.0, 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def exp(x):
    """e to the x: the polynomial of `reference.exp`."""
    return exp_below(tl.minimum(x, 88.0))


@triton.jit
def exp_below(x):
    """`exp` for x <= 88. Below -86 all but the last line is rubbish."""
    shifted = x * 1.44269504 + 12582912.0
    n = shifted - 12582912.0
    r = tl.fma(n, -0.693359375, x) - n * -2.12194440e-4
    y = r * (1 / 720) + (1 / 120)
    y = y * r + (1 / 24)
    y = y * r + (1 / 6)
    y = y * r + 0.5
    y = y * r + 1.0
    y = y * r + 1.0
    # Times 2**n, by its exponent: of `shifted`, only n's last bits are left.
    bits = y.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return tl.where(x < -86.0, 0.0, bits.to(tl.float32, bitcast=True))


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
    return _bits(x * inverse) - 0x4B400000


@triton.jit
def store_digits(at, plane, codes, ok, MAX_CODE: tl.constexpr):
    """Writes codes as digits, high ones at `at`, low ones a plane further: 128 high + low.

    Codes of 8 bits are low digits alone.
    """
    if MAX_CODE > 127:
        tl.store(at, (codes >> 7).to(tl.int8), mask=ok)
        codes = codes & 127
    tl.store(at + plane, codes.to(tl.int8), mask=ok)


@triton.jit
def halves_of(codes, PACKED: tl.constexpr):
    """int8 as float16. PACKED: four at a time, by placing bytes where 1024 + n has its last eight
    bits; it is for compilers, the interpreter knows no assembly."""
    if PACKED:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 t, bias;
            mov.b32 bias, 0x64806480;
            xor.b32 t, $2, 0x80808080;
            prmt.b32 $0, t, 0x64646464, 0x4140;
            prmt.b32 $1, t, 0x64646464, 0x4342;
            sub.rn.f16x2 $0, $0, bias;
            sub.rn.f16x2 $1, $1, bias;
            }
            """,
            "=&r,=&r,r",
            [codes],
            dtype=tl.float16,
            is_pure=False,  # else it is moved behind shared memory, byte by byte
            pack=4,
        )
    return codes.to(tl.float16)
