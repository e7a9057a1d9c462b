"""gateway.history: the values a chat is made of."""

from __future__ import annotations

from dataclasses import replace

from backends.api import Role
from gateway.history import Chat, StoredMessage, TurnRecord
from gateway.protocol import MessageStatus


def say(name: str, parent: str | None, text: str, role: Role = Role.USER) -> StoredMessage:
    return StoredMessage(id=name, parent=parent, role=role, name=role.value, text=text)


BASE = Chat(id="c", persona_id="p", persona_revision="r", persona_name="P", user="U")


def test_empty_replies_do_not_reach_the_prompt() -> None:
    """A reply that failed before its first word is shown, and skipped in the conversation."""
    line = (
        say("a", None, "Hi.", Role.ASSISTANT),
        say("b", "a", "Well?"),
        say("c", "b", "", Role.ASSISTANT),
        say("d", "c", "Still there?"),
    )
    chat = replace(BASE, head="d", messages=line)
    assert [m.id for m in chat.path()] == ["a", "b", "c", "d"]
    conversation = chat.conversation()
    assert [m.id for m in conversation.path()] == ["a", "b", "d"]
    assert conversation.head == "d"


def test_only_the_shown_line() -> None:
    """Branches beside the head stay out of the conversation."""
    line = (say("a", None, "one"), say("b", "a", "two"), say("x", "a", "other"))
    chat = replace(BASE, head="x", messages=line)
    assert [m.text for m in chat.conversation().path()] == ["one", "other"]


def test_accept_and_settle() -> None:
    """A turn makes its reply the head; settling changes the reply and nothing else."""
    record = TurnRecord(id="t", request="r", user_message="u", reply="a")
    user, reply = say("u", None, "Hi"), replace(say("a", "u", "", Role.ASSISTANT), status=None)
    chat = BASE.accept(record, user, reply)
    assert (chat.head, chat.turns) == ("a", (record,))
    assert chat.message("a").wire().status is MessageStatus.INTERRUPTED
    done = replace(reply, text="Ho", status=MessageStatus.COMPLETE)
    assert chat.settle(done).messages == (user, done)
    assert BASE.conversation().path() == ()
