"""JSON and base64 as they are found in the wild."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personas.jsontext import check_depth, decode_text, load_json, unwrap_payload
from personas.limits import Findings, ImportLimits
from personas.persona import CardError, JsonValue


def load(raw: bytes) -> tuple[dict[str, JsonValue], list[str]]:
    findings = Findings()
    value, text = load_json(raw, ImportLimits(), findings)
    assert json.loads(decode_text(text)) == value
    return value, [finding.code for finding in findings.found]


def test_sound_json_is_not_touched() -> None:
    """Sound JSON comes back as the very bytes it was."""
    raw = b'{"a": [",]", {}]}'
    assert load_json(raw, ImportLimits(), Findings())[1] is raw


@pytest.mark.parametrize(
    ("raw", "value", "codes"),
    [
        (b'{"a": [1, 2,],}', {"a": [1, 2]}, ["trailing_comma"]),
        (b'{"a": ",]",\n }', {"a": ",]"}, ["trailing_comma"]),
        (b'{"a": "x\ny\t"}', {"a": "x\ny\t"}, ["control_characters"]),
        (b'{"a": "\\"\n"}\0', {"a": '"\n'}, ["trailing_nul", "control_characters"]),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}, ["byte_order_mark"]),
        ('{"a": "ü"}'.encode("utf-16-le"), {"a": "ü"}, []),
    ],
)
def test_mended(raw: bytes, value: dict[str, JsonValue], codes: list[str]) -> None:
    """Each repair is made inside the structure only, and named."""
    assert load(raw) == (value, codes)


@pytest.mark.parametrize("raw", [b'{"a": 1', b"{a: 1}", b'{"a": "\n', b'{"a":1}}'])
def test_not_mended(raw: bytes) -> None:
    """What is cut off or ambiguous is refused with its place."""
    with pytest.raises(CardError) as caught:
        load(raw)
    assert caught.value.code == "bad_json"
    assert ":" in caught.value.where


def test_long_numbers() -> None:
    """A number of thousands of digits is no crash."""
    with pytest.raises(CardError):
        load(b'{"a": ' + b"9" * 5000 + b"}")


@given(st.binary(max_size=40), st.integers(0, 3), st.booleans())
def test_base64(data: bytes, breaks: int, urlsafe: bool) -> None:
    """Base64 in any alphabet, broken anywhere and without padding is the same bytes."""
    packed = (base64.urlsafe_b64encode if urlsafe else base64.b64encode)(data).rstrip(b"=")
    for _ in range(breaks):
        packed = packed[: len(packed) // 2] + b"\r\n" + packed[len(packed) // 2 :]
    assert unwrap_payload(packed, Findings(), where="x") == data


@pytest.mark.parametrize(
    ("text", "code"),
    [(b"rcc||rccv1||x", "encrypted"), (b"a", "bad_base64"), (b"a?!b", "bad_base64")],
)
def test_payload_refused(text: bytes, code: str) -> None:
    """Encrypted cards and what is no base64 are refused by name."""
    with pytest.raises(CardError) as caught:
        unwrap_payload(text, Findings(), where="x")
    assert caught.value.code == code


OBJECTS = st.dictionaries(
    st.text(max_size=4),
    st.recursive(st.none() | st.text(max_size=6), lambda inner: st.lists(inner, max_size=3)),
    min_size=1,
    max_size=4,
)


@given(OBJECTS)
def test_any_trailing_commas(value: dict[str, JsonValue]) -> None:
    """Commas before closing brackets change nothing, whatever the texts hold."""
    text = json.dumps(value, ensure_ascii=False)
    assert load(text[:-1].encode() + b" ,\n}")[0] == value


NESTED = st.recursive(
    st.none() | st.text(alphabet='"\\\\[]{}a,', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
)


def deepness(value: JsonValue) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, (dict, list)) + max(map(deepness, inner), default=0)


@given(NESTED, st.integers(0, 6))
def test_any_depth(value: JsonValue, most: int) -> None:
    """What counts is the nesting, whatever brackets, quotes and backslashes the strings hold."""
    text = json.dumps(value)
    if deepness(value) <= most:
        check_depth(text, most)
    else:
        with pytest.raises(CardError, match=f"more than {most} deep"):
            check_depth(text, most)
