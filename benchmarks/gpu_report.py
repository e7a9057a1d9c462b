"""docs/ladder.md and its plot from the GPU benchmark's JSON: `python -m benchmarks.gpu_report`.

Replaces what lies between the page's markers. The JSON is kept beside the page as `ladder.json`:
one run of the benchmark, or several that each had some of its parts, under `runs`. Until there is
one, only the computed ladder is written.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.ladder import RUNGS, Traffic, cost
from benchmarks.ladder_floor import H100, floor

__all__ = ["computed_rows", "ladder_table", "measured", "plot", "replaced"]

SIZE = "13b"
_WIDTH, _LEFT, _ROW, _TOP = 860, 330, 46, 50


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="FOLDER")
    args = parser.parse_args(given)
    page, source = args.docs / "ladder.md", args.docs / "ladder.json"
    text = replaced(page.read_text(), "computed", ladder_table(computed_rows()))
    rows: list[dict[str, Any]] = []
    if source.is_file():
        result = json.loads(source.read_text())
        runs = result.get("runs", [result])
        if any(run["smoke"] for run in runs):
            raise SystemExit(f"{source} is a smoke run: its figures say nothing")
        text = replaced(text, "measured", "\n".join(measured(run) for run in runs))
        rows = [row for run in runs for row in run.get("ladder", {}).get("rows", [])]
    page.write_text(text)
    (args.docs / "ladder.svg").write_text(plot(computed_rows(), rows))
    print(f"written: {page}")


def replaced(text: str, name: str, block: str) -> str:
    """The page with the block between its two markers replaced; `ValueError` without markers."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no markers for {name!r}")
    return f"{before}{begin}\n{block}\n{end}{after}"


def computed_rows() -> list[dict[str, Any]]:
    """The ladder as an H100's roofs allow it, in the shape of the measured rows."""
    rows: list[dict[str, Any]] = []
    first: dict[bool, float] = {}
    for rung in RUNGS:
        row: dict[str, Any] = {"rung": rung.name}
        bounds = floor(rung, SIZE, Traffic(), H100)
        for even, key in ((True, "times_cheaper_even_replies"), (False, "times_cheaper")):
            found = cost(rung, bounds, Traffic(), even=even)
            first.setdefault(even, found.dollars_an_hour)
            row[key] = first[even] / found.dollars_an_hour
        rows.append({**row, **asdict(bounds), **asdict(found)})
    return rows


def ladder_table(rows: list[dict[str, Any]]) -> str:
    """One line a rung."""
    lines = [
        "| rung | KV a chat, MB | fit | prefill, tokens/s | prompt, ms a turn | batch "
        "| step, ms | GPU, ms a turn | chats a GPU | USD a chat-hour | times cheaper "
        "| with even replies |",
        "| --- " + "| ---: " * 11 + "|",
    ]
    for row in rows:
        cells = [
            row["rung"],
            f"{row['kv_bytes'] / 1e6:,.1f}",
            f"{row['fits']:,}",
            f"{row['prefill_rate']:,.0f}",
            f"{row['prefill_seconds'] * 1e3:,.1f}",
            f"{row['batch']:,}",
            f"{row['step_seconds'] * 1e3:,.1f}",
            f"{row['turn_seconds'] * 1e3:,.1f}",
            f"{row['served']:,.0f}",
            f"{row['dollars_an_hour']:.4f}",
            f"{row['times_cheaper']:.1f}",
            f"{row['times_cheaper_even_replies']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def measured(result: dict[str, Any]) -> str:
    """Everything that one run measured, and what it could not."""
    parts = []
    if "ladder" in result:
        ladder = result["ladder"]
        parts += ["### The ladder", ladder_table(ladder["rows"]), _steps(ladder["rows"])]
        parts += [f"Missing: {rung} ({why})." for rung, why in ladder["missing"].items()]
    if "roofs" in result:
        parts += ["### Kernels beside their roofs", _roofs(result["roofs"])]
    if "serve" in result:
        count = result["serve"]["cold"]["conversations"]
        parts += [
            f"### {count} conversations at once, gemma-3-270m's shape, random weights",
            _served(result["serve"], result.get("engine"), result.get("peer")),
        ]
    parts += [f"Missing: {name} ({why})." for name, why in result["missing"].items()]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _steps(rows: list[dict[str, Any]]) -> str:
    lines = ["Decode steps by batch (batch: milliseconds), up to what the memory holds:", ""]
    for row in rows:
        steps = ", ".join(f"{s['batch']:,}: {s['seconds'] * 1e3:.1f}" for s in row["steps"])
        lines.append(f"- {row['rung']}: {steps}")
    return "\n".join(lines)


def _roofs(roofs: dict[str, Any]) -> str:
    card, attention = roofs["card"], roofs["decode_attention"]
    lines = [
        f"{card['name']}, PyTorch {card['torch']}: a copy moves "
        f"{card['copy_bytes_a_second'] / 1e12:.2f} TB/s; 8192-cubed products run at "
        f"{card['bf16_operations_a_second'] / 1e12:.0f} TFLOP/s in bf16 and "
        f"{card['int8_operations_a_second'] / 1e12:.0f} TOP/s in int8 (`torch._int_mm`).",
        "",
        "| what | time, µs | share of bandwidth | share of the int8 rate |",
        "| --- | ---: | ---: | ---: |",
        f"| decode attention, 5,600 tokens x {roofs['streams']}, with its merge "
        f"| {(attention['pages_seconds'] + attention['merge_seconds']) * 1e6:.1f} "
        f"| {attention['share_of_bandwidth']:.0%} | |",
    ]
    lines += [
        f"| {name}: {p['rows']:,} x {p['inputs']:,} x {p['outputs']:,} | {p['seconds'] * 1e6:.1f} "
        f"| {p['share_of_bandwidth']:.0%} | {p['share_of_int8_rate']:.0%} |"
        for name, p in roofs["products"].items()
    ]
    lines += [
        f"| whole decode step, {roofs['model']}, {roofs['streams']} streams at {int(context):,} "
        f"tokens | {s['seconds'] * 1e6:,.0f} | {s['share_of_bandwidth']:.0%} | |"
        for context, s in roofs["step"].items()
    ]
    return "\n".join(lines)


def _served(
    serve: dict[str, Any], engine: dict[str, Any] | None, peer: dict[str, Any] | None
) -> str:
    rows = {"kernels alone, cached": serve["cached"], "kernels alone, cold": serve["cold"]}
    if engine is not None:
        share = engine["cached"]["cached_token_share"]
        rows[f"the engine, {share:.1%} cached"] = engine["cached"]
        if "cold" in engine:
            rows["the engine, cold"] = engine["cold"]
    if peer is not None:
        name = f"transformers {peer['version']}, {peer['attention']}"
        rows[f"{name} (it caches nothing between turns for this model)"] = peer
    lines = [
        "| | seconds | reply tokens/s | all tokens/s | TTFT p50, s | TTFT p99, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {r['seconds']:.2f} | {r['reply_tokens_a_second']:,.0f} "
        f"| {r['all_tokens_a_second']:,.0f} | {r['ttft_p50_s']:.2f} | {r['ttft_p99_s']:.2f} |"
        for name, r in rows.items()
    ]
    return "\n".join(lines)


def plot(computed: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    """Cost of a conversation-hour by rung as an SVG: bars on a logarithmic scale, in cents.

    A rung has a bar for what was computed and, where there is one, for what was measured.
    """
    by_rung = {row["rung"]: row["dollars_an_hour"] * 100 for row in found}
    cents = {row["rung"]: row["dollars_an_hour"] * 100 for row in computed}
    values = [*by_rung.values(), *cents.values()]
    low = math.floor(math.log10(min(values) / 2))
    high = math.ceil(math.log10(max(values)))
    room = _WIDTH - _LEFT - 90

    def across(value: float) -> float:
        return room * (math.log10(value) - low) / (high - low)

    bottom = _TOP + _ROW * len(computed)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{bottom + 40}" '
        'font-family="sans-serif" font-size="14" role="img" '
        'aria-label="Cost of a conversation-hour by rung">',
        f'<rect width="{_WIDTH}" height="{bottom + 40}" fill="#ffffff"/>',
        f'<text x="12" y="26" fill="#222222">Cost of a conversation-hour, US cents (log scale): '
        f"{'measured (dark), ' if by_rung else ''}computed from an H100's roofs (light)</text>",
    ]
    for power in range(low, high + 1):
        x = _LEFT + across(10.0**power)
        parts.append(f'<path d="M{x:.1f} {_TOP - 8}V{bottom}" stroke="#cccccc"/>')
        label = f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle" fill="#555555">'
        parts.append(f"{label}{10.0**power:g}</text>")
    for at, (name, value) in enumerate(cents.items()):
        y = _TOP + _ROW * at
        bars = [(value, "#9dbfd9")]
        if name in by_rung:
            bars.insert(0, (by_rung[name], "#1f4e79"))
        height = 30 / len(bars)
        parts.append(f'<text x="12" y="{y + 20}" fill="#222222">{name}</text>')
        for number, (bar, colour) in enumerate(bars):
            top, width = y + number * height, max(1.0, across(bar))
            parts.append(
                f'<rect x="{_LEFT}" y="{top:.0f}" width="{width:.1f}" height="{height - 2:.0f}" '
                f'fill="{colour}"/>'
                f'<text x="{_LEFT + width + 6:.1f}" y="{top + height / 2 + 4:.0f}" '
                f'fill="#222222">{bar:.2f}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
