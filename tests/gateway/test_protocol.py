"""gateway.protocol and gateway.codec: every frame survives, everything else is refused by name."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import FinishReason, Role
from backends.errors import BackendErrorCode
from gateway.codec import Frame, dump, load
from gateway.errors import ErrorCode, ProtocolError, UnreadableFrame
from gateway.protocol import (
    CLIENT_FRAMES,
    RECONNECT,
    SERVER_FRAMES,
    ChatDeleted,
    ChatEvent,
    ChatOpen,
    ChatSet,
    ChatSnapshot,
    ChatSubscribe,
    ChatTyping,
    ChatUnsubscribe,
    ChatUpdated,
    ChatUse,
    CloseCode,
    Error,
    ErrorFrame,
    Goodbye,
    Hello,
    Limits,
    LiveReply,
    Message,
    MessageStatus,
    PersonaRef,
    Ping,
    Place,
    Pong,
    Stats,
    Subprotocol,
    TurnAccepted,
    TurnCancel,
    TurnCancelled,
    TurnCreate,
    TurnDelta,
    TurnDone,
    TurnFailed,
    TurnStarted,
    Welcome,
    choose,
    decode,
    encode,
    utf16_len,
)
from personas.persona import Note

if TYPE_CHECKING:
    from personas.persona import JsonValue

DOC = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")

ids = st.text("abcdef0123456789-_", min_size=1, max_size=64)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
counts = st.integers(0, 2**53 - 1)
stats = st.builds(
    Stats,
    ttft_ms=st.floats(0, 1e6),
    tokens_per_s=st.floats(0, 1e6),
    prompt_tokens=counts,
    cached_tokens=counts,
    completion_tokens=counts,
    cached_by_tier=st.dictionaries(texts, counts, max_size=3),
    miss=texts,
    backend=texts,
)
plain = st.recursive(
    st.none() | st.booleans() | counts | texts, lambda inner: st.lists(inner, max_size=3)
)
error_fields = {
    "code": st.sampled_from([*ErrorCode, *BackendErrorCode]).map(str),
    "message": texts,
    "retryable": st.booleans(),
    "retry_after_ms": st.none() | counts,
    "detail": st.dictionaries(texts, plain, max_size=3),
}
errors = st.builds(Error, **error_fields)
messages = st.builds(
    Message,
    id=ids,
    role=st.sampled_from(Role),
    name=texts,
    text=texts,
    turn=st.none() | ids,
    status=st.sampled_from(MessageStatus),
    stats=st.none() | stats,
    error=st.none() | errors,
)
chat_event = {
    "re": st.none() | ids,
    "chat": ids,
    "epoch": st.none() | ids,
    "seq": st.none() | counts,
}
event = {**chat_event, "turn": ids}
users = st.text("abcÄé", min_size=1, max_size=40)
notes = st.builds(Note, text=texts, depth=st.integers(0, 100), role=st.sampled_from(Role))
changeable = {
    "user": texts,
    "about": texts,
    "note": st.none() | notes,
    "backend": texts,
    "greetings": st.lists(messages, max_size=2).map(tuple),
    "greeting": st.none() | counts,
}
client_frames = st.one_of(
    st.builds(Hello, id=st.none() | ids, client=st.none() | texts),
    st.builds(
        ChatOpen,
        id=ids,
        persona=texts,
        user=users,
        about=texts,
        note=st.none() | notes,
        greeting=st.none() | counts,
        backend=st.none() | ids,
    ),
    st.builds(
        ChatSubscribe,
        id=ids,
        chat=ids,
        after=st.none() | st.builds(Place, epoch=ids, seq=counts),
    ),
    st.builds(ChatUnsubscribe, id=st.none() | ids, chat=ids),
    st.builds(ChatTyping, id=st.none() | ids, chat=ids),
    st.builds(ChatUse, id=ids, chat=ids, backend=ids),
    st.builds(
        ChatSet,
        id=ids,
        chat=ids,
        user=st.none() | users,
        about=texts,
        note=st.none() | notes,
        greeting=st.none() | counts,
    ),
    st.builds(TurnCreate, id=ids, chat=ids, text=texts),
    st.builds(TurnCancel, id=st.none() | ids, chat=ids, turn=ids),
    st.builds(Ping, id=st.none() | ids, n=st.integers(-(2**53) + 1, 2**53 - 1)),
)
server_frames = st.one_of(
    st.builds(
        Welcome,
        re=st.none() | ids,
        session=ids,
        server=texts,
        protocol=texts,
        heartbeat_ms=counts,
        limits=st.builds(Limits, frame_bytes=counts, text_chars=counts),
    ),
    st.builds(
        ChatSnapshot,
        re=st.none() | ids,
        chat=ids,
        epoch=ids,
        seq=counts,
        persona=st.builds(PersonaRef, id=ids, name=texts),
        **changeable,
        messages=st.lists(messages, max_size=3).map(tuple),
        live=st.none() | st.builds(LiveReply, turn=ids, message=ids, text=texts, off=counts),
    ),
    st.builds(ChatUpdated, **chat_event, **changeable),
    st.builds(ChatDeleted, **chat_event),
    st.builds(TurnAccepted, **event, user_message=messages, reply_id=ids),
    st.builds(TurnStarted, **event, backend=texts, model=texts),
    st.builds(TurnDelta, **event, off=counts, text=texts),
    st.builds(TurnDone, **event, reason=st.sampled_from(FinishReason), message=messages),
    st.builds(TurnCancelled, **event, message=messages),
    st.builds(TurnFailed, **event, error=errors, message=messages),
    st.builds(Pong, re=st.none() | ids, n=counts),
    st.builds(ErrorFrame, re=st.none() | ids, chat=st.none() | ids, **error_fields),
    st.builds(Goodbye, reason=texts, after_ms=counts),
)
subprotocols = st.sampled_from(Subprotocol)


def opened(**given: JsonValue) -> JsonValue:
    return {"t": "chat.open", "id": "i", "d": {"persona": "p", **given}}


def changed(**given: JsonValue) -> JsonValue:
    return {"t": "chat.set", "id": "i", "chat": "c", "d": given}


@given(client_frames, subprotocols)
def test_client_frames_survive(frame: Frame, subprotocol: Subprotocol) -> None:
    """Decoding an encoded client frame gives it back, in both subprotocols."""
    assert decode(encode(frame, subprotocol), subprotocol) == frame


@given(server_frames, subprotocols)
def test_server_frames_survive(frame: Frame, subprotocol: Subprotocol) -> None:
    """Decoding an encoded server frame gives it back, in both subprotocols."""
    assert decode(encode(frame, subprotocol), subprotocol, SERVER_FRAMES) == frame


@given(st.one_of(client_frames, server_frames))
def test_subprotocols_carry_the_same_object(frame: Frame) -> None:
    """JSON text and msgpack bytes hold equal objects."""
    as_json = json.loads(encode(frame, Subprotocol.JSON))
    assert as_json == msgpack.unpackb(encode(frame, Subprotocol.MSGPACK))
    assert as_json["t"] == frame.T


@given(client_frames, st.data())
def test_unknown_keys_are_refused(frame: Frame, data: st.DataObject) -> None:
    """A key that the type does not have is refused by its path, in the envelope and in `d`."""
    obj = dump(frame)
    payload = obj.setdefault("d", {})
    assert isinstance(payload, dict)
    place, path = data.draw(st.sampled_from([(obj, "extra"), (payload, "d.extra")]))
    place["extra"] = 1
    with pytest.raises(ProtocolError) as caught:
        load(obj, CLIENT_FRAMES)
    assert caught.value.code is ErrorCode.BAD_FIELD
    assert caught.value.field == path


@given(client_frames, st.data())
def test_missing_fields_are_refused(frame: Frame, data: st.DataObject) -> None:
    """A required key that is missing is refused by its path, and the answer knows the request."""
    obj = dump(frame)
    required = [f.name for f in fields(frame) if f.default is MISSING]
    if not required:
        return
    name = data.draw(st.sampled_from(required))
    place, path = (obj, name) if name in obj else (obj["d"], f"d.{name}")
    assert isinstance(place, dict)
    del place[name]
    with pytest.raises(ProtocolError) as caught:
        load(obj, CLIENT_FRAMES)
    assert (caught.value.code, caught.value.field) == (ErrorCode.BAD_FIELD, path)
    assert caught.value.re == obj.get("id")


@pytest.mark.parametrize(
    ("obj", "code", "field"),
    [
        ([], ErrorCode.BAD_FRAME, ""),
        (None, ErrorCode.BAD_FRAME, ""),
        ({}, ErrorCode.BAD_FRAME, ""),
        ({"t": 1}, ErrorCode.BAD_FRAME, ""),
        ({"t": "turn.explode"}, ErrorCode.UNKNOWN_TYPE, "t"),
        ({"t": "turn.done"}, ErrorCode.UNKNOWN_TYPE, "t"),
        ({"t": "\ud800"}, ErrorCode.UNKNOWN_TYPE, "t"),
        ({"t": "hello", "d": []}, ErrorCode.BAD_FIELD, "d"),
        ({"t": "hello", "d": {"client": "x" * 101}}, ErrorCode.BAD_FIELD, "d.client"),
        ({"t": "ping", "d": {"n": True}}, ErrorCode.BAD_FIELD, "d.n"),
        ({"t": "ping", "d": {"n": 1.5}}, ErrorCode.BAD_FIELD, "d.n"),
        ({"t": "ping", "d": {"n": 2**53}}, ErrorCode.BAD_FIELD, "d.n"),
        ({"t": "turn.create", "id": "", "chat": "c", "d": {"text": "x"}}, "bad_field", "id"),
        ({"t": "turn.create", "id": "i" * 65, "chat": "c", "d": {"text": "x"}}, "bad_field", "id"),
        ({"t": "turn.create", "id": "i", "chat": 5, "d": {"text": "x"}}, "bad_field", "chat"),
        ({"t": "turn.create", "id": "i", "chat": "c", "d": {"text": 5}}, "bad_field", "d.text"),
        (
            {"t": "turn.create", "id": "i", "chat": "c", "d": {"text": "\ud83d"}},
            ErrorCode.BAD_FIELD,
            "d.text",
        ),
        ({"t": "chat.open", "id": "i", "d": {"persona": "p", "user": ""}}, "bad_field", "d.user"),
        ({"t": "chat.open", "id": "i", "d": {"persona": "p", "user": " a"}}, "bad_field", "d.user"),
        (
            {"t": "chat.open", "id": "i", "d": {"persona": "p", "user": "a\nb"}},
            ErrorCode.BAD_FIELD,
            "d.user",
        ),
        (
            {"t": "chat.open", "id": "i", "d": {"persona": "p", "backend": ""}},
            ErrorCode.BAD_FIELD,
            "d.backend",
        ),
        ({"t": "chat.use", "id": "i", "chat": "c"}, ErrorCode.BAD_FIELD, "d.backend"),
        (
            {"t": "chat.use", "id": "i", "chat": "c", "d": {"backend": "b" * 65}},
            ErrorCode.BAD_FIELD,
            "d.backend",
        ),
        (opened(about="x" * 4001), ErrorCode.BAD_FIELD, "d.about"),
        (opened(note={"text": "x" * 4001}), ErrorCode.BAD_FIELD, "d.note.text"),
        (opened(note={}), ErrorCode.BAD_FIELD, "d.note.text"),
        (opened(note="dry"), ErrorCode.BAD_FIELD, "d.note"),
        (opened(greeting=-1), ErrorCode.BAD_FIELD, "d.greeting"),
        (changed(), ErrorCode.BAD_FIELD, "d"),
        (changed(user=""), ErrorCode.BAD_FIELD, "d.user"),
        (changed(about="x" * 4001), ErrorCode.BAD_FIELD, "d.about"),
        (changed(note={"text": "x", "depth": -1}), ErrorCode.BAD_FIELD, "d.note.depth"),
        (changed(note={"text": "x", "depth": 101}), ErrorCode.BAD_FIELD, "d.note.depth"),
        (changed(note={"text": "x", "role": "author"}), ErrorCode.BAD_FIELD, "d.note.role"),
        (changed(note={"text": "x", "every": 4}), ErrorCode.BAD_FIELD, "d.note.every"),
        (changed(greeting="first"), ErrorCode.BAD_FIELD, "d.greeting"),
        (
            {"t": "chat.subscribe", "id": "i", "chat": "c", "d": {"after": {"epoch": "e"}}},
            ErrorCode.BAD_FIELD,
            "d.after.seq",
        ),
        (
            {
                "t": "chat.subscribe",
                "id": "i",
                "chat": "c",
                "d": {"after": {"epoch": "e", "seq": -1}},
            },
            ErrorCode.BAD_FIELD,
            "d.after.seq",
        ),
    ],
)
def test_wrong_frames_are_named(obj: JsonValue, code: str, field: str) -> None:
    """Each wrong frame is refused with its code and the path of the field."""
    with pytest.raises(ProtocolError) as caught:
        load(obj, CLIENT_FRAMES)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert caught.value.detail.get("field", "") == field


@given(st.binary(max_size=60))
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    """Whatever bytes arrive, decoding gives a frame or a ProtocolError, and nothing else."""
    messages: list[tuple[str | bytes, Subprotocol]] = [
        (data, Subprotocol.MSGPACK),
        (data, Subprotocol.JSON),
        (data.decode("latin-1"), Subprotocol.JSON),
        (data.decode("latin-1"), Subprotocol.MSGPACK),
    ]
    for message, subprotocol in messages:
        try:
            frame = decode(message, subprotocol)
        except ProtocolError:
            continue
        assert isinstance(frame, Frame)


@pytest.mark.parametrize(
    ("data", "subprotocol"),
    [
        ("{", Subprotocol.JSON),
        ('{"t": NaN}', Subprotocol.JSON),
        ("[" * 100_000, Subprotocol.JSON),
        ("1" * 10_000, Subprotocol.JSON),
        (b"{}", Subprotocol.JSON),
        ("{}", Subprotocol.MSGPACK),
        (b"\xc1", Subprotocol.MSGPACK),
        (b"\x91" * 10_000 + b"\x01", Subprotocol.MSGPACK),
        (b"\xdf\xff\xff\xff\xff", Subprotocol.MSGPACK),
        (b"\x81\xa1t\xc7\x02\x05ab", Subprotocol.MSGPACK),
        (b"\x81\x01\x02", Subprotocol.MSGPACK),
        (b"\x80\x80", Subprotocol.MSGPACK),
    ],
)
def test_unreadable_messages_are_fatal(data: str | bytes, subprotocol: Subprotocol) -> None:
    """What is not JSON or msgpack of the negotiated kind is UnreadableFrame."""
    with pytest.raises(UnreadableFrame):
        decode(data, subprotocol)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_utf16_len_is_what_browsers_count(text: str) -> None:
    """utf16_len equals the number of UTF-16 code units."""
    assert utf16_len(text) == len(text.encode("utf-16-le")) // 2


def test_first_known_subprotocol_wins() -> None:
    """The client's order decides among those we speak; none gives None."""
    assert choose(["v9", "persona.v1.msgpack", "persona.v1.json"]) is Subprotocol.MSGPACK
    assert choose(["persona.v2.json", ""]) is None


def _table(title: str) -> list[list[str]]:
    section = DOC.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [r.strip("|").split(" | ") for r in section.splitlines() if r.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def test_doc_lists_every_frame() -> None:
    """docs/wire.md and the code have the same frames, and mark the same ones as chat events."""
    client = {row[0].strip("`") for row in _table("Client to server")}
    assert client == set(CLIENT_FRAMES)
    rows = [r[0] for r in _table("Server to client") if r[0].strip("`*") in SERVER_FRAMES]
    assert {r.strip("`*") for r in rows} == set(SERVER_FRAMES)
    events = {name for name, cls in SERVER_FRAMES.items() if issubclass(cls, ChatEvent)}
    assert {r.strip("`*") for r in rows if r.endswith("*")} == events


@pytest.mark.parametrize("kind", [Message, Stats, Error])
def test_doc_lists_every_field(kind: type) -> None:
    """docs/wire.md names the fields of the values that events carry, in their order."""
    listed = ", ".join(f.name for f in fields(kind))
    bare = re.sub(r": (\{[^{}]*\}|[^,}]+)", "", DOC)
    assert "{" + listed + "}" in bare


def test_doc_lists_every_code() -> None:
    """docs/wire.md names every error code of the gateway, and no other."""
    section = DOC.split("| `code` | when |")[1].split("\n## ")[0]
    firsts = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    named = set(re.findall(r"`([a-z_]+)`", " ".join(firsts)))
    assert named == {code.value for code in ErrorCode}


def test_doc_lists_every_close_code() -> None:
    """docs/wire.md has the close codes of the code, with the same answer to reconnecting."""
    documented: dict[int, bool] = {}
    for codes, _, again in _table("Close codes"):
        for code, answer in zip(codes.split(" / "), again.split(" / "), strict=False):
            documented[int(code)] = answer.startswith("yes")
    assert documented == {int(code): RECONNECT[code] for code in CloseCode}
