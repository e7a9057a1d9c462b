"""Chats in and out of other programs' files."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Role
from personas import chats
from personas.chats import ChatFile, read_chats
from personas.conversation import ChatMessage
from personas.limits import ImportLimits
from personas.persona import CardError
from tests.personas.makers import tree

if TYPE_CHECKING:
    from personas.persona import JsonValue

HEADER: dict[str, JsonValue] = {
    "user_name": "Sam",
    "character_name": "Ada",
    "create_date": "2026-1-1",
    "chat_metadata": {"note": [1, None]},
}
LINES: list[dict[str, JsonValue]] = [
    {"name": "System", "is_user": False, "is_system": True, "mes": "joined", "extra": {"x": 1}},
    {
        "name": "Ada",
        "is_user": False,
        "mes": "Tock?",
        "swipe_id": 1,
        "swipes": ["Tick?", "Tock?"],
        "swipe_info": [{"send_date": 1}, {"send_date": 2}],
        "extra": {"api": "x", "reasoning": "y"},
    },
    {"name": "Sam", "is_user": True, "is_system": False, "mes": "Hi", "force_avatar": "a.png"},
    {"name": "Ada", "is_user": False, "mes": "Shown", "swipe_id": 0, "swipes": ["Older"]},
    {"name": "Note", "is_user": True, "is_system": True, "mes": "hidden"},
]


def lines(*objects: dict[str, JsonValue]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in objects)


def objects(raw: bytes) -> list[dict[str, JsonValue]]:
    return [json.loads(line) for line in raw.splitlines()]


def one(raw: bytes) -> ChatFile:
    (chat,) = read_chats(raw, persona_id="ada", persona_revision="1")
    return chat


def test_sillytavern_in() -> None:
    """Swipes become candidates, what is shown counts, hidden lines stay out of the chat."""
    chat = one(lines(HEADER, *LINES))
    conversation = chat.conversation
    assert (chat.format, conversation.user, conversation.persona_id) == (
        "sillytavern",
        "Sam",
        "ada",
    )
    assert [(m.role, m.text) for m in conversation.path()] == [
        (Role.ASSISTANT, "Tock?"),
        (Role.USER, "Hi"),
        (Role.ASSISTANT, "Shown"),
    ]
    first = conversation.path()[0]
    assert [m.text for m in conversation.candidates(first.id)] == ["Tick?", "Tock?"]
    assert [f.code for f in chat.findings] == ["hidden", "hidden"]


def test_sillytavern_loss_free() -> None:
    """A chat that nobody changed goes out value for value, hidden lines in their places."""
    assert objects(chats.to_jsonl(one(lines(HEADER, *LINES)))) == [HEADER, *LINES]


def test_sillytavern_goes_on() -> None:
    """What is said later is added; a new swipe changes its own line's swipes and no more."""
    chat = one(lines(HEADER, *LINES))
    first = chat.conversation.path()[0]
    another = ChatMessage("new", None, Role.ASSISTANT, "Ada", "Clang")
    chat = replace(chat, conversation=chat.conversation.say(another))
    out = objects(chats.to_jsonl(chat))
    assert out[-1]["swipes"] == ["Tick?", "Tock?", "Clang"]
    assert (out[-1]["swipe_id"], out[-1]["mes"]) == (2, "Clang")
    chat = replace(chat, conversation=chat.conversation.rewind(first.id))
    back = objects(chats.to_jsonl(chat))
    assert back[:2] == [HEADER, LINES[0]]
    assert (back[2]["mes"], back[2]["extra"]) == ("Tock?", LINES[1]["extra"])
    assert back[2]["swipe_info"] == [{"send_date": 1}, {"send_date": 2}, {}]


def test_chub_nests() -> None:
    """Chub's nested texts are read, and go out as they came."""
    line: dict[str, JsonValue] = {
        "name": "Ada",
        "is_user": False,
        "mes": {"message": "b"},
        "swipes": [{"message": "a"}, {"message": "b"}],
        "swipe_id": 1,
    }
    chat = one(lines(HEADER, line))
    assert chat.conversation.path()[0].text == "b"
    assert objects(chats.to_jsonl(chat)) == [HEADER, line]


def test_broken_lines() -> None:
    """A line that is no JSON is skipped and named, also the first one."""
    for raw in (lines(HEADER) + b"{oops\n" + lines(*LINES), b"{oops\n" + lines(HEADER, *LINES)):
        chat = one(raw)
        assert len(chat.conversation.path()) == 3
        assert "bad_line" in {f.code for f in chat.findings}


def test_sillytavern_of_ours() -> None:
    """A chat of ours goes to SillyTavern and comes back; each branch is its own file."""
    files = [chats.to_jsonl(ChatFile(branch)) for branch in chats.branches(tree())]
    assert len(files) == 2
    again = [one(raw).conversation for raw in files]
    assert [m.text for m in again[0].path()] == ["Tock?", "Hey & <b>", "Good day"]
    assert [m.text for m in again[1].path()] == ["Tock?", "Hi", "Hello"]
    everything = {m.text for conversation in again for m in conversation.messages}
    assert everything == {m.text for m in tree().messages}


def test_webui() -> None:
    """text-generation-webui's pairs come in, and go out escaped where they are shown."""
    pairs = [["<|BEGIN-VISIBLE-CHAT|>", "Tick?"], ["Hi & <b>", "Ho"], ["Bye", ""]]
    raw = json.dumps({"internal": pairs, "visible": [], "metadata": {"a": 1}}).encode()
    chat = one(raw)
    assert [(m.role, m.text) for m in chat.conversation.path()] == [
        (Role.ASSISTANT, "Tick?"),
        (Role.USER, "Hi & <b>"),
        (Role.ASSISTANT, "Ho"),
        (Role.USER, "Bye"),
    ]
    out = json.loads(chats.to_webui(chat))
    assert out["internal"] == pairs
    assert out["visible"][:2] == [["", "Tick?"], ["Hi &amp; &lt;b&gt;", "Ho"]]
    assert out["metadata"] == {"a": 1}
    assert one(json.dumps({"data": pairs}).encode()).conversation.messages


def test_cai_tools() -> None:
    """Each history of CAI Tools is a chat; ours goes out as one."""
    said: list[JsonValue] = [
        {"src": {"is_human": False, "name": "Ada"}, "text": "Tick?"},
        {"src": {"is_human": True, "name": "Sam"}, "text": "Hi"},
    ]
    raw = json.dumps({"histories": {"histories": [{"msgs": said}, {"msgs": said[:1]}]}}).encode()
    first, second = read_chats(raw)
    assert [(m.role, m.name, m.text) for m in first.conversation.path()] == [
        (Role.ASSISTANT, "Ada", "Tick?"),
        (Role.USER, "Sam", "Hi"),
    ]
    assert len(second.conversation.messages) == 1
    assert first.conversation.id != second.conversation.id
    assert json.loads(chats.to_cai_tools(first))["histories"]["histories"] == [{"msgs": said}]


def test_text() -> None:
    """Plain text is names and what they said."""
    assert chats.to_text(tree()) == "Ada: Tock?\n\nSam: Hey & <b>\n\nAda: Good day\n"


def test_ids() -> None:
    """The caller's ids name messages and conversations."""
    ids = iter(f"id-{number}" for number in range(99))
    (chat,) = read_chats(lines(HEADER, *LINES), new_id=lambda: next(ids))
    assert all(m.id.startswith("id-") for m in chat.conversation.messages)
    assert chat.conversation.id.startswith("id-")


@pytest.mark.parametrize("head", [{}, [], 3, "nobody"])
def test_own_head_is_checked(head: JsonValue) -> None:
    """A chat of ours whose head is none of its messages is refused."""
    (chat,) = read_chats(lines(HEADER, *LINES))
    whole = json.loads(chats.to_json(chat))
    whole["conversation"]["head"] = head
    with pytest.raises(CardError, match="the head is no message"):
        read_chats(json.dumps(whole).encode())


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{}", "bad_chat"),
        (b'{"histories": [{"msgs": []}]}'.replace(b"[{", b"[3, {"), "bad_chat"),
        (b"", "bad_json"),
        (b"[]", "not_a_card"),
        (b"\xff\xfe\x00\xd8\x00", "bad_encoding"),
        (lines(HEADER, *LINES), "too_many_messages"),
        (b'{"user_name": "Sam"}' + b"\n" * 100 + b"x", "too_many_messages"),
        (lines(HEADER, {"mes": "x" * 3000}), "too_large"),
    ],
)
def test_refused(raw: bytes, code: str) -> None:
    """What is no chat, or too much of one, is refused by name."""
    small = ImportLimits(json_bytes=2000, chat_messages=2)
    with pytest.raises(CardError) as caught:
        read_chats(raw, limits=small)
    assert caught.value.code == code


LINE = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=4) | st.none(),
        "is_user": st.booleans() | st.none(),
        "is_system": st.booleans(),
        "mes": st.text(max_size=6) | st.none() | st.dictionaries(st.just("message"), st.text()),
        "swipes": st.lists(st.text(max_size=3) | st.none(), max_size=3) | st.none(),
        "swipe_id": st.integers(-2, 4) | st.none(),
        "swipe_info": st.lists(st.none(), max_size=2),
        "extra": st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    },
)


@given(st.lists(LINE, min_size=1, max_size=8))
def test_any_lines(found: list[dict[str, JsonValue]]) -> None:
    """Any lines of a SillyTavern chat go out value for value."""
    assert objects(chats.to_jsonl(one(lines(HEADER, *found)))) == [HEADER, *found]


@given(st.binary(max_size=120) | st.text(max_size=120).map(str.encode))
def test_noise(raw: bytes) -> None:
    """Any bytes are a chat or refused by name."""
    for whole in (raw, lines(HEADER) + raw, b'{"internal": ' + raw + b"}"):
        with suppress(CardError):
            read_chats(whole)
