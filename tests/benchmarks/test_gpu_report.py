"""The page about the ladder says what the code computes and what a run measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.gpu_report import computed_rows, ladder_table, main, plot, replaced

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def _result() -> dict[str, Any]:
    """A run's JSON with every part, of invented figures."""
    product = {"rows": 64, "outputs": 2, "inputs": 3, "seconds": 1e-5}
    product |= {"share_of_bandwidth": 0.61, "share_of_int8_rate": 0.12}
    served = {"seconds": 3.0, "reply_tokens_a_second": 1.0, "all_tokens_a_second": 2.0}
    served |= {"ttft_p50_s": 0.5, "ttft_p99_s": 0.9, "conversations": 256}
    return {
        "smoke": False,
        "missing": {"peer": "RuntimeError: gone"},
        "ladder": {"rows": computed_rows(), "missing": {"+ a rung": "no room"}},
        "roofs": {
            "card": {
                "name": "A card",
                "torch": "2.11",
                "copy_bytes_a_second": 3e12,
                "bf16_operations_a_second": 8e14,
                "int8_operations_a_second": 1.5e15,
            },
            "model": "1b-mqa",
            "streams": 64,
            "step": {"5600": {"seconds": 0.002, "share_of_bandwidth": 0.52}},
            "decode_attention": {
                "pages_seconds": 4e-5,
                "merge_seconds": 1e-5,
                "share_of_bandwidth": 0.63,
            },
            "products": {"decode_qkv": product},
        },
        "serve": {"cached": served, "cold": served},
        "engine": {"cached": served | {"cached_token_share": 0.949}, "cold": served},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a copy of the page."""
    shutil.copy(DOCS / "ladder.md", tmp_path)
    return tmp_path


def test_page_is_current() -> None:
    """The page's computed ladder is what the code computes now; if not, run the report."""
    page = (DOCS / "ladder.md").read_text()
    assert replaced(page, "computed", ladder_table(computed_rows())) == page


def test_measured(folder: Path) -> None:
    """A run's figures, what it could not run, and both rows of bars come into page and plot."""
    (folder / "ladder.json").write_text(json.dumps(_result()))
    main(["--docs", str(folder)])
    page = (folder / "ladder.md").read_text()
    for text in ("A card", "3.00 TB/s", "52%", "63%", "decode_qkv", "the engine, 94.9% cached"):
        assert text in page
    assert "Missing: + a rung (no room)" in page
    assert "Missing: peer (RuntimeError: gone)" in page
    assert page.count("2022: MHA, fp16, no cache, static batches |") == 2
    assert "Nothing yet" not in page
    bars = ElementTree.fromstring((folder / "ladder.svg").read_text()).findall(f"{SVG}rect")
    assert len(bars) == 1 + 2 * len(computed_rows())


def test_runs_are_put_together(folder: Path) -> None:
    """Parts that several runs measured come onto one page, in their order."""
    whole = _result()
    runs = [
        {"smoke": False, "missing": {}, "ladder": whole["ladder"]},
        {"smoke": False, "missing": {}, "serve": whole["serve"]},
    ]
    (folder / "ladder.json").write_text(json.dumps({"runs": runs}))
    main(["--docs", str(folder)])
    page = (folder / "ladder.md").read_text()
    assert page.index("Missing: + a rung") < page.index("### 256 conversations at once")


def test_smoke_run_is_refused(folder: Path) -> None:
    """The figures of a smoke run never come into the page."""
    (folder / "ladder.json").write_text(json.dumps(_result() | {"smoke": True}))
    before = (folder / "ladder.md").read_text()
    with pytest.raises(SystemExit, match="smoke"):
        main(["--docs", str(folder)])
    assert (folder / "ladder.md").read_text() == before


def test_no_markers() -> None:
    """A page without the markers is refused, not overwritten."""
    with pytest.raises(ValueError, match="markers"):
        replaced("a page", "computed", "a block")


def test_bars_are_in_proportion() -> None:
    """On the logarithmic scale a tenth of the cost is a whole decade shorter."""
    rows = [{"rung": name, "dollars_an_hour": d} for name, d in (("a", 0.1), ("b", 0.01))]
    rows.append({"rung": "c", "dollars_an_hour": 0.001})
    bars = ElementTree.fromstring(plot(rows, [])).findall(f"{SVG}rect")[1:]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths[0] - widths[1] == pytest.approx(widths[1] - widths[2], abs=0.2)
