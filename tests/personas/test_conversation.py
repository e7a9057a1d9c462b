"""Conversations: a tree that only grows."""

from __future__ import annotations

import pytest

from backends.api import Role
from personas.conversation import ChatMessage, Conversation, MessageNotFound


def message(id: str, parent: str | None) -> ChatMessage:
    return ChatMessage(id, parent, Role.USER, "Bo", f"text of {id}")


CHAT = Conversation("c", "p", "r", "Bo").say(message("a", None)).say(message("b", "a"))


def test_path() -> None:
    """The path runs from the first message to the head."""
    assert [m.id for m in CHAT.path()] == ["a", "b"]
    assert Conversation("c", "p", "r", "Bo").path() == ()


def test_branch() -> None:
    """After a rewind another line grows, and the first one stays."""
    chat = CHAT.rewind("a").say(message("c", "a"))
    assert [m.id for m in chat.path()] == ["a", "c"]
    assert [m.id for m in chat.rewind("b").path()] == ["a", "b"]
    assert [m.id for m in chat.candidates("c")] == ["b", "c"]
    assert CHAT.head == "b"


def test_rewind_to_nothing() -> None:
    """Rewound before the first message, the path is empty and nothing is lost."""
    chat = CHAT.rewind(None)
    assert chat.path() == ()
    assert len(chat.messages) == 2


def test_unknown() -> None:
    """An id that is not there is named."""
    with pytest.raises(MessageNotFound) as missing:
        CHAT.say(message("x", "nowhere"))
    assert missing.value.message_id == "nowhere"
    with pytest.raises(MessageNotFound):
        CHAT.rewind("nowhere")
