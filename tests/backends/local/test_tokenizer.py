"""Text to ids and back, over the two packaged vocabularies."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.local.errors import UnsupportedModel, WeightsDamaged, WeightsMissing
from backends.local.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

SENTENCE = "It's 1234 o'clock — “tea”,  she said.\n\nÉté 日本 😀"
# What transformers' AutoTokenizer gives for the GGUF files themselves.
GOLDEN = {
    "gemma": (
        "1509 236789 236751 236743 236770 236778 236800 236812 512 236789 15868 2192 999 51954 "
        "5917 138 12053 1176 236761 108 218320 33375 163543"
    ),
    "smollm2": (
        "1589 506 216 33 34 35 36 263 23 17466 1841 619 676 81 5023 216 1041 1137 30 198 198 39614 "
        "100 2756 17097 241 115 40993 40303 218"
    ),
}


@pytest.fixture(scope="session", params=["gemma", "smollm2"])
def named(
    request: pytest.FixtureRequest, gemma_tokenizer: Tokenizer, smollm2_tokenizer: Tokenizer
) -> tuple[str, Tokenizer]:
    """Both packaged vocabularies by name."""
    both = {"gemma": gemma_tokenizer, "smollm2": smollm2_tokenizer}
    return request.param, both[request.param]


def test_ids_are_those_of_transformers(named: tuple[str, Tokenizer]) -> None:
    """Our conversion of the vocabulary gives the ids that the reference gives."""
    name, tokenizer = named
    assert tokenizer.encode_text(SENTENCE) == [int(i) for i in GOLDEN[name].split()]


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=80))
def test_gemma_text_survives_the_round_trip(gemma_tokenizer: Tokenizer, text: str) -> None:
    """With byte fallback every text comes back, byte for byte (▁ stands for a space)."""
    ids = gemma_tokenizer.encode_text(text)
    joined = b"".join(map(gemma_tokenizer.token_bytes, ids))
    assert joined.decode() == text.replace("▁", " ")


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.characters(max_codepoint=0x2FF, categories=["L", "N", "P", "Zs"]), max_size=80)
)
def test_smollm2_text_survives_the_round_trip(smollm2_tokenizer: Tokenizer, text: str) -> None:
    """Letters, digits, marks and spaces come back byte for byte."""
    ids = smollm2_tokenizer.encode_text(text)
    assert b"".join(map(smollm2_tokenizer.token_bytes, ids)).decode() == text


def test_no_control_token_comes_from_its_own_name(named: tuple[str, Tokenizer]) -> None:
    """The text of each control token of the whole vocabulary is text, alone and all in a row."""
    _, tokenizer = named
    controls = tokenizer.control_names
    assert len(controls) == {"gemma": 6252, "smollm2": 17}[named[0]]
    for name in controls:
        assert tokenizer.control_ids.isdisjoint(tokenizer.encode_text(name)), name
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode_text("".join(controls)))
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode_text(" x\n".join(controls)))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_control_token_comes_from_any_text(
    named: tuple[str, Tokenizer], data: st.DataObject
) -> None:
    """Names of control tokens nested in each other and mixed with any text stay text."""
    _, tokenizer = named
    part = st.sampled_from(tokenizer.control_names) | st.text(max_size=6)
    outer = data.draw(part)
    cut = data.draw(st.integers(0, len(outer)))
    inner = "".join(data.draw(st.lists(part, max_size=4)))
    ids = tokenizer.encode_text(outer[:cut] + inner + outer[cut:])
    assert tokenizer.control_ids.isdisjoint(ids)


def test_control_tokens_are_had_by_name_alone(named: tuple[str, Tokenizer]) -> None:
    """`control` knows exact names, `token_bytes` shows nothing of them."""
    _, tokenizer = named
    for name in tokenizer.control_names[:20]:
        assert tokenizer.control(name) in tokenizer.control_ids
        assert tokenizer.token_bytes(tokenizer.control(name)) == b""
    with pytest.raises(UnsupportedModel, match="tea"):
        tokenizer.control("tea")
    assert not tokenizer.has_control("tea")
    assert tokenizer.token_bytes(10**9) == b""


def test_bytes_of_byte_tokens_are_bytes(gemma_tokenizer: Tokenizer) -> None:
    """A byte-fallback token is one byte, not its name."""
    pieces = [gemma_tokenizer.token_bytes(i) for i in gemma_tokenizer.encode_text("\U000e0041")]
    assert b"".join(pieces) == "\U000e0041".encode()
    assert all(len(piece) == 1 for piece in pieces)


def test_the_digest_names_the_file(packaged_smollm2: Path, tmp_path: Path) -> None:
    """The same file has the same digest, a changed one another."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(packaged_smollm2 / name, folder / name)
    first = Tokenizer.load(folder).digest
    assert first == Tokenizer.load(packaged_smollm2).digest
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert Tokenizer.load(folder).digest != first


def test_a_missing_or_broken_file_is_one_clear_line(tmp_path: Path) -> None:
    """No tokenizer.json and one that is no tokenizer are typed errors."""
    with pytest.raises(WeightsMissing, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(WeightsDamaged, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
