"""The benchmark of cards still runs, and its cards are what it says they are."""

from __future__ import annotations

from argparse import Namespace

from benchmarks import cards
from personas import png
from personas.importer import ImportedCard, read_any


async def test_smoke() -> None:
    """A small run has every key, and nothing that is known is tokenized again."""
    found = await cards.run(Namespace(smoke=True, cards=0))
    rates = ("import_per_s", "import_json_per_s", "import_library_per_s", "store_per_s")
    for key in (*rates, "import_everything_per_s", "avatar_ms", "lore_scan_ms", "render_ms"):
        value = found[key]
        assert isinstance(value, float)
        assert value > 0
    assert found["tokenized_again"] == 0
    once = found["tokenized_a_turn"]
    assert isinstance(once, float)
    assert 1 <= once < 10


def test_typical() -> None:
    """A card has 30 entries that work, a picture, and about 300 KB."""
    raw = png.with_texts(cards.photo(), cards.embedded(cards.card(1)))
    assert 250_000 < len(raw) < 400_000
    found = read_any(raw)
    assert isinstance(found, ImportedCard)
    assert (found.container, found.findings) == ("png", ())
    assert found.avatar is not None
    assert len(found.persona.lore[0].entries) == cards.ENTRIES
