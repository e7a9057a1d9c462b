"""PNG as chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personas import png
from personas.limits import Findings, ImportLimits, Inflater
from personas.persona import CardError
from tests.personas import makers

LIMITS = ImportLimits()


def read(raw: bytes) -> tuple[list[png.Chunk], list[png.Text], set[str]]:
    findings = Findings()
    chunks = png.read_chunks(raw, LIMITS, findings)
    found = [*png.texts(chunks, LIMITS, Inflater(LIMITS), findings)]
    return chunks, found, {finding.code for finding in findings.found}


def test_chunks() -> None:
    """Chunks come in order with their places; sound ones have no findings."""
    chunks, found, codes = read(makers.png(makers.text(b"{}", b"chara")))
    assert [chunk.type for chunk in chunks] == [b"IHDR", b"tEXt", b"IDAT", b"IEND"]
    assert [chunk.offset for chunk in chunks][:2] == [8, 33]
    assert (found, codes) == ([png.Text("chara", b"e30=", "tEXt chara")], set())


def test_other_texts_are_not_inflated() -> None:
    """A bomb under a keyword that is not ours is not even looked into."""
    raw = makers.png(makers.ztext(bytes(500 << 10), b"Comment"), makers.text(b"{}"))
    tight = ImportLimits(inflated_bytes=10)
    chunks = png.read_chunks(raw, tight, Findings())
    assert len([*png.texts(chunks, tight, Inflater(tight), Findings())]) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"chara\0\0not deflated", "bad_deflate"),
        (b"chara\0\7x", "bad_method"),
        (b"chara", "bad_method"),
        (makers.ztext(b"x" * 100, b"chara")[8:-8], "bad_deflate"),
    ],
)
def test_broken_ztxt(body: bytes, code: str) -> None:
    """A compressed text that cannot be read is a finding; the others are read."""
    _, found, codes = read(makers.png(makers.chunk(b"zTXt", body), makers.text(b"{}")))
    assert [text.keyword for text in found] == ["ccv3"]
    assert codes == {code}


def test_asset_paths_keep_their_case() -> None:
    """Keywords are compared without case, the paths of assets are not changed."""
    _, found, _ = read(makers.png(makers.text(b"", b"Chara-Ext-Asset_:A/b.PNG")))
    assert found[0].keyword == "Chara-Ext-Asset_:A/b.PNG"


def test_chunk_that_claims_too_much() -> None:
    """A length beyond the file ends the reading there, with a finding."""
    raw = makers.png()[:-12] + b"\xff\xff\xff\xfftEXtchara\0"
    chunks, _, codes = read(raw)
    assert [chunk.type for chunk in chunks] == [b"IHDR", b"IDAT"]
    assert codes == {"truncated_png"}


def test_bare_picture() -> None:
    """Only what draws the picture is left, with right checksums."""
    raw = makers.png(makers.text(b"{}"), makers.chunk(b"iCCP", b"x"), end=b"tail")
    wrong = raw.replace(b"IEND\xaeB`\x82", b"IEND\0\0\0\0")
    for each in (raw, wrong):
        assert png.bare_picture(png.read_chunks(each, LIMITS, Findings())) == makers.png()
    assert png.size(makers.png()) == (2, 2)
    with pytest.raises(CardError):
        png.bare_picture(png.read_chunks(png.SIGNATURE + makers.png()[33:], LIMITS, Findings()))


def test_texts_go_before_the_picture() -> None:
    """Texts are put between IHDR and the picture, and are found again."""
    chunks, found, codes = read(png.with_texts(png.blank(4, 4), [("chara", b"a"), ("ccv3", b"b")]))
    assert [chunk.type for chunk in chunks] == [b"IHDR", b"tEXt", b"tEXt", b"IDAT", b"IEND"]
    assert [(text.keyword, text.body) for text in found] == [("chara", b"a"), ("ccv3", b"b")]
    assert codes == set()


@given(st.lists(st.tuples(st.binary(min_size=4, max_size=4), st.binary(max_size=9)), max_size=6))
def test_any_chunks(parts: list[tuple[bytes, bytes]]) -> None:
    """Whatever chunks are written are the chunks that are read, up to the first IEND."""
    raw = png.SIGNATURE + b"".join(makers.chunk(kind, body) for kind, body in parts)
    kinds = [kind for kind, _ in parts]
    upto = kinds.index(b"IEND") + 1 if b"IEND" in kinds else len(kinds)
    chunks, _, codes = read(raw)
    assert [(chunk.type, bytes(chunk.body)) for chunk in chunks] == parts[:upto]
    assert "bad_crc" not in codes
