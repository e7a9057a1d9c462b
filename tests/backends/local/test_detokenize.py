"""Text out of sampled bytes obeys one law, however the bytes were split."""

from __future__ import annotations

import codecs
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.local.detokenize import Detokenizer, Kept


def speak(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], Kept]:
    """Pushes pieces until a stop or the end; what came out at each point, and what was kept."""
    detokenizer = Detokenizer(stops)
    out = []
    for piece in pieces:
        out.append(detokenizer.push(piece))
        if detokenizer.stopped:
            break
    out.append(detokenizer.finish())
    return out, detokenizer.kept()


def naive(raw: bytes, stops: tuple[str, ...]) -> str:
    """The law, read character by character."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(raw)
    lead = len(text) - len(text.lstrip())
    for end in range(1, len(text) + 1):
        starts = [
            end - len(s)
            for s in stops
            if end >= len(s)
            and text[end - len(s) : end] == s
            and (not s.isspace() or end - len(s) >= lead)
        ]
        if starts:
            return text[: min(starts)].lstrip()
    return text.lstrip()


def split(raw: bytes, cuts: list[int]) -> list[bytes]:
    points = [0, *sorted(c % (len(raw) + 1) for c in cuts), len(raw)]
    return [raw[a:b] for a, b in itertools.pairwise(points)]


def test_half_character_waits() -> None:
    """A character whose bytes come in two tokens is sent whole, with the second."""
    raw = "é".encode()
    assert speak([raw[:1], raw[1:], b"x"])[0] == ["", "é", "x", ""]


def test_half_character_at_the_end() -> None:
    """An incomplete last character is dropped, and its token with it."""
    assert speak([b"a", b"\xe2\x82"]) == (["a", "", ""], Kept(1, ""))


def test_malformed() -> None:
    """A byte that begins nothing is one replacement character."""
    assert speak([b"a", b"\xff", b"b"])[0] == ["a", "�", "b", ""]


def test_stop_over_tokens() -> None:
    """A stop string that spans tokens never leaks; what only looked like one is sent."""
    out, kept = speak([b"Hi", b"\nYo", b"ga\n", b"You", b": no"], ("\nYou:",))
    assert out == ["Hi", "", "\nYoga", "", "", ""]
    assert kept == Kept(2, "ga")


def test_stop_inside_token() -> None:
    """A stop string in the middle of a token keeps the text before it as the remainder."""
    assert speak([b"Hi", b" you\nY"], ("\n",)) == (["Hi", " you", ""], Kept(1, " you"))


def test_stop_behind_half_a_character() -> None:
    """A token that ends a character and begins a stop string is not kept in halves."""
    assert speak([b"a", b"\xc3", b"\xa9\n"], ("\n",))[1] == Kept(1, "é")


def test_leading_whitespace() -> None:
    """Leading whitespace is stripped, its tokens are kept, and it does not end the reply."""
    assert speak([b" ", b"\n Hi", b"\n"], ("\n",)) == (["", "Hi", "", ""], Kept(2, ""))


def test_stop_at_the_very_start() -> None:
    """The next speaker's name right at the start ends an empty reply."""
    assert speak([b"\nYou:"], ("\nYou:",)) == (["", ""], Kept(0, ""))


@pytest.mark.parametrize("pieces", [[b"abcd"], [b"a", b"b", b"c", b"d"]])
def test_first_to_end_wins(pieces: list[bytes]) -> None:
    """Of two stop strings the one that ends first cuts, however the text was split."""
    assert "".join(speak(pieces, ("abcd", "bc"))[0]) == "a"


def test_unfinished_stop_is_sent() -> None:
    """What was held back comes out when the reply ends without the stop string."""
    assert speak([b"Hi\nYo"], ("\nYou:",)) == (["Hi", "\nYo"], Kept(1, ""))


alphabet = st.sampled_from(["a", "b", "ab", "\n", " ", "é", "€", "😀", "Y", ":"])
texts = st.lists(alphabet, max_size=14).map("".join)
raws = st.one_of(texts.map(str.encode), st.binary(max_size=16))
stops = st.lists(texts.filter(bool), max_size=3).map(tuple)


@settings(max_examples=400, deadline=None)
@given(raw=raws, cuts=st.lists(st.integers(0, 99), max_size=8), stops=stops)
def test_law(raw: bytes, cuts: list[int], stops: tuple[str, ...]) -> None:
    """Any split gives the naive cut of the whole; nothing sent is ever taken back."""
    pieces = split(raw, cuts)
    out, kept = speak(pieces, stops)
    text = "".join(out)
    assert text == naive(raw, stops)
    inside = b"".join(pieces[: kept.token_count]).decode(errors="replace") + kept.remainder
    assert inside.lstrip() == text
