"""JSON and base64 as they are found in the wild: repaired where it is plain what was meant.

Every repair is a finding. What is not repaired: texts cut off in the middle, unquoted keys,
wrong encodings.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from itertools import accumulate
from typing import TYPE_CHECKING

from personas.persona import CardError

if TYPE_CHECKING:
    from personas.limits import Findings, ImportLimits
    from personas.persona import JsonValue

__all__ = ["check_depth", "decode_text", "load_json", "unwrap_payload"]

# A string, closed or not: what always matches cannot backtrack, and a loop over runs is quick.
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
_BRACKET = re.compile(_STRING + r"|[\[\]{}]", re.DOTALL)
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKET = bytes({*range(256)} - {*_STEP, ord('"')})
_TOKEN = re.compile(_STRING + r"|,(?=\s*[\]}])", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f]")
_SPACE = b" \t\r\n\0"


def decode_text(raw: bytes) -> str:
    """Text in UTF-8, UTF-16 or UTF-32, without its byte order mark.

    Raises `CardError`: `bad_encoding` with the byte.
    """
    try:
        return raw.decode(json.detect_encoding(raw)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        where = f"byte {error.start}"
        raise CardError("bad_encoding", f"no Unicode text at {where}", where=where) from None


def load_json(
    raw: bytes, limits: ImportLimits, findings: Findings
) -> tuple[dict[str, JsonValue], bytes]:
    """The object a JSON text is, and the text with its repairs made.

    The text is `raw` itself where nothing had to be repaired. Raises `CardError`: `too_large`,
    `too_deep`, `too_many_values`, `bad_encoding`, `bad_json` (`where` is `line:column`),
    `not_a_card`.
    """
    if len(raw) > limits.json_bytes:
        message = f"the JSON has {len(raw)} bytes, more than {limits.json_bytes}"
        raise CardError("too_large", message)
    text = decode_text(raw)
    if text.count(",") + text.count("[") + text.count("{") > limits.json_values:
        raise CardError("too_many_values", f"the JSON has more than {limits.json_values} values")
    check_depth(text, limits.json_depth)
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        findings.add("byte_order_mark", "a byte order mark before the JSON was skipped")
    try:
        return _object(json.loads(text)), raw
    except json.JSONDecodeError as error:
        broken = error
    except (RecursionError, ValueError) as error:  # an integer of thousands of digits
        raise CardError("bad_json", f"the JSON cannot be read: {error}") from None
    mended = _mend(text, findings)
    try:
        return _object(json.loads(mended)), mended.encode(errors="backslashreplace")
    except (RecursionError, ValueError):
        where = f"{broken.lineno}:{broken.colno}"
        raise CardError("bad_json", f"{broken.msg} at {where}", where=where) from None


def check_depth(text: str, most: int) -> None:
    """Raises `CardError` (`too_deep`, `where` is the character) before such JSON is decoded."""
    if text.count("{") + text.count("[") <= most:  # fewer cannot nest deeper
        return
    # Matching the strings is slow. With nothing but quotes and brackets left, a string without
    # brackets is a pair of quotes, and such pairs can go whether they open or close first.
    raw = text.replace("\\\\", "").replace('\\"', "").encode(errors="replace")
    bare = raw.translate(None, _NO_BRACKET).replace(b'""', b"").split(b'"')[::2]
    if max(accumulate(map(_STEP.__getitem__, b"".join(bare))), default=0) <= most:
        return
    depth = 0
    for found in _BRACKET.finditer(text):
        depth += _STEP.get(ord(found[0][0]), 0)
        if depth > most:
            where = f"character {found.start()}"
            raise CardError("too_deep", f"JSON nested more than {most} deep", where=where)


def unwrap_payload(text: bytes, findings: Findings, *, where: str) -> bytes:
    """The bytes of a text chunk: base64 of anything, or JSON put there without it.

    Raises `CardError`: `encrypted` for RisuAI's password cards, `bad_base64`.
    """
    text = text.strip(_SPACE).removeprefix(b"\xef\xbb\xbf")
    if text.startswith(b"rcc||"):
        message = "RisuAI has encrypted this card; only its author's password opens it"
        raise CardError("encrypted", message, where=where)
    if text.startswith(b"{"):
        findings.add("raw_json", "JSON that is not in base64 was read", where=where)
        return text
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        pass
    packed = b"".join(text.split())
    if len(packed) != len(text):
        findings.add("base64_spaces", "line breaks inside the base64 were skipped", where=where)
    if b"-" in packed or b"_" in packed:
        packed = packed.translate(bytes.maketrans(b"-_", b"+/"))
        findings.add("base64_urlsafe", "base64 in the alphabet for URLs was read", where=where)
    bare = packed.rstrip(b"=")
    padding = b"=" * (-len(bare) % 4)
    if bare + padding != packed:
        findings.add("base64_padding", "base64 with wrong padding was read", where=where)
    try:
        return base64.b64decode(bare + padding, validate=True)
    except binascii.Error as error:
        raise CardError("bad_base64", f"{where} is no base64: {error}", where=where) from None


def _object(value: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise CardError("not_a_card", "the JSON is no object")
    return value


def _mend(text: str, findings: Findings) -> str:
    """Without commas before a closing bracket and raw control characters inside strings."""
    commas = controls = 0

    def token(found: re.Match[str]) -> str:
        nonlocal commas, controls
        if found[0] == ",":
            commas += 1
            return ""
        if found[0][0] == '"' and _CONTROL.search(found[0]):
            controls += 1
            return _CONTROL.sub(lambda sign: f"\\u{ord(sign[0]):04x}", found[0])
        return found[0]

    stripped = text.rstrip("\0")
    if stripped != text:
        findings.add("trailing_nul", "NUL characters after the JSON were skipped")
    mended = _TOKEN.sub(token, stripped)
    if commas:
        findings.add("trailing_comma", f"{commas} commas before a closing bracket were skipped")
    if controls:
        findings.add("control_characters", f"{controls} strings with raw line breaks were read")
    return mended
