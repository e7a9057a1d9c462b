"""Files that the tests of the containers read, made part by part so that each can be broken."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

from backends.api import Role, SampledTokens
from personas.conversation import ChatMessage, Conversation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from personas.persona import JsonValue

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def card(spec: str = "chara_card_v3", version: JsonValue = "3.0", /, **data: JsonValue) -> bytes:
    """A small card's JSON."""
    fields: dict[str, JsonValue] = {"name": "Ada", "first_mes": "Tick?", "description": "Clocks."}
    return json.dumps({"spec": spec, "spec_version": version, "data": fields | data}).encode()


def chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    """One PNG chunk; `crc` replaces the right checksum."""
    found = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", found)


def text(payload: bytes, keyword: bytes = b"ccv3") -> bytes:
    """A tEXt chunk with base64 in it."""
    return chunk(b"tEXt", keyword + b"\0" + base64.b64encode(payload))


def ztext(payload: bytes, keyword: bytes = b"ccv3") -> bytes:
    """A zTXt chunk with base64 in it."""
    packed = zlib.compress(base64.b64encode(payload))
    return chunk(b"zTXt", keyword + b"\0\0" + packed)


def itext(payload: bytes, keyword: bytes = b"ccv3", *, packed: bool = False) -> bytes:
    """An iTXt chunk with base64 in it."""
    body = base64.b64encode(payload)
    flags = b"\1\0" if packed else b"\0\0"
    return chunk(
        b"iTXt", keyword + b"\0" + flags + b"en\0card\0" + (zlib.compress(body) if packed else body)
    )


def png(
    *before: bytes, after: Iterable[bytes] = (), end: bytes = b"", width: int = 2, height: int = 2
) -> bytes:
    """A grey PNG with chunks before and after the picture, and bytes after its end."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0\x60\x60" * 2)
    parts = [chunk(b"IHDR", head), *before, chunk(b"IDAT", rows), *after, chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(parts) + end


def archive(
    files: Mapping[str, bytes], *, prefix: bytes = b"", method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """A zip file of these files behind `prefix`."""
    out = io.BytesIO()
    out.write(prefix)
    with zipfile.ZipFile(out, "a" if prefix else "w", method) as whole:
        for path, data in files.items():
            info = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            info.filename = path  # ZipInfo cleans names; a stranger's zip is not clean
            whole.writestr(info, data, method)
    return out.getvalue()


def tiff(comment: bytes, *, order: str = "<", charset: bytes = b"ASCII\0\0\0") -> bytes:
    """An EXIF structure with a user comment."""
    value = charset + comment
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    pointer = struct.pack(order + "HHHLLL", 1, 0x8769, 4, 1, 26, 0)
    inner = struct.pack(order + "HHHLLL", 1, 0x9286, 7, len(value), 44, 0)
    return head + pointer + inner + value


def jpeg(exif: bytes) -> bytes:
    """A JPEG of nothing but EXIF and an end: readers of metadata need no more."""
    body = b"Exif\0\0" + exif
    app1 = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    return b"\xff\xd8" + app1 + b"\xff\xda\0\2\xff\xd9"


def webp(exif: bytes) -> bytes:
    """A WEBP with EXIF, its picture broken."""
    pad = b"\0" * (len(exif) % 2)
    inner = b"VP8X" + struct.pack("<L", 10) + bytes(10)
    inner += b"EXIF" + struct.pack("<L", len(exif)) + exif + pad
    return b"RIFF" + struct.pack("<L", len(inner) + 4) + b"WEBP" + inner


def tree() -> Conversation:
    """Two greetings, two versions of what the user said, each answered; a second answer."""
    conversation = Conversation("c", "ada", "1", "Sam")
    ids = SampledTokens("t", (1, 2))
    for message in (
        ChatMessage("g1", None, Role.ASSISTANT, "Ada", "Tick?"),
        ChatMessage("g2", None, Role.ASSISTANT, "Ada", "Tock?"),
        ChatMessage("u1", "g2", Role.USER, "Sam", "Hi"),
        ChatMessage("a1", "u1", Role.ASSISTANT, "Ada", "Hello", ids),
        ChatMessage("u2", "g2", Role.USER, "Sam", "Hey & <b>"),
        ChatMessage("a2", "u2", Role.ASSISTANT, "Ada", "Hey yourself"),
        ChatMessage("a3", "u2", Role.ASSISTANT, "Ada", "Good day"),
    ):
        conversation = conversation.say(message)
    return conversation
