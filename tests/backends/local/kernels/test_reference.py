"""The int8 arithmetic itself: close to the mathematics, exact where it says so."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.local.kernels import reference
from backends.local.kernels.pages import GroupTable, int8_row_bytes, int8_views
from backends.local.quantize import max_code


@given(st.integers(1, 200), st.integers(0, 99))
def test_halves_sum_adds_everything_once(count: int, seed: int) -> None:
    """For any length it is the sum, and for whole numbers exactly."""
    x = torch.randint(-99, 99, (3, count), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(reference.halves_sum(x), x.sum(-1))


def test_exp_is_within_a_few_units_of_the_last_place() -> None:
    """Over its whole range; exactly 1 at 0, exactly 0 far below, never infinite."""
    x = torch.linspace(-86, 88, 100_001)
    exact = x.double().exp()
    assert float(((reference.exp(x).double() - exact) / exact).abs().max()) < 4e-7
    edge = reference.exp(torch.tensor([0.0, -86.5, -math.inf, 1e9]))
    assert edge[:3].tolist() == [1.0, 0.0, 0.0]
    assert torch.isfinite(edge).all()


@given(st.integers(1, 2600), st.integers(0, 99))
def test_linear_adds_whole_numbers_exactly(inputs: int, seed: int) -> None:
    """The sum of the largest codes is the integer that int64 gives, rounded once."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (5, inputs), generator=generator)
    x = torch.randn(3, inputs, generator=generator)
    limit = max_code(inputs)
    rows, scale = reference.activation_codes(x, limit)
    expected = (rows.long() @ codes.T).float() * scale.unsqueeze(-1)
    assert torch.equal(reference.linear(x, codes.float(), torch.ones(5), limit), expected)


@given(st.integers(0, 99), st.sampled_from([127, 8128, 32512]))
def test_quantised_rows_are_within_half_a_step(seed: int, limit: int) -> None:
    """Codes are whole, within the limit, and give the row back to half a step."""
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed % 9 - 4)
    codes, scale = reference.quantize_rows(x, limit)
    assert torch.equal(codes, codes.round())
    assert float(codes.abs().max()) == limit
    assert float(((codes * scale.unsqueeze(-1) - x) / scale.unsqueeze(-1)).abs().max()) < 0.51


@given(st.integers(0, 99), st.sampled_from([1, 16, 160, 2048]), st.sampled_from([0, 3, 99]))
def test_few_codes_pass_127_and_none_loses_more_than_half_a_step(
    seed: int, size: int, loud: int
) -> None:
    """Whatever a row's loud inputs are: a step is at most REACH mean magnitudes over 127."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, size, generator=generator)
    x[:, : min(loud, size)] *= 10.0 ** (seed % 5)
    codes, scale = reference.activation_codes(x, 8128)
    assert float((codes.abs() > 127).sum(-1).max()) <= size / 15
    mean = x.abs().mean(-1)
    narrow = x.abs().amax(-1) / 127
    assert ((scale * 127 <= mean * reference.REACH * 1.01) | (scale <= narrow)).all()
    assert ((scale * 127 * 2.02 >= mean * reference.REACH) | (scale >= narrow * 0.999)).all()
    assert float(((codes * scale.unsqueeze(-1) - x) / scale.unsqueeze(-1)).abs().max()) < 0.51


def test_a_row_of_equals_has_codes_of_127() -> None:
    """As plain rounding to 8 bits would give it."""
    codes, _ = reference.activation_codes(torch.full((1, 64), -3.0), 8128)
    assert torch.equal(codes, torch.full((1, 64), -127.0))


def test_zeros_stay_zeros() -> None:
    """A row of zeros, or of next to nothing, has zero codes and no NaN."""
    x = torch.tensor([[0.0, 0.0], [1e-38, -1e-38]])
    codes, scale = reference.quantize_rows(x, 127)
    assert codes.abs().max() == 0
    assert torch.isfinite(scale).all()
    kv, half = reference.quantize_kv(x.unsqueeze(0))
    assert kv.abs().max() == 0
    assert torch.isfinite(half).all()


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_gates_are_the_activations_of_pytorch(kind: str) -> None:
    """SiLU and tanh-GELU to float accuracy, over a wide range."""
    x = torch.linspace(-30, 30, 10_001)
    up = torch.ones_like(x)
    exact = (
        torch.nn.functional.silu(x)
        if kind == "silu"
        else torch.nn.functional.gelu(x, approximate="tanh")
    )
    ours = reference.gate(torch.stack([x, up]).view(1, -1), kind)[0]
    torch.testing.assert_close(ours, exact, rtol=3e-6, atol=3e-6)


def test_norm_and_rotation_are_the_known_ones() -> None:
    """RMSNorm as PyTorch has it; a rotation keeps lengths."""
    x = torch.randn(7, 3, 48, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(48)
    torch.testing.assert_close(
        reference.rms_norm(x, weight, 1e-6), torch.nn.functional.rms_norm(x, (48,), weight, 1e-6)
    )
    angle = torch.rand(7, 1, 24)
    turned = reference.rope(x, angle.cos(), angle.sin())
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def paged(k: torch.Tensor, v: torch.Tensor) -> GroupTable:
    """A sequence's K and V written into scattered pages full of rubbish."""
    tokens, kv_heads, dim = k.shape
    pages = -(-tokens // 64)
    arena = torch.randint(0, 256, (pages + 3, int8_row_bytes(kv_heads, dim)), dtype=torch.uint8)
    slots = torch.randperm(pages + 3)[:pages].int().unsqueeze(0)
    table = GroupTable(arena, slots, torch.zeros(1, dtype=torch.int32))
    ends = torch.tensor([tokens], dtype=torch.int32)
    reference.write_kv(k, v, table, 0, torch.tensor([0, tokens]), ends)
    return table


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from([None, 1, 50, 64]),
    st.sampled_from([(1, 4), (2, 1)]),
)
def test_attention_is_the_softmax_over_what_is_seen(
    length: int, new: int, window: int | None, heads: tuple[int, int]
) -> None:
    """Against float64 softmax over the dequantised pages: other pages' bytes count nothing.

    What is left are half steps of the weights' codes, of which a query has at most one a key.
    """
    kv_heads, group = heads
    new = min(new, length)
    torch.manual_seed(length)
    k, v = torch.randn(2, length, kv_heads, 32).unbind(0)
    q = torch.randn(new, kv_heads * group, 32)
    table = paged(k, v)
    starts, lengths = torch.tensor([0, new]), torch.tensor([length])
    ours = reference.attend(q, table, 0, kv_heads, starts, lengths, window, 0.3)

    read = [int8_views(table.pages[s], 0, kv_heads, 32) for s in table.slots[0].tolist()]
    keys, values = (
        torch.cat([page[i].double() * page[i + 2].double().unsqueeze(-1) for page in read])[:length]
        for i in (0, 1)
    )
    codes, q_scale = reference.quantize_rows(q, reference.QUERY_CODE)
    rounded = (codes.double() * q_scale.double().unsqueeze(-1)).view(new, kv_heads, group, 32)
    scores = torch.einsum("thgd,shd->thgs", rounded, keys) * 0.3
    here = torch.arange(length - new, length).view(-1, 1, 1, 1)
    at = torch.arange(length)
    hidden = (at > here) | (at <= here - (window or length))
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    exact = torch.einsum("thgs,shd->thgd", weights, values).view(ours.shape)
    # A step is the largest weight of a span times its scale, so no more than the largest of all.
    half_steps = (~hidden).sum(-1) * weights.amax(-1) * (0.5 / reference.WEIGHT_CODE)
    allowed = half_steps.view(new, -1, 1) * values.abs().max() + 1e-5
    assert bool(((ours.double() - exact).abs() <= allowed).all())
