"""The int8 arithmetic in plain PyTorch: what every faster kernel must equal, bit for bit.

The rules that make it independent of batch, chunking, threads and instruction set:
- every product of codes is summed as integers, which is exact in any order (here in floats
  that are wide enough for these integers);
- every sum of floats is `halves_sum`, a tree fixed by the row's length alone, or is made of
  whole numbers first (`whole_sum`);
- everything else is elementwise IEEE: + - * / sqrt and round-half-even, each rounded by itself
  (no fused multiply-add), and `exp` is the polynomial below;
- attention takes the KV span by span (256 tokens), in ascending order of position: what a query
  gets depends on its own position and on the pages' bytes, not on who shares the batch.
No division by a Python number here: PyTorch may multiply by its inverse instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backends.local.kernels.pages import PAGE_TOKENS, SPAN_TOKENS, int8_views

if TYPE_CHECKING:
    from torch import Tensor

    from backends.local.kernels.pages import GroupTable

__all__ = [
    "activation_codes",
    "attend",
    "embed",
    "exp",
    "gate",
    "halves_sum",
    "linear",
    "quantize_kv",
    "quantize_rows",
    "rms_norm",
    "rope",
    "whole_sum",
    "write_kv",
]

QUERY_CODE, WEIGHT_CODE = 127, 255
"""The widest codes of queries, signed, and of attention weights, which are never negative."""

REACH = 32
"""Mean magnitudes of a row that its step times 127 reaches, at most; at least half as many."""

_TINY = 1e-30
"""Rows whose largest value is at most this are all zeros to `quantize_rows`."""


_EXACT_RUN = 1040
"""1040 * 127 * 127 < 2**24."""


def halves_sum(x: Tensor) -> Tensor:
    """Sums the last dimension: pad with zeros to a power of two, add the halves, repeat."""
    count = x.shape[-1]
    size = 1 << (count - 1).bit_length()
    if size > 1 and size != count:
        half = size // 2
        x = torch.cat([x[..., : count - half] + x[..., half:], x[..., count - half : half]], -1)
    while x.shape[-1] > 1:
        first, second = x.chunk(2, dim=-1)
        x = first + second
    return x.squeeze(-1)


def whole_sum(x: Tensor) -> Tensor:
    """Sums the last dimension of numbers in [0, 1], at most 256 of them, in steps of 2**-22."""
    whole = torch.round(x * 4194304.0).to(torch.int32).sum(-1, dtype=torch.int32)
    return whole.float() * (1 / 4194304)


def exp(x: Tensor) -> Tensor:
    """e to the x, within a few units in the last place; exactly 0 below -86; x is cut at 88."""
    n = torch.round(x.clamp(-86.0, 88.0) * 1.44269504)
    r = (x.clamp(-86.0, 88.0) - n * 0.693359375) - n * -2.12194440e-4  # ln 2 in two pieces
    y = r * (1 / 720) + (1 / 120)
    for coefficient in (1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        y = y * r + coefficient
    power = ((n.to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.where(x < -86.0, 0.0, y * power)


def quantize_rows(x: Tensor, max_code: int, wider: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes round(x / scale) with one scale a row. x: [..., K] float32.

    Returns float32 codes [..., K], whole numbers within +-max_code, and scales [...]. `wider`:
    [...], powers of two that scales are larger by than the rows' largest ask for.
    """
    largest = x.abs().amax(-1)
    inverse = torch.where(largest > _TINY, torch.tensor(float(max_code)) / largest, 0.0)
    scale = largest * (1 / max_code)
    if wider is not None:
        inverse, scale = inverse / wider, scale * wider
    return torch.round(x * inverse.unsqueeze(-1)), scale


def activation_codes(x: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of a product's inputs x [T, K], as `quantize_rows` gives them.

    A `max_code` above 127 is 127 * 2**n, and leaves room for loud inputs: a row's step is made
    wider by powers of two while 127 steps are at most `REACH` times its mean magnitude. So the
    loudest set the step only where 127 would do for them too, and few codes of a row pass 127.
    The mean is that of the codes before, in whole numbers.
    """
    codes, scale = quantize_rows(x, max_code)
    if max_code <= 127:
        return codes, scale
    total = codes.abs().double().sum(-1) * REACH
    wider = torch.ones_like(scale)
    for level in range(1, (max_code // 127).bit_length()):
        even = 127 * x.shape[-1] * 2**level
        wider = torch.where(total >= even, torch.tensor(2.0**level), wider)
    return quantize_rows(x, max_code, wider)


def linear(x: Tensor, codes: Tensor, scale: Tensor, max_code: int) -> Tensor:
    """x @ (codes * scale).T with x quantised by row. x: [T, K]; scale: [N]; returns [T, N].

    codes: whole numbers within +-127 as float32 [N, K]. max_code * 127 * K must stay below 2**31.
    """
    rows, row_scale = activation_codes(x, max_code)
    return _whole_matmul(rows, codes) * row_scale.unsqueeze(-1) * scale


def _whole_matmul(rows: Tensor, codes: Tensor) -> Tensor:
    """The exact int32 rows @ codes.T, as float32 rounded once, by float32 matmuls.

    Rows are split into 7-bit digits and the inputs into runs so short that no sum reaches 2**24:
    up to there float32 counts exactly, in any order.
    """
    high = torch.floor(rows * (1 / 128))
    low = rows - high * 128.0
    total = torch.zeros(rows.shape[0], codes.shape[0], dtype=torch.int32)
    for begin in range(0, codes.shape[1], _EXACT_RUN):
        run = slice(begin, begin + _EXACT_RUN)
        weight = codes[:, run].T
        total += (low[:, run] @ weight).to(torch.int32)
        total += (high[:, run] @ weight).to(torch.int32) * 128
    return total.float()


def embed(tokens: Tensor, codes: Tensor, scale: Tensor, factor: Tensor) -> Tensor:
    """The embeddings [T, hidden] of `tokens` [T].

    codes: float32 [V, hidden]; scale: [V]; factor: [hidden].
    """
    index = tokens.long()
    return codes[index] * scale[index].unsqueeze(-1) * factor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension. x: [..., D]; weight: [D] or [H, D]."""
    mean = halves_sum(x * x) * (1 / x.shape[-1])
    # PyTorch's float32 root may be off by a bit; the float64 one, rounded, is not.
    inverse = torch.ones(()) / torch.sqrt((mean + eps).double()).float()
    return x * inverse.unsqueeze(-1) * weight


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of each head. x: [T, H, D]; cos, sin: [T, 1, D/2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def gate(both: Tensor, activation: str) -> Tensor:
    """act(gate) * up. both: [T, 2 I], the gate first; activation: silu or gelu_tanh.

    Both are x / (1 + exp(-z)): z is x for SiLU and 2 u for 0.5 x (1 + tanh u).
    """
    x, up = both.chunk(2, dim=-1)
    z = x
    if activation == "gelu_tanh":
        z = (x + x * x * x * 0.044715) * 1.5957691216
    return x / (exp(-z) + 1.0) * up


def quantize_kv(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes and fp16 scales of keys or values. x: [T, Hkv, D]; scales: [T, Hkv]."""
    largest = x.abs().amax(-1)
    scale = (largest * (1 / 127)).clamp_max(65504.0).half()
    divisor = scale.float().unsqueeze(-1)
    codes = torch.where(divisor > 0, x / divisor, 0.0)
    return torch.round(codes).clamp(-127, 127).to(torch.int8), scale


def write_kv(
    k: Tensor, v: Tensor, table: GroupTable, row: int, starts: Tensor, lengths: Tensor
) -> None:
    """Quantises the new keys and values into their pages. k, v: [T, Hkv, D].

    `starts`: int32 [B + 1], the rows of each sequence; `lengths`: int32 [B], its KV length with
    the new tokens.
    """
    _, kv_heads, dim = k.shape
    new = (*quantize_kv(k), *quantize_kv(v))
    new = (new[0], new[2], new[1], new[3])
    for b, length in enumerate(lengths.tolist()):
        begin, end = int(starts[b]), int(starts[b + 1])
        first = length - (end - begin)
        for page in range(first // PAGE_TOKENS, (length - 1) // PAGE_TOKENS + 1):
            low, high = max(first, page * PAGE_TOKENS), min(length, (page + 1) * PAGE_TOKENS)
            slot = int(table.slots[b, page - int(table.first_page[b])])
            views = int8_views(table.pages[slot], row, kv_heads, dim)
            at = slice(low - page * PAGE_TOKENS, high - page * PAGE_TOKENS)
            for view, values in zip(views, new, strict=True):
                view[at] = values[begin + low - first : begin + high - first]


def attend(
    q: Tensor,
    table: GroupTable,
    row: int,
    kv_heads: int,
    starts: Tensor,
    lengths: Tensor,
    window: int | None,
    scale: float,
) -> Tensor:
    """Attention of new tokens to themselves and what is before them. q: [T, Hq, D]; the same back.

    Query heads h with h // (Hq / Hkv) equal read one KV head. Their KV was written before.
    """
    out = torch.empty_like(q)
    for b, length in enumerate(lengths.tolist()):
        rows = slice(int(starts[b]), int(starts[b + 1]))
        first_page = int(table.first_page[b])
        slots = table.slots[b].tolist()
        count = rows.stop - rows.start
        reach = length if window is None else window
        first_key = max(0, length - count - reach + 1)
        state = _Softmax(q[rows], kv_heads, torch.arange(length - count, length), reach, scale)
        for span in range(first_key // SPAN_TOKENS, (length - 1) // SPAN_TOKENS + 1):
            begin = max(first_key, span * SPAN_TOKENS) // PAGE_TOKENS
            end = (min(length, (span + 1) * SPAN_TOKENS) - 1) // PAGE_TOKENS + 1
            views = [
                int8_views(table.pages[slots[page - first_page]], row, kv_heads, q.shape[-1])
                for page in range(begin, end)
            ]
            parts = [torch.cat(part) for part in zip(*views, strict=True)]
            state.merge(begin * PAGE_TOKENS, *parts)
        out[rows] = state.result()
    return out


class _Softmax:
    """One sequence's queries, span by span (online softmax: Milakov and Gimelshein 2018).

    Each span gives its largest score, the sum of its weights and its weighted values by itself;
    `merge` then folds them into what came before, for the queries that see any of the span.
    """

    def __init__(
        self, q: Tensor, kv_heads: int, positions: Tensor, reach: int, scale: float
    ) -> None:
        count, q_heads, dim = q.shape
        codes, q_scale = quantize_rows(q, QUERY_CODE)
        self._codes = codes.double().view(count, kv_heads, -1, dim).transpose(0, 1)  # [Hkv,T,G,D]
        self._scale = (q_scale * scale).view(count, kv_heads, -1).transpose(0, 1)  # [Hkv, T, G]
        self._positions = positions
        self._reach = reach
        self._largest = torch.full_like(self._scale, -torch.inf)
        self._sum = torch.zeros_like(self._scale)
        self._out = torch.zeros(self._codes.shape)
        self._shape = (count, q_heads, dim)

    def merge(self, first: int, k: Tensor, v: Tensor, k_scale: Tensor, v_scale: Tensor) -> None:
        """The span's pages from position `first` on. k, v: [S, Hkv, D]; scales: [S, Hkv]."""
        keys = torch.arange(first, first + len(k))
        here = self._positions.unsqueeze(1)
        seen = (keys <= here) & (keys > here - self._reach)  # [T, S]
        some = seen.any(1).view(1, -1, 1)
        seen = seen.view(1, -1, 1, len(k))
        k_scales, v_scales = (s.float().T[:, None, None] for s in (k_scale, v_scale))

        dots = torch.einsum("htgd,shd->htgs", self._codes, k.double()).float()
        scores = dots * self._scale.unsqueeze(-1) * k_scales
        largest = torch.where(seen, scores, -torch.inf).amax(-1)
        weights = torch.where(seen, exp(scores - largest.unsqueeze(-1)), 0.0)
        total = whole_sum(weights)
        codes, step = quantize_rows(torch.where(seen, weights * v_scales, 0.0), WEIGHT_CODE)
        values = torch.einsum("htgs,shd->htgd", codes.double(), v.double()).float()
        values = values * step.unsqueeze(-1)

        top = torch.maximum(self._largest, largest)
        old, new = exp(self._largest - top), exp(largest - top)
        self._sum = torch.where(some, self._sum * old + total * new, self._sum)
        merged = self._out * old.unsqueeze(-1) + values * new.unsqueeze(-1)
        self._out = torch.where(some.unsqueeze(-1), merged, self._out)
        self._largest = torch.where(some, top, self._largest)

    def result(self) -> Tensor:
        out = self._out / self._sum.unsqueeze(-1)  # [Hkv, T, G, D]
        return out.transpose(0, 1).reshape(self._shape)
