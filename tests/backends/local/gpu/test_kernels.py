"""Each Triton kernel against plain PyTorch: the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from backends.local.kernels import reference
from backends.local.kernels.pages import GroupTable
from backends.local.quantize import QuantLinear, max_code

if TYPE_CHECKING:
    from torch import Tensor


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def digits_of(codes: Tensor) -> Tensor:
    """Codes [T, K] as the kernels pass them on: int8 [2, T * K]."""
    codes = codes.int()
    return torch.stack([codes >> 7, codes & 127]).to(torch.int8).flatten(1).contiguous()


def codes_of(digits: Tensor, rows: int) -> Tensor:
    high, low = digits.cpu().int()
    codes: Tensor = (high * 128 + low).view(rows, -1)
    return codes


@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs", "splits"),
    [(1, 40, 48, 1), (5, 70, 300, 2), (17, 33, 512, 4)],
)
def test_products_are_exact_however_they_are_split(
    device: str, tokens: int, outputs: int, inputs: int, splits: int
) -> None:
    """The partial sums of any tiling add up to the whole numbers' product."""
    from backends.local.gpu.gemm import Tiles, linear_sums

    codes = whole(-8128, 8129, tokens, inputs)
    weight = whole(-127, 128, outputs, inputs, seed=1).to(torch.int8)
    linear = QuantLinear(weight.to(device), torch.ones(outputs, device=device), 8128)
    out = torch.full((splits * tokens * outputs,), -1, dtype=torch.int32, device=device)
    tiles = Tiles(16, 32, 64, splits, 4, 2)
    assert linear_sums(digits_of(codes).to(device), tokens, linear, out, tiles) == splits
    sums = out.cpu().view(splits, tokens, outputs).sum(0)
    assert torch.equal(sums, codes @ weight.long().T)


def test_a_finished_product_is_the_reference_s(device: str) -> None:
    """With the scales applied, it equals `reference.linear` bit for bit."""
    from backends.local.gpu.gemm import linear_logits, tiles_for

    x = drawn(3, 96)
    weight = whole(-127, 128, 50, 96).to(torch.int8)
    scale = drawn(50, seed=2).abs()
    codes, row_scale = reference.activation_codes(x, max_code(96))
    out = torch.zeros(150, device=device)
    linear = QuantLinear(weight.to(device), scale.to(device), max_code(96))
    tiles = tiles_for(3, linear, split=False)
    linear_logits(digits_of(codes).to(device), row_scale.to(device), 3, linear, out, tiles)
    assert torch.equal(out.cpu().view(3, 50), reference.linear(x, weight.float(), scale, 8128))


def test_a_residual_s_norm_is_the_reference_s(device: str) -> None:
    """x plus the normed product, its norm and that one's codes; or of wanted rows alone."""
    from backends.local.gpu import rows

    count, size, splits, eps = 4, 80, 2, 1e-6
    sums = whole(-1 << 24, 1 << 24, splits, count, size).int()
    in_scale, scale = drawn(count).abs() * 1e-4, drawn(size, seed=1).abs() * 1e-3
    after, weight, x = drawn(size, seed=2), drawn(size, seed=3), drawn(count, size, seed=4)
    h = sums.sum(0).int().float() * in_scale.unsqueeze(1) * scale
    total = x + reference.rms_norm(h, after, eps)
    codes, row_scale = reference.activation_codes(reference.rms_norm(total, weight, eps), 8128)
    for wanted in (None, [2, 0]):
        found = x.clone().to(device)
        digits = torch.zeros((2, count * size), dtype=torch.int8, device=device)
        out = torch.zeros(count, device=device)
        pick = wanted or list(range(count))
        rows.add_and_norm[(len(pick),)](
            *(each.to(device) for each in (sums, in_scale, scale, after)),
            found,
            weight.to(device),
            torch.tensor(pick, dtype=torch.int32, device=device),
            digits,
            out,
            count,
            digits.stride(0),
            SPLITS=splits,
            AFTER=True,
            GATHER=wanted is not None,
            EPS=eps,
            N=size,
            SIZE=128,
            LEVELS=7,
            MAX_CODE=8128,
            num_warps=1,
            enable_fp_fusion=False,
        )
        assert torch.equal(found.cpu(), x if wanted else total)
        assert torch.equal(codes_of(digits, count)[: len(pick)].float(), codes[pick])
        assert torch.equal(out.cpu()[: len(pick)], row_scale[pick])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_are_the_reference_s(device: str, activation: str) -> None:
    """The gated activation's codes, very large and very small rows and a loud input included."""
    from backends.local.gpu import rows

    count, size = 3, 200
    sums = whole(-1 << 24, 1 << 24, 1, count, 2 * size).int()
    in_scale, scale = torch.tensor([1e-6, 1e-3, 1e-9]), drawn(2 * size).abs()
    scale[size + 3] *= 300.0
    both = sums[0].float() * in_scale.unsqueeze(1) * scale
    codes, row_scale = reference.activation_codes(reference.gate(both, activation), 8128)
    assert codes.abs().amax(1).max() > 127
    digits = torch.zeros((2, count * size), dtype=torch.int8, device=device)
    out = torch.zeros(count, device=device)
    rows.gate_rows[(count,)](
        *(each.to(device) for each in (sums, in_scale, scale)),
        digits,
        out,
        count,
        digits.stride(0),
        SPLITS=1,
        GELU=activation == "gelu_tanh",
        N=size,
        SIZE=256,
        MAX_CODE=8128,
        num_warps=1,
        enable_fp_fusion=False,
    )
    assert torch.equal(codes_of(digits, count).float(), codes)
    assert torch.equal(out.cpu(), row_scale)


@pytest.mark.parametrize("window", [None, 70, 300])
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim", "piece"), [(1, 4, 32, 32), (2, 3, 48, 32), (1, 20, 64, 64)]
)
def test_decode_attention_is_the_reference_s(
    device: str, kv_heads: int, group: int, dim: int, piece: int, window: int | None
) -> None:
    """Sequences of several lengths, pages in any order; one that has no new token is left alone."""
    from backends.local.gpu import attention

    lengths, width, heads = [650, 64, 5], 11, kv_heads * group
    starts = [0, 1, 1, 2]  # the second sequence has no row
    pages = whole(0, 256, 34, 2 * 64 * kv_heads * (dim + 2)).to(torch.uint8)
    scales = pages[:, 2 * 64 * kv_heads * dim :].view(torch.float16)
    scales.copy_(drawn(*scales.shape).abs())
    slots = torch.randperm(33).int().view(3, width)
    ints = [torch.tensor(each, dtype=torch.int32) for each in (starts, lengths, [0, 0, 0])]
    q = drawn(2, heads, dim)
    table = GroupTable(pages, slots[[0, 2]], ints[2][[0, 2]])
    expected = reference.attend(
        q, table, 0, kv_heads, torch.tensor([0, 1, 2]), ints[1][[0, 2]], window, 0.25
    )
    codes, q_scale = reference.quantize_rows(q, reference.QUERY_CODE)
    reads = 3
    parts = 3 * heads * reads
    tops, totals, outs = (torch.zeros(n, device=device) for n in (parts, parts, parts * dim))
    there = pages.to(device)
    size = 32 if dim == 32 else 64
    attention.decode_spans[(3, kv_heads * -(-group // attention.DECODE_HEADS), reads)](
        codes.to(torch.int8).to(device),
        (q_scale * 0.25).to(device),
        ints[0].to(device),
        ints[1].to(device),
        slots.to(device),
        ints[2].to(device),
        there.view(torch.int8),
        there.view(torch.float16),
        tops,
        totals,
        outs,
        width,
        pages.shape[1],
        0,
        WINDOW=window or 0,
        P=reads,
        KV_HEADS=kv_heads,
        G=group,
        D=dim,
        SIZE=size,
        PIECE=piece,
        ROWS=attention.DECODE_HEADS,
        PACKED=device != "cpu",
        enable_fp_fusion=False,
    )
    out = torch.zeros(2, heads, dim, device=device)
    attention.merge_spans[(3, heads)](
        tops,
        totals,
        outs,
        ints[0].to(device),
        ints[1].to(device),
        out,
        WINDOW=window or 0,
        UNROLL=2,
        P=reads,
        G=group,
        D=dim,
        SIZE=size,
        enable_fp_fusion=False,
    )
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize(("dim", "piece"), [(32, 32), (64, 32)])
@pytest.mark.parametrize("window", [None, 70, 300])
def test_chunk_attention_is_the_reference_s(
    device: str, window: int | None, dim: int, piece: int
) -> None:
    """Chunks behind a cached prefix, in tiles that end anywhere, of three heads."""
    from backends.local.gpu import attention

    kv_heads, group, width, tile = 2, 3, 9, 8
    lengths, starts, first_page = [520, 64, 90], [0, 19, 20, 25], [3, 0, 0]
    heads = kv_heads * group
    pages = whole(0, 256, 27, 2 * 64 * kv_heads * (dim + 2)).to(torch.uint8)
    scales = pages[:, 2 * 64 * kv_heads * dim :].view(torch.float16)
    scales.copy_(drawn(*scales.shape).abs())
    slots = torch.randperm(27).int().view(3, width)
    if window is None:
        first_page[0] = 0
    ints = [torch.tensor(each, dtype=torch.int32) for each in (starts, lengths, first_page)]
    q = drawn(25, heads, dim)
    table = GroupTable(pages, slots, ints[2])
    expected = reference.attend(q, table, 0, kv_heads, ints[0], ints[1], window, 0.25)
    codes, q_scale = reference.quantize_rows(q, reference.QUERY_CODE)
    owners = torch.tensor([0, 0, 0, 2, -1], dtype=torch.int32)
    firsts = torch.tensor([0, 8, 16, 0, 0], dtype=torch.int32)
    out = torch.zeros(25, heads, dim, device=device)
    there = pages.to(device)
    attention.attend_chunks[(5, kv_heads)](
        codes.to(torch.int8).to(device),
        (q_scale * 0.25).to(device),
        ints[0].to(device),
        ints[1].to(device),
        owners.to(device),
        firsts.to(device),
        slots.to(device),
        ints[2].to(device),
        there.view(torch.int8),
        there.view(torch.float16),
        out,
        width,
        pages.shape[1],
        0,
        WINDOW=window or 0,
        TOKENS=tile,
        KV_HEADS=kv_heads,
        G=group,
        HEADS=4,
        D=dim,
        SIZE=dim,
        PIECE=piece,
        PACKED=device != "cpu",
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=False,
    )
    many = [*range(19), *range(20, 25)]
    assert torch.equal(out.cpu()[many], expected[many])
    assert not out[19].any()  # a decode's row is not its business


def test_the_likeliest_token_is_the_lowest_of_equals(device: str) -> None:
    """As numpy's argmax, across blocks; a NaN shows as a logit that is not finite."""
    from backends.local.gpu.greedy import BLOCK, argmax

    logits = drawn(3, BLOCK + 100)
    logits[0, [7, BLOCK + 3]] = 9.0
    logits[1, BLOCK + 99] = 9.0
    logits[2, 50] = torch.nan
    top = torch.zeros(3, device=device)
    best = torch.zeros(3, dtype=torch.int32, device=device)
    argmax(logits.to(device), top, best)
    assert best[:2].tolist() == [7, BLOCK + 99]
    assert top.tolist() == [9.0, 9.0, torch.inf]
